"""Triton's kernels of a step; a program of a launch works on one chunk of one tensor.

Only a backend that was asked for imports this file: Triton is no dependency.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

TYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


@triton.jit  # type: ignore[untyped-decorator]
def in_float32(values, dtype: tl.constexpr):  # type: ignore[no-untyped-def]
    """The same numbers in float32."""
    # bfloat16 by hand: Triton's interpreter gets tiny ones wrong here, and truncates below.
    if dtype == tl.bfloat16:
        bits = values.to(tl.uint16, bitcast=True).to(tl.uint32) << 16
        return bits.to(tl.float32, bitcast=True)
    return values.to(tl.float32)


@triton.jit  # type: ignore[untyped-decorator]
def in_dtype(total, window_type: tl.constexpr):  # type: ignore[no-untyped-def]
    """Float32 in the window's dtype, to the nearest and of two to the even one."""
    if window_type == tl.bfloat16:
        bits = total.to(tl.uint32, bitcast=True)
        upper = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        upper = tl.where(total == total, upper, 0x7FC0)  # a NaN's bits could carry into inf
        return upper.to(tl.uint16).to(tl.bfloat16, bitcast=True)
    return total.to(window_type)


@triton.jit  # type: ignore[untyped-decorator]
def flag_kernel(  # type: ignore[no-untyped-def]
    numels, addresses, chunks, flag, gradient_type: tl.constexpr, is_aligned: tl.constexpr,
    size: tl.constexpr,
):  # fmt: skip
    """Set the flag if an entry of a gradient is not finite; a gradient has an address and numel."""
    chunk = chunks + 2 * tl.program_id(0)
    tensor = tl.load(chunk)
    start = tl.load(chunk + 1).to(tl.int64) * size
    left = tl.load(numels + tensor) - start
    gradients = tl.load(addresses + tensor).to(tl.pointer_type(gradient_type)) + start
    if is_aligned:
        left = tl.multiple_of(left, 16)
        gradients = tl.multiple_of(gradients, 16)
    at = tl.arange(0, size)
    values = in_float32(tl.load(gradients + at, mask=at < left, other=0.0), gradient_type)
    # Without its sign, a NaN has more bits than inf, and that one more than any number.
    bits = values.to(tl.int32, bitcast=True) & 0x7FFFFFFF
    if tl.max(bits, 0) >= 0x7F800000:
        tl.store(flag, 1.0)


@triton.jit  # type: ignore[untyped-decorator]
def accumulate_kernel(  # type: ignore[no-untyped-def]
    table, addresses, chunks, flag, told, weight_type: tl.constexpr, gradient_type: tl.constexpr,
    window_type: tl.constexpr, formula: tl.constexpr, is_guarded: tl.constexpr,
    masking: tl.constexpr, is_told: tl.constexpr, is_aligned: tl.constexpr, size: tl.constexpr,
):  # fmt: skip
    """Add samples, then zero; rows are weight, mask, window or 0, numel; a gradient may be at 0."""
    chunk = chunks + 2 * tl.program_id(0)
    tensor = tl.load(chunk)
    row = table + 4 * tensor
    start = tl.load(chunk + 1).to(tl.int64) * size
    left = tl.load(row + 3) - start
    weights = tl.load(row).to(tl.pointer_type(weight_type)) + start
    address = tl.load(addresses + tensor)
    gradients = address.to(tl.pointer_type(gradient_type)) + start
    masks = tl.load(row + 1).to(tl.pointer_type(tl.int8)) + start
    windows = tl.load(row + 2).to(tl.pointer_type(window_type)) + start
    if is_aligned:  # then a thread reads several entries at once
        left = tl.multiple_of(left, 16)
        weights = tl.multiple_of(weights, 16)
        gradients = tl.multiple_of(gradients, 16)
        masks = tl.multiple_of(masks, 16)
        windows = tl.multiple_of(windows, 16)
    at = tl.arange(0, size)
    inside = at < left
    weight = tl.load(weights + at, mask=inside, other=0.0)
    adds = (address != 0) & (tl.load(row + 2) != 0)
    if is_guarded:
        adds = adds & (tl.load(flag) == 0)
    if adds:
        gradient = in_float32(tl.load(gradients + at, mask=inside, other=0.0), gradient_type)
        if formula == "squared_gradient":
            sample = gradient * gradient
        elif formula == "abs_product":
            sample = tl.abs(in_float32(weight, weight_type) * gradient)
        else:
            sample = -(in_float32(weight, weight_type) * gradient)
        total = in_float32(tl.load(windows + at, mask=inside, other=0.0), window_type) + sample
        tl.store(windows + at, in_dtype(total, window_type), mask=inside)
    if masking:
        kept = tl.load(masks + at, mask=inside, other=1)
        if is_told:  # by the device, that all stay for now
            kept = kept | (tl.load(told) == 0).to(tl.int8)
        # Most of training has blocks of which nothing is pruned, and writing costs a fifth.
        if tl.min(kept.to(tl.int32), 0) == 0:
            tl.store(weights + at, tl.where(kept != 0, weight, tl.zeros_like(weight)), mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def count_kernel(  # type: ignore[no-untyped-def]
    keys, counts, high, numel, has_high: tl.constexpr, num_counts: tl.constexpr,
    size: tl.constexpr,
):  # fmt: skip
    """Count a digit of each key in one of several histograms of 65,536 bins."""
    at = tl.program_id(0).to(tl.int64) * size + tl.arange(0, size)
    inside = at < numel
    key = tl.load(keys + at, mask=inside, other=0)
    digit = (key >> 16) + 32768
    if has_high:
        inside = inside & (digit == tl.load(high))
        digit = key & 0xFFFF
    histogram = counts + (tl.program_id(0) % num_counts) * 65536
    tl.atomic_add(histogram + digit, tl.full([size], 1, tl.int32), mask=inside, sem="relaxed")
