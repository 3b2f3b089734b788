"""The exact k-th smallest of values that lie in many blocks and in many processes.

One sweep counts what lies outside a bracket and collects the few values inside; histograms of the
digits of those, added up over the processes, find the answer. A wrong bracket costs another sweep,
never a wrong result. No value leaves its process, and what a process does next depends on sums
over all of them alone, so that they stay together whatever they hold.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from platon_prune.tensors.blocks import Scratch, block_size
from platon_prune.tensors.collectives import ALONE, Processes
from platon_prune.tensors.ordering import bounds, of_int, shifted_right, to_int, to_ints

# The values that a sweep may collect in a process; beyond it they are looked at again instead.
MAX_CANDIDATES = 1 << 21
# So few values are ranked by torch where one process has all of them: a histogram takes longer.
FEW = 1 << 14
# A histogram has 2^16 bins, 512 KiB to add up over processes.
_DIGIT_BITS = 16


class Ranked(NamedTuple):
    """The k-th smallest of many values, with how many lie strictly below and how many equal it."""

    value: float | int
    below: int
    equal: int


def kth_smallest(
    blocks: Callable[[], Iterator[Tensor]],
    k: int,
    bracket: tuple[float, float],
    processes: Processes = ALONE,
    dtype: torch.dtype = torch.float32,
    exact: bool = True,
) -> Ranked:
    """The exact k-th smallest value over blocks that can be walked again and again.

    Args:
        blocks: Yields one-dimensional blocks of values, not NaN; none is fine where other
            processes have some.
        k: Rank among the values of all processes, from 1.
        bracket: A guess of values around the answer, the same in every process; any values are
            allowed, infinities too.
        processes: Those that rank together.
        dtype: Of the values: float32 or int64.
        exact: Whether the value itself is wanted, or any that lies between it and the next larger
            one, which takes fewer histograms.

    Returns:
        The value with the numbers of smaller and of equal ones.
    """
    least, most = bounds(dtype)
    low, high = (to_int(end, dtype) for end in bracket)
    for _ in range(2):  # beyond a bracket, all that lies there is looked at
        sweep = _sweep(blocks(), of_int(low, dtype), of_int(high, dtype))
        # All decide from sums over all processes, and so do the same, whatever they hold.
        counts = processes.sum(torch.tensor([sweep.below, sweep.inside]))
        below, inside = (int(count) for count in counts.tolist())
        if k <= below:
            low, high = least, low - 1
        elif k > below + inside:
            low, high = high + 1, most
        else:
            break
    else:
        raise ValueError("values must be numbers, got some that are not (NaN)")
    if low == high:
        return Ranked(of_int(low, dtype), below, inside)
    # Where one process has too many candidates to keep, it walks its blocks again instead.
    values = sweep.candidates
    if values is not None and processes.size == 1 and inside <= FEW:
        found = kth_of_few(torch.cat([each.cpu() for each in values]), k - below)
        return Ranked(of_int(int(found.value), dtype), below + found.below, found.equal)
    value, smaller, equal = _by_digits(
        (lambda: (to_ints(block) for block in blocks())) if values is None else values.__iter__,
        k - below,
        low,
        high,
        processes,
        exact,
    )
    return Ranked(of_int(value, dtype), below + smaller, equal)


def kth_of_few(values: Tensor, k: int) -> Ranked:
    """The k-th smallest of values that one process has all of, on the CPU."""
    value = values.kthvalue(k).values
    return Ranked(value.item(), int((values < value).sum()), int((values == value).sum()))


class _Sweep(NamedTuple):
    below: int
    inside: int
    candidates: list[Tensor] | None  # those inside, as integers; None if they are too many


def _sweep(blocks: Iterator[Tensor], low: float, high: float) -> _Sweep:
    """Count what is below and what is inside a bracket (its ends are), and collect the latter."""
    below = inside = 0
    scratch = Scratch()
    candidates: dict[torch.device, list[Tensor]] | None = {} if low < high else None
    for block in blocks:
        # As numbers of the block's own type: torch vectorises a comparison on the CPU only if it
        # does not write bool. Blocks are small enough to count them in float32.
        reached = torch.ge(block, low, out=scratch.like(block, block.dtype, role="reached"))
        within = torch.le(block, high, out=scratch.like(block, block.dtype, role="within"))
        below += block.numel() - int(reached.sum())
        within.mul_(reached)
        if candidates is None:
            inside += int(within.sum())
            continue
        found = block[positions_of(within)]
        inside += found.numel()
        candidates.setdefault(block.device, []).append(found)
        # A bracket that missed by far would collect most of the model.
        if inside > MAX_CANDIDATES:
            candidates = None
    if candidates is None:
        return _Sweep(below, inside, None)
    return _Sweep(below, inside, [to_ints(torch.cat(found)) for found in candidates.values()])


def _by_digits(
    values: Callable[[], Iterator[Tensor]],
    k: int,
    low: int,
    high: int,
    processes: Processes,
    exact: bool,
) -> tuple[int, int, int]:
    """The k-th smallest among the integers from ``low`` to ``high``, with how many are smaller.

    The highest digit first, from histograms. Returns it, the smaller and the equal ones.
    """
    smaller = equal = 0
    while low < high:
        up_to, shift = histogram(values(), low, high, processes)
        digit = int(torch.searchsorted(up_to, k))
        before = int(up_to[digit - 1]) if digit else 0
        equal = int(up_to[digit]) - before
        smaller += before
        k -= before
        low, high = low + (digit << shift), min(high, low + ((digit + 1) << shift) - 1)
        if equal == 1 and not exact:
            return high, smaller, equal
    return low, smaller, equal


def histogram(
    values: Iterator[Tensor], low: int, high: int, processes: Processes
) -> tuple[Tensor, int]:
    """How many of the integers from ``low`` to ``high`` have at most a digit, for each digit.

    The digit is the highest that tells them apart; also returns how far it is shifted.
    """
    # As many bits as the range needs beyond a digit: a narrow range takes one histogram.
    shift = max(0, (high - low).bit_length() - _DIGIT_BITS)
    num_bins = ((high - low) >> shift) + 1
    counts = torch.zeros(num_bins, dtype=torch.int64)
    for block in values:
        # In pieces: some temporaries of eight bytes an entry are made of each.
        for piece in block.split(block_size(block.device) // 4):  # type: ignore[no-untyped-call]
            inside = piece[(piece >= low) & (piece <= high)]
            binned = torch.bincount(shifted_right(inside - low, shift), minlength=num_bins)
            counts = counts.to(binned.device) + binned
    return processes.sum(counts).cumsum(0), shift


def positions_of(flags: Tensor) -> Tensor:
    """Positions of the entries of a one-dimensional tensor that are not zero, in order."""
    if flags.device.type != "cpu":
        return flags.nonzero().squeeze(1)
    # They are few, and nonzero is slow, so it runs on words of eight flags.
    is_set = flags.to(torch.bool)
    num_words = is_set.numel() // 8
    words = is_set[: 8 * num_words].view(torch.int64)
    at = words.nonzero().squeeze(1)
    positions = _lanes_of(words[at], at * 8)
    rest = is_set[8 * num_words :].nonzero().squeeze(1)
    return torch.cat([positions, rest + 8 * num_words]) if rest.numel() else positions


def _lanes_of(words: Tensor, starts: Tensor) -> Tensor:
    """Positions of the bytes that are 1 in words of bytes of 0 or 1, of which none is 0.

    Args:
        words: int64.
        starts: The position of the first byte of each, ascending.
    """
    if words.numel() <= FEW:
        at = words.view(torch.bool).nonzero().squeeze(1)
        return starts[at >> 3] + (at & 7)
    # Times a word of ones, the highest byte is the sum of all.
    ends = ((words * 0x0101010101010101) >> 56).cumsum(0)
    found = words.new_empty(int(ends[-1]))
    slots = torch.cat([ends.new_zeros(1), ends[:-1]])
    while words.numel():
        # Nearly all words have one byte set: its place is the byte that this product moves up.
        lowest = words & -words
        found[slots] = starts + ((lowest * 0x0001020304050607) >> 56)
        words = words ^ lowest
        left = words.nonzero().squeeze(1)
        words, starts, slots = words[left], starts[left], slots[left] + 1
    return found
