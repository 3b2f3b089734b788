"""`Bus`: averages that are kept in host memory, brought to a GPU block by block and sent back.

Two blocks of each average are on the GPU: while one is updated and sent back, the other is fetched,
since the bus carries both ways at once. Nothing here makes the host wait but `finish`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

# "main" is the stream that a step runs on; copies to the GPU and from it have one each.
Queue = Literal["main", "down", "up"]
_SMALLEST_BLOCK, _LARGEST_BLOCK = 1 << 18, 1 << 22
_NUM_BLOCKS = 32  # of a small model, of which two are on the GPU


@dataclass
class Moved:
    """Bytes that went over the bus, in this process.

    Args:
        to_device: From host memory.
        to_host: From a device.
    """

    to_device: int = 0
    to_host: int = 0


MOVED = Moved()  # all of them, for who measures


class Queues(Protocol):
    """Work that is queued on a device, in several queues that wait for one another."""

    def copy(self, queue: Queue, target: Tensor, source: Tensor) -> None:
        """Queue a copy."""

    def mark(self, queue: Queue) -> Any:
        """A mark behind what is queued so far."""

    def wait(self, queue: Queue, mark: Any) -> None:
        """Let what is queued from here on wait until a mark is reached."""

    def lend(self, buffer: Tensor) -> None:
        """Let memory of the device be given to others only once no queue uses it any more."""

    def finish(self) -> None:
        """Make the host wait for all of it."""


class CudaQueues:
    """Streams and events of a CUDA device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._side = {
            queue: torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            for queue in ("down", "up")
        }

    def __reduce__(self) -> Any:
        return CudaQueues, (self._device,)  # a copy has streams of its own

    def _stream(self, queue: Queue) -> torch.cuda.Stream:
        return self._side.get(queue) or torch.cuda.current_stream(self._device)

    def copy(self, queue: Queue, target: Tensor, source: Tensor) -> None:
        """See :meth:`Queues.copy`."""
        with torch.cuda.stream(self._stream(queue)):
            target.copy_(source, non_blocking=True)

    def mark(self, queue: Queue) -> Any:
        """See :meth:`Queues.mark`."""
        return self._stream(queue).record_event()

    def wait(self, queue: Queue, mark: Any) -> None:
        """See :meth:`Queues.wait`."""
        self._stream(queue).wait_event(mark)

    def lend(self, buffer: Tensor) -> None:
        """See :meth:`Queues.lend`."""
        for stream in self._side.values():
            buffer.record_stream(stream)

    def finish(self) -> None:
        """See :meth:`Queues.finish`."""
        torch.cuda.synchronize(self._device)


class OneQueue:
    """One queue for all, where a device has no streams that can be had: all is done in order."""

    def copy(self, queue: Queue, target: Tensor, source: Tensor) -> None:
        """See :meth:`Queues.copy`."""
        target.copy_(source)

    def mark(self, queue: Queue) -> Any:
        """See :meth:`Queues.mark`."""
        return True

    def wait(self, queue: Queue, mark: Any) -> None:
        """See :meth:`Queues.wait`."""

    def lend(self, buffer: Tensor) -> None:
        """See :meth:`Queues.lend`."""

    def finish(self) -> None:
        """See :meth:`Queues.finish`."""


def queues_for(device: torch.device) -> Queues | None:
    """The queues between host memory and a device; None where it is host memory itself."""
    if device.type == "cpu":
        return None
    # Fake tensors say that they are on a GPU where there is none.
    return CudaQueues(device) if device.type == "cuda" and torch.cuda.is_available() else OneQueue()


class _Slot:
    """Room for a block of each average on the device, and where its use has got to."""

    def __init__(self, buffers: Sequence[Tensor]) -> None:
        self.buffers = buffers
        self.fetched: Any = None
        self.sent: Any = None


class Bus:
    """Brings averages to a device and back.

    Args:
        queues: The device's.
        device: Where the weights are.
        numel: Entries of each average.
    """

    def __init__(self, queues: Queues, device: torch.device, numel: int) -> None:
        self._queues = queues
        self._device = device
        size = min(max(_SMALLEST_BLOCK, -(-numel // _NUM_BLOCKS)), _LARGEST_BLOCK)
        self._pieces = [slice(start, min(start + size, numel)) for start in range(0, numel, size)]
        self._slots: list[_Slot] = []  # made when first needed
        self._last: Any = None  # the mark behind all that was sent back
        self._is_busy = False

    def __getstate__(self) -> dict[str, Any]:
        # Marks are of this process and of these queues.
        self.finish()
        return {**vars(self), "_slots": [], "_last": None}

    def walk(self, averages: Sequence[Tensor]) -> Iterator[tuple[slice, list[Tensor]]]:
        """Yield pieces of the averages on the device; what is written to them is sent back.

        Args:
            averages: In host memory, pinned, of one dtype.
        """
        if not self._pieces:
            return
        if not self._slots:
            self._slots = [self._new_slot(averages) for _ in range(2)]
            # Their memory may be that of a tensor which the step has let go of and still reads.
            self._wait("down", self._queues.mark("main"))
        self._fetch(0, averages)
        for i, piece in enumerate(self._pieces):
            if i + 1 < len(self._pieces):
                self._fetch(i + 1, averages)
            slot = self._slots[i % 2]
            self._wait("main", slot.fetched)
            blocks = [_cut(buffer, 0, piece) for buffer in slot.buffers]
            yield piece, blocks
            self._wait("up", self._queues.mark("main"))
            for average, block in zip(averages, blocks, strict=True):
                self._copy("up", _cut(average, piece.start, piece), block)
            slot.sent = self._last = self._queues.mark("up")

    def _new_slot(self, averages: Sequence[Tensor]) -> _Slot:
        first = self._pieces[0]
        buffers = [each.new_empty(first.stop, device=self._device) for each in averages]
        for buffer in buffers:
            self._queues.lend(buffer)
        return _Slot(buffers)

    def _fetch(self, number: int, averages: Sequence[Tensor]) -> None:
        slot, piece = self._slots[number % 2], self._pieces[number]
        # Until then it holds another block's result. At a window's end this block itself may still
        # be on its way back from the last one, but it was sent before what the slot held.
        self._wait("down", slot.sent)
        for average, buffer in zip(averages, slot.buffers, strict=True):
            self._copy("down", _cut(buffer, 0, piece), _cut(average, piece.start, piece))
        slot.fetched = self._queues.mark("down")

    def bring(self, block: Tensor, target: Tensor) -> Tensor:
        """Fill a tensor on the device from host memory, in order with what runs there."""
        self._wait("main", self._last)
        self._copy("main", target, block)
        return target

    def finish(self) -> None:
        """Make the host wait until it may read and write the averages."""
        if self._is_busy:
            self._queues.finish()
            self._is_busy = False

    def _wait(self, queue: Queue, mark: Any) -> None:
        if mark is not None:
            self._queues.wait(queue, mark)

    def _copy(self, queue: Queue, target: Tensor, source: Tensor) -> None:
        self._is_busy = True
        if queue == "up":
            MOVED.to_host += source.nbytes
        else:
            MOVED.to_device += source.nbytes
        self._queues.copy(queue, target, source)


def _cut(flat: Tensor, start: int, piece: slice) -> Tensor:
    """So many entries as a piece has; by a slice, fake tensors would ask for their device."""
    return flat.narrow(0, start, piece.stop - piece.start)
