"""The choice of groups in plain loops: what `global_structured` must equal."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from platon_prune import CoupledGroups, PlatonScheduler
from platon_prune.tensors.ordering import tie_keys

AGGREGATES = {
    "mean": lambda values: float(values.mean()),
    "sum": lambda values: float(values.sum()),
    "max": lambda values: float(values.max()),
    "l2": lambda values: float(values.square().sum().sqrt()),
}


def scores(
    scheduler: PlatonScheduler, groups: Sequence[CoupledGroups], aggregate: str
) -> list[tuple[int, int, float]]:
    """(place, group, score) of every group, each over the mean of its place if it is normalized."""
    of = {name: scheduler.score(name).double() for name in scheduler.masks()}
    found = []
    for i, place in enumerate(groups):
        for g in range(place.size):
            slices = [
                of[m.name].index_select(m.dim, place.indices(m, [g])).flatten()
                for m in place.members
            ]
            found.append((i, g, AGGREGATES[aggregate](torch.cat(slices))))
    normalizer = scheduler.granularity.normalizer
    assert normalizer in ("none", "mean")
    return found if normalizer == "none" else _over_means(found)


def _over_means(found: Sequence[tuple[int, int, float]]) -> list[tuple[int, int, float]]:
    places: dict[int, list[float]] = {}
    for i, _, score in found:
        if math.isfinite(score):
            places.setdefault(i, []).append(score)
    means = {i: math.fsum(of_place) / len(of_place) for i, of_place in places.items()}
    return [(i, g, s / means[i] if means.get(i, 0) > 0 else s) for i, g, s in found]


def masks(
    groups: Sequence[CoupledGroups],
    shapes: Mapping[str, torch.Size],
    gone: Sequence[tuple[int, int]],
) -> dict[str, Tensor]:
    """The masks of all tensors with some (place, group) gone."""
    result = {name: torch.ones(shape, dtype=torch.bool) for name, shape in shapes.items()}
    for i, g in gone:
        for member in groups[i].members:
            result[member.name].index_fill_(member.dim, groups[i].indices(member, [g]), False)
    return result


def saved(found: Mapping[str, Tensor], prices: Mapping[str, int]) -> int:
    return sum(prices.get(name, 1) * int((~mask).sum()) for name, mask in found.items())


def choice(
    scheduler: PlatonScheduler,
    groups: Sequence[CoupledGroups],
    before: Sequence[tuple[int, int]],
    amount: float,
    floors: Sequence[int],
    aggregate: str = "mean",
    prices: Mapping[str, int] | None = None,
) -> list[tuple[int, int]]:
    """The (place, group) that go, in the order in which they do.

    Args:
        scheduler: For the scores.
        groups: All places.
        before: What was gone before.
        amount: What is due.
        floors: What each place keeps.
        aggregate: How a group is scored.
        prices: Of an entry of each tensor; 1 where there is none.
    """
    shapes = {name: mask.shape for name, mask in scheduler.masks().items()}
    keys = tie_keys(torch.arange(sum(place.size for place in groups))).tolist()
    ranked = [
        (score, (i, g) not in before, key, (i, g))
        for key, (i, g, score) in zip(keys, scores(scheduler, groups, aggregate), strict=True)
    ]
    order = [group for *_, group in sorted(ranked)]
    for i, floor in enumerate(floors):
        for group in [group for group in order if group[0] == i][-floor:]:
            order.remove(group)
    prices = prices or {}
    everything = [(i, g) for i, place in enumerate(groups) for g in range(place.size)]
    due = round(amount * saved(masks(groups, shapes, everything), prices))
    gone: list[tuple[int, int]] = []
    passed_over = set()
    for group in order:
        before = saved(masks(groups, shapes, gone), prices)
        after = saved(masks(groups, shapes, [*gone, group]), prices)
        if before >= due:
            break
        if abs(after - due) > abs(before - due):
            passed_over.add(group[0])
        if group[0] not in passed_over:
            gone.append(group)
    return gone
