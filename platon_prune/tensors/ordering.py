"""Orders that are the same in every process: of float32 values as integers, and of tied entries."""

from __future__ import annotations

import math
import struct

import torch
from torch import Tensor

_INFINITY_BITS = 0x7F800000  # of a float32


def bounds(dtype: torch.dtype) -> tuple[int, int]:
    """The least and the largest integer that :func:`to_ints` makes of values of a dtype."""
    if dtype == torch.int64:
        info = torch.iinfo(dtype)
        return info.min, info.max
    return -_INFINITY_BITS, _INFINITY_BITS


def to_ints(values: Tensor) -> Tensor:
    """Integers in the order of the values, equal where those are; -0 equals +0.

    Args:
        values: float32 (no NaN) or int64, any shape.

    Returns:
        int64, the same shape.
    """
    if values.dtype == torch.int64:
        return values
    # Floats order like their bits once those with a sign are turned around.
    bits = values.view(torch.int32)
    # Widened last: what is made on the way then takes half the memory.
    return torch.where(bits >= 0, bits, (bits & 0x7FFFFFFF).neg_()).to(torch.int64)


def to_int(value: float, dtype: torch.dtype) -> int:
    """:func:`to_ints` of one number, rounded to the dtype; infinities are its ends."""
    if math.isinf(value):
        return bounds(dtype)[value > 0]
    if dtype == torch.int64:
        return int(value)
    return int(to_ints(torch.tensor([value], dtype=torch.float32)).item())


def of_int(number: int, dtype: torch.dtype) -> float | int:
    """The value that :func:`to_ints` makes a number of."""
    if dtype == torch.int64:
        return number
    magnitude: float = struct.unpack("<f", struct.pack("<i", abs(number)))[0]
    return magnitude if number >= 0 else -magnitude


def tie_keys(positions: Tensor) -> Tensor:
    """A fixed pseudo-random int64 for each global position, no two alike.

    Args:
        positions: int64, any shape.

    Returns:
        The same shape; a bijection of 64-bit integers, so that the order is total.

    Source:
        The finaliser of splitmix64 (Steele et al., Fast splittable pseudorandom number
        generators, OOPSLA 2014).
    """
    keys = positions + _wrapped(0x9E3779B97F4A7C15)
    keys = (keys ^ shifted_right(keys, 30)) * _wrapped(0xBF58476D1CE4E5B9)
    keys = (keys ^ shifted_right(keys, 27)) * _wrapped(0x94D049BB133111EB)
    return keys ^ shifted_right(keys, 31)


def shifted_right(numbers: Tensor, bits: int) -> Tensor:
    """int64 shifted as if it had no sign."""
    if bits == 0:
        return numbers
    # torch has no unsigned shift: shift with the sign and clear what it filled in.
    return (numbers >> bits) & ((1 << (64 - bits)) - 1)


def _wrapped(constant: int) -> int:
    """The signed 64-bit integer with the same bits."""
    return constant - (1 << 64) if constant >= 1 << 63 else constant
