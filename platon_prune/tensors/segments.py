"""Counts of set flags in each tensor of a line, in operations whose number is that of the slabs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

ROW = 128  # flags that are added up together, as 16 words of eight
_ADD_BYTES = 0x0101010101010101  # times this, a word has the sum of its bytes in the highest one


class Segments:
    """Where tensors begin and end in a line, and in which rows of flags; made once for a line.

    Args:
        ends: Where each tensor ends in the line.
        slabs: Slices of the line in order, which begin at multiples of ``ROW``.
        device: Where the flags are.
    """

    def __init__(self, ends: Sequence[int], slabs: Sequence[slice], device: torch.device) -> None:
        bounds = torch.tensor([0, *ends])
        self.bounds = bounds.to(device)
        row, lane = bounds // ROW, bounds % ROW
        self.num_rows = int(row[-1]) + 1
        self.device = device
        self.row = row.to(device)
        # Of a row that a tensor's end cuts, what is before it.
        self.before = (torch.arange(ROW) < lane[:, None]).to(device)
        self.cut_rows = []
        for slab in slabs:
            inside = (bounds > slab.start) & (bounds <= slab.stop) & (lane > 0)
            at = inside.nonzero().squeeze(1)
            self.cut_rows.append((at.to(device), (row[at] - slab.start // ROW).to(device)))

    def counts(self) -> SegmentCounts:
        """A new count of flags."""
        return SegmentCounts(self)


class SegmentCounts:
    """Counts of set flags, gathered slab by slab of a line of tensors.

    Args:
        segments: The tensors.
    """

    def __init__(self, segments: Segments) -> None:
        self._segments = segments
        device = segments.device
        # A row has 128 flags at most, so a byte holds their number.
        self._rows = torch.zeros(segments.num_rows + 1, dtype=torch.uint8, device=device)
        self._cut = torch.zeros(segments.before.shape, dtype=torch.bool, device=device)

    def add(self, number: int, start: int, flags: Tensor) -> None:
        """Count the flags of one slab.

        Args:
            number: Which one.
            start: Where it begins in the line.
            flags: Bool, contiguous; its length is a multiple of ``ROW``, False beyond the line.
        """
        # Bytes of 0 or 1: sums of 16 words do not carry from one byte into the next.
        rows = flags.view(torch.int64).view(-1, ROW // 8).sum(1)
        rows.mul_(_ADD_BYTES).bitwise_right_shift_(56).bitwise_and_(0xFF)
        self._rows[start // ROW + 1 : start // ROW + 1 + rows.numel()] = rows
        at, local = self._segments.cut_rows[number]
        if at.numel():
            self._cut[at] = flags.view(-1, ROW)[local]

    def totals(self) -> Tensor:
        """How many flags each tensor has: int64."""
        # What lies before an end: the full rows, and of the row that it cuts the flags before it.
        up_to = self._rows.cumsum(0, dtype=torch.int64)[self._segments.row]
        up_to += self._cut.logical_and_(self._segments.before).sum(1)
        return up_to.diff()
