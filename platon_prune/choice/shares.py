"""Shares: how many entries each tensor loses where all of them lose the same fraction."""

from __future__ import annotations

from collections.abc import Sequence


def shares_of(count: int, sizes: Sequence[int], caps: Sequence[int] | None = None) -> list[int]:
    """Spread a count over tensors, so that all of them lose the same fraction but for rounding.

    A tensor whose cap is below its share loses its cap, and all others the same larger fraction.
    Each share is rounded down or up, up where most is missing; but a tensor is emptied by rounding
    only where no other can lose one entry more.

    Args:
        count: Entries to prune in all, at most the sum of the caps.
        sizes: Number of entries of each tensor.
        caps: The most entries that each may lose; by default all of them.

    Returns:
        A count for each, which add up to ``count``: the same in every process, since only whole
        numbers are computed with.
    """
    lost = list(sizes if caps is None else caps)
    assert 0 <= count <= sum(lost), "refused at set-up"
    free, left = list(range(len(sizes))), count
    while True:
        total = sum(sizes[i] for i in free)
        capped = {i for i in free if left * sizes[i] > lost[i] * total}
        if not capped:
            break
        # The fraction of the others rises, which may bring the next to their caps.
        left -= sum(lost[i] for i in capped)
        free = [i for i in free if i not in capped]
    missing = {}
    for i in free:
        lost[i], missing[i] = divmod(left * sizes[i], total) if total else (0, 0)
    uneven = [i for i in free if missing[i]]
    # Stable, so that of equals the first in the model is rounded up.
    uneven.sort(key=lambda i: (lost[i] + 1 == sizes[i], -missing[i]))
    for i in uneven[: count - sum(lost)]:
        lost[i] += 1
    return lost
