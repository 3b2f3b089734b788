"""`Averages`: the window and the averages of all tensors of a device, in one flat buffer each.

So the end of a window and a choice are a few operations over slabs of memory, however many tensors
there are, and a tensor has views: ``sensitivity[offset : offset + numel]``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from platon_prune.choice.scored import Line
from platon_prune.criteria import Criterion
from platon_prune.scheduling.bus import Bus, queues_for
from platon_prune.tensors.blocks import Scratch

_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Storage:
    """How what is remembered of the weights is kept.

    Args:
        dtype: float32, or bfloat16 for half the memory and less exact scores.
        offload: Whether the averages, which only a window's end and a choice need, are kept in host
            memory.
    """

    dtype: torch.dtype = torch.float32
    offload: bool = False

    def bytes(self, criterion: Criterion, numel: int) -> dict[str, int]:
        """Memory of the window and of each average for a number of weights."""
        names = ("window", *criterion.averages) if criterion.windowed else ()
        return {name: numel * self.dtype.itemsize for name in names}


class Averages:
    """The sums of the samples since the last window's end, and the criterion's averages.

    Arithmetic is in float32 on the weights' device, whatever they are kept in and wherever.

    Args:
        criterion: Says what is remembered.
        line: The tensors, of one device, in a line.
        storage: How it is kept.
        scratch: Temporaries, shared with others.
    """

    def __init__(
        self, criterion: Criterion, line: Line, storage: Storage, scratch: Scratch
    ) -> None:
        self.criterion = criterion
        self.line = line
        self.storage = storage
        self._scratch = scratch
        self._largest = torch.finfo(storage.dtype).max
        # The window stays with the weight: every step adds to it.
        queues = queues_for(line.device) if storage.offload else None
        self._bus = None if queues is None else Bus(queues, line.device, line.numel)
        home = _CPU if storage.offload else line.device
        self.window = self._zeros(line.device)
        self.averages = tuple(self._zeros(home) for _ in criterion.averages)

    def of(self, number: int) -> dict[str, Tensor]:
        """Views of the window and the averages of one tensor, by name; flat."""
        size, stop = self.line.sizes[number], self.line.ends[number]
        names = ("window", *self.criterion.averages)
        return {
            name: buffer.narrow(0, stop - size, size)
            for name, buffer in zip(names, (self.window, *self.averages), strict=True)
        }

    def end_window_(self, num_samples: float, repairs: bool = True) -> None:
        """Update the averages from the mean of the window's samples, and restart the window.

        Args:
            num_samples: How many were added up; more than that for a mean that counts less.
            repairs: Whether a sum that overflowed counts as a large number, and NaN as none.
        """
        # Piece by piece: temporaries in float32 then take a piece, not a copy of all averages.
        for piece, kept in self._pieces():
            window = self.window.narrow(0, piece.start, piece.stop - piece.start)
            mean = self._in_float32(window, "window").div_(num_samples)
            if repairs:  # or it would poison the averages for good
                mean.nan_to_num_(nan=0.0)
            averages = [self._in_float32(block, f"average {i}") for i, block in enumerate(kept)]
            self.criterion.update_averages_(mean, averages)
            # Where the arithmetic was on a copy, the result is rounded back.
            for block, updated in zip(kept, averages, strict=True):
                if updated is block:
                    continue
                if block.dtype != torch.float32 and repairs:
                    # The largest float32 numbers would be rounded to infinity, and stay that.
                    updated.clamp_(-self._largest, self._largest)
                block.copy_(updated)
            window.zero_()  # here, where it is in the cache

    def _pieces(self) -> Iterator[tuple[slice, list[Tensor]]]:
        """Pieces of the line, with those of the averages where the weights are."""
        if self._bus is not None:
            yield from self._bus.walk(self.averages)
            return
        for slab in self.line.slabs:
            yield slab, [average[slab] for average in self.averages]

    def finish(self) -> None:
        """Make the host wait until it may read and write averages that it keeps for a GPU."""
        if self._bus is not None:
            self._bus.finish()

    def restart_window_(self) -> None:
        """Forget the samples of a window that had none that count."""
        self.window.zero_()

    def at(self, index: slice | Tensor) -> list[Tensor]:
        """The averages at a slice, or at positions, of the line: float32, where the weights are.

        Valid until the next call.
        """
        if not isinstance(index, slice):
            self.finish()  # the host itself gathers what it keeps
        found = []
        for i, average in enumerate(self.averages):
            block = average[index if isinstance(index, slice) else index.to(average.device)]
            found.append(self._in_float32(self._here(block, i), f"average {i}"))
        return found

    def _here(self, block: Tensor, number: int) -> Tensor:
        """A block of an average on the weights' device, in the dtype that it is kept in."""
        if self._bus is None:
            return block
        # torch would convert it on the host, before the bus.
        role = f"average {number}, as it is kept"
        room = self._scratch.flat(block.numel(), block.dtype, self.line.device, role)
        return self._bus.bring(block, room)

    def _in_float32(self, kept: Tensor, role: str) -> Tensor:
        """A block on the weights' device in float32: itself, or a copy."""
        if kept.dtype == torch.float32:
            return kept
        return self._scratch.flat(kept.numel(), torch.float32, kept.device, role).copy_(kept)

    def _zeros(self, device: torch.device) -> Tensor:
        # Pinned, so that a GPU reads and writes it at the speed of the bus while the host goes on.
        pinned = device.type == "cpu" and self.line.device.type == "cuda"
        pinned = pinned and torch.cuda.is_available()  # fake tensors need no GPU
        return torch.zeros(
            self.line.numel, dtype=self.storage.dtype, device=device, pin_memory=pinned
        )
