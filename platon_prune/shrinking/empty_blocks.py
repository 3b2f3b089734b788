"""Layers of which nothing is left: a block that is pruned, or one without heads and neurons."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import nn

from platon_prune.groups.blocks import (
    KIND,
    blocks_in,
    path_of,
    place_of,
    stacks_of,
)
from platon_prune.groups.coupled import CoupledGroups
from platon_prune.groups.emptied import is_inside
from platon_prune.shrinking.fewer_blocks import Gone, renamed
from platon_prune.shrinking.removable import Place, what_is_left


def empty_blocks(model: nn.Module, groups: Sequence[CoupledGroups]) -> list[Place]:
    """Layers that may go as a whole, each as a place that keeps all of its list but this one.

    Args:
        model: With masks of ours or without.
        groups: The places of a run, or all that were found.

    Returns:
        Those of which nothing is left. Whether the model runs alike without them is not known yet.
    """
    noted = [place for place in groups if place.kind == KIND]
    found = []
    for place in noted:
        kept = what_is_left(model, place)
        found += [_without(place, i) for i in range(place.size) if not kept[i]]
    known = {place.name for place in noted}
    others = [place for place in groups if place.kind != KIND]
    for stack, module in stacks_of(model).items():
        if stack not in known:
            found += _hollow(model, stack, list(blocks_in(module)), others)
    return _with_one_left(model, found)


def _without(place: CoupledGroups, group: int) -> Place:
    return Place(place, torch.arange(place.size) != group)


def _hollow(
    model: nn.Module, stack: str, positions: Sequence[int], others: Sequence[CoupledGroups]
) -> list[Place]:
    """Layers of a list that have places, and nothing left in any of them."""
    names: list[str] = []
    hollow = []
    for position in positions:
        inside = [place for place in others if is_inside(place, path_of(stack, position))]
        names += [member.name for place in inside for member in place.members]
        if inside and not any(what_is_left(model, place).any() for place in inside):
            hollow.append(position)
    if not hollow:
        return []
    # Of what its places hold alone: a bias that is left is seen, and then the layer is not gone.
    place = place_of(model, stack, hollow, names=names)
    return [_without(place, i) for i in range(place.size)]


def _with_one_left(model: nn.Module, found: Sequence[Place]) -> list[Place]:
    """Those without the first layer of a list that would lose all of them."""
    kept = []
    for stack in dict.fromkeys(place.groups.name for place in found):
        here = [place for place in found if place.groups.name == stack]
        is_last = len(here) == len(list(model.get_submodule(stack).children()))
        kept += here[1:] if is_last else here
    return kept


def merged(places: Sequence[Place]) -> list[Place]:
    """One place for each list, without all the layers that go."""
    found: dict[str, Place] = {}
    for place in places:
        name = place.groups.name
        first = found.setdefault(name, place)
        found[name] = first.keeping(first.kept & place.kept, place.note)
    return list(found.values())


def still_there(places: Sequence[Place], layers: Gone) -> list[Place]:
    """The places in layers that stay, called as they are once the others are gone."""
    found = []
    for place in places:
        groups = renamed_groups(place.groups, layers)
        if groups is not None:
            found.append(dataclasses.replace(place, groups=groups))
    return found


def renamed_groups(groups: CoupledGroups, layers: Gone) -> CoupledGroups | None:
    """A place as it is called once layers are gone; None if it is gone with one."""
    names = [renamed(member.name, layers) for member in groups.members]
    if None in names:
        return None
    pairs = zip(groups.members, names, strict=True)
    members = tuple(dataclasses.replace(member, name=str(name)) for member, name in pairs)
    return dataclasses.replace(
        groups, name=renamed(groups.name, layers) or groups.name, members=members
    )
