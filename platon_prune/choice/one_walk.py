"""A choice over a line in one walk on a CPU: masks are written while the threshold is looked for.

A sample brackets the threshold. What lies above the bracket is kept and what lies below is pruned,
as soon as it is met; the few entries inside are collected and decided at the end. Should the
bracket have missed, the masks are put back, and another way of choosing is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from platon_prune.choice.bracket import sampled_bracket
from platon_prune.choice.scored import ScoredLine, scatter_
from platon_prune.choice.ties import which_tied_stay
from platon_prune.tensors import ranking
from platon_prune.tensors.bits import pack_bits, unpack_bits_
from platon_prune.tensors.blocks import Scratch
from platon_prune.tensors.collectives import ALONE
from platon_prune.tensors.ordering import tie_keys
from platon_prune.tensors.ranking import Ranked, kth_of_few, kth_smallest, positions_of

# An open entry takes some 20 bytes until it is decided, so in a large line few may be open.
_MAX_OPEN_SHARE = 1 / 32
_ALWAYS_OPEN = 1 << 17


class Chosen(NamedTuple):
    """The result of a choice over a line of tensors.

    Args:
        threshold: The largest score pruned; None if nothing was.
        counts: Of each tensor how many entries are kept, how many of those were kept before, and
            how many were kept before: int64 of shape (tensors, 3), on the device.
    """

    threshold: float | None
    counts: Tensor


class _Open(NamedTuple):
    """The entries that are yet to be decided, in the order of the line.

    Args:
        positions: Where they are in the line.
        scores: Theirs.
        kept: Whether each was kept before.
    """

    positions: Tensor
    scores: Tensor
    kept: Tensor


def prune_in_one_walk_(line: ScoredLine, count: int) -> Chosen | None:
    """Set the masks so that the ``count`` smallest entries are False, if one walk is enough.

    Args:
        line: All tensors, on the CPU.
        count: Entries to prune, at least 1.

    Returns:
        What was chosen; None if the bracket missed or holds too many entries. The masks are then
        what they were.
    """
    return _walk_(line, count, exact=True)


def prune_below_(line: ScoredLine, rank: int) -> float | None:
    """Set the masks so that what is smaller than the score of a rank is False, by one walk.

    Args:
        line: All tensors, on the CPU.
        rank: From 1.

    Returns:
        That score; None if the bracket missed or holds too many entries. The masks are then what
        they were.
    """
    chosen = _walk_(line, rank, exact=False)
    return None if chosen is None else chosen.threshold


def _walk_(line: ScoredLine, rank: int, *, exact: bool) -> Chosen | None:
    walk = _Walk(line, *sampled_bracket([line], rank, ALONE), exact)
    chosen = None
    try:
        chosen = walk.decide_(rank) if walk.sort_out_() else None
    finally:
        if chosen is None:
            walk.put_back_()
    return chosen


class _Walk:
    """One walk over a line.

    Args:
        line: All tensors.
        low: Below it entries are pruned; may be -inf.
        high: Above it they are kept; may be inf.
        exact: Whether ties are split so that an exact count is pruned; if not, those at the
            threshold stay.
    """

    def __init__(self, line: ScoredLine, low: float, high: float, exact: bool) -> None:
        self._line = line
        self._exact = exact
        self._low = low
        self._high = high
        self._now, self._stayed, self._before = (line.counter() for _ in range(3))
        self._packed: list[Tensor] = []  # the masks of each slab as they were
        self._open: list[_Open] = []

    def sort_out_(self) -> bool:
        """Decide all entries outside the bracket; False if too many are inside."""
        line, num_open = self._line, 0
        limit = most_open(line.numel)
        for number, slab in enumerate(line.line.slabs):
            scores = line.score(slab)
            above, inside = line.new_mask(slab), line.flags(slab, "inside")
            compare(torch.gt, scores, self._high, above, line.scratch)
            compare(torch.ge, scores, self._low, inside, line.scratch)
            inside.bitwise_xor_(above)
            at = positions_of(inside)
            num_open += at.numel()
            if num_open > limit:
                return False
            before = line.kept(slab)
            self._open.append(_Open(at + slab.start, scores[at], before[at]))
            self._packed.append(pack_bits(before))
            scatter_(above, line.masks_in(slab))
            self._before.add(number, slab.start, line.whole_rows(before))
            self._now.add(number, slab.start, line.whole_rows(above))
            self._stayed.add(number, slab.start, line.whole_rows(before.logical_and_(above)))
        return True

    def decide_(self, count: int) -> Chosen | None:
        """Decide what is inside the bracket; None if the threshold is not there."""
        counts = torch.stack([each.totals() for each in (self._now, self._stayed, self._before)], 1)
        left = _Open(*(torch.cat(each) for each in zip(*self._open, strict=True)))
        self._open.clear()  # they would be held twice while they are ranked
        num_open = left.positions.numel()
        rank = count - (self._line.numel - num_open - int(counts[:, 0].sum()))
        if not 0 < rank <= num_open:
            return None
        threshold, below, equal = rank_open(left.scores, rank, (self._low, self._high))
        stay = left.scores > threshold if self._exact else left.scores >= threshold
        if self._exact and below + equal > rank:
            tied = positions_of(left.scores == threshold)
            keys = tie_keys(self._line.positions(left.positions[tied]))
            stay[tied] = which_tied_stay(keys, left.kept[tied], rank - below)
        self._keep_(left.positions[positions_of(stay)])
        # Positions ascend, so that the open entries of each tensor lie side by side.
        ends = torch.searchsorted(left.positions, self._line.line.segments.bounds)
        counts[:, 0] += sums_between(stay, ends)
        counts[:, 1] += sums_between(stay.logical_and_(left.kept), ends)
        # Adding 0 makes -0 a +0.
        return Chosen(float(threshold) + 0.0, counts)

    def _keep_(self, positions: Tensor) -> None:
        """Set the masks at positions of the line, which ascend."""
        slabs = self._line.line.slabs
        ends = torch.searchsorted(positions, torch.tensor([slab.stop for slab in slabs])).tolist()
        start = 0
        for slab, end in zip(slabs, ends, strict=True):
            if start < end:
                mask = self._line.kept(slab)
                mask[positions[start:end] - slab.start] = True
                scatter_(mask, self._line.masks_in(slab))
            start = end

    def put_back_(self) -> None:
        """Make the masks what they were."""
        put_back_(self._line, self._packed)


def most_open(numel: int) -> int:
    """How many entries of so many may be left open by a walk."""
    return min(ranking.MAX_CANDIDATES, max(_ALWAYS_OPEN, int(numel * _MAX_OPEN_SHARE)))


def rank_open(scores: Tensor, rank: int, bracket: tuple[float, float]) -> Ranked:
    """The score of a rank among those of the open entries, which lie in the bracket."""
    if scores.numel() <= ranking.FEW:
        return kth_of_few(scores, rank)
    return kth_smallest(lambda: iter((scores,)), rank, bracket)


def put_back_(line: ScoredLine, packed: Sequence[Tensor]) -> None:
    """Write masks that were packed slab by slab, of the first slabs or of all."""
    for slab, bits in zip(line.line.slabs, packed, strict=False):
        mask = line.new_mask(slab)
        unpack_bits_(mask, bits)
        scatter_(mask, line.masks_in(slab))


def compare(
    operation: Callable[..., Tensor], scores: Tensor, value: float, out: Tensor, scratch: Scratch
) -> None:
    """Write a comparison of scores with a number, such as `torch.gt`, to a bool tensor."""
    if scores.device.type != "cpu":
        operation(scores, value, out=out)
        return
    # torch vectorises a comparison on the CPU only if it does not write bool.
    out.copy_(operation(scores, value, out=scratch.like(scores, scores.dtype, "compared")))


def sums_between(values: Tensor, ends: Tensor) -> Tensor:
    """The sums of flags or integers between each end and the next: int64."""
    up_to = torch.zeros(values.numel() + 1, dtype=torch.int64)
    torch.cumsum(values, 0, out=up_to[1:])
    return up_to[ends].diff()
