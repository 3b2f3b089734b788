"""Zeros are put back into a shrunk model, evenly, until a config can tell its sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from platon_prune.example_inputs import guessed_inputs
from platon_prune.groups.coupled import CoupledGroups, Member
from platon_prune.groups.experts import mixtures
from platon_prune.groups.find import find_groups
from platon_prune.groups.layouts import layout_groups
from platon_prune.shrinking import twin
from platon_prune.shrinking.attention import head_bias
from platon_prune.shrinking.attention.handed_bias import handed_paths, heads_in_handed
from platon_prune.shrinking.config_sizes import config_for, config_of


def with_zeros_back(model: Any) -> Any:
    """A model that computes the same and whose config tells its sizes.

    Each layer gets as many heads and neurons as the one that has most, or more where the config
    can't tell that number; at most what the config tells now.

    Args:
        model: A shrunk model of transformers, without masks; not changed.

    Returns:
        A new model, in evaluation, that ``save_pretrained`` and ``from_pretrained`` do for.

    Raises:
        ValueError: If it is no such model, or what comes out would not compute the same.
    """
    config = config_of(model)
    if config is None:
        raise ValueError(
            f"model must have a config, as transformers' models do, got a {type(model).__name__}"
        )
    with torch.device("meta"):
        whole = type(model)(config)
    most = {place.name: place for place in layout_groups(whole)}
    places = [_grouped_as(model, place, most.get(place.name)) for place in find_groups(model)]
    for kind in sorted({place.kind for place in places}):
        config = _telling(model, config, kind, [p for p in places if p.kind == kind], most)
    new = type(model)(config).to(dtype=model.dtype).eval()
    _require_equal_experts(new, model)
    _fill_(new, model)
    _verify(new, model)
    return new


def _telling(
    model: Any,
    config: Any,
    kind: str,
    places: Sequence[CoupledGroups],
    most: Mapping[str, CoupledGroups],
) -> Any:
    """A config of the smallest count that holds all places; as it is if none other can be told."""
    first = max(int(_positions(model, place).max()) + 1 for place in places)
    tables = head_bias.tables(model)
    for count in range(first, max(most[place.name].size for place in places)):
        shapes = {
            member.name: shape
            for place in places
            for member, shape in _padded(model, place, count).items()
        }
        changed = config_for(model, config, kind, count, shapes, tables)
        if changed is not None:
            return changed
    return config


def _grouped_as(
    model: nn.Module, place: CoupledGroups, other: CoupledGroups | None
) -> CoupledGroups:
    """The groups of a shrunk layer as they lie in a larger one of the same name.

    Where a layer was left with one key-value head, its query heads are groups by themselves; among
    those of a layer that has several, they are one group.
    """

    def has_rest(groups: CoupledGroups) -> bool:
        return any(bool((member.group_of < 0).any()) for member in groups.members)

    if other is None or (
        len(place.members) == len(other.members) and has_rest(place) == has_rest(other)
    ):
        return place
    members = (
        replace(
            member,
            group_of=torch.zeros(
                model.get_parameter(member.name).shape[member.dim], dtype=torch.int64
            ),
        )
        for member in other.members
    )
    return replace(place, size=1, members=tuple(members))


def _positions(model: Any, place: CoupledGroups) -> Tensor:
    """Where each group of a shrunk layer lies among those of the even one; int64."""
    path = place.members[0].name.rpartition(".")[0].rpartition(".")[0]
    if place.kind == "heads" and any(path in paths for paths in head_bias.stacks(model)):
        return head_bias.heads_of_bias(model, path)  # T5's must meet their columns of the table
    if place.kind == "heads" and place.name in handed_paths(model):
        return heads_in_handed(model, place.name)
    return torch.arange(place.size)


def _padded(model: Any, place: CoupledGroups, count: int) -> dict[Member, tuple[int, ...]]:
    shapes = {}
    for member in place.members:
        shape = list(model.get_parameter(member.name).shape)
        in_groups = int((member.group_of >= 0).sum())
        shape[member.dim] += in_groups * count // place.size - in_groups
        shapes[member] = tuple(shape)
    return shapes


@torch.no_grad()
def _fill_(new: nn.Module, old: nn.Module) -> None:
    """Copy all tensors, those of shrunk layers to their places among zeros."""
    larger = {place.name: place for place in find_groups(new)}
    where: dict[str, dict[int, Tensor]] = {}
    for place in find_groups(old):
        place = _grouped_as(old, place, larger[place.name])
        positions = _positions(old, place)
        wide = {(member.name, member.dim): member for member in larger[place.name].members}
        for member in place.members:
            index = torch.empty_like(member.group_of)
            # What is in no group, as the one key that all queries read, is in none of the other.
            for group, position in enumerate([*positions.tolist(), -1]):
                ours = member.group_of == (group if position >= 0 else -1)
                target = wide[member.name, member.dim].group_of == position
                # Of grouped queries there may be fewer for the one key that was left.
                index[ours] = target.nonzero().flatten()[: int(ours.sum())]
            where.setdefault(member.name, {})[member.dim] = index
    values = dict(old.named_parameters()) | dict(old.named_buffers())
    for name, tensor in (*new.named_parameters(), *new.named_buffers()):
        value = values[name]
        dims = where.get(name, {})
        # A table of positions that was cut has its columns first.
        indices = [dims.get(dim, torch.arange(size)) for dim, size in enumerate(value.shape)]
        if value.shape == tensor.shape:
            tensor.copy_(value)
        else:
            tensor.zero_()
            tensor[torch.meshgrid(*indices, indexing="ij")] = value.to(tensor.dtype)


def _require_equal_experts(new: nn.Module, old: nn.Module) -> None:
    """Raise a ValueError if experts would have to be put back, to which tokens would go."""
    for even, own in zip(mixtures(new), mixtures(old), strict=True):
        if even.size != own.size:
            raise ValueError(
                f"model must have as many experts in each layer as its config tells, got {own.path}"
                f" with {own.size} of {even.size}: tokens would be routed to experts of zeros; "
                "keep it as it is, and load it with platon_prune.load"
            )


def _verify(new: Any, old: Any) -> None:
    inputs = guessed_inputs(old)
    if inputs is None:
        return
    with twin.as_if_nothing_happened(old):
        try:
            expected = twin.outputs_of(old.eval(), inputs)
        except Exception:  # the guess was wrong
            return
        differs = twin.difference(twin.outputs_of(new, inputs), expected)
    if differs:
        raise ValueError(
            f"model must compute the same with zeros put back, but {differs}: keep it as it is, "
            "and load it with platon_prune.load"
        )
