"""How many flags are set in each of many tensors that lie in one line, without a step for each."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

ROW = 128  # flags that are added up together, as 16 words of eight
_ADD_BYTES = 0x0101010101010101  # times this, a word has the sum of its bytes in the highest one


class SegmentCounts:
    """Counts of set flags, gathered slab by slab of a line of tensors.

    Args:
        ends: Where each tensor ends in the line.
        slabs: Slices of the line in order, which begin at multiples of ``ROW``.
        device: Where the flags are.
    """

    def __init__(self, ends: Sequence[int], slabs: Sequence[slice], device: torch.device) -> None:
        self._rows = torch.zeros(-(-(ends[-1] if ends else 0) // ROW) + 1, dtype=torch.int64)
        self._rows = self._rows.to(device)
        bounds = torch.tensor([0, *ends])
        self._row, self._lane = bounds // ROW, bounds % ROW
        # Rows that a tensor's end cuts are kept, to be counted up to there.
        self._cut = torch.zeros(len(bounds), ROW, dtype=torch.bool, device=device)
        self._at = []
        for slab in slabs:
            inside = (bounds > slab.start) & (bounds <= slab.stop) & (self._lane > 0)
            at = inside.nonzero().squeeze(1)
            self._at.append((at.to(device), (self._row[at] - slab.start // ROW).to(device)))
        before = torch.arange(ROW) < self._lane[:, None]
        self._row, self._before = self._row.to(device), before.to(device)

    def add(self, number: int, start: int, flags: Tensor) -> None:
        """Take in a slab.

        Args:
            number: Which one.
            start: Where it begins in the line.
            flags: Bool, contiguous; its length is a multiple of ``ROW``, False beyond the line.
        """
        rows = flags.view(torch.int64).view(-1, ROW // 8).sum(1)
        rows.mul_(_ADD_BYTES).bitwise_right_shift_(56).bitwise_and_(0xFF)
        self._rows[start // ROW + 1 : start // ROW + 1 + rows.numel()] = rows
        at, local = self._at[number]
        if at.numel():
            self._cut[at] = flags.view(-1, ROW)[local]

    def counts(self) -> Tensor:
        """int64, one for each tensor."""
        up_to = self._rows.cumsum(0)[self._row]
        up_to += self._cut.logical_and_(self._before).sum(1)
        return up_to.diff()
