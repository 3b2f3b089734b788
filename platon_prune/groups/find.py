"""Which coupled groups a model has: by its layout, or by how its layers depend on each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from platon_prune.example_inputs import guessed_inputs, moved_to
from platon_prune.groups import experts
from platon_prune.groups.blocks import KIND as BLOCKS
from platon_prune.groups.blocks import find_blocks
from platon_prune.groups.coupled import CoupledGroups, Missed
from platon_prune.groups.dependencies import traced_places
from platon_prune.groups.layouts import layouts
from platon_prune.masks.masked import pruned_tensors, refuse_other_masks

KINDS = ("heads", "neurons", "channels")  # what is pruned unless kinds are named
ALL_KINDS = (*KINDS, experts.KIND, BLOCKS)
_MOST_NAMED = 8


@dataclass(frozen=True)
class Found:
    """What was looked at in a model.

    Args:
        groups: Places that have groups, in the order of the model.
        missed: Those that have none, and why.
    """

    groups: list[CoupledGroups]
    missed: list[Missed]

    def reasons(self) -> str:
        """Why places have no groups, the first of them by name; empty if there are none."""
        more = len(self.missed) - _MOST_NAMED
        named = [str(missed) for missed in self.missed[:_MOST_NAMED]]
        return "; ".join(named + [f"and {more} more"] * (more > 0))


def find_groups(
    model: nn.Module,
    example_inputs: Any = None,
    *,
    kinds: str | Sequence[str] = KINDS,
    time_limit: float = 120.0,
) -> list[CoupledGroups]:
    """Find what can be removed from a model as a whole, such that removing it when masked is free.

    transformers' models are known by the names of their layers: attention heads, with grouped
    queries a key-value head with all its query heads; and feed-forward neurons, gated or not. Any
    other model is traced by torch-pruning: the channels and neurons that convolutions and linear
    layers pass to each other through batch norms and elementwise operations.

    Args:
        model: The model, with masks of ours or without.
        example_inputs: What a model is traced with if its layers are not known by their names: a
            tensor, a tuple of arguments, or a dict of them. For a model of transformers some are
            made from its config by default.
        kinds: Which of "heads", "neurons", "channels", "experts" and "blocks" to find; the last two
            only if they are named. Blocks are whole layers of a list that hand their input on once
            all of them is zero, which is tried on ``example_inputs`` or a guess by the config.
        time_limit: Seconds that tracing the model may take; where it fails or takes longer, as many
            more go into finding the modules at fault, around which the rest is traced.

    Returns:
        One entry per place, in the order of the model. A place that can't be cut surely is left
        out: one whose norm looks at all channels, or whose channels are the model's output.

    Raises:
        ValueError: If a kind is unknown, or example inputs are needed and there are none, or
            a mask of another method is on a tensor of a group or on a model that is traced.
        ImportError: If torch-pruning is needed and not installed.
        TimeoutError: If neither tracing nor the search for what it fails on ended in time.
    """
    return find(model, example_inputs, kinds=kinds, time_limit=time_limit).groups


def find(
    model: nn.Module,
    example_inputs: Any = None,
    *,
    kinds: str | Sequence[str] = KINDS,
    time_limit: float = 120.0,
) -> Found:
    """As :func:`find_groups`, with the reasons why other places have none."""
    wanted = (kinds,) if isinstance(kinds, str) else tuple(kinds)
    unknown = [kind for kind in wanted if kind not in ALL_KINDS]
    if unknown or not wanted:
        raise ValueError(f"kinds must be some of {', '.join(ALL_KINDS)}; got {kinds!r}")
    found: list[CoupledGroups] = []
    missed: list[Missed] = []
    if set(wanted) - {BLOCKS}:
        found, missed = _inside_layers(model, example_inputs, wanted, time_limit)
    found = [groups for groups in found if groups.kind in wanted]
    if BLOCKS in wanted:
        blocks, others = find_blocks(model, example_inputs, found)
        found, missed = found + blocks, missed + others
    refuse_other_masks(model, {member.name for groups in found for member in groups.members})
    # Groups must come out alike in every process and run: choices break ties by their numbers.
    order = {name: i for i, name in enumerate(_names(model))}
    found.sort(key=lambda groups: min(order[member.name] for member in groups.members))
    return Found(found, [place for place in missed if place.kind in wanted])


def _inside_layers(
    model: nn.Module, example_inputs: Any, wanted: Sequence[str], time_limit: float
) -> tuple[list[CoupledGroups], list[Missed]]:
    """The heads, neurons, channels and experts of a model, and places that have none."""
    looked = list(layouts(model))
    if experts.KIND in wanted:
        looked += experts.expert_places(model)
    found = [place for place in looked if isinstance(place, CoupledGroups)]
    missed = [place for place in looked if isinstance(place, Missed)]
    if not found:
        found, others = _traced(model, example_inputs, missed, time_limit)
        missed += others
    return found, missed


def _traced(
    model: nn.Module, example_inputs: Any, missed: list[Missed], time_limit: float
) -> tuple[list[CoupledGroups], list[Missed]]:
    """Places of a model whose layers are not known by their names, and what else was missed."""
    inputs = example_inputs
    if inputs is None and (guess := guessed_inputs(model)) is not None:
        inputs = moved_to(guess, next(model.parameters()).device)
    known = f" ({Found([], missed).reasons()})" if missed else ""
    needed = ValueError(
        "example_inputs must be given for a model whose layers are not known by their names, got "
        f"none with a {type(model).__name__}{known}: pass a batch as the model takes it"
    )
    if inputs is None:
        raise needed
    refuse_other_masks(model)  # the copy that is traced can't be made with them
    try:
        return traced_places(model, inputs, time_limit)
    except ValueError as error:
        if example_inputs is None:  # the guess was wrong
            raise needed from error
        raise


def _names(model: nn.Module) -> list[str]:
    """The names of all parameters, as they are without masks."""
    masked = {f"{name}_orig" for name, _, _ in pruned_tensors(model)}
    return [
        name.removesuffix("_orig") if name in masked else name
        for name, _ in model.named_parameters(remove_duplicate=False)
    ]
