"""`shrink`: removes the coupled groups of a model of which nothing is left."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.utils import prune

from platon_prune.example_inputs import guessed_inputs, moved_to
from platon_prune.groups import experts
from platon_prune.groups.blocks import KIND as BLOCKS
from platon_prune.groups.coupled import CoupledGroups
from platon_prune.groups.find import ALL_KINDS, find_groups
from platon_prune.groups.noted import (
    forget_groups_,
    note_left_,
    noted_groups,
    noted_inputs,
)
from platon_prune.masks.masked import pruned_tensors, refuse_other_masks
from platon_prune.masks.targets import bare
from platon_prune.shrinking.attention import head_bias
from platon_prune.shrinking.carrying_out import carry_out_, check_optimizer
from platon_prune.shrinking.cut_out import plan_cut
from platon_prune.shrinking.empty_blocks import empty_blocks, merged
from platon_prune.shrinking.expert_counts import say_what_balancing_is_left_
from platon_prune.shrinking.fewer_blocks import Gone, is_gone
from platon_prune.shrinking.proof import CannotRun, failures
from platon_prune.shrinking.removable import Place, find_places
from platon_prune.shrinking.uniform import with_same_counts
from platon_prune.tables import table
from platon_prune.warning import PruningWarning


@dataclass(frozen=True)
class PlaceReport:
    """One row: how many heads, neurons or channels a place had and has."""

    name: str
    kind: str
    before: int
    after: int
    note: str = ""


@dataclass(frozen=True)
class ShrinkReport:
    """What :func:`shrink` did; prints as a table.

    Args:
        places: A row for each place with coupled groups.
        parameters_before: Number of parameters of the model, shared ones once.
        parameters_after: The same, now.
        in_config: Kinds of places whose counts the config tells.
    """

    places: tuple[PlaceReport, ...]
    parameters_before: int
    parameters_after: int
    in_config: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [("place", "kind", "before", "after", "note")]
        lines += [
            (row.name, row.kind, f"{row.before:,}", f"{row.after:,}", row.note)
            for row in self.places
        ]
        total = (f"{self.parameters_before:,}", f"{self.parameters_after:,}")
        return table([*lines, ("total", "parameters", *total, "")])


def shrink(
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None = None,
    example_inputs: Any = None,
    *,
    uniform: bool = False,
    time_limit: float = 120.0,
) -> ShrinkReport:
    """Remove from a model the heads, neurons, channels and blocks of which nothing is left.

    A group goes when every entry of it is pruned by a mask or, in a tensor without mask, zero; one
    group of each place stays. A layer whose heads and neurons are all gone goes as a whole where it
    hands on what it is given. The outputs stay what they are. All masks are finalized first, as
    :func:`platon_prune.remove` does, so what comes out is an ordinary model, which can be trained
    further, pruned again and shrunk again. Parameters stay the same objects.

    The cut is tried on a twin first, on example inputs, in evaluation and in training. A place
    without which an output differs by more than 1e-5 of the largest (ten times the rounding of a
    dtype coarser than that) stays as it is, and the report's note says why; the others go.

    Args:
        model: Changed in place.
        optimizer: What it remembers of the parameters is cut alike, so that training goes on as it
            would have without shrinking. An optimizer that is not given here can't be used further.
        example_inputs: What the model can be called with: the result is verified on it, and the
            groups of a model that was not pruned by ``global_structured`` are found by it. By
            default those of set-up, or for text and image models of transformers some that are made
            from the config.
        uniform: Whether every layer gets the same counts, the largest that any layer needs and the
            config can tell, so that ``save_pretrained`` and ``from_pretrained`` do for the result.
            What can't go then stays, as zeros; all of it, with a warning, if the config can tell
            no smaller counts. Otherwise every layer gets the counts it needs.
        time_limit: Seconds that tracing a model of unknown layers may take.

    Returns:
        The counts before and after, place by place.

    Raises:
        ValueError: If there is nothing to remove, a tensor carries a mask of another method, or
            the optimizer's state can't be cut. The model is as it was then.
        TypeError: If ``model`` is not a module.
        TimeoutError: If tracing took longer than ``time_limit``.
    """
    _check_model(model)
    model = bare(model)
    before = num_parameters(model)
    groups = _groups_of(model, example_inputs, time_limit)
    places = find_places(model, [each for each in groups if each.kind != BLOCKS])
    places = head_bias.without_unknown(model, places)
    inputs = _inputs_of(model, example_inputs)
    blocks = empty_blocks(model, groups)
    places, blocks = _verified(model, places, blocks, inputs, example_inputs is not None)
    if all(place.kept.all() for place in (*places, *blocks)):
        raise _nothing_to_remove(groups, [*places, *blocks])
    if uniform:
        # What is put back for the config must fit too.
        places = with_same_counts(model, places)
        places, blocks = _verified(model, places, blocks, inputs, example_inputs is not None)
        if all(place.kept.all() for place in (*places, *blocks)):
            PruningWarning.warn(
                "nothing was cut out, for the config can tell no smaller counts: shrink without "
                "uniform=True, and save with platon_prune.save"
            )
        _tell_experts_of_zeros(model, places)
    cut = plan_cut(model, [*places, *blocks])
    check_optimizer(model, cut, optimizer)
    # Nothing was changed up to here, and nothing is refused from here on.

    for _, module, key in list(pruned_tensors(model)):
        prune.remove(module, key)  # type: ignore[no-untyped-call]

    # Of layers that were merely found empty, and stay, their places tell.
    told = [b for b in blocks if not b.kept.all() or any(b.groups is each for each in groups)]
    rows = report_rows(places, told, cut.layers)
    left = carry_out_(model, cut, places, told, optimizer)
    say_what_balancing_is_left_(model)
    forget_groups_(model)  # they count what is no longer there
    note_left_(model, [*left.places, *left.blocks])
    return ShrinkReport(rows, before, num_parameters(model), left.in_config)


def _inputs_of(model: nn.Module, example_inputs: Any) -> Any | None:
    """What the result is verified on; None if nothing is known that the model takes."""
    if example_inputs is not None:
        return example_inputs
    inputs = noted_inputs(model)
    inputs = guessed_inputs(model) if inputs is None else inputs
    # Those of set-up lie on the CPU, wherever the model is by now.
    device = next((parameter.device for parameter in model.parameters()), None)
    return inputs if inputs is None or device is None else moved_to(inputs, device)


def _verified(
    model: nn.Module,
    places: Sequence[Place],
    blocks: Sequence[Place],
    inputs: Any | None,
    are_given: bool,
) -> tuple[list[Place], list[Place]]:
    """The plan without what changes the outputs on example inputs, which then stays as zeros.

    Args:
        model: Not changed.
        places: Heads, neurons and channels.
        blocks: Layers, each by itself or several of a list together.
        inputs: Example inputs, if any are known.
        are_given: Whether it is an error if the model does not run on them.

    Returns:
        The places, and one place for each list of which layers go or could have gone.
    """
    every = [*places, *blocks]
    try:
        found = failures(model, every, inputs)
    except CannotRun:
        if are_given:
            raise
        # The inputs were a guess, or the model has changed since set-up.
        inputs, found = None, failures(model, every, None)
    if inputs is None:  # sizes say nothing of what a layer hands on
        found |= dict.fromkeys(
            range(len(places), len(every)), "example_inputs are needed to try it"
        )
    left = [place.keeping_all(found[i]) if i in found else place for i, place in enumerate(every)]
    return left[: len(places)], merged(left[len(places) :])


def _tell_experts_of_zeros(model: nn.Module, places: Sequence[Place]) -> None:
    """Warn of experts that were put back for the config: others than this model pick them."""
    filled = sum(
        int((place.kept & experts.passed_over(model, place.groups)).sum())
        for place in places
        if place.groups.kind == experts.KIND
    )
    if filled:
        PruningWarning.warn(
            f"{filled} experts of zeros stay, so that the config can tell one number for all "
            "layers: this model passes over them, one that from_pretrained builds does not; save "
            "with platon_prune.save, or shrink without uniform=True"
        )


def _check_model(model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be an nn.Module, got {type(model).__name__}")
    refuse_other_masks(model)
    for module in model.modules():
        if isinstance(module, nn.parallel.DistributedDataParallel):
            raise ValueError(
                "model must not be wrapped in DistributedDataParallel, which knows its parameters "
                "by their sizes, got one: shrink model.module in every process and wrap it again"
            )
        if hasattr(module, "lora_A"):
            raise ValueError(
                "model must be without adapters, got one of LoRA: merge it first, with peft's "
                "model.merge_and_unload()"
            )


def _groups_of(model: nn.Module, example_inputs: Any, time_limit: float) -> Sequence[CoupledGroups]:
    # Those of the run first: a traced model needs no example inputs again.
    groups: Sequence[CoupledGroups] = noted_groups(model)
    if not groups:
        inside = [kind for kind in ALL_KINDS if kind != BLOCKS]
        found = find_groups(model, example_inputs, kinds=inside, time_limit=time_limit)
        # A mixture whose routers pass over nothing has no experts to remove, nor a row to show.
        groups = [
            place
            for place in found
            if place.kind != experts.KIND or experts.passed_over(model, place).any()
        ]
    if not groups:
        # Layers alone last: of one that has other places it shows in these that it is empty.
        groups = find_groups(model, example_inputs, kinds=BLOCKS, time_limit=time_limit)
    if not groups:
        raise ValueError(
            f"model must have coupled groups, such as heads or neurons, got a "
            f"{type(model).__name__} without: give example_inputs, from which those of any model "
            "can be found"
        )
    return groups


def _nothing_to_remove(groups: Sequence[CoupledGroups], places: Sequence[Place]) -> ValueError:
    notes = sorted({place.note for place in places if place.note})
    total = sum(place.size for place in groups)
    return ValueError(
        f"model must have groups of which nothing is left and that can be cut out, got none of "
        f"{total:,} in {len(groups)} places ({'; '.join(notes) or 'something is left of each'}): "
        "prune with global_structured, which prunes whole groups"
    )


def num_parameters(model: nn.Module) -> int:
    """Number of parameters of a model, shared ones once."""
    return sum(parameter.numel() for parameter in model.parameters())


def report_rows(
    places: Sequence[Place], blocks: Sequence[Place], layers: Gone
) -> tuple[PlaceReport, ...]:
    """A row for each place and each list of layers, of a plan that takes out whole layers too."""
    return tuple(_row(place, layers) for place in (*places, *blocks))


def _row(place: Place, layers: Gone) -> PlaceReport:
    groups, is_block = place.groups, place.groups.kind == BLOCKS
    if not is_block and layers and all(is_gone(member.name, layers) for member in groups.members):
        return PlaceReport(groups.name, groups.kind, groups.size, 0, "its block is gone")
    return PlaceReport(groups.name, groups.kind, groups.size, place.after, place.note)
