"""What a transformers trainer may not use while it prunes."""

from __future__ import annotations

import sys
from typing import Any

from torch import nn
from transformers import TrainingArguments

# What is in the name of an optimizer of transformers, and why scores can't be taken beside it.
_OPTIMIZERS = {
    "layerwise": "updates each layer during the backward pass",
    "lomo": "updates weights during the backward pass and keeps no gradients",
    "schedule_free": "evaluates other weights than it trains",
}


_INSTEAD = (
    'use DDP (torchrun alone), or FSDP2: fsdp=True with fsdp_config={"version": 2}, which is the '
    "default"
)


def refuse_unsupported(args: TrainingArguments) -> None:
    """Raise a ValueError for what hides or changes the gradients that the scores need."""
    if args.deepspeed:
        raise ValueError(
            "the trainer must leave each parameter its own gradient, got DeepSpeed, which flattens "
            f"them: {_INSTEAD}"
        )
    config: dict[str, Any] = args.fsdp_config if isinstance(args.fsdp_config, dict) else {}
    if args.fsdp and (config.get("xla") or config.get("xla_fsdp_v2")):
        raise ValueError(
            "the trainer must leave each parameter its own gradient, got fsdp with xla, which "
            f"flattens them: {_INSTEAD}"
        )
    if args.fsdp and int(config.get("version", 2)) != 2:
        raise ValueError(
            "the trainer must leave each parameter its own gradient, got fsdp of version "
            f"{config['version']}, which flattens them: {_INSTEAD}"
        )
    # An enum of transformers', or the text that a script gave.
    optimizer = str(getattr(args.optim, "value", args.optim))
    for kind, what in _OPTIMIZERS.items():
        if kind in optimizer:
            raise ValueError(
                f"optim must keep gradients and weights as they are, got {optimizer!r}, which "
                f'{what}: use optim="adamw_torch"'
            )
    # A GradScaler unscales before clipping, or else leaves it to the fused step.
    if "fused" in optimizer and args.fp16 and not args.max_grad_norm:
        raise ValueError(
            f"gradients must be unscaled when scores are updated, got optim={optimizer!r} with "
            'fp16 and no clipping, which unscales inside its step: use optim="adamw_torch", or '
            "set max_grad_norm"
        )


def refuse_flattened(model: nn.Module) -> None:
    """Raise a ValueError for a model under FSDP1, which accelerate's own settings may ask for."""
    # Not imported for it: nothing is wrapped in what was never imported.
    wrapper = getattr(sys.modules.get("torch.distributed.fsdp"), "FullyShardedDataParallel", None)
    if wrapper is not None and any(isinstance(module, wrapper) for module in model.modules()):
        raise ValueError(
            "the trainer must leave each parameter its own gradient, got a model under FSDP1, "
            f"which flattens them: {_INSTEAD}; with accelerate launch, --fsdp_version 2"
        )
