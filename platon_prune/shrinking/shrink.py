"""`shrink`: removes the coupled groups of a model of which nothing is left."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from platon_prune.groups.coupled import CoupledGroups
from platon_prune.groups.find import find_groups
from platon_prune.groups.noted import forget_groups_, noted_groups
from platon_prune.masks.masked import pruned_tensors, refuse_other_masks
from platon_prune.masks.targets import bare
from platon_prune.shrinking import head_bias
from platon_prune.shrinking.config_sizes import adopt_
from platon_prune.shrinking.optimizer_states import check_states, cut_states_
from platon_prune.shrinking.removable import Place, find_places, kept_indices
from platon_prune.shrinking.resize import Kept, check_sizes, find, named_parameter, resize_
from platon_prune.shrinking.uniform import config_as_left, with_same_counts
from platon_prune.tables import table


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
    *,
    uniform: bool = False,
    example_inputs: Any = None,
) -> ShrinkReport:
    """Remove from a model the heads, neurons and channels of which nothing is left.

    A group goes when every entry of it is pruned by a mask or, in a tensor without mask, zero; one
    group of each place stays. The outputs stay what they are. All masks are finalized first, as
    :func:`platon_prune.remove` does, so what comes out is an ordinary model, which can be trained
    further, pruned again and shrunk again. Parameters stay the same objects.

    Args:
        model: Changed in place.
        optimizer: What it remembers of the parameters is cut alike, so that training goes on as it
            would have without shrinking. An optimizer that is not given here can't be used further.
        uniform: Whether every layer gets the same counts, the largest that any layer needs and the
            config can tell, so that ``save_pretrained`` and ``from_pretrained`` do for the result.
            What can't go then stays, as zeros. Otherwise every layer gets the counts it needs.
        example_inputs: What the model can be called with, to find the coupled groups of a model
            that was not pruned by ``global_structured``; not needed for transformers' models.

    Returns:
        The counts before and after, place by place.

    Raises:
        ValueError: If there is nothing to remove, a tensor carries a mask of another method, or
            the optimizer's state can't be cut. The model is as it was then.
        TypeError: If ``model`` is not a module.
    """
    _check_model(model)
    model = bare(model)
    before = _num_parameters(model)
    places = find_places(model, _groups_of(model, example_inputs))
    places = head_bias.without_unknown(model, places)
    if uniform:
        places = with_same_counts(model, places)
    kept = kept_indices(places)
    if not kept:
        raise _nothing_to_remove(places)
    # Before the cut: afterwards the layers no longer tell which heads they had.
    heads = head_bias.left_heads(model, places)
    for name in head_bias.tables(model):
        kept.pop(name, None)  # cut to the heads that any of its layers keeps
    check_sizes(model, kept)
    if optimizer is not None:
        check_states(optimizer, *_by_parameter(model, kept))
    config, in_config = config_as_left(model, places)
    # Nothing was changed up to here, and nothing is refused from here on.

    for _, module, key in list(pruned_tensors(model)):
        prune.remove(module, key)  # type: ignore[no-untyped-call]

    def also(tensor: Tensor, indices: Kept) -> None:
        if optimizer is not None:
            cut_states_(optimizer, tensor, indices)

    resize_(model, kept, also)
    head_bias.share_bias_(model, heads, also)
    if config is not None:
        adopt_(model, config)
    forget_groups_(model)  # they count what is no longer there
    rows = tuple(_row(place) for place in places)
    return ShrinkReport(rows, before, _num_parameters(model), in_config)


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


def _groups_of(model: nn.Module, example_inputs: Any) -> Sequence[CoupledGroups]:
    # Those of the run first: a traced model needs no example inputs again.
    groups = noted_groups(model) or find_groups(model, example_inputs)
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
