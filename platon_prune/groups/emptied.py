"""A block of which all heads, neurons and channels are gone goes with what else it has: biases."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from platon_prune.groups.blocks import KIND, path_of, positions_of
from platon_prune.groups.coupled import CoupledGroups


class Emptied:
    """Which groups lie in which block.

    Args:
        groups: All places of a run, one after another.
    """

    def __init__(self, groups: Sequence[CoupledGroups]) -> None:
        starts = [0]
        for place in groups:
            starts.append(starts[-1] + place.size)
        self._inside: list[tuple[int, Tensor]] = []  # a block, and the groups in it
        others = [i for i, place in enumerate(groups) if place.kind != KIND]
        for stack, start in zip(groups, starts, strict=False):
            for group, position in enumerate(positions_of(stack)) if stack.kind == KIND else ():
                path = path_of(stack.name, position)
                found = [i for i in others if is_inside(groups[i], path)]
                if found:
                    index = [torch.arange(starts[i], starts[i + 1]) for i in found]
                    self._inside.append((start + group, torch.cat(index)))

    def completed(self, pruned: Tensor) -> Tensor:
        """Flags of pruned groups, and of the blocks of which they leave no other group."""
        pruned = pruned.clone()
        for block, inside in self._inside:
            pruned[block] |= pruned[inside].all()
        return pruned


def is_inside(place: CoupledGroups, path: str) -> bool:
    """Whether all that a place holds lies in the module at a path."""
    return all(member.name.startswith(f"{path}.") for member in place.members)
