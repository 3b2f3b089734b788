"""Masks as packed bits: one of eight of the memory, and quick to compare."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from platon_prune.tensors.blocks import block_size, slices

# Bit i of a byte is entry 8 * byte + i: the little-endian order of numpy.packbits.
_BIT_WEIGHTS = (1, 2, 4, 8, 16, 32, 64, 128)
# Times this, eight bytes of 0 or 1 have their eight bits, in that order, in the highest byte; no
# two products of a bit fall on one place, so nothing is carried.
_GATHER = 0x0102040810204080
_ONES = torch.tensor([byte.bit_count() for byte in range(256)])


def pack_bits(mask: Tensor) -> Tensor:
    """Pack a bool tensor of any shape into uint8 of shape ``(ceil(numel / 8),)``."""
    flat = mask.reshape(-1)
    packed = torch.empty((flat.numel() + 7) // 8, dtype=torch.uint8, device=mask.device)
    # Block by block: a product of words takes eight bytes for eight entries.
    size = max(1, block_size(mask.device) // 8)
    for start in range(0, packed.numel(), size):
        bits = flat[8 * start : 8 * (start + size)]
        missing = -bits.numel() % 8
        # torch views bytes as words only from an address that is a multiple of eight.
        if missing or bits.storage_offset() % 8:
            bits = torch.cat([bits, bits.new_zeros(missing)])
        words = bits.view(torch.int64) * _GATHER
        packed[start : start + size] = words.bitwise_right_shift_(56)
    return packed


def unpack_bits_(mask: Tensor, packed: Tensor) -> None:
    """Fill the contiguous bool tensor ``mask`` from what :func:`pack_bits` made of it."""
    flat = mask.view(-1)
    weights = torch.tensor(_BIT_WEIGHTS, dtype=torch.uint8, device=mask.device)
    for piece in slices(packed.numel(), mask.device):
        target = flat[8 * piece.start : 8 * piece.stop]
        bits = packed[piece].to(mask.device).unsqueeze(1).bitwise_and(weights).ne(0)
        target.copy_(bits.view(-1)[: target.numel()])


def count_ones(packed: Tensor) -> int:
    """Number of bits that are set in a one-dimensional uint8 tensor."""
    # Of each byte how often it is there: quicker than adding up bits in words.
    return int((torch.bincount(packed, minlength=256).cpu() * _ONES).sum())


def sum_of_ones(packed: Tensor) -> Tensor:
    """The same as a tensor without dimensions, on the device, which is not waited for."""
    bytes_ = torch.arange(256, dtype=torch.uint8, device=packed.device)
    ones = sum((bytes_ >> bit) & 1 for bit in range(8))
    assert isinstance(ones, Tensor)
    total = torch.zeros((), dtype=torch.int64, device=packed.device)
    for piece in slices(packed.numel(), packed.device):
        total += ones[packed[piece].to(torch.int32)].sum(dtype=torch.int64)
    return total


def to_bytes(packed: Tensor) -> bytes:
    """The bytes of a one-dimensional uint8 tensor."""
    packed = packed.cpu().contiguous()
    return ctypes.string_at(packed.data_ptr(), packed.numel())


def from_bytes(data: bytes) -> Tensor:
    """A new uint8 tensor of some bytes."""
    # A bytearray, since torch warns of memory that can't be written.
    return torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.empty(0).byte()
