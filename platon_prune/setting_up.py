"""Putting a scheduler on a model in all processes at once, or in none of them."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch.distributed as dist
from torch import nn

from platon_prune.blocks import count_kept
from platon_prune.collectives import Processes
from platon_prune.masked import pruned_tensors
from platon_prune.scheduler import PlatonScheduler, PruningWarning
from platon_prune.shards import is_sharded
from platon_prune.targets import Pairs, bare

# Of a tensor that is not selected, the share of zeros from which on it seems to have been pruned.
_SEEMS_PRUNED = 0.1


def set_up(
    model: nn.Module | Pairs,
    process_group: dist.ProcessGroup | None,
    make: Callable[[nn.Module | Pairs, Processes], PlatonScheduler],
    mask_history: str | os.PathLike[str] | None = None,
) -> PlatonScheduler:
    """Make a scheduler for a model; collective, and all or nothing.

    Args:
        model: What was handed over.
        process_group: Those that prune together; None for all.
        make: Makes the scheduler of the bare model, or raises before it touches that.
        mask_history: Where it records its masks, if anywhere.

    Returns:
        The scheduler, whose masks are the model's zeros if it adopts them.
    """
    wrapped = model
    if isinstance(model, nn.Module):
        model = bare(model)
    processes = Processes(process_group)
    scheduler = processes.all_or_none(
        "setting pruning up", lambda: make(model, processes), PlatonScheduler.remove
    )
    zeros: dict[str, int] = {}
    try:
        scheduler.require_agreement()
        if scheduler.adopts_zeros:
            zeros = scheduler.adopt_zeros()
        if mask_history is not None:
            scheduler.record_masks(mask_history)
    except Exception:
        scheduler.remove()
        raise
    if isinstance(model, nn.Module) and isinstance(wrapped, nn.Module):
        _keep_masks_out_of_broadcasts(model, wrapped)
        if zeros:
            _warn_of_zeros(model, zeros)
    return scheduler


def _keep_masks_out_of_broadcasts(model: nn.Module, wrapped: nn.Module) -> None:
    """DistributedDataParallel sends all buffers at each forward but those that it finds here.

    It reads the model's list when it wraps that, and its own at each forward.
    """
    masks = [f"{name}_mask" for name, _, _ in pruned_tensors(model)]
    masks += [f"_orig_mod.{name}" for name in masks]  # as torch.compile's wrapper calls them
    ignored: Any = getattr(model, "_ddp_params_and_buffers_to_ignore", ())
    model._ddp_params_and_buffers_to_ignore = [*ignored, *masks]  # type: ignore[assignment]
    for module in wrapped.modules():
        if isinstance(module, nn.parallel.DistributedDataParallel):
            module.parameters_to_ignore.update(masks)


def _warn_of_zeros(model: nn.Module, zeros: Mapping[str, int]) -> None:
    """Name tensors whose zeros may not be what they seem."""
    messages = [
        f"{name} has nothing but zeros and stays so: exclude it if it was initialised to zero"
        for name, mask in ((n, getattr(m, f"{t}_mask")) for n, m, t in pruned_tensors(model))
        if zeros.get(name) == mask.numel()
    ]
    for name, parameter in model.named_parameters():
        if name.endswith("_orig") or parameter.ndim < 2 or parameter.is_meta:
            continue
        if not is_sharded(parameter):
            share = 1 - count_kept(parameter, None) / max(1, parameter.numel())
            if share >= _SEEMS_PRUNED:
                messages.append(
                    f"{name} has {share:.1%} zeros and is not selected, so that they will be lost: "
                    "name it with include=[...] if it was pruned"
                )
    if messages:
        warnings.warn("; ".join(messages), PruningWarning, stacklevel=4)
