"""`shrink`: removes the coupled groups of a model of which nothing is left."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from platon_prune.example_inputs import guessed_inputs, moved_to
from platon_prune.groups import experts
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
from platon_prune.shrinking import head_bias
from platon_prune.shrinking.config_sizes import adopt_
from platon_prune.shrinking.cut_out import cut_out_, plan_cut
from platon_prune.shrinking.expert_counts import say_what_balancing_is_left_
from platon_prune.shrinking.optimizer_states import check_states, cut_states_
from platon_prune.shrinking.proof import CannotRun, failures
from platon_prune.shrinking.removable import Place, find_places, groups_left
from platon_prune.shrinking.resize import Kept, find, named_parameter
from platon_prune.shrinking.uniform import config_as_left, with_same_counts
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
    """Remove from a model the heads, neurons and channels of which nothing is left.

    A group goes when every entry of it is pruned by a mask or, in a tensor without mask, zero; one
    group of each place stays. The outputs stay what they are. All masks are finalized first, as
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
    before = _num_parameters(model)
    places = find_places(model, _groups_of(model, example_inputs, time_limit))
    places = head_bias.without_unknown(model, places)
    inputs = _inputs_of(model, example_inputs)
    places = _verified(model, places, inputs, example_inputs is not None)
    if all(place.kept.all() for place in places):
        raise _nothing_to_remove(places)
    if uniform:
        # What is put back for the config must fit too.
        places = with_same_counts(model, places)
        places = _verified(model, places, inputs, example_inputs is not None)
        if all(place.kept.all() for place in places):
            PruningWarning.warn(
                "nothing was cut out, for the config can tell no smaller counts: shrink without "
                "uniform=True, and save with platon_prune.save"
            )
        _tell_experts_of_zeros(model, places)
    cut = plan_cut(model, places)
    if optimizer is not None:
        check_states(optimizer, *_by_parameter(model, cut.kept))
    config, in_config = config_as_left(model, places)
    # Nothing was changed up to here, and nothing is refused from here on.

    for _, module, key in list(pruned_tensors(model)):
        prune.remove(module, key)  # type: ignore[no-untyped-call]

    def also(tensor: Tensor, indices: Kept) -> None:
        if optimizer is not None:
            cut_states_(optimizer, tensor, indices)

    cut_out_(model, cut, also)
    if config is not None:
        adopt_(model, config)
    say_what_balancing_is_left_(model)
    forget_groups_(model)  # they count what is no longer there
    note_left_(model, groups_left(model, places))
    rows = tuple(_row(place) for place in places)
    return ShrinkReport(rows, before, _num_parameters(model), in_config)


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
    model: nn.Module, places: Sequence[Place], inputs: Any | None, are_given: bool
) -> list[Place]:
    """The plan without what changes the outputs on example inputs, which then stays as zeros."""
    try:
        found = failures(model, places, inputs)
    except CannotRun:
        if are_given:
            raise
        # The inputs were a guess, or the model has changed since set-up.
        found = failures(model, places, None)
    return [place.keeping_all(found[i]) if i in found else place for i, place in enumerate(places)]


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
        found = find_groups(model, example_inputs, kinds=ALL_KINDS, time_limit=time_limit)
        # A mixture whose routers pass over nothing has no experts to remove, nor a row to show.
        groups = [
            place
            for place in found
            if place.kind != experts.KIND or experts.passed_over(model, place).any()
        ]
    if not groups:
        raise ValueError(
            f"model must have coupled groups, such as heads or neurons, got a "
            f"{type(model).__name__} without: give example_inputs, from which those of any model "
            "can be found"
        )
    return groups


def _nothing_to_remove(places: Sequence[Place]) -> ValueError:
    notes = sorted({place.note for place in places if place.note})
    total = sum(place.groups.size for place in places)
    return ValueError(
        f"model must have groups of which nothing is left and that can be cut out, got none of "
        f"{total:,} in {len(places)} places ({'; '.join(notes) or 'something is left of each'}): "
        "prune with global_structured, which prunes whole groups"
    )


def _by_parameter(
    model: nn.Module, kept: dict[str, dict[int, Tensor]]
) -> tuple[dict[Tensor, Kept], dict[Tensor, str]]:
    """What stays of each parameter, and its name, by the parameter itself."""
    parameters: dict[Tensor, str] = {named_parameter(*find(model, name)): name for name in kept}
    return {parameter: kept[name] for parameter, name in parameters.items()}, parameters


def _num_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _row(place: Place) -> PlaceReport:
    groups = place.groups
    return PlaceReport(groups.name, groups.kind, groups.size, place.after, place.note)
