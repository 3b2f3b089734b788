"""Walking several tensors of one shape together, in pieces that stay in the processor's cache."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

# Large enough that starting an operation costs little, small enough that a piece of each operand
# is still in the last-level cache when the next operation reads it. A GPU only wants few launches,
# but each temporary is of this size. Counting in float32 is exact up to 2^24.
CPU_BLOCK = 1 << 20
GPU_BLOCK = 1 << 22

# From so many entries on, looking whether anything is pruned costs less than writing a weight.
COUNTING_PAYS = 1 << 16

_INTEGER_OF_SIZE = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def block_size(device: torch.device) -> int:
    """Number of elements of a piece on ``device``."""
    return CPU_BLOCK if device.type == "cpu" else GPU_BLOCK


def slices(numel: int, device: torch.device) -> Iterator[slice]:
    """Cover ``range(numel)`` with slices of equal length, of one block at most."""
    if numel:
        size = -(-numel // _num_pieces(numel, device))
        for start in range(0, numel, size):
            yield slice(start, min(start + size, numel))


def _num_pieces(numel: int, device: torch.device) -> int:
    return -(-numel // block_size(device))


def blocks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Yield matching views of tensors that have one shape, block by block.

    Tensors that are no longer than a block are yielded as they are. Longer ones are walked flat if
    all are contiguous; where one is not (a transposed or channels-last weight), all are walked by
    rows, which any strides allow.
    """
    first = tensors[0]
    num_pieces = _num_pieces(first.numel(), first.device)
    if num_pieces == 1:  # a view costs as much as an operation on a small tensor
        yield tensors
    elif num_pieces:
        if all(tensor.is_contiguous() for tensor in tensors):
            tensors = tuple(_flat(tensor) for tensor in tensors)
        # chunk, not split: pieces of equal length, and no detour through Python.
        yield from zip(*(tensor.chunk(num_pieces) for tensor in tensors), strict=True)


def _flat(tensor: Tensor) -> Tensor:
    return tensor if tensor.dim() == 1 else tensor.view(-1)


class Scratch:
    """Temporary tensors that are handed out again and again instead of being allocated.

    A tensor is valid until the next call with the same ``role``, whatever its dtype.
    """

    def __init__(self) -> None:
        self._buffers: dict[tuple[str, torch.device], Tensor] = {}
        self._views: dict[tuple[str, torch.device, torch.dtype, torch.Size], Tensor] = {}

    def like(self, block: Tensor, dtype: torch.dtype, role: str = "") -> Tensor:
        """Uninitialised contiguous tensor with the shape and device of ``block``."""
        if isinstance(block, FakeTensor):  # kept, it would meet real ones, or those of another mode
            return block.new_empty(block.shape, dtype=dtype)
        # Making a view costs as much as an operation on a small tensor, so views are kept too.
        return self._of((role, block.device, dtype, block.shape))

    def flat(self, numel: int, dtype: torch.dtype, device: torch.device, role: str = "") -> Tensor:
        """Uninitialised one-dimensional tensor of so many entries."""
        return self._of((role, device, dtype, torch.Size((numel,))))

    def _of(self, key: tuple[str, torch.device, torch.dtype, torch.Size]) -> Tensor:
        view = self._views.get(key)
        if view is None:
            view = self._views[key] = self._view(*key)
        return view

    def _view(
        self, role: str, device: torch.device, dtype: torch.dtype, shape: torch.Size
    ) -> Tensor:
        num_bytes = shape.numel() * dtype.itemsize
        buffer = self._buffers.get((role, device))
        if buffer is None or buffer.numel() < num_bytes:
            self._views.clear()  # they would keep the smaller buffer alive
            buffer = torch.empty(num_bytes, dtype=torch.uint8, device=device)
            self._buffers[role, device] = buffer
        return buffer.narrow(0, 0, num_bytes).view(dtype).view(shape)


def zero_pruned_(block: Tensor, mask: Tensor, scratch: Scratch) -> None:
    """Set entries of ``block`` to +0 where ``mask`` is False, whatever they were (NaN, -0, inf).

    Equal to ``block.masked_fill_(~mask, 0)``. That one is not vectorised on the CPU; the same
    bits multiplied as integers by 0 or 1 are.
    """
    if block.device.type != "cpu":
        block.masked_fill_(torch.logical_not(mask, out=scratch.like(mask, torch.bool)), 0)
        return
    integer = _INTEGER_OF_SIZE[block.dtype.itemsize]
    if mask.numel() < COUNTING_PAYS:
        block.view(integer).mul_(mask)
    elif _prunes(mask):
        block.view(integer).mul_(scratch.like(mask, integer).copy_(mask))


def _prunes(mask: Tensor) -> bool:
    """Whether an entry of a large mask on the CPU is False."""
    # Once there is a choice, nearly every stretch has one: then the rest needs no look.
    beginning = mask[0] if mask.dim() > 1 else mask[:1024]
    return not bool(beginning.all()) or count_true(mask) < mask.numel()


def count_true(flags: Tensor) -> int:
    """Number of True entries of a bool tensor."""
    flat = flags.reshape(-1)
    head = -flat.storage_offset() % 8  # words begin at multiples of their size
    end = head + max(0, flat.numel() - head) // 1024 * 1024
    if flags.device.type != "cpu" or end == head:
        return int(flat.sum())
    # Eight entries at a time: 128 int64 words add up without a byte overflowing.
    words = flat[head:end].view(torch.int64).view(-1, 128).sum(1)
    return int(words.view(torch.uint8).sum()) + int(flat[:head].sum()) + int(flat[end:].sum())


def count_kept(weight: Tensor, mask: Tensor | None) -> int:
    """Number of entries of ``weight`` that are not zero and, with a mask, not pruned either."""
    weight = weight.detach()
    if mask is None:
        return sum(count_true(block.ne(0)) for (block,) in blocks(weight))
    return sum(count_true(block.ne(0).logical_and_(kept)) for block, kept in blocks(weight, mask))


def digest(scores: Tensor, mask: Tensor, scratch: Scratch) -> Tensor:
    """A number that almost surely differs where a score or an entry of the mask does.

    Args:
        scores: float32, contiguous.
        mask: Bool, the same shape.
        scratch: For temporaries.

    Returns:
        The same for equal bits on every machine: int64, without dimensions, on their device.
    """
    ints = torch.add(scores.view(torch.int32), mask, out=scratch.like(scores, torch.int32))
    end = ints.numel() // 128 * 128
    columns = ints[:end].view(torch.int64).view(-1, 64).sum(0)
    odd = torch.arange(1, 129, 2, device=columns.device)
    return (columns * odd).sum() + 257 * ints[end:].sum()
