"""What must hold of a choice, whatever the program: counts by the paper's schedule, and the order.

Nothing here asks the library for anything but its masks, scores and threshold.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction

import group_twin
import pytest
import torch
from programs import Program
from torch import Tensor

from platon_prune import CoupledGroups, PlatonScheduler

ROUNDED = Fraction(1, 2) + Fraction(1, 10**6)


def due(settings: dict, step: int) -> Fraction:
    """The amount of the schedule, from the paper's formula, in exact arithmetic."""
    first, last = (Fraction(settings[key]) for key in ("initial_amount", "amount"))
    begin, end = settings["warmup_steps"], settings["total_steps"] - settings["cooldown_steps"]
    if step >= end:
        return last
    left = 1 - Fraction(step - begin, end - begin)
    return last + (first - last) * left**3


def chooses(settings: dict, step: int) -> bool:
    end, total = settings["total_steps"] - settings["cooldown_steps"], settings["total_steps"]
    if not settings["warmup_steps"] < step <= total:
        return False
    return step % settings["window"] == 0 or step in (end, total)


def check_choice(program: Program, scheduler: PlatonScheduler, amount: Fraction) -> None:
    """Exact counts, and the smallest scores are the ones that went."""
    # The scores of magnitude are those before zeroing.
    ordered = program.settings["criterion"] != "magnitude"
    masks = scheduler.masks()
    if program.pattern is None:
        _check_weights(masks, scheduler, amount, ordered)
    elif isinstance(program.pattern, str):
        _check_coupled(masks, scheduler, amount, ordered, program.settings["aggregate"])
    else:
        _check_n_of_m(masks, scheduler, amount, ordered, *program.pattern)


def _check_weights(masks, scheduler, amount, ordered) -> None:
    pruned = sum(int((~mask).sum()) for mask in masks.values())
    wanted = amount * sum(mask.numel() for mask in masks.values())
    assert abs(pruned - wanted) <= ROUNDED, (pruned, wanted)
    if pruned == 0 or not ordered:
        return
    lowest_kept, highest_pruned = float("inf"), -float("inf")
    for name, mask in masks.items():
        score = scheduler.score(name)
        lowest_kept = min([lowest_kept, *score[mask].tolist()])
        highest_pruned = max([highest_pruned, *score[~mask].tolist()])
    assert highest_pruned <= lowest_kept
    assert scheduler.threshold == highest_pruned


def _check_n_of_m(masks, scheduler, amount, ordered, n, m) -> None:
    """A constrained group keeps its largest scores, and gives up less than any other would."""
    constrained = groups = 0
    given_up, spared = [-float("inf")], [float("inf")]
    for name, mask in masks.items():
        kept = mask.movedim(1, -1).reshape(-1, m)
        scores = scheduler.score(name).movedim(1, -1).reshape(-1, m)
        assert set(kept.sum(1).tolist()) <= {n, m}
        groups += len(kept)
        constrained += int((kept.sum(1) == n).sum())
        for row, is_kept in zip(scores, kept, strict=True) if ordered else ():
            lost = row.sort().values[: m - n].double().sum().item()
            if is_kept.all():
                spared.append(lost)
            else:
                assert row[~is_kept].max() <= row[is_kept].min()
                given_up.append(lost)
    assert abs(constrained - amount * groups) <= ROUNDED
    # Sums are compared in float32.
    assert max(given_up) <= min(spared) + 1e-5 * abs(max(given_up))


def _check_coupled(masks, scheduler, amount, ordered, aggregate) -> None:
    """Whole groups go, as near to the amount as they get, one of each place stays, by scores."""
    places = scheduler.granularity.groups
    shapes = {name: mask.shape for name, mask in masks.items()}
    every = [(i, g) for i, place in enumerate(places) for g in range(place.size)]
    gone = [group for group in every if _is_gone(masks, places, group)]
    assert_equal_masks(masks, group_twin.masks(places, shapes, gone))

    def saved(groups):
        return group_twin.saved(group_twin.masks(places, shapes, groups), {})

    wanted = amount * saved(every)
    costs = {group: saved([group]) for group in every}
    # A group is passed over, or goes beyond the amount, by half of what it costs at most.
    assert abs(saved(gone) - wanted) <= max(costs.values()) / 2 + ROUNDED
    for i, place in enumerate(places):
        assert sum(group[0] == i for group in gone) < place.size
    scores = {(i, g): score for i, g, score in group_twin.scores(scheduler, places, aggregate)}
    if not gone or not all(map(math.isfinite, scores.values())):
        return
    last = max(scores[group] for group in gone) if ordered else math.inf
    near = last - 1e-9 * abs(last) if ordered else -math.inf
    assert any(
        saved([group for group in gone if group != taken]) < wanted + ROUNDED
        for taken in gone
        if scores[taken] >= near
    )
    if ordered:
        assert scheduler.threshold == pytest.approx(last, rel=1e-9)
        for group in set(every) - set(gone):
            only_one = sum(other[0] == group[0] for other in set(every) - set(gone)) == 1
            # Or it would have taken the model further away from the amount than leaving it did.
            is_too_large = costs[group] > 2 * (wanted - saved(gone)) - ROUNDED
            assert scores[group] >= near or only_one or is_too_large


def _is_gone(masks, places: Sequence[CoupledGroups], group: tuple[int, int]) -> bool:
    place = places[group[0]]
    slices = [
        masks[member.name].index_select(member.dim, place.indices(member, [group[1]]))
        for member in place.members
    ]
    return not any(part.any() for part in slices)


def assert_equal_masks(masks: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> None:
    assert masks.keys() == others.keys()
    for name, mask in masks.items():
        assert torch.equal(mask, others[name]), name
