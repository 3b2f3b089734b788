"""Which of the entries at the threshold go: pruned ones first, then a fixed pseudo-random order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from platon_prune.choice.bracket import even_bracket
from platon_prune.choice.scored import Scored
from platon_prune.tensors import digits
from platon_prune.tensors.collectives import Processes
from platon_prune.tensors.ordering import tie_keys
from platon_prune.tensors.ranking import kth_smallest, positions_of

_PieceKey = tuple[int, int]  # the offset of a piece's tensor, and where the piece begins in it


@dataclass(frozen=True)
class TieBreak:
    """A tie break says which entries at the threshold stay: those above a cut-off key.

    Args:
        threshold: Their score.
        kept: The state whose entries are split; pruned entries are all pruned if it is True.
        cutoff: The largest tie key that is pruned, or one below the next; one entry if a tensor.
        found: The tied entries of each piece that has any, where looking for them again would make
            the host wait for a device.
    """

    threshold: float
    kept: bool
    cutoff: int | float | Tensor
    found: Mapping[_PieceKey, Tensor] | None = None

    def split(self, tensor: Scored, piece: slice, scores: Tensor) -> tuple[Tensor, Tensor] | None:
        """Positions of a piece's tied entries, and whether each stays; None if it has none."""
        if self.found is None:
            tied = _tied(scores, self.threshold)
        else:
            tied = self.found.get(_key_of(tensor, piece), scores[:0])
        if not tied.numel():
            return None
        is_kept = tensor.kept_at(piece, tied)
        keys = tie_keys(tensor.positions(tied + piece.start))
        stay = (is_kept == self.kept) & (keys > self.cutoff)
        return tied, stay if self.kept else stay | is_kept


def tie_break(
    tensors: Sequence[Scored], threshold: float, num_pruned: int, processes: Processes
) -> TieBreak:
    """Decide which ``num_pruned`` of the entries at the threshold are pruned; collective."""
    # Over processes, keys are ranked by sums that all wait for: ties are rare.
    if processes.size == 1 and digits.serves([tensor.device for tensor in tensors], processes):
        return _on_device(tensors, threshold, num_pruned)
    # Two walks: how many tied entries there are decides which of them are split.
    pieces: list[tuple[Scored, slice]] = []  # those with ties: mostly one or two
    num_tied = num_kept = 0
    for tensor in tensors:
        for piece, scores in tensor.pieces(tensor.owned):
            tied = _tied(scores, threshold)
            if tied.numel():
                pieces.append((tensor, piece))
                num_tied += tied.numel()
                num_kept += int(tensor.kept_at(piece, tied).sum())
    # One exchange of two numbers: all processes then split the same state at the same rank.
    counts = processes.sum(torch.tensor([num_tied, num_kept]))
    num_tied, num_kept = (int(count) for count in counts.tolist())
    kept, rank, among = _split_state(num_pruned, num_tied, num_kept)

    def keys() -> Iterator[Tensor]:
        for tensor, piece in pieces:
            # Scored again instead of kept: what a score returns is valid until the next call only.
            tied = _tied(tensor.score(piece), threshold)
            split = tied[tensor.kept_at(piece, tied) == kept]
            yield tie_keys(tensor.positions(split + piece.start))

    # Tie keys are as good as random, so their ranks tell where they lie without a sample.
    bracket = even_bracket(rank, among)
    cutoff = kth_smallest(keys, rank, bracket, processes, torch.int64, exact=False).value
    return TieBreak(threshold, kept, cutoff)


def _split_state(num_pruned: int, num_tied: int, num_kept: int) -> tuple[bool, int, int]:
    """Whether kept entries are split, or pruned ones; how many of those go, and of how many."""
    # What is pruned already goes first, so it is split only if all that is due fits into it.
    num_pruned_already = num_tied - num_kept
    if num_pruned > num_pruned_already:
        return True, num_pruned - num_pruned_already, num_kept
    return False, num_pruned, num_pruned_already


def which_tied_stay(keys: Tensor, kept: Tensor, num_pruned: int) -> Tensor:
    """Which of the entries at the threshold stay, where all of them are at hand.

    Args:
        keys: The tie key of each.
        kept: Whether each was kept before.
        num_pruned: How many of them go, at least 1.

    Returns:
        A bool for each.
    """
    state, rank, _ = _split_state(num_pruned, kept.numel(), int(kept.sum()))
    split = kept if state else ~kept
    cutoff = int(keys[split].kthvalue(rank).values)
    stay = split & (keys > cutoff)
    return stay if state else stay | kept


def _on_device(tensors: Sequence[Scored], threshold: float, num_pruned: int) -> TieBreak:
    """The same with one wait for the device, however many pieces have ties."""
    pieces: list[tuple[Scored, slice]] = []
    counts: list[Tensor] = []
    for tensor in tensors:
        for piece, scores in tensor.pieces(tensor.owned):
            flags = scores == threshold
            pieces.append((tensor, piece))
            counts.append(torch.stack([flags.sum(), flags.logical_and_(tensor.kept(piece)).sum()]))
    # The one wait, for the counts of all pieces.
    numbers = torch.stack(counts).tolist()
    num_tied, num_kept = (sum(column) for column in zip(*numbers, strict=True))
    kept, rank, among = _split_state(num_pruned, num_tied, num_kept)
    found: dict[_PieceKey, Tensor] = {}
    keys, states = [], []
    for (tensor, piece), (size, _) in zip(pieces, numbers, strict=True):
        if size:
            # Its size is known, so that nothing has to be waited for.
            flags = tensor.score(piece) == threshold
            tied = torch.nonzero_static(flags, size=size).squeeze(1)
            found[_key_of(tensor, piece)] = tied
            keys.append(tie_keys(tensor.positions(tied + piece.start)))
            states.append(tensor.kept_at(piece, tied))
    # Few enough to be joined and sorted: those of one score in all tensors.
    split = torch.nonzero_static(torch.cat(states) == kept, size=among).squeeze(1)
    cutoff = torch.cat(keys)[split].sort().values[rank - 1]
    return TieBreak(threshold, kept, cutoff, found)


def _key_of(tensor: Scored, piece: slice) -> _PieceKey:
    return tensor.offset, piece.start


def _tied(scores: Tensor, threshold: float) -> Tensor:
    """Positions of the scores that equal the threshold."""
    flags = torch.eq(scores, threshold, out=torch.empty_like(scores))
    if not int(flags.sum()):  # in nearly all blocks, and quicker to see than positions to look for
        return flags.new_empty(0, dtype=torch.int64)
    return positions_of(flags)
