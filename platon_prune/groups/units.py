"""What goes in one step of a choice: one group, or one of each set that must stay equal.

The experts of a mixture may be divided into routing groups, which keep equal numbers of them. Then
the worst of each routing group go together, next the second worst of each, and so on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from platon_prune.groups.coupled import CoupledGroups
from platon_prune.tensors.ordering import tie_keys


@dataclass(frozen=True)
class Units:
    """The units of all places, one after another.

    Args:
        scores: The mean score of each unit's groups; float64.
        kept: Whether any of its groups is kept; bool.
        unit_of: The unit of each group; int64.
    """

    scores: Tensor
    kept: Tensor
    unit_of: Tensor

    def groups_of(self, units: Tensor) -> Tensor:
        """The flags of groups whose units are flagged."""
        return units[self.unit_of]


def num_units(place: CoupledGroups) -> int:
    """How many units a place has."""
    return place.size // place.num_sets


def units_of(places: Sequence[CoupledGroups], scores: Tensor, kept: Tensor) -> Units:
    """Divide groups into units by their scores.

    Args:
        places: All places.
        scores: Of all their groups, one place after another; float64.
        kept: Whether each of them is kept; bool.

    Returns:
        Each group as a unit of its own, but in places with sets.
    """
    if all(place.num_sets == 1 for place in places):
        return Units(scores, kept, torch.arange(len(scores)))
    ties = tie_keys(torch.arange(len(scores)))
    sizes = [place.size for place in places]
    parts = [torch.split(values, sizes) for values in (scores, kept, ties)]
    unit_of, first = [], 0
    for place, own, is_kept, keys in zip(places, *parts, strict=True):
        unit_of.append(first + _ranks(own, is_kept, keys, place.num_sets))
        first += num_units(place)
    numbers = torch.cat(unit_of)
    sums = torch.zeros(first, dtype=scores.dtype).index_add_(0, numbers, scores)
    counts = torch.bincount(numbers, minlength=first)
    any_kept = torch.bincount(numbers, kept.double(), minlength=first) > 0
    return Units(sums / counts, any_kept, numbers)


def _ranks(scores: Tensor, kept: Tensor, ties: Tensor, num_sets: int) -> Tensor:
    """The rank of each group in its set, the first to go at 0; by scores, what is gone, ties."""
    if num_sets == 1:
        return torch.arange(len(scores))
    ranks = torch.empty(num_sets, len(scores) // num_sets, dtype=torch.int64)
    rows = (values.view(num_sets, -1) for values in (scores, kept, ties))
    for rank, own, is_kept, keys in zip(ranks, *rows, strict=True):
        order = keys.argsort()
        order = order[is_kept[order].to(torch.int8).argsort(stable=True)]
        order = order[own[order].argsort(stable=True)]
        rank[order] = torch.arange(len(order))
    return ranks.flatten()
