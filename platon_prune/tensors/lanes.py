"""Groups of m neighbours of a tensor, taken apart: all first entries, all second ones, and so on.

All work on groups is done lane by lane: lane i holds entry i of every group, side by side in
memory, so that sorting within groups is a few vectorised minima and maxima over all of them.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from platon_prune.tensors.blocks import Scratch, block_size
from platon_prune.tensors.ordering import tie_keys

# From here on torch's own sort takes less time than the network's many operations.
_LARGEST_NETWORK = 32
_INTEGER_OF_SIZE = {4: torch.int32, 2: torch.int16, 1: torch.int8}


@dataclass(frozen=True)
class Layout:
    """Where the entries of a group lie in a flat tensor.

    Args:
        m: Entries of a group.
        inner: How far apart its neighbouring entries are: 1 if they lie side by side.
    """

    m: int
    inner: int

    def pieces(self, numel: int, device: torch.device) -> Iterator[slice]:
        """Cover ``range(numel)`` with slices of whole groups, of one block if that is possible."""
        slab = self.m * self.inner
        num_slabs = numel // slab if slab else 0
        if num_slabs:
            # Whole slabs: a piece that cut through a group could not sort it.
            num_pieces = -(-num_slabs // max(1, block_size(device) // slab))
            size = slab * -(-num_slabs // num_pieces)
            for start in range(0, numel, size):
                yield slice(start, min(start + size, numel))

    def lane(self, block: Tensor, i: int) -> Tensor:
        """View of entry ``i`` of every group of a flat block; two-dimensional."""
        return block.view(-1, self.m, self.inner)[:, i]

    def split(self, block: Tensor, scratch: Scratch, role: str) -> Tensor:
        """The lanes of a flat block: (m, groups), memory of their own."""
        lanes = scratch.like(block, block.dtype, role=role).view(self.m, -1)
        for i in range(self.m):
            # Side by side, so that minima and maxima of lanes run at the speed of memory.
            lanes[i].view(-1, self.inner).copy_(self.lane(block, i))
        return lanes

    def entries(self, groups: Tensor) -> Tensor:
        """Flat positions of the entries of some groups: (m, groups), int64."""
        first = groups // self.inner * (self.m * self.inner) + groups % self.inner
        steps = torch.arange(0, self.m * self.inner, self.inner, device=groups.device)
        return steps[:, None] + first

    # --- masks ------------------------------------------------------------------------------
    #
    # Flags that lie side by side are read and written as one integer, four or two at a time:
    # bytes one by one would take most of the time of a choice.

    def is_whole(self, mask: Tensor, scratch: Scratch) -> Tensor:
        """Which groups of a flat bool block have no False; bool, one-dimensional."""
        size, words = self._words(mask)
        flags = scratch.like(words[:, 0], words.dtype, role="whole")
        torch.eq(words[:, 0], _all_true(size), out=flags)
        more = scratch.like(flags, words.dtype, role="digit")
        for i in range(1, words.shape[1]):
            flags.mul_(torch.eq(words[:, i], _all_true(size), out=more))
        return flags.view(-1).to(torch.bool)

    def write_(self, mask: Tensor, flags: Tensor, scratch: Scratch) -> None:
        """Write lanes of flags (0 or 1, any dtype) to a flat bool block."""
        size, words = self._words(mask)
        word = scratch.like(flags[0], words.dtype, role="word")
        digit = scratch.like(flags[0], words.dtype, role="digit")
        pair = scratch.like(flags[0], flags.dtype, role="pair")
        for i in range(words.shape[1]):
            lanes = _significant_first(flags[i * size : (i + 1) * size])
            if size == 1:
                word.copy_(lanes[0])
            else:
                word.copy_(torch.add(lanes[1], lanes[0], alpha=256, out=pair))
            if size == 4:
                # Two bytes at a time: a float32 holds three bytes exactly, but not four.
                digit.copy_(torch.add(lanes[3], lanes[2], alpha=256, out=pair))
                word.mul_(1 << 16).add_(digit)
            words[:, i].copy_(word.view(-1, self.inner))

    def fill_(self, mask: Tensor, groups: Tensor, scratch: Scratch) -> None:
        """Set all entries of the groups flagged in a bool tensor to True."""
        size, words = self._words(mask)
        word = scratch.like(groups, words.dtype, role="word").copy_(groups).mul_(_all_true(size))
        for i in range(words.shape[1]):
            words[:, i].bitwise_or_(word.view(-1, self.inner))

    def _words(self, mask: Tensor) -> tuple[int, Tensor]:
        """How many flags make a word, and the block as (groups, words of a group, inner)."""
        sizes = _INTEGER_OF_SIZE if self.inner == 1 else (1,)
        # torch views bytes as larger integers only from a multiple of their size.
        at = mask.storage_offset()
        size = next(size for size in sizes if self.m % size == 0 and at % size == 0)
        return size, mask.view(_INTEGER_OF_SIZE[size]).view(-1, self.m // size, self.inner)


def _significant_first(lanes: Tensor) -> Sequence[Tensor]:
    """In the order of the digits of an integer whose bytes they are."""
    return list(lanes) if sys.byteorder == "big" else list(lanes)[::-1]


def _all_true(size: int) -> int:
    return int.from_bytes(b"\x01" * size, "little")


def sorted_lanes(lanes: Tensor, scratch: Scratch) -> Sequence[Tensor]:
    """The entries of each group in ascending order: as many tensors, each one-dimensional."""
    if len(lanes) > _LARGEST_NETWORK:
        return list(lanes.sort(dim=0).values)
    ordered = list(lanes)
    # The lanes stay as they are: they are compared with the order that comes out.
    room = scratch.like(lanes, lanes.dtype, role="ordered")
    spare = [*room, scratch.like(lanes[0], lanes.dtype, role="spare")]
    in_lanes = set(range(len(lanes)))  # those that have not been compared yet
    for i, j in _network(len(lanes)):
        lower = torch.minimum(ordered[i], ordered[j], out=spare.pop())
        higher = torch.maximum(
            ordered[i], ordered[j], out=spare.pop() if j in in_lanes else ordered[j]
        )
        if i not in in_lanes:
            spare.append(ordered[i])
        in_lanes -= {i, j}
        ordered[i], ordered[j] = lower, higher
    return ordered


def sum_of(smallest: Sequence[Tensor], out: Tensor) -> Tensor:
    """The sum of lanes, from the first to the last; infinities of both signs give the negative."""
    # In a fixed order: another one rounds otherwise, and the masks would differ between machines.
    out.copy_(smallest[0])
    for lane in smallest[1:]:
        out.add_(lane)
    if len(smallest) > 1:
        out.nan_to_num_(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)
    return out


@lru_cache
def _network(size: int) -> tuple[tuple[int, int], ...]:
    """Pairs to compare, one after another, that sort so many values.

    Source:
        Batcher's merge exchange: Knuth, The Art of Computer Programming, volume 3, algorithm M of
        section 5.2.2.
    """
    pairs = []
    highest = 1 << ((size - 1).bit_length() - 1)
    p = highest
    while p:
        q, r, distance = highest, 0, p
        while True:
            pairs += [(i, i + distance) for i in range(size - distance) if i & p == r]
            if q == p:
                break
            q, r, distance = q // 2, p, q - p
        p //= 2
    return tuple(pairs)


def keep_largest(
    lanes: Tensor, ordered: Sequence[Tensor], n: int, scratch: Scratch
) -> tuple[Tensor, Tensor]:
    """Flag the n largest entries of each group.

    Args:
        lanes: (m, groups), float32.
        ordered: What :func:`sorted_lanes` made of them.
        n: How many to flag, at least 1 and less than m.
        scratch: For temporaries.

    Returns:
        The flags, 0 or 1, float32 and of the shape of ``lanes``; and, of each group, 1 if entries
        tie for the last place, so that fewer than n are flagged.
    """
    last_out, last_in = ordered[-n - 1], ordered[-n]
    # In float32, since torch vectorises a comparison on the CPU only if it does not write bool.
    flags = torch.gt(lanes, last_out, out=scratch.like(lanes, lanes.dtype, role="flags"))
    tied = torch.eq(last_out, last_in, out=scratch.like(last_in, lanes.dtype, role="tied"))
    return flags, tied


def keep_largest_of_tied(
    lanes: Tensor, n: int, is_kept: Tensor, positions: Tensor, scratch: Scratch
) -> Tensor:
    """Flag the n largest entries of groups in which some are equal.

    Of equal entries those that were pruned already go first, then the lowest in an order that is
    shifted from group to group, so that no column is emptied.

    Args:
        lanes: (m, groups), float32.
        n: How many to flag.
        is_kept: Bool, the same shape: what was kept until now.
        positions: int64: the number of each group among those of all tensors.
        scratch: For temporaries.

    Returns:
        The flags, 0 or 1, float32 and of the shape of ``lanes``.
    """
    m = len(lanes)
    last_out = sorted_lanes(lanes, scratch)[-n - 1]
    # A level (above, at, below the last that goes), then kept before pruned, then the order:
    # three keys in one float32, exact up to 2^24, and one more sort settles all of them.
    level = torch.gt(lanes, last_out).to(lanes.dtype).add_(torch.ge(lanes, last_out))
    order = torch.arange(m, device=lanes.device)[:, None] + tie_keys(positions) % m
    ranks = level.mul_(2).add_(is_kept).mul_(m).add_(order.remainder_(m))
    return torch.gt(ranks, sorted_lanes(ranks, scratch)[-n - 1]).to(lanes.dtype)
