"""Values that the threshold almost surely lies between, from a random sample of the scores."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor

from platon_prune.tensors import ranking
from platon_prune.tensors.collectives import Processes
from platon_prune.tensors.ordering import bounds, of_int, to_ints
from platon_prune.tensors.ranking import histogram

# Of all processes together; of a small model no more than a share of it, and none of a tiny one.
# A sample is read at random, a cache miss for each average of each score, so it is no larger than
# keeps the candidates few: with 2^16 of 2^26 scores the bracket holds 1 % of them.
SAMPLE_SIZE = 1 << 18
_ENOUGH, _ENOUGH_SHARE = 1 << 16, 1 / 1024
_SAMPLE_SHARE = 1 / 8
_TINY = 1 << 16
# Alone, where no message has to be waited for, a sample pays earlier.
_TINY_ALONE = 1 << 13
# Half the bracket's width in standard deviations of a sampled rank: 1 choice in 10^4 sweeps again.
_BRACKET_SIGMAS = 4.0


class Sampled(Protocol):
    """Scores that a sample is taken from: see `scored.Scored`, which is more than that."""

    @property
    def whole_numel(self) -> int:
        """Number of scores that all processes hold together."""

    @property
    def owned(self) -> slice:
        """The slice that this process counts."""

    @property
    def device(self) -> torch.device:
        """Where the scores are."""

    @property
    def offset(self) -> int:
        """Global position of the first."""

    def score(self, index: Tensor) -> Tensor:
        """Scores at positions, in any order; valid until the next call."""


def sample_size(total: int, num_processes: int = 2) -> float:
    """The number of scores, of ``total``, that all processes together sample for a bracket."""
    tiny = _TINY if num_processes > 1 else _TINY_ALONE
    if total <= min(tiny, ranking.MAX_CANDIDATES):
        return 0.0
    return min(SAMPLE_SIZE, total * _SAMPLE_SHARE, max(_ENOUGH, total * _ENOUGH_SHARE))


def sampled_bracket(
    tensors: Sequence[Sampled], k: int, processes: Processes
) -> tuple[float, float]:
    """Values that the k-th smallest score almost surely lies between, from a random sample."""
    total = sum(tensor.whole_numel for tensor in tensors)
    share = sample_size(total, processes.size) / total
    if not share:
        return -math.inf, math.inf
    samples = [to_ints(sample) for sample in _samples(tensors, share, processes.rank)]
    num_sampled = sum(sample.numel() for sample in samples)
    if processes.size == 1 and num_sampled <= ranking.FEW:
        return _around(torch.cat([sample.cpu() for sample in samples]), k / total)
    # The lower end is sent with its sign turned, so that one maximum serves both ends.
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
    first, last = _ranks_around(k / total, size)
    bracket = [-math.inf, math.inf]
    # An end that the sample does not reach stays open: a wrong bracket costs another sweep.
    if first >= 0:
        bracket[0] = of_int(low + (_digit(up_to, first) << shift), torch.float32)
    if last < size:
        top = low + ((_digit(up_to, last) + 1) << shift) - 1
        bracket[1] = of_int(min(top, high), torch.float32)
    return bracket[0], bracket[1]


def _ranks_around(fraction: float, size: int) -> tuple[int, int]:
    """Ranks in a sample of so many, from 0, that a fraction of all values almost surely lies in."""
    # The rank in the sample is nearly normal: so many standard deviations miss rarely enough.
    margin = 1 + _BRACKET_SIGMAS * math.sqrt(size * fraction * (1 - fraction))
    return math.floor(fraction * size - margin), math.ceil(fraction * size + margin)


def _around(sample: Tensor, fraction: float) -> tuple[float, float]:
    """The same from a sample that this process has all of, without a histogram."""
    size = sample.numel()
    first, last = _ranks_around(fraction, size)
    low, high = (
        of_int(int(sample.kthvalue(rank + 1).values), torch.float32) if 0 <= rank < size else None
        for rank in (first, last)
    )
    return -math.inf if low is None else low, math.inf if high is None else high


def _digit(up_to: Tensor, rank: int) -> int:
    return int(torch.searchsorted(up_to, rank + 1))


def _samples(tensors: Sequence[Sampled], share: float, rank: int) -> Iterator[Tensor]:
    """A random sample, of this share, of what this process counts of each tensor."""
    # Rounded over all of them, and not alike in each process: no tensor is too small for it.
    so_far = rank * 0.618 % 1
    for tensor in tensors:
        owned, device = tensor.owned, tensor.device
        before, so_far = so_far, so_far + share * (owned.stop - owned.start)
        size = int(so_far) - int(before)
        if size:
            # A generator of its own: the choice must not touch the user's random numbers.
            generator = torch.Generator(device).manual_seed(tensor.offset + owned.start + rank)
            positions = torch.randint(
                owned.start, owned.stop, (size,), generator=generator, device=device
            )
            yield tensor.score(positions).clone()


def even_bracket(rank: int, among: int) -> tuple[float, float]:
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
