"""Limits say how much of a tensor may be pruned; the choice within them is exact too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction

import torch

from platon_prune.amounts import fraction
from platon_prune.choice.scored import ScoredTensor
from platon_prune.choice.selection import Cut, find_cut, write_masks_
from platon_prune.name_patterns import NamePatterns
from platon_prune.tensors.collectives import ALONE, Processes

MaxAmount = float | Mapping[str, float]


def checked(max_amount: MaxAmount) -> MaxAmount:
    """The limits as plain numbers.

    Raises:
        TypeError: If a limit is not a number, or a pattern not a string.
        ValueError: If a limit is not in [0, 1], or none is given.
    """
    # Checked when the door is called, and not at the first choice, hours later.
    if not isinstance(max_amount, Mapping):
        return _checked_limit("max_amount", max_amount)
    if not max_amount:
        raise ValueError("max_amount must name at least one pattern, got none: leave it out")
    for pattern in max_amount:
        if not isinstance(pattern, str):
            raise TypeError(f"max_amount must map substrings of names to limits, got {pattern!r}")
    return {
        pattern: _checked_limit(f"max_amount of {pattern!r}", limit)
        for pattern, limit in max_amount.items()
    }


def caps_of(max_amount: MaxAmount, sizes: Sequence[tuple[str, int]]) -> list[int]:
    """How many entries of each tensor may be pruned at most, ``floor(limit * size)``.

    Args:
        max_amount: Fraction of every tensor, or of those whose names have a substring; where
            several patterns match, all of them hold.
        sizes: Name and number of entries of each tensor.

    Returns:
        A count for each.

    Raises:
        ValueError: If a pattern matches no name.
    """
    limits = max_amount if isinstance(max_amount, Mapping) else {"": max_amount}
    patterns = NamePatterns("max_amount", tuple(limits))
    patterns.require_matches([name for name, _ in sizes], "pruned tensors")
    # As the decimal fractions that were typed: 0.29 of 100 is 29, and not 28.999...
    exact = {pattern: Fraction(repr(float(limit))) for pattern, limit in limits.items()}
    return [
        int(
            size * min((exact[pattern] for pattern in patterns.matching(name)), default=Fraction(1))
        )
        for name, size in sizes
    ]


def is_limited(max_amount: MaxAmount, name: str) -> bool:
    """Whether one of the limits makes a tensor keep something."""
    # One limit for all is a pattern that every name has.
    limits = max_amount if isinstance(max_amount, Mapping) else {"": max_amount}
    limiting = tuple(pattern for pattern, limit in limits.items() if limit < 1)
    return NamePatterns("max_amount", limiting).matches(name)


def require_room(max_amount: MaxAmount, sizes: Sequence[tuple[str, int]], amount: float) -> None:
    """Raise a ValueError if the limits leave less to prune than the amount that is due."""
    total, caps = sum(size for _, size in sizes), caps_of(max_amount, sizes)
    if sum(caps) < round(amount * total):
        raise ValueError(
            f"max_amount must leave room for {round(amount * total)} of {total} weights, the final "
            f"amount {amount:.6g}, but allows {sum(caps)} ({sum(caps) / total:.6g} of them): raise "
            "the limits or lower amount"
        )


def prune_smallest_within_(
    tensors: Sequence[ScoredTensor],
    count: int,
    caps: Sequence[int],
    processes: Processes = ALONE,
) -> float | None:
    """As :func:`~platon_prune.choice.selection.prune_smallest_`, but within the caps.

    Pruned is what remains if one goes through all entries, the smallest first in the order of
    ``prune_smallest_``, and takes each one whose tensor is not full, until there are ``count``.
    No other choice within the caps has a smaller sum of scores.

    Args:
        tensors: As there.
        count: As there; at most the sum of the caps.
        caps: The most entries that each tensor may lose, in all processes together.
        processes: As there.

    Returns:
        The largest score pruned; None if ``count`` is 0.

    Raises:
        RuntimeError: As there.
    """
    assert count <= sum(caps), "refused at set-up"
    # Who exceeds its cap at the threshold of all is full in the end too: without it, the threshold
    # of the others only rises. So fill those and look again, until nobody exceeds.
    full: list[int] = []
    free = list(range(len(tensors)))
    if count == sum(caps):  # no threshold of all needs to be looked for
        full, free = free, full
    while True:
        left = count - sum(caps[i] for i in full)
        cut = find_cut([tensors[i] for i in free], left, processes)
        exceeding = _exceeding([tensors[i] for i in free], [caps[i] for i in free], cut, processes)
        if not any(exceeding):
            break
        full += [i for i, exceeds in zip(free, exceeding, strict=True) if exceeds]
        free = [i for i, exceeds in zip(free, exceeding, strict=True) if not exceeds]
    cuts = [cut] * len(tensors)
    for i in full:  # which loses exactly its cap, whatever the others do
        cuts[i] = find_cut([tensors[i]], caps[i], processes)
    write_masks_(tensors, cuts, processes)
    return max((each.value for each in cuts if each is not None), default=None)


def _exceeding(
    tensors: Sequence[ScoredTensor], caps: Sequence[int], cut: Cut | None, processes: Processes
) -> list[bool]:
    """Which tensors would lose more than their caps by a cut."""
    # Counting takes a walk over the scores, so it is done only where it can tell something.
    limited = [cap < tensor.whole_numel for tensor, cap in zip(tensors, caps, strict=True)]
    if cut is None or not any(limited):
        return [False] * len(tensors)
    counts = [
        cut.count(tensor) if has_cap else 0
        for tensor, has_cap in zip(tensors, limited, strict=True)
    ]
    lost = processes.sum(torch.tensor(counts, dtype=torch.int64)).tolist()
    return [number > cap for number, cap in zip(lost, caps, strict=True)]


def _checked_limit(argument: str, limit: float) -> float:
    meaning = "the largest fraction of a tensor that may be pruned, such as 0.98"
    return fraction(argument, limit, meaning=meaning, closed=True)
