"""Walking several tensors of one shape together, in pieces that stay in the processor's cache."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

# Large enough that starting an operation costs little, small enough that a piece of each operand
# is still in the last-level cache when the next operation reads it. A GPU only wants few launches.
CPU_BLOCK = 1 << 19
GPU_BLOCK = 1 << 24

_INTEGER_OF_SIZE = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def block_size(device: torch.device) -> int:
    """Number of elements of a piece on ``device``."""
    return CPU_BLOCK if device.type == "cpu" else GPU_BLOCK


def slices(numel: int, device: torch.device) -> Iterator[slice]:
    """Cover ``range(numel)`` with slices of one block each."""
    size = block_size(device)
    for start in range(0, numel, size):
        yield slice(start, min(start + size, numel))


def blocks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Yield matching views of tensors that have one shape, block by block.

    Contiguous tensors are walked flat; where one is not (a transposed or channels-last weight),
    all are walked by rows, which any strides allow.
    """
    first = tensors[0]
    if all(tensor.is_contiguous() for tensor in tensors):
        tensors = tuple(tensor.view(-1) for tensor in tensors)
        rows_per_block = block_size(first.device)
    else:
        row = max(1, first[0].numel())
        rows_per_block = max(1, block_size(first.device) // row)
    pieces = (torch.split(tensor, rows_per_block) for tensor in tensors)
    yield from zip(*pieces, strict=True)


class Scratch:
    """Temporary tensors that are handed out again and again instead of being allocated.

    A tensor is valid until the next call with the same ``role``.
    """

    def __init__(self) -> None:
        self._buffers: dict[tuple[str, torch.device, torch.dtype], Tensor] = {}

    def like(self, block: Tensor, dtype: torch.dtype, role: str = "") -> Tensor:
        """Uninitialised tensor with the shape and device of ``block``."""
        key = (role, block.device, dtype)
        buffer = self._buffers.get(key)
        if buffer is None or buffer.numel() < block.numel():
            buffer = torch.empty(block.numel(), dtype=dtype, device=block.device)
            self._buffers[key] = buffer
        return buffer[: block.numel()].view(block.shape)


def zero_pruned_(block: Tensor, mask: Tensor, scratch: Scratch) -> None:
    """Set entries of ``block`` to +0 where ``mask`` is False, whatever they were (NaN, -0, inf).

    Equal to ``block.masked_fill_(~mask, 0)``. That one is not vectorised on the CPU; the same
    bits multiplied as integers by 0 or 1 are.
    """
    if block.device.type != "cpu":
        block.masked_fill_(torch.logical_not(mask, out=scratch.like(mask, torch.bool)), 0)
        return
    integer = _INTEGER_OF_SIZE[block.element_size()]
    keep = scratch.like(mask, integer, role="keep").copy_(mask)
    block.view(integer).mul_(keep)
