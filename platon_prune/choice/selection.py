"""The exact choice: which entries, over many tensors and processes, have the smallest scores.

Nothing is joined, and nothing of the scores leaves its process but the ends of a sample and counts:
the sample brackets the threshold, :func:`~platon_prune.tensors.ranking.kth_smallest` finds it, and
each process writes its own masks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from platon_prune.tensors import ranking
from platon_prune.tensors.blocks import Scratch, count_true, digest, slices
from platon_prune.tensors.collectives import ALONE, Processes
from platon_prune.tensors.ordering import bounds, of_int, tie_keys, to_ints
from platon_prune.tensors.ranking import histogram, kth_smallest, positions_of
from platon_prune.tensors.shards import Part

# Of all processes together; of a small model no more than a share of it, and none of a tiny one.
SAMPLE_SIZE = 1 << 18
_SAMPLE_SHARE = 1 / 8
_TINY = 1 << 16
# Half the bracket's width in standard deviations of a sampled rank: 1 choice in 10^4 sweeps again.
_BRACKET_SIGMAS = 4.0
# What copies of a part are compared by, small enough that sums over processes do not overflow.
_DIGEST_MODULUS = 1 << 48


@dataclass(frozen=True)
class ScoredTensor:
    """One tensor that takes part in a choice, or the part of it that this process holds.

    Args:
        score: Returns the scores at a slice, or at an int64 tensor of positions, of the flat
            tensor: float32, never NaN. The result is used before the next call only.
        mask: Contiguous bool mask (True = kept); read for the order of ties, then overwritten.
        offset: Global position of the first entry of the whole tensor; fixes the order of ties.
        part: Which part of the whole tensor it is; None if it is the whole of it.
        name: What to call it in a message.
    """

    score: Callable[[slice | Tensor], Tensor]
    mask: Tensor
    offset: int
    part: Part | None = None
    name: str = ""

    @property
    def numel(self) -> int:
        """Number of entries that this process holds."""
        return self.mask.numel()

    @property
    def flat_mask(self) -> Tensor:
        """The mask, one-dimensional."""
        return self.mask.view(-1)

    @property
    def whole_numel(self) -> int:
        """Number of entries that all processes hold together."""
        return self.numel if self.part is None else self.part.shape.numel()

    @property
    def own(self) -> slice:
        """What of it this process counts."""
        return slice(0, self.numel) if self.part is None else self.part.own

    @property
    def copies(self) -> int:
        """How many processes hold the same part."""
        return 1 if self.part is None else self.part.copies

    def positions(self, local: Tensor) -> Tensor:
        """Global positions of positions in the flat tensor."""
        return (local if self.part is None else self.part.positions(local)) + self.offset

    def pieces(self, within: slice | None = None) -> Iterator[tuple[slice, Tensor]]:
        """Slices of the flat tensor, or of a slice of it, with their scores."""
        start, stop = (0, self.numel) if within is None else (within.start, within.stop)
        for piece in slices(stop - start, self.mask.device):
            shifted = slice(start + piece.start, start + piece.stop)
            yield shifted, self.score(shifted)


def prune_smallest_(
    tensors: Sequence[ScoredTensor], count: int, processes: Processes = ALONE
) -> float | None:
    """Set the masks in place so that exactly ``count`` entries over all tensors are False.

    Args:
        tensors: Every tensor of the global choice; of a sharded one, this process's part.
        count: Entries to prune, between 0 and the number of entries in all processes, each of
            which is counted once however many hold it.
        processes: Those that choose together; each must call this with the same count.

    Returns:
        The threshold: the largest score pruned; None if ``count`` is 0. Of the entries with
        just this score those that were pruned already go first, then the lowest in a fixed
        pseudo-random order of global positions, so that ties empty no tensor.

    Raises:
        RuntimeError: If processes that hold the same part had different scores or masks for it.
    """
    cut = find_cut(tensors, count, processes)
    write_masks_(tensors, cut, processes)
    return None if cut is None else cut.value


@dataclass(frozen=True)
class Cut:
    """Which entries are the smallest: those below a value, and of those that equal it the first.

    Args:
        value: The threshold.
        ties: How those at the threshold are split; None if all of them are pruned.
    """

    value: float
    ties: _TieBreak | None = None

    def survivors(self, tensor: ScoredTensor, piece: slice, scores: Tensor) -> Tensor | None:
        """Positions within ``piece`` of the entries at the threshold that stay, if there are."""
        return None if self.ties is None else self.ties.survivors(tensor, piece, scores)

    def count(self, tensor: ScoredTensor) -> int:
        """How many of the entries that this process counts go; reads the mask as it was."""
        pruned = 0
        scratch = Scratch()
        for piece, scores in tensor.pieces(tensor.own):
            # As numbers of their own type, as in the sweeps of a ranking.
            goes = torch.le(scores, self.value, out=scratch.like(scores, scores.dtype))
            survivors = self.survivors(tensor, piece, scores)
            pruned += int(goes.sum()) - (0 if survivors is None else survivors.numel())
        return pruned


def find_cut(
    tensors: Sequence[ScoredTensor], count: int, processes: Processes = ALONE
) -> Cut | None:
    """Find the ``count`` smallest entries over all tensors; changes nothing.

    Args:
        tensors: As for :func:`prune_smallest_`.
        count: Likewise.
        processes: Likewise.

    Returns:
        What tells them from the others, for as long as scores and masks are what they were; None
        if ``count`` is 0.
    """
    if not count:
        return None
    bracket = _sampled_bracket(tensors, count, processes)
    threshold, below, equal = kth_smallest(_scores_of(tensors), count, bracket, processes)
    if below + equal == count:
        return Cut(float(threshold))
    return Cut(float(threshold), _tie_break(tensors, threshold, count - below, processes))


def write_masks_(
    tensors: Sequence[ScoredTensor], cut: Cut | None, processes: Processes = ALONE
) -> None:
    """Set the masks in place so that the entries of a cut, or none at all, are False.

    Args:
        tensors: Those that the cut was found for.
        cut: What :func:`find_cut` returned.
        processes: Those that choose together.

    Raises:
        RuntimeError: If processes that hold the same part had different scores or masks for it.
    """
    digests = [0] * len(tensors)
    scratch = Scratch()
    for i, tensor in enumerate(tensors):
        for piece, scores in tensor.pieces():
            mask = tensor.flat_mask[piece]
            if tensor.copies > 1:
                digests[i] += (piece.start + 1) * digest(scores, mask, scratch)
            if cut is None:
                mask.fill_(True)
                continue
            survivors = cut.survivors(tensor, piece, scores)
            mask.copy_(torch.gt(scores, cut.value, out=scratch.like(scores, scores.dtype)))
            if survivors is not None:
                mask[survivors] = True
    require_same_copies(tensors, digests, processes)


def require_same_copies(
    tensors: Sequence[ScoredTensor], digests: Sequence[int], processes: Processes
) -> None:
    """Raise everywhere if processes that hold the same part found different digests for it.

    Args:
        tensors: Those of the choice.
        digests: A number for each, of the scores and masks in this process; collective.
        processes: Those that choose together.

    Raises:
        RuntimeError: If they differ; names the tensors.
    """
    # Each multiplies its digest by a number of its own; those of a part's holders add up to zero.
    if processes.size == 1:
        return
    weighted = [
        digest * _weight_of_copy(tensor.part) % _DIGEST_MODULUS
        for tensor, digest in zip(tensors, digests, strict=True)
    ]
    sums = processes.sum(torch.tensor(weighted, dtype=torch.int64)).tolist()
    drifted = [
        tensor.name for tensor, total in zip(tensors, sums, strict=True) if total % _DIGEST_MODULUS
    ]
    if drifted:
        raise RuntimeError(
            "processes that hold the same weights must have the same scores and masks, but they "
            f"differ in {', '.join(drifted)}: the processes have drifted apart (different seeds, "
            "weights that were changed in one of them, gradients that were not averaged); go on "
            "from the last checkpoint"
        )


def _weight_of_copy(part: Part | None) -> int:
    if part is None or part.copies == 1:
        return 0
    # Odd numbers that no simple pattern of differences cancels.
    weights = [(2 * i + 1) * 0x9E3779B97F4A7C15 % _DIGEST_MODULUS for i in range(part.copies - 1)]
    return weights[part.copy] if part.copy < part.copies - 1 else -sum(weights)


# --- the bracket --------------------------------------------------------------------------------


def _scores_of(tensors: Sequence[ScoredTensor]) -> Callable[[], Iterator[Tensor]]:
    return lambda: (scores for tensor in tensors for _, scores in tensor.pieces(tensor.own))


def sample_size(total: int) -> float:
    """How many of so many scores all processes together look at to bracket the threshold."""
    if total <= min(_TINY, ranking.MAX_CANDIDATES):
        return 0.0
    return min(SAMPLE_SIZE, total * _SAMPLE_SHARE)


def _sampled_bracket(
    tensors: Sequence[ScoredTensor], k: int, processes: Processes
) -> tuple[float, float]:
    """Values that the k-th smallest score almost surely lies between, from a random sample."""
    total = sum(tensor.whole_numel for tensor in tensors)
    share = sample_size(total) / total
    if not share:
        return -math.inf, math.inf
    samples = [to_ints(sample) for sample in _samples(tensors, share, processes.rank)]
    ends = [(-int(sample.min()), int(sample.max())) for sample in samples if sample.numel()]
    least, most = bounds(torch.float32)
    minus_low, high = processes.maximum(
        [
            max((low for low, _ in ends), default=-most),
            max((high for _, high in ends), default=least),
        ]
    )
    low = -minus_low
    if low >= high:
        return (-math.inf, math.inf) if low > high else (of_int(low, torch.float32),) * 2
    up_to, shift = histogram(iter(samples), low, high, processes)
    size = int(up_to[-1])
    fraction = k / total
    margin = 1 + _BRACKET_SIGMAS * math.sqrt(size * fraction * (1 - fraction))
    first, last = math.floor(fraction * size - margin), math.ceil(fraction * size + margin)
    bracket = [-math.inf, math.inf]
    if first >= 0:
        bracket[0] = of_int(low + (_digit(up_to, first) << shift), torch.float32)
    if last < size:
        top = low + ((_digit(up_to, last) + 1) << shift) - 1
        bracket[1] = of_int(min(top, high), torch.float32)
    return bracket[0], bracket[1]


def _digit(up_to: Tensor, rank: int) -> int:
    return int(torch.searchsorted(up_to, rank + 1))


def _samples(tensors: Sequence[ScoredTensor], share: float, rank: int) -> Iterator[Tensor]:
    """A random sample, of this share, of what this process counts of each tensor."""
    # Rounded over all of them, and not alike in each process: no tensor is too small for it.
    so_far = rank * 0.618 % 1
    for tensor in tensors:
        own, device = tensor.own, tensor.mask.device
        before, so_far = so_far, so_far + share * (own.stop - own.start)
        size = int(so_far) - int(before)
        if size:
            # A generator of its own: the choice must not touch the user's random numbers.
            generator = torch.Generator(device).manual_seed(tensor.offset + own.start + rank)
            positions = torch.randint(
                own.start, own.stop, (size,), generator=generator, device=device
            )
            yield tensor.score(positions).clone()


# --- ties ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _TieBreak:
    """Which of the entries at the threshold stay: those of ``kept`` state above a cut-off key."""

    threshold: float
    kept: bool  # the state whose entries are split; pruned entries are all pruned if it is True
    cutoff: int | float  # the largest tie key that is pruned, or one below the next

    def survivors(self, tensor: ScoredTensor, piece: slice, scores: Tensor) -> Tensor | None:
        """Positions within ``piece`` of the tied entries that stay; None if it has no ties."""
        tied = _tied(scores, self.threshold)
        if not tied.numel():
            return None
        is_kept = tensor.flat_mask[piece][tied]
        keys = tie_keys(tensor.positions(tied + piece.start))
        stay = (is_kept == self.kept) & (keys > self.cutoff)
        return tied[stay if self.kept else stay | is_kept]


def _tie_break(
    tensors: Sequence[ScoredTensor], threshold: float, num_pruned: int, processes: Processes
) -> _TieBreak:
    """Decide which ``num_pruned`` of the entries at the threshold are pruned."""
    pieces: list[tuple[ScoredTensor, slice]] = []  # those with ties: mostly one or two
    num_tied = num_kept = 0
    for tensor in tensors:
        for piece, scores in tensor.pieces(tensor.own):
            tied = _tied(scores, threshold)
            if tied.numel():
                pieces.append((tensor, piece))
                num_tied += tied.numel()
                num_kept += count_true(tensor.flat_mask[piece][tied])
    counts = processes.sum(torch.tensor([num_tied, num_kept]))
    num_tied, num_kept = (int(count) for count in counts.tolist())
    num_pruned_already = num_tied - num_kept
    kept = num_pruned > num_pruned_already

    def keys() -> Iterator[Tensor]:
        for tensor, piece in pieces:
            tied = _tied(tensor.score(piece), threshold)
            split = tied[tensor.flat_mask[piece][tied] == kept]
            yield tie_keys(tensor.positions(split + piece.start))

    if kept:
        rank, among = num_pruned - num_pruned_already, num_kept
    else:
        rank, among = num_pruned, num_pruned_already
    bracket = _even_bracket(rank, among)
    cutoff = kth_smallest(keys, rank, bracket, processes, torch.int64, exact=False).value
    return _TieBreak(threshold, kept, cutoff)


def _tied(scores: Tensor, threshold: float) -> Tensor:
    """Positions of the scores that equal the threshold."""
    flags = torch.eq(scores, threshold, out=torch.empty_like(scores))
    if not int(flags.sum()):  # in nearly all blocks, and quicker to see than positions to look for
        return flags.new_empty(0, dtype=torch.int64)
    return positions_of(flags)


def _even_bracket(rank: int, among: int) -> tuple[float, float]:
    """Tie keys that the one of that rank almost surely lies between: they are spread evenly."""
    if among <= ranking.MAX_CANDIDATES:
        return -math.inf, math.inf
    share = rank / among
    margin = (1 + _BRACKET_SIGMAS * math.sqrt(among * share * (1 - share))) / among
    low, high = (int((end - 0.5) * 2**64) for end in (share - margin, share + margin))
    return (
        low if low > -(1 << 63) else -math.inf,
        high if high < 1 << 63 else math.inf,
    )
