"""What backends must equal: tensors of every kind, and a comparison bit by bit."""

from typing import NamedTuple

import torch
from torch import Tensor

from platon_prune.tensors.backends import Operands
from platon_prune.tensors.plain_backend import PLAIN

SPECIAL = [1.5, -2.0, 0.0, -0.0, torch.nan, torch.inf, -torch.inf, 6e-8, -6e-8, 3e-39, 0.1, -0.3]
BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
FORMULAS = ("abs_product", "negative_product", "squared_gradient")
# Empty, one entry, odd, a few programs long, and no vector.
SHAPES = [(0,), (), (1,), (63,), (7, 19), (300,), (3, 5, 7)]
F32, F64, BF16, F16 = torch.float32, torch.float64, torch.bfloat16, torch.float16
# Dtypes of weight, gradient and window.
KINDS = [
    (F32, F32, F32),
    (F32, BF16, F32),
    (F32, F16, BF16),
    (BF16, BF16, F32),
    (BF16, BF16, BF16),
    (F16, F32, F32),
    (BF16, F16, F32),
    (F64, F64, F32),
    (F64, F32, BF16),
    (F32, F64, F32),
]


class Learning(NamedTuple):
    """A tensor with its gradient, and what is remembered of it."""

    weight: Tensor
    gradient: Tensor | None
    mask: Tensor
    window: Tensor | None


def step(backend, tensors, formula, flag, masking):
    """Let a backend take a step over tensors with their gradients."""
    operands = [Operands(each.weight, each.mask, each.window) for each in tensors]
    gradients = [each.gradient for each in tensors]
    backend.accumulate_(operands, gradients, formula, flag, masking)


def values(shape, dtype, seed, special=False):
    """Random values that start at an odd address, with special ones among them if asked for."""
    generator = torch.Generator().manual_seed(seed)
    numel = torch.Size(shape).numel()
    storage = torch.randn(numel + 3, generator=generator).to(dtype)
    if special:
        chosen = torch.tensor(SPECIAL, dtype=dtype)[
            torch.randint(len(SPECIAL), (numel,), generator=generator)
        ]
        storage[3:] = torch.where(torch.rand(numel, generator=generator) < 0.5, chosen, storage[3:])
    return storage[3:].view(shape)


def operands_of(kind, seed, special=False, density=0.5, shapes=SHAPES):
    """One of each shape; among them one without a gradient, and one without a window."""
    weight, gradient, window = kind
    result = []
    for i, shape in enumerate(shapes):
        mask = torch.rand(shape, generator=torch.Generator().manual_seed(seed + i)) < density
        made = [values(shape, dtype, 7 * seed + i, special) for dtype in (weight, gradient)]
        total = values(shape, window, 7 * seed - i, special)
        result.append(Learning(made[0], made[1], mask, total))
    first, second, *_ = (operands_of(kind, seed + 1, special, density, [(33,), (40,)])
                         if len(shapes) > 2 else (None, None))  # fmt: skip
    if first is not None:
        result += [first._replace(gradient=None), second._replace(window=None)]
    return result


def copies(tensors):
    """The same operands with storages of their own, at addresses as odd as before."""
    return [Learning(*(None if x is None else _copy(x) for x in operands)) for operands in tensors]


def assert_same_bits(tensors, others):
    """NaN equals NaN whatever its bits; everything else must be the same to the bit."""
    for operands, expected in zip(tensors, others, strict=True):
        for name, ours, theirs in zip(Learning._fields, operands, expected, strict=True):
            if ours is not None:
                differs = _bits(ours) != _bits(theirs)
                pairs = (ours.reshape(-1)[differs].tolist(), theirs.reshape(-1)[differs].tolist())
                assert not differs.any(), (name, ours.dtype, *pairs)


def compare_steps(backend, make, formula, flagged, masking, steps=2):
    """Run the same steps on a backend and on its plain twin, and compare all that they write."""
    flag = None if flagged is None else torch.tensor([float(flagged)])
    for number in range(steps):  # at new addresses each time
        ours, theirs = make(number), copies(make(number))
        step(backend, ours, formula, flag, masking)
        step(PLAIN, theirs, formula, flag, masking)
        assert_same_bits(ours, theirs)


def digits(keys, high=None):
    """How often each 16-bit digit occurs, in Python: the high one, or the low one under a high."""
    counts = [0] * 65536
    for key in keys.tolist():
        if high is None:
            counts[(key >> 16) + 32768] += 1
        elif (key >> 16) + 32768 == high:
            counts[key & 0xFFFF] += 1
    return counts


def keys_of_all_signs(numel):
    """Integers of 32 bits, the smallest and the largest among them, and many that are equal."""
    generator = torch.Generator().manual_seed(0)
    keys = torch.randint(-(2**31), 2**31, (numel,), generator=generator, dtype=torch.int32)
    keys[: numel // 2] = 1_065_353_216 + torch.arange(numel // 2, dtype=torch.int32) % 5
    keys[-2:] = torch.tensor([-(2**31), 2**31 - 1], dtype=torch.int32)
    return keys


def _copy(tensor):
    storage = torch.empty(tensor.numel() + 3, dtype=tensor.dtype)[3:]
    return storage.view(tensor.shape).copy_(tensor)


def _bits(tensor):
    bits = tensor.reshape(-1).view(BITS[tensor.dtype.itemsize]).clone()
    return bits.masked_fill_(tensor.reshape(-1).isnan(), 1) if tensor.is_floating_point() else bits
