"""The exact choice: which entries, over many tensors, have the smallest scores.

Nothing is joined. A random sample brackets the threshold, one sweep over the blocks counts what
lies outside the bracket and collects the few scores inside, and the k-th smallest of those is the
answer. The bracket is only a guess: a wrong one costs another sweep, never a wrong result.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from platon_prune.blocks import Scratch, count_true, slices

# The scores that a sweep may collect; beyond it the bracket is narrowed first (memory, not speed).
MAX_CANDIDATES = 1 << 21
SAMPLE_SIZE = 1 << 18
# Half the bracket's width in standard deviations of a sampled rank: 1 choice in 10^4 sweeps again.
_BRACKET_SIGMAS = 4.0


@dataclass(frozen=True)
class ScoredTensor:
    """One tensor that takes part in a choice.

    Args:
        score: Returns the scores at a slice, or at an int64 tensor of positions, of the flat
            tensor: float32, never NaN. The result is used before the next call only.
        mask: Contiguous bool mask (True = kept); read for the order of ties, then overwritten.
        offset: Global position of its first entry; fixes the order of ties.
    """

    score: Callable[[slice | Tensor], Tensor]
    mask: Tensor
    offset: int

    @property
    def numel(self) -> int:
        """Number of entries."""
        return self.mask.numel()

    @property
    def flat_mask(self) -> Tensor:
        """The mask, one-dimensional."""
        return self.mask.view(-1)

    def pieces(self) -> Iterator[tuple[slice, Tensor]]:
        """Slices of the flat tensor with their scores."""
        for piece in slices(self.numel, self.mask.device):
            yield piece, self.score(piece)


class Ranked(NamedTuple):
    """The k-th smallest of many values, with how many lie strictly below and how many equal it."""

    value: float | int
    below: int
    equal: int


def prune_smallest_(tensors: Sequence[ScoredTensor], count: int) -> float | None:
    """Set the masks in place so that exactly ``count`` entries over all tensors are False.

    Args:
        tensors: Every tensor of the global choice.
        count: Entries to prune, between 0 and the number of entries.

    Returns:
        The threshold: the largest score pruned; None if ``count`` is 0. Of the entries with
        just this score those that were pruned already go first, then the lowest in a fixed
        pseudo-random order of global positions, so that ties empty no tensor.
    """
    if count == 0:
        for tensor in tensors:
            tensor.mask.fill_(True)
        return None
    threshold, below, equal = kth_smallest(
        _scores_of(tensors), count, _sampled_bracket(tensors, count)
    )
    tie_break = None
    if below + equal > count:
        tie_break = _tie_break(tensors, threshold, equal, count - below)
    scratch = Scratch()
    for tensor in tensors:
        for piece, scores in tensor.pieces():
            mask = tensor.flat_mask[piece]
            survivors = None if tie_break is None else tie_break.survivors(tensor, piece, scores)
            mask.copy_(torch.gt(scores, threshold, out=scratch.like(scores, scores.dtype)))
            if survivors is not None:
                mask[survivors] = True
    return float(threshold)


# --- ranking ------------------------------------------------------------------------------------


def kth_smallest(
    blocks: Callable[[], Iterator[Tensor]], k: int, bracket: tuple[float, float]
) -> Ranked:
    """The exact k-th smallest value over blocks that can be walked again and again.

    Args:
        blocks: Yields one-dimensional blocks of float32 (no NaN) or int64 values.
        k: Rank, from 1.
        bracket: A guess of values around the answer; any values are allowed, infinities too.

    Returns:
        The value with the numbers of smaller and of equal ones.
    """
    low, high = bracket
    scratch = Scratch()
    while True:
        sweep = _sweep(blocks(), low, high, scratch)
        if k <= sweep.up_to_low:
            below = sum(count_true(block < low) for block in blocks())
            if k > below:
                return Ranked(low, below, sweep.up_to_low - below)
            low, high = -math.inf, low
        elif k > sweep.below_high:
            up_to_high = sum(count_true(block <= high) for block in blocks())
            if k <= up_to_high:
                return Ranked(high, sweep.below_high, up_to_high - sweep.below_high)
            low, high = high, math.inf
        elif sweep.candidates is not None:
            found = sweep.candidates.kthvalue(k - sweep.up_to_low).values
            below = sweep.up_to_low + int((sweep.candidates < found).sum())
            return Ranked(found.item(), below, int((sweep.candidates == found).sum()))
        else:
            low, high = _narrower(blocks(), k, low, high)


class _Sweep(NamedTuple):
    up_to_low: int
    below_high: int
    candidates: Tensor | None  # those strictly between; None if they are too many


def _sweep(blocks: Iterator[Tensor], low: float, high: float, scratch: Scratch) -> _Sweep:
    up_to_low = num_inside = num_candidates = 0
    candidates: list[Tensor] = []
    for block in blocks:
        # As numbers of the block's own type: torch vectorises a comparison on the CPU only if it
        # does not write bool. Blocks are small enough to count them in float32.
        above = torch.gt(block, low, out=scratch.like(block, block.dtype, role="above"))
        inside = torch.lt(block, high, out=scratch.like(block, block.dtype, role="inside"))
        up_to_low += block.numel() - int(above.sum())
        inside.mul_(above)
        if num_candidates <= MAX_CANDIDATES:
            found = block[_positions(inside)]
            num_candidates += found.numel()
            candidates.append(found)
            num_inside += found.numel()
        else:
            num_inside += int(inside.sum())
    if num_candidates > MAX_CANDIDATES:
        return _Sweep(up_to_low, up_to_low + num_inside, None)
    return _Sweep(up_to_low, up_to_low + num_inside, torch.cat(candidates))


def _positions(flags: Tensor) -> Tensor:
    """Positions of the entries of a one-dimensional tensor that are not zero, in order."""
    if flags.device.type != "cpu":
        return flags.nonzero().squeeze(1)
    # They are few, and nonzero is slow: it runs on words of eight flags, then on the words found.
    is_set = flags.to(torch.bool)
    num_words = is_set.numel() // 8
    words = is_set[: 8 * num_words].view(torch.int64)
    found_words = words.nonzero().squeeze(1)
    in_words = words[found_words].view(torch.bool).nonzero().squeeze(1)
    positions = 8 * found_words[in_words >> 3] + (in_words & 7)
    rest = is_set[8 * num_words :].nonzero().squeeze(1)
    return torch.cat([positions, rest + 8 * num_words]) if rest.numel() else positions


def _narrower(blocks: Iterator[Tensor], k: int, low: float, high: float) -> tuple[float, float]:
    """A bracket of which the k-th smallest is inside or at an end, with half as many values.

    Halves the range of representable values, so that it ends whatever the distribution is.
    """
    pivot: float | None = None
    up_to_pivot = 0
    for block in blocks:
        if pivot is None:
            pivot = _midpoint(low, high, block.dtype)
        up_to_pivot += count_true(block <= pivot)
    assert pivot is not None
    return (low, pivot) if k <= up_to_pivot else (pivot, high)


def _midpoint(low: float, high: float, dtype: torch.dtype) -> float | int:
    """The value halfway between two others in the order of representable values."""
    if dtype == torch.int64:
        least, most = torch.iinfo(dtype).min, torch.iinfo(dtype).max
        return (max(low, least) + min(high, most)) // 2  # type: ignore[return-value]
    ends = torch.tensor([low, high], dtype=torch.float32).view(torch.int32)
    # Floats order like integers once those with a sign bit are turned around.
    ordered = [end if end >= 0 else -(end & 0x7FFFFFFF) for end in ends.tolist()]
    middle = sum(ordered) // 2
    bits = middle if middle >= 0 else -middle - (1 << 31)
    return torch.tensor(bits, dtype=torch.int32).view(torch.float32).item()


def _scores_of(tensors: Sequence[ScoredTensor]) -> Callable[[], Iterator[Tensor]]:
    return lambda: (scores for tensor in tensors for _, scores in tensor.pieces())


def _sampled_bracket(tensors: Sequence[ScoredTensor], k: int) -> tuple[float, float]:
    """Values that the k-th smallest score almost surely lies between, from a random sample."""
    total = sum(tensor.numel for tensor in tensors)
    if total <= MAX_CANDIDATES:
        return -math.inf, math.inf
    samples = []
    for tensor in tensors:
        size = round(SAMPLE_SIZE * tensor.numel / total)
        # A generator of its own: the choice must not touch the user's random numbers.
        generator = torch.Generator(tensor.mask.device).manual_seed(tensor.offset)
        positions = torch.randint(
            tensor.numel, (size,), generator=generator, device=tensor.mask.device
        )
        samples.append(tensor.score(positions).to(tensors[0].mask.device, copy=True))
    sample = torch.cat(samples)
    share = k / total
    margin = 1 + _BRACKET_SIGMAS * math.sqrt(sample.numel() * share * (1 - share))
    low = math.floor(share * sample.numel() - margin)
    high = math.ceil(share * sample.numel() + margin)
    return (
        # Two ranks cost a third of a sort.
        sample.kthvalue(low + 1).values.item() if low >= 0 else -math.inf,
        sample.kthvalue(high + 1).values.item() if high < sample.numel() else math.inf,
    )


# --- ties ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _TieBreak:
    """Which of the entries at the threshold stay: those of ``kept`` state above a cut-off key."""

    threshold: float
    kept: bool  # the state whose entries are split; pruned entries are all pruned if it is True
    cutoff: int | float  # largest tie key that is pruned
    starts: Set[int]  # global positions at which the pieces with ties start

    def survivors(self, tensor: ScoredTensor, piece: slice, scores: Tensor) -> Tensor | None:
        """Positions within ``piece`` of the tied entries that stay; None if it has no ties."""
        start = tensor.offset + piece.start
        if start not in self.starts:
            return None
        tied = _tied(scores, self.threshold)
        is_kept = tensor.flat_mask[piece][tied]
        stay = (is_kept == self.kept) & (tie_keys(tied + start) > self.cutoff)
        return tied[stay if self.kept else stay | is_kept]


def _tie_break(
    tensors: Sequence[ScoredTensor], threshold: float, num_tied: int, num_pruned: int
) -> _TieBreak:
    """Decide which ``num_pruned`` of the ``num_tied`` entries at the threshold are pruned."""
    pieces: list[tuple[ScoredTensor, slice]] = []  # those with ties: mostly one or two
    num_kept = 0
    for tensor in tensors:
        for piece, scores in tensor.pieces():
            tied = _tied(scores, threshold)
            if tied.numel():
                pieces.append((tensor, piece))
                num_kept += count_true(tensor.flat_mask[piece][tied])
    num_pruned_already = num_tied - num_kept
    kept = num_pruned > num_pruned_already

    def keys() -> Iterator[Tensor]:
        for tensor, piece in pieces:
            tied = _tied(tensor.score(piece), threshold)
            split = tied[tensor.flat_mask[piece][tied] == kept]
            yield tie_keys(split + (tensor.offset + piece.start))

    if kept:
        rank, among = num_pruned - num_pruned_already, num_kept
    else:
        rank, among = num_pruned, num_pruned_already
    cutoff = kth_smallest(keys, rank, _even_bracket(rank, among)).value
    starts = frozenset(tensor.offset + piece.start for tensor, piece in pieces)
    return _TieBreak(threshold, kept, cutoff, starts)


def _tied(scores: Tensor, threshold: float) -> Tensor:
    """Positions of the scores that equal the threshold."""
    flags = torch.eq(scores, threshold, out=torch.empty_like(scores))
    if not int(flags.sum()):  # in nearly all blocks, and quicker to see than positions to look for
        return flags.new_empty(0, dtype=torch.int64)
    return _positions(flags)


def _even_bracket(rank: int, among: int) -> tuple[float, float]:
    """Tie keys that the one of that rank almost surely lies between: they are spread evenly."""
    if among <= MAX_CANDIDATES:
        return -math.inf, math.inf
    share = rank / among
    margin = (1 + _BRACKET_SIGMAS * math.sqrt(among * share * (1 - share))) / among
    low, high = (int((end - 0.5) * 2**64) for end in (share - margin, share + margin))
    return (
        low if low > -(1 << 63) else -math.inf,
        high if high < 1 << 63 else math.inf,
    )


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
    keys = (keys ^ _shifted_right(keys, 30)) * _wrapped(0xBF58476D1CE4E5B9)
    keys = (keys ^ _shifted_right(keys, 27)) * _wrapped(0x94D049BB133111EB)
    return keys ^ _shifted_right(keys, 31)


def _shifted_right(keys: Tensor, bits: int) -> Tensor:
    # torch has no unsigned shift: shift with the sign and clear what it filled in.
    return (keys >> bits) & ((1 << (64 - bits)) - 1)


def _wrapped(constant: int) -> int:
    """The signed 64-bit integer with the same bits."""
    return constant - (1 << 64) if constant >= 1 << 63 else constant
