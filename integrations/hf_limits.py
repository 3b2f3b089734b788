"""What a transformers trainer may not use while it prunes."""

from __future__ import annotations

from transformers import TrainingArguments

_OPTIMIZERS = {
    "layerwise": "updates each layer during the backward pass",
    "lomo": "updates weights during the backward pass and keeps no gradients",
    "schedule_free": "evaluates other weights than it trains",
}


def refuse_unsupported(args: TrainingArguments) -> None:
    """Raise a ValueError for what hides or changes the gradients that the scores need."""
    if args.deepspeed:
        raise ValueError(
            "the trainer must leave each parameter its own gradient, got DeepSpeed, which flattens "
            "them: use DDP (torchrun) instead"
        )
    if args.fsdp:
        raise ValueError(
            "the trainer must leave each parameter its own gradient, got fsdp, which shards or "
            "flattens them: use DDP (torchrun) instead"
        )
    optimizer = str(getattr(args.optim, "value", args.optim))
    for kind, what in _OPTIMIZERS.items():
        if kind in optimizer:
            raise ValueError(
                f"optim must keep gradients and weights as they are, got {optimizer!r}, which "
                f'{what}: use optim="adamw_torch"'
            )
    if "fused" in optimizer and args.fp16 and not args.max_grad_norm:
        raise ValueError(
            f"gradients must be unscaled when scores are updated, got optim={optimizer!r} with "
            'fp16 and no clipping, which unscales inside its step: use optim="adamw_torch", or '
            "set max_grad_norm"
        )
