"""What the functions that set pruning up have in common: all is checked, then masks are put on."""

from __future__ import annotations

import inspect
import os
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from platon_prune.choice.granularity import Granularity
from platon_prune.criteria import Criterion, make_criterion
from platon_prune.masks.masked import pruned_tensors
from platon_prune.masks.method import MASKINGS
from platon_prune.masks.targets import Pairs, Target, as_patterns, bare, doubts, select
from platon_prune.schedule import CubicSchedule
from platon_prune.scheduling.notices import PruningWarning
from platon_prune.scheduling.scheduler import PlatonScheduler
from platon_prune.scheduling.tracked import Storage
from platon_prune.tensors.blocks import count_kept
from platon_prune.tensors.collectives import Processes
from platon_prune.tensors.shards import is_sharded, registered

# Of a tensor that is not selected, the share of zeros from which on it seems to have been pruned.
_SEEMS_PRUNED = 0.1


@dataclass(frozen=True)
class Plan:
    """What is to be pruned, and how much of it.

    Args:
        targets: The tensors to prune.
        granularity: Which of their weights live or die together.
        amount: What the granularity prunes in the end, in [0, 1].
        initial_amount: What it prunes when the ramp starts, in [0, ``amount``].
        adopts_zeros: Whether the zeros that the model has are the first masks, and the initial
            amount.
        notes: What to warn about, once it is done.
    """

    targets: Sequence[Target]
    granularity: Granularity
    amount: float
    initial_amount: float
    adopts_zeros: bool = False
    notes: Sequence[str] = ()


def set_up(
    call: str,
    model: nn.Module | Pairs,
    plan: Callable[[list[Target]], Plan],
    *,
    total_steps: int,
    warmup_steps: int,
    cooldown_steps: int,
    beta1: float,
    beta2: float,
    window: int,
    criterion: str | Criterion,
    masking: str,
    include: str | Sequence[str] | None,
    exclude: str | Sequence[str] | None,
    own_keys: bool | None,
    state_dtype: torch.dtype,
    offload_averages: bool,
    process_group: dist.ProcessGroup | None,
    history: bool = True,
    mask_history: str | os.PathLike[str] | None = None,
    find: Callable[[nn.Module], Collection[str]] | None = None,
) -> PlatonScheduler:
    """Select tensors, plan, and put masks on them: in all processes, or in none.

    Args:
        call: The public function, for messages.
        model: A module, or (module, tensor name) pairs.
        plan: Says what to do with the tensors that were selected. It must not change anything, and
            raises if it can't be done.
        total_steps: As for :func:`platon_prune.global_unstructured`, and so are all others.
        warmup_steps: Likewise.
        cooldown_steps: Likewise.
        beta1: Likewise.
        beta2: Likewise.
        window: Likewise.
        criterion: Likewise.
        masking: Likewise.
        include: Likewise.
        exclude: Likewise.
        own_keys: Likewise.
        state_dtype: Likewise.
        offload_averages: Likewise.
        process_group: Likewise.
        history: Likewise.
        mask_history: Likewise.
        find: Names the tensors to take of a model, instead of a selection by ``include`` and
            ``exclude``.

    Returns:
        The scheduler.

    Raises:
        ValueError: If a setting is out of range, nothing is selected, a tensor can't be pruned, or
            processes differ in a setting or in the model. The model is untouched then.
        TypeError: If ``model`` or a number of steps is of the wrong type.
        RuntimeError: If it failed in another process.
    """
    notes: list[str] = []

    def make(model: nn.Module | Pairs, processes: Processes) -> PlatonScheduler:
        if masking not in MASKINGS:
            raise ValueError(f'masking must be "step" or "window", got {masking!r}')
        chosen = make_criterion(criterion, beta1, beta2)
        storage = Storage(_checked_dtype(state_dtype), offload_averages)
        names = find(model) if find is not None and isinstance(model, nn.Module) else None
        planned = plan(select(model, include, exclude, own_keys, names))
        notes.extend(planned.notes)
        schedule = CubicSchedule(
            amount=planned.amount,
            total_steps=total_steps,
            warmup_steps=warmup_steps,
            cooldown_steps=cooldown_steps,
            initial_amount=planned.initial_amount,
            window=window,
        )
        if chosen.windowed:
            schedule.require_scores()
        return PlatonScheduler(
            planned.targets,
            schedule,
            chosen,
            masking,
            storage,
            processes,
            planned.granularity,
            history,
            planned.adopts_zeros,
        )

    return put_on(
        call,
        model,
        process_group,
        make,
        include=include,
        exclude=exclude,
        mask_history=mask_history,
        finds=find is not None,
        notes=notes,
    )


