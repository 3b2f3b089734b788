"""Models that can't be pruned as they are: flattened, with adapters, quantised, or frozen."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from platon_prune.masks.default_selection import Candidate

# By the names of their classes: importing either to ask would need its package.
_FLATTENING = {"FullyShardedDataParallel": "FSDP1", "DeepSpeedEngine": "DeepSpeed"}


def refuse_flat_gradients(model: nn.Module) -> None:
    """Raise a ValueError under wrappers that leave no parameter a gradient of its own."""
    for part in model.modules():
        wrapper = _FLATTENING.get(type(part).__name__)
        if wrapper is not None:
            raise ValueError(
                f"each parameter must have its own gradient, got a model under {wrapper}, which "
                "flattens them: use torch.distributed.fsdp.fully_shard (FSDP2) or DDP"
            )


def refuse_wrapped_models(model: nn.Module) -> None:
    """Raise a ValueError for adapters and for what transformers has quantised."""
    for part in model.modules():
        # transformers' own integration of PEFT sets the second, PEFT's wrapper the first.
        if hasattr(part, "peft_config") or getattr(part, "_hf_peft_config_loaded", False):
            raise ValueError(
                "model must not carry adapters, got one with a PEFT config, whose base weights are "
                "frozen: merge them first (merge_and_unload), or name what to prune with "
                "include=[...]; to keep the zeros of a sparse base, call adopt_zeros(base) before "
                "the adapters are put on"
            )
        if getattr(part, "is_quantized", False):
            raise ValueError(
                "model must not be quantised, got is_quantized=True: prune the full-precision "
                "model and quantise the result, or name what to prune with include=[...]"
            )


def refuse_frozen(candidates: Sequence[Candidate]) -> None:
    """Raise one ValueError for all selected weights that are frozen, as a merge leaves a model.

    One frozen weight among others is left to who checks each, and names it.
    """
    frozen = [name for name, module, key in candidates if _is_frozen(module, key)]
    if len(frozen) > 1:
        raise ValueError(
            f"the weights to prune must require gradients, got {len(frozen)} of {len(candidates)} "
            f"frozen, such as {frozen[0]} (a merge of adapters leaves a model so): unfreeze them "
            "with model.requires_grad_(True) before the optimizer is made, or leave them out with "
            "exclude=[...]"
        )


def _is_frozen(module: nn.Module, key: str) -> bool:
    if key not in module._parameters:
        return False
    # Not by get(), which what a scripted module keeps its parameters in does not have.
    weight = module._parameters[key]
    # Of another class it is quantised or wrapped, which is worse than frozen.
    if weight is None or type(weight) is not nn.Parameter:
        return False
    return weight.is_floating_point() and not weight.requires_grad
