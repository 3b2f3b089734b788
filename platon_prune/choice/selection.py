"""The exact choice: which entries, over many tensors and processes, have the smallest scores.

Nothing is joined, and nothing of the scores leaves its process but the ends of a sample and counts.
On a CPU a sample brackets the threshold and :func:`~platon_prune.tensors.ranking.kth_smallest`
finds it; on an accelerator two histograms of digits do, which take one wait for the device.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from platon_prune.choice.bracket import sampled_bracket
from platon_prune.choice.one_walk import Chosen, compare, prune_in_one_walk_
from platon_prune.choice.scored import (
    Scored,
    ScoredLine,
    ScoredTensor,
    scatter_,
)
from platon_prune.choice.ties import TieBreak, tie_break
from platon_prune.tensors import digits
from platon_prune.tensors.blocks import Scratch, digest
from platon_prune.tensors.collectives import ALONE, Processes, sent
from platon_prune.tensors.ranking import Ranked, kth_smallest
from platon_prune.tensors.shards import Shard

# Digests of replicas are added up modulo this: small enough that no sum over processes overflows.
_DIGEST_MODULUS = 1 << 48


def prune_smallest_(
    tensors: Sequence[ScoredTensor], count: int, processes: Processes = ALONE
) -> float | None:
    """Set the masks in place so that exactly ``count`` entries over all tensors are False.

    Args:
        tensors: Every tensor of the global choice; of a sharded one, this process's shard.
        count: Entries to prune, between 0 and the number of entries in all processes, each of
            which is counted once however many hold it.
        processes: Those that choose together; each must call this with the same count.

    Returns:
        The threshold: the largest score pruned; None if ``count`` is 0. Of the entries with
        just this score those that were pruned already go first, then the lowest in a fixed
        pseudo-random order of global positions, so that ties empty no tensor.

    Raises:
        RuntimeError: If processes that hold the same shard had different scores or masks for it.
    """
    cut = find_cut(tensors, count, processes)
    write_masks_(tensors, [cut] * len(tensors), processes)
    return None if cut is None else cut.value


def prune_smallest_of_line_(line: ScoredLine, count: int) -> Chosen:
    """As :func:`prune_smallest_`, over all tensors as one line of entries, in one process.

    The masks are written slab by slab, and what changed is counted on the way, so that the number
    of operations does not depend on the number of tensors.

    Args:
        line: All tensors.
        count: Entries to prune.
    """
    # An accelerator finds the threshold with one wait, which this would double.
    if count and not digits.serves([line.device], ALONE):
        chosen = prune_in_one_walk_(line, count)
        if chosen is not None:
            return chosen
    cut = find_cut([line], count)
    return Chosen(None if cut is None else cut.value, _write_line_(line, cut))


@dataclass(frozen=True)
class Cut:
    """A cut tells the smallest entries from the others, by their scores and, at a tie, their order.

    Args:
        value: The threshold.
        ties: How those at the threshold are split; None if all of them are pruned.
    """

    value: float
    ties: TieBreak | None = None

    def split(self, tensor: Scored, piece: slice, scores: Tensor) -> tuple[Tensor, Tensor] | None:
        """Positions of a piece's entries at the threshold, and whether each stays, if any does."""
        return None if self.ties is None else self.ties.split(tensor, piece, scores)

    def count(self, tensor: ScoredTensor) -> int:
        """How many of the entries that this process counts go; reads the mask as it was."""
        pruned = 0
        scratch = Scratch()
        for piece, scores in tensor.pieces(tensor.owned):
            # As numbers of their own type, as in the sweeps of a ranking.
            goes = torch.le(scores, self.value, out=scratch.like(scores, scores.dtype))
            split = self.split(tensor, piece, scores)
            pruned += int(goes.sum()) - (0 if split is None else int(split[1].sum()))
        return pruned


def find_cut(tensors: Sequence[Scored], count: int, processes: Processes = ALONE) -> Cut | None:
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
    threshold, below, equal = rank_scores(tensors, count, processes)
    # Ties are looked at only where the threshold cuts through them, which is rare.
    if below + equal == count:
        return Cut(float(threshold))
    return Cut(float(threshold), tie_break(tensors, float(threshold), count - below, processes))


