"""Boolean masks as bits, eight entries a byte, for states and files."""

from __future__ import annotations

import torch
from torch import Tensor

from platon_prune.blocks import slices

# Bit i of a byte is entry 8 * byte + i: the little-endian order of numpy.packbits.
_WEIGHTS = (1, 2, 4, 8, 16, 32, 64, 128)


def pack(mask: Tensor) -> Tensor:
    """Pack a bool tensor of any shape into uint8 of shape ``(ceil(numel / 8),)``."""
    flat = mask.reshape(-1).view(torch.uint8)
    weights = torch.tensor(_WEIGHTS, dtype=torch.uint8, device=mask.device)
    packed = torch.empty((flat.numel() + 7) // 8, dtype=torch.uint8, device=mask.device)
    for piece in slices(packed.numel(), mask.device):
        bits = flat[8 * piece.start : 8 * piece.stop]
        bits = torch.nn.functional.pad(bits, (0, 8 * (piece.stop - piece.start) - bits.numel()))
        packed[piece] = bits.view(-1, 8).mul(weights).sum(1, dtype=torch.uint8)
    return packed


def unpack_(mask: Tensor, packed: Tensor) -> None:
    """Fill the contiguous bool tensor ``mask`` from what :func:`pack` made of it."""
    flat = mask.view(-1)
    weights = torch.tensor(_WEIGHTS, dtype=torch.uint8, device=mask.device)
    for piece in slices(packed.numel(), mask.device):
        target = flat[8 * piece.start : 8 * piece.stop]
        bits = packed[piece].to(mask.device).unsqueeze(1).bitwise_and(weights).ne(0)
        target.copy_(bits.view(-1)[: target.numel()])