def put_on(
    call: str,
    model: nn.Module | Pairs,
    process_group: dist.ProcessGroup | None,
    make: Callable[[nn.Module | Pairs, Processes], PlatonScheduler],
    *,
    include: str | Sequence[str] | None,
    exclude: str | Sequence[str] | None,
    mask_history: str | os.PathLike[str] | None = None,
    finds: bool = False,
    notes: Sequence[str] = (),
) -> PlatonScheduler:
    """Make a scheduler for a model; collective, and all or nothing.

    Args:
        call: The public function, for messages.
        model: What was handed over.
        process_group: Those that prune together; None for all.
        make: Makes the scheduler of the bare model, or raises before it touches that.
        include: What the selection names; for warnings.
        exclude: What it leaves out; for warnings.
        mask_history: Where it records its masks, if anywhere.
        finds: Whether tensors were found otherwise than by ``include`` and ``exclude``.
        notes: What else to warn about; read once the scheduler is made.

    Returns:
        The scheduler, whose masks are the model's zeros if it adopts them.
    """
    wrapped = model
    if isinstance(model, nn.Module):
        model = bare(model)
    processes = Processes(process_group)
    scheduler = processes.all_or_none(call, lambda: make(model, processes), PlatonScheduler.remove)
    zeros: dict[str, int] = {}
    try:
        scheduler.require_agreement()
        if scheduler.adopts_zeros:
            zeros = scheduler.adopt_zeros()
        if mask_history is not None:
            scheduler.record_masks(mask_history)
        messages = list(notes)
        if isinstance(model, nn.Module):
            messages += [] if finds else doubts(model, include, exclude)
            messages += _doubtful_zeros(model, zeros, exclude) if zeros else []
        if messages:  # which may be an error
            _warn("; ".join(messages))
    except Exception:
        scheduler.remove()
        raise
    if isinstance(model, nn.Module) and isinstance(wrapped, nn.Module):
        _keep_masks_out_of_broadcasts(model, wrapped)
    return scheduler


def parameter_of(target: Target) -> nn.Parameter:
    """The parameter of a target that carries no mask yet; a DTensor if it is sharded."""
    return registered(*target.sites[0])


def _checked_dtype(state_dtype: torch.dtype) -> torch.dtype:
    if state_dtype not in (torch.float32, torch.bfloat16):
        raise ValueError(
            f"state_dtype must be torch.float32 or torch.bfloat16, got {state_dtype}: scores span "
            "more orders of magnitude than float16 has"
        )
    return state_dtype


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


def _doubtful_zeros(
    model: nn.Module, zeros: Mapping[str, int], exclude: str | Sequence[str] | None
) -> list[str]:
    """Name tensors whose zeros may not be what they seem."""
    excluded = as_patterns("exclude", exclude) or ()
    messages = [
        f"{name} has nothing but zeros and stays so: exclude it if it was initialised to zero"
        for name, mask in ((n, getattr(m, f"{t}_mask")) for n, m, t in pruned_tensors(model))
        if zeros.get(name) == mask.numel()
    ]
    for name, parameter in model.named_parameters():
        if name.endswith("_orig") or parameter.ndim < 2 or parameter.is_meta:
            continue
        if any(pattern in name for pattern in excluded):
            continue
        if not is_sharded(parameter):
            share = 1 - count_kept(parameter, None) / max(1, parameter.numel())
            if share >= _SEEMS_PRUNED:
                messages.append(
                    f"{name} has {share:.1%} zeros and is not selected, so that they will be lost: "
                    "name it with include=[...] if it was pruned"
                )
    return messages


def _warn(message: str) -> None:
    """Warn where the first caller outside of the package is."""
    package, level, frame = __name__.partition(".")[0], 1, inspect.currentframe()
    while frame is not None and frame.f_globals.get("__name__", "").startswith(f"{package}."):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, PruningWarning, stacklevel=level)
