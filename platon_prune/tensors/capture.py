"""CUDA graphs: whether launches are recorded, and what belongs to a graph that is recorded."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def is_capturing() -> bool:
    """Whether what is launched now is recorded in a CUDA graph instead of run."""
    # Asked without CUDA, torch would raise; before its first use there is no graph.
    is_initialized: bool = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return is_initialized and torch.cuda.is_current_stream_capturing()


class Capture:
    """Memory that the launches of one graph read; it must live as long as the graph is replayed.

    Made before the recording begins: pinned memory can't be had while that lasts, and what is
    allocated on the device then is taken for temporaries of the graph.

    Args:
        num_tensors: How many gradients there are.
        device: Where they are.

    Attributes:
        addresses: Where the gradients were when they were recorded, 0 for none.
        touched: The lists of operands that the launches touch, device by device.
        counts: float32, two entries: replays, and those that were skipped, since they were read.
        kept: What else the launches read.
    """

    def __init__(self, num_tensors: int, device: torch.device) -> None:
        self.addresses: Sequence[int] = ()
        self.touched: Sequence[Any] = ()
        self.counts = torch.zeros(2, device=device)
        self.kept: list[Any] = []
        self._here = torch.empty(
            num_tensors, dtype=torch.int64, pin_memory=device.type == "cuda", device="cpu"
        )
        self._there = torch.empty(num_tensors, dtype=torch.int64, device=device)
        self._zeros = torch.zeros(num_tensors, dtype=torch.int64, device=device)

    def send(self, numbers: Sequence[int]) -> Tensor:
        """Numbers, one for each gradient, on the device; each replay sends them again."""
        if not any(numbers):  # of a launch that only zeroes; gradients may be sent beside it
            return self._zeros
        self._here.copy_(torch.frombuffer(array("q", numbers), dtype=torch.int64))
        # Recorded too, so that nobody has to send them before a replay.
        return self._there.copy_(self._here, non_blocking=True)
