"""n:m chosen over a line in one walk on a CPU: groups in the place of single entries.

A sample brackets the threshold, as in :mod:`platon_prune.choice.one_walk`: a group that costs less
is constrained and one that costs more is free as soon as it is met; the few others are constrained
for now, collected, and decided at the end. Should the bracket have missed, the masks are put back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from platon_prune.choice.bracket import sampled_bracket
from platon_prune.choice.one_walk import (
    Chosen,
    compare,
    most_open,
    put_back_,
    rank_open,
    sums_between,
)
from platon_prune.choice.scored import ScoredLine, scatter_
from platon_prune.choice.ties import which_tied_stay
from platon_prune.tensors.bits import pack_bits
from platon_prune.tensors.blocks import Scratch, count_true
from platon_prune.tensors.collectives import ALONE
from platon_prune.tensors.lanes import (
    Layout,
    keep_largest,
    keep_largest_of_tied,
    sorted_lanes,
    sum_of,
)
from platon_prune.tensors.ordering import tie_keys
from platon_prune.tensors.ranking import positions_of


def constrain_in_one_walk_(line: ScoredLine, n: int, m: int, count: int) -> Chosen | None:
    """Set the masks so that the ``count`` groups that lose least keep n of m, if one walk does it.

    Args:
        line: All tensors, on the CPU; entries of a group lie side by side, no slab cuts one.
        n: Entries that a constrained group keeps.
        m: Entries of a group.
        count: Groups to constrain, at least 1.

    Returns:
        What was chosen; None if the bracket missed or holds too many groups. The masks are then
        what they were.
    """
    walk = _Walk(line, n, m, sampled_bracket([_Costs(line, n, m)], count, ALONE))
    chosen = None
    try:
        chosen = walk.decide_(count) if walk.sort_out_() else None
    finally:
        if chosen is None:
            put_back_(line, walk.packed)
    return chosen


@dataclass(frozen=True)
class _Costs:
    """What constraining each group of a line loses, for a sample of them.

    Args:
        line: All tensors.
        n: Entries that a constrained group keeps.
        m: Entries of a group.
    """

    line: ScoredLine
    n: int
    m: int
    offset: int = 0

    @property
    def whole_numel(self) -> int:
        return self.line.numel // self.m

    @property
    def owned(self) -> slice:
        return slice(0, self.whole_numel)

    @property
    def device(self) -> torch.device:
        return self.line.device

    def score(self, index: Tensor) -> Tensor:
        """The costs of some groups, in ascending order of their positions."""
        # Ascending, or the line would give the scores in another order than the entries'.
        entries = index.sort().values[:, None] * self.m + torch.arange(self.m)
        lanes = self.line.score(entries.view(-1)).view(-1, self.m).T.contiguous()
        ordered = sorted_lanes(lanes, Scratch())
        return sum_of(ordered[: -self.n], out=torch.empty_like(ordered[0]))


class _Open(NamedTuple):
    """The groups that are yet to be decided, in the order of the line.

    Args:
        positions: Which groups of the line they are.
        costs: What constraining each loses.
    """

    positions: Tensor
    costs: Tensor


class _Walk:
    """One walk over a line.

    Args:
        line: All tensors.
        n: Entries that a constrained group keeps.
        m: Entries of a group.
        bracket: Below it groups are constrained, above it they are free; may be infinite.
    """

    def __init__(self, line: ScoredLine, n: int, m: int, bracket: tuple[float, float]) -> None:
        self._line = line
        self._n, self._m = n, m
        self._layout = Layout(m, 1)
        self._bracket = bracket
        self._scratch = Scratch()
        self._now, self._stayed, self._before = (line.counter() for _ in range(3))
        self._num_free = 0
        self._open: list[_Open] = []
        self.packed: list[Tensor] = []  # the masks of each slab as they were

    def sort_out_(self) -> bool:
        """Decide all groups outside the bracket; False if too many are inside."""
        line, num_open = self._line, 0
        limit = most_open(line.numel // self._m)
        for number, slab in enumerate(line.line.slabs):
            before, mask = line.kept(slab), line.new_mask(slab)
            costs, flags = self._constrained(slab, before)
            free, inside = self._sides(costs)
            at = positions_of(inside)
            num_open += at.numel()
            if num_open > limit:
                return False
            self._open.append(_Open(at + slab.start // self._m, costs[at]))
            self._layout.write_(mask, flags, self._scratch)
            self._layout.fill_(mask, free, self._scratch)
            self.packed.append(pack_bits(before))
            scatter_(mask, line.masks_in(slab))
            self._before.add(number, slab.start, line.whole_rows(before))
            self._now.add(number, slab.start, line.whole_rows(mask))
            self._stayed.add(number, slab.start, line.whole_rows(before.logical_and_(mask)))
        return True

    def _constrained(self, slab: slice, before: Tensor) -> tuple[Tensor, Tensor]:
        """What each group of a slab costs, and lanes of flags: 1 for its n largest entries."""
        scratch, n = self._scratch, self._n
        scores = self._line.score(slab)
        lanes = self._layout.split(scores, scratch, "lanes")
        ordered = sorted_lanes(lanes, scratch)
        costs = sum_of(ordered[:-n], out=scratch.like(ordered[0], torch.float32, "costs"))
        flags, tied = keep_largest(lanes, ordered, n, scratch)
        # Ties are rare and dear: the quick way flags too few there, and only those are redone.
        if int(tied.sum()):
            which = positions_of(tied)
            at = self._layout.entries(which)
            numbers = which + slab.start // self._m
            flags[:, which] = keep_largest_of_tied(scores[at], n, before[at], numbers, scratch)
        return costs, flags

    def _sides(self, costs: Tensor) -> tuple[Tensor, Tensor]:
        """Which groups are free, and which are open; bool."""
        low, high = self._bracket
        free, inside = (self._scratch.like(costs, torch.bool, role) for role in ("free", "inside"))
        compare(torch.gt, costs, high, free, self._scratch)
        compare(torch.ge, costs, low, inside, self._scratch)
        self._num_free += count_true(free)
        return free, inside.bitwise_xor_(free)

    def decide_(self, count: int) -> Chosen | None:
        """Decide the groups inside the bracket; None if the threshold is not there."""
        counts = torch.stack([each.totals() for each in (self._now, self._stayed, self._before)], 1)
        left = _Open(*(torch.cat(each) for each in zip(*self._open, strict=True)))
        self._open.clear()
        num_open = left.positions.numel()
        rank = count - (self._line.numel // self._m - num_open - self._num_free)
        if not 0 < rank <= num_open:
            return None
        threshold, below, equal = rank_open(left.costs, rank, self._bracket)
        stay = left.costs > threshold
        if below + equal > rank:
            tied = positions_of(left.costs == threshold)
            groups = left.positions[tied]
            was_free = self._kept_before(groups).all(1)
            stay[tied] = which_tied_stay(tie_keys(groups), was_free, rank - below)
        free = left.positions[positions_of(stay)]
        come_back = self._release_(free)
        # Positions ascend, so that the released groups of each tensor lie side by side.
        ends = torch.searchsorted(free, self._line.line.segments.bounds // self._m)
        counts[:, 0] += ends.diff() * (self._m - self._n)
        counts[:, 1] += sums_between(come_back, ends)
        # Adding 0 makes -0 a +0.
        return Chosen(float(threshold) + 0.0, counts)

    def _kept_before(self, groups: Tensor) -> Tensor:
        """The masks of some groups of the line as they were: bool of shape (groups, m)."""
        entries = groups[:, None] * self._m + torch.arange(self._m)
        # Slabs were packed one by one, and all but the last fill whole bytes.
        bits = torch.cat(self.packed)[entries >> 3]
        return (bits >> (entries & 7)).bitwise_and_(1).to(torch.bool)

    def _release_(self, groups: Tensor) -> Tensor:
        """Keep all entries of some groups of the line, which ascend.

        Returns:
            How many entries of each would have gone though they were kept before: int64.
        """
        slabs, m = self._line.line.slabs, self._m
        stops = torch.tensor([slab.stop // m for slab in slabs])
        come_back = self._kept_before(groups)
        start = 0
        for slab, end in zip(slabs, torch.searchsorted(groups, stops).tolist(), strict=True):
            if start < end:
                mask, at = self._line.kept(slab), groups[start:end] - slab.start // m
                rows = mask.view(-1, m)
                come_back[start:end].logical_and_(rows[at].logical_not_())
                rows[at] = True
                scatter_(mask, self._line.masks_in(slab))
            start = end
        return come_back.sum(1)
