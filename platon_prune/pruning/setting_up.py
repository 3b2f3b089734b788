"""What the functions that set pruning up have in common: all is checked, then masks are put on."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch.distributed as dist
from torch import nn

from platon_prune.choice.granularity import Granularity
from platon_prune.masks.masked import pruned_tensors
from platon_prune.masks.targets import Pairs, Target, bare, doubts
from platon_prune.name_patterns import NamePatterns
from platon_prune.pruning.capturable import require_capturable
from platon_prune.pruning.settings import Settings
from platon_prune.scheduling.scheduler import PlatonScheduler
from platon_prune.tensors.blocks import count_kept
from platon_prune.tensors.collectives import Processes
from platon_prune.tensors.shards import is_sharded, registered
from platon_prune.warning import PruningWarning

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
        is_found: Whether the tensors were found otherwise than by ``include`` and ``exclude``.
    """

    targets: Sequence[Target]
    granularity: Granularity
    amount: float
    initial_amount: float
    adopts_zeros: bool = False
    notes: Sequence[str] = ()
    is_found: bool = False


class Made(NamedTuple):
    """A scheduler whose masks are on the model, and what to warn about once all is done."""

    scheduler: PlatonScheduler
    notes: Sequence[str] = ()
    is_found: bool = False


def set_up(
    call: str,
    model: nn.Module | Pairs,
    settings: Settings,
    plan: Callable[[nn.Module | Pairs], Plan],
) -> PlatonScheduler:
    """Plan, and put masks on what is planned: in all processes, or in none.

    Args:
        call: The public function, for messages.
        model: A module, or (module, tensor name) pairs.
        settings: Those of the public function.
        plan: Says what to do with the bare model. It must not change anything, and raises if it
            can't be done.

    Returns:
        The scheduler.

    Raises:
        ValueError: If a setting is out of range, nothing is selected, a tensor can't be pruned, or
            processes differ in a setting or in the model. The model is untouched then.
        TypeError: If ``model`` or a number of steps is of the wrong type.
        RuntimeError: If it failed in another process.
    """

    def make(model: nn.Module | Pairs, processes: Processes) -> Made:
        masking, _ = settings.checked_masking(), settings.shape()
        criterion, storage = settings.made_criterion(), settings.storage()
        goal = settings.made_goal(model)
        planned = plan(model)
        schedule = settings.made_schedule(planned.amount, planned.initial_amount)
        if criterion.windowed:
            schedule.require_scores()
        if settings.capturable:
            require_capturable(planned.targets, criterion, processes)
        scheduler = PlatonScheduler(
            planned.targets,
            schedule,
            criterion,
            masking,
            storage,
            processes,
            planned.granularity,
            settings.history,
            planned.adopts_zeros,
            model,
            settings.capturable,
            goal,
        )
        return Made(scheduler, planned.notes, planned.is_found)

    return put_on(
        call,
        model,
        settings.process_group,
        make,
        include=settings.include,
        exclude=settings.exclude,
        mask_history=settings.mask_history,
    )


def put_on(
    call: str,
    model: nn.Module | Pairs,
    process_group: dist.ProcessGroup | None,
    make: Callable[[nn.Module | Pairs, Processes], Made],
    *,
    include: str | Sequence[str] | None,
    exclude: str | Sequence[str] | None,
    mask_history: str | os.PathLike[str] | None = None,
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

    Returns:
        The scheduler, whose masks are the model's zeros if it adopts them.
    """
    wrapped = model
    if isinstance(model, nn.Module):
        model = bare(model)
    processes = Processes(process_group)
    scheduler, notes, is_found = processes.all_or_none(
        call, lambda: make(model, processes), lambda made: made.scheduler.remove()
    )
    zeros: dict[str, int] = {}
    # From here on there are masks, which whatever fails has to take off again.
    try:
        scheduler.require_agreement()
        if scheduler.adopts_zeros:
            zeros = scheduler.adopt_zeros()
        if mask_history is not None:
            scheduler.record_masks(mask_history)
        messages = list(notes)
        if isinstance(model, nn.Module):
            messages += [] if is_found else doubts(model, include, exclude)
            messages += _doubtful_zeros(model, zeros, exclude) if zeros else []
        if messages:  # which may be an error
            PruningWarning.warn("; ".join(messages))
    except Exception:
        scheduler.remove()
        raise
    if isinstance(model, nn.Module) and isinstance(wrapped, nn.Module):
        _keep_masks_out_of_broadcasts(model, wrapped)
    return scheduler


def parameter_of(target: Target) -> nn.Parameter:
    """The parameter of a target that carries no mask yet; a DTensor if it is sharded."""
    return registered(*target.sites[0])


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
    excluded = NamePatterns.of("exclude", exclude)
    messages = [
        f"{name} has nothing but zeros and stays so: exclude it if it was initialised to zero"
        for name, mask in ((n, getattr(m, f"{t}_mask")) for n, m, t in pruned_tensors(model))
        if zeros.get(name) == mask.numel()
    ]
    for name, parameter in model.named_parameters():
        if name.endswith("_orig") or parameter.ndim < 2 or parameter.is_meta:
            continue
        if excluded.matches(name):
            continue
        if not is_sharded(parameter):
            share = 1 - count_kept(parameter, None) / max(1, parameter.numel())
            if share >= _SEEMS_PRUNED:
                messages.append(
                    f"{name} has {share:.1%} zeros and is not selected, so that they will be lost: "
                    "name it with include=[...] if it was pruned"
                )
    return messages
