"""The exact k-th smallest of values on an accelerator, with one wait for it.

A float's bits order as it does, so two histograms of 65,536 bins find it: of the high 16 bits, and
of the low ones of the values that share its high ones. Both stay on the device until the end.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from platon_prune.tensors.backends import backend_for
from platon_prune.tensors.blocks import Scratch
from platon_prune.tensors.collectives import ALONE, Processes
from platon_prune.tensors.ranking import Ranked

_BINS = 1 << 16


def serves(devices: Sequence[torch.device], processes: Processes) -> bool:
    """Whether values on these devices are ranked so: on one accelerator, that processes share."""
    if len(set(devices)) != 1:
        return False
    if processes.size == 1:
        return devices[0].type != "cpu"
    shared = processes.on_device()
    return shared is not None and devices[0].type == shared.type


def kth_smallest_by_digits(
    blocks: Callable[[], Iterator[Tensor]],
    k: int,
    device: torch.device,
    signed: bool = True,
    processes: Processes = ALONE,
) -> Ranked:
    """The exact k-th smallest over blocks that can be walked again.

    Args:
        blocks: Yields one-dimensional float32 blocks, not NaN, on the device; all processes
            together have k values.
        k: Rank, from 1.
        device: Where they are.
        signed: Whether a value can be negative, or -0.
        processes: Those that rank together, who add up their histograms on their devices.

    Returns:
        The value with the numbers of smaller and of equal ones.
    """
    backend, scratch = backend_for(device), Scratch()
    # The rank stays on the device too: the second histogram needs it before anything is read.
    rank = torch.full((1,), k, dtype=torch.int64, device=device)
    high, low = (torch.zeros(_BINS, dtype=torch.int64, device=device) for _ in range(2))
    for block in blocks():
        backend.count_digits_(_keys(block, signed, scratch), high, None)
    high = processes.sum(high)
    digit, before = _digit_of(high, rank)
    for block in blocks():
        backend.count_digits_(_keys(block, signed, scratch), low, digit)
    low = processes.sum(low)
    last, between = _digit_of(low, rank - before)
    # Joined, so that all four numbers are fetched at once.
    numbers = torch.cat([digit, last, before + between, low[last]])
    first, second, below, equal = (int(number) for number in numbers.tolist())  # the one wait
    return Ranked(_value((first - _BINS // 2 << 16) + second), below, equal)


def _digit_of(counts: Tensor, rank: Tensor) -> tuple[Tensor, Tensor]:
    """The digit of the value of a rank, and how many values have a lower one; one entry each."""
    up_to = counts.cumsum(0)
    digit = torch.searchsorted(up_to, rank)
    return digit, up_to[digit] - counts[digit]


def _keys(values: Tensor, signed: bool, scratch: Scratch) -> Tensor:
    """int32 in the order of the values, equal where those are."""
    if not signed:
        return values.view(torch.int32)
    # Adding 0 makes -0 a +0. Bits of negative numbers order the other way round.
    bits = torch.add(values, 0.0, out=scratch.like(values, torch.float32)).view(torch.int32)
    turned = torch.bitwise_right_shift(bits, 31, out=scratch.like(bits, torch.int32, role="sign"))
    return turned.bitwise_and_(0x7FFFFFFF).bitwise_xor_(bits)


def _value(key: int) -> float:
    """The float whose key it is."""
    value: float = struct.unpack("<f", struct.pack("<i", key if key >= 0 else key ^ 0x7FFFFFFF))[0]
    return value