def rank_scores(tensors: Sequence[Scored], count: int, processes: Processes = ALONE) -> Ranked:
    """The ``count``-th smallest score, with how many are smaller and how many equal it."""

    def blocks() -> Iterator[Tensor]:
        # Owned slices only: a replica's entries must be ranked once, whoever holds them.
        return (scores for tensor in tensors for _, scores in tensor.pieces(tensor.owned))

    devices = [tensor.device for tensor in tensors]
    if digits.serves(devices, processes):
        # Digits come from the device with one wait; a sample and a sweep would take several.
        signed = any(tensor.signed for tensor in tensors)
        return digits.kth_smallest_by_digits(blocks, count, devices[0], signed, processes)
    bracket = sampled_bracket(tensors, count, processes)
    return kth_smallest(blocks, count, bracket, processes)


def write_masks_(
    tensors: Sequence[ScoredTensor], cuts: Sequence[Cut | None], processes: Processes = ALONE
) -> None:
    """Set the masks in place so that the entries of a cut, or none at all, are False.

    Args:
        tensors: Those that cuts were found for.
        cuts: Of each what :func:`find_cut` returned for it, alone or with others.
        processes: Those that choose together.

    Raises:
        RuntimeError: If processes that hold the same shard had different scores or masks for it.
    """
    digests: list[int | Tensor] = [0] * len(tensors)
    scratch = Scratch()
    for i, (tensor, cut) in enumerate(zip(tensors, cuts, strict=True)):
        for piece, scores in tensor.pieces():
            mask = tensor.flat_mask[piece]
            if tensor.num_replicas > 1:
                # Before the mask is overwritten; by position, lest swapped pieces agree.
                digests[i] += (piece.start + 1) * digest(scores, mask, scratch)
            if cut is None:
                mask.fill_(True)
                continue
            split = cut.split(tensor, piece, scores)
            compare(torch.gt, scores, cut.value, mask, scratch)
            if split is not None:
                mask[split[0]] = split[1]
    require_same_replicas(tensors, digests, processes)


def _write_line_(line: ScoredLine, cut: Cut | None) -> Tensor:
    """Write the masks slab by slab; the counts of :class:`Chosen`."""
    kept_now, stayed, kept_before = (line.counter() for _ in range(3))
    for number, slab in enumerate(line.line.slabs):
        kept = line.new_mask(slab)
        if cut is None:
            kept.fill_(True)
        else:
            scores = line.score(slab)
            split = cut.split(line, slab, scores)
            compare(torch.gt, scores, cut.value, kept, line.scratch)
            if split is not None:
                kept[split[0]] = split[1]
        before = line.kept(slab)
        scatter_(kept, line.masks_in(slab))
        kept_now.add(number, slab.start, line.whole_rows(kept))
        stayed.add(number, slab.start, line.whole_rows(kept.logical_and_(before)))
        kept_before.add(number, slab.start, line.whole_rows(before))
    return torch.stack([counter.totals() for counter in (kept_now, stayed, kept_before)], 1)


def require_same_replicas(
    tensors: Sequence[ScoredTensor], digests: Sequence[int | Tensor], processes: Processes
) -> None:
    """Raise everywhere if processes that hold the same shard found different digests for it.

    Args:
        tensors: Those of the choice.
        digests: A number for each, of the scores and masks in this process; collective.
        processes: Those that choose together.

    Raises:
        RuntimeError: If they differ; names the tensors.
    """
    # Each process multiplies its digest by a weight of its own. The weights of a shard's replicas
    # add up to zero, and so do equal digests: one exchange of 8 bytes a tensor is enough.
    if processes.size == 1:
        return
    weights = [_weight_of_replica(tensor.shard) for tensor in tensors]
    device = processes.on_device()
    if device is None:
        # As Python integers, which do not overflow before the remainder is taken.
        pairs = zip(digests, weights, strict=True)
        weighted = torch.tensor([int(each) * weight % _DIGEST_MODULUS for each, weight in pairs])
    else:
        # Nor does it matter here that int64 overflows: the modulus divides 2^64.
        none = torch.zeros((), dtype=torch.int64, device=device)
        each = [d.to(device) if isinstance(d, Tensor) else none for d in digests]
        weighted = torch.stack(each).mul_(sent(weights, device)).remainder_(_DIGEST_MODULUS)
    sums = processes.sum(weighted).tolist()
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


def _weight_of_replica(shard: Shard | None) -> int:
    if shard is None or shard.num_replicas == 1:
        return 0
    # Odd numbers that no simple pattern of differences cancels.
    last = shard.num_replicas - 1
    weights = [(2 * i + 1) * 0x9E3779B97F4A7C15 % _DIGEST_MODULUS for i in range(last)]
    return weights[shard.replica] if shard.replica < last else -sum(weights)
