"""What a choice changed: how many weights left and came back, counted on packed bits.

Masks are compared as they were and as they are, so it does not matter what chose them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from platon_prune.choice.scored import ScoredTensor
from platon_prune.tensors.bits import count_ones, pack_bits, sum_of_ones
from platon_prune.tensors.blocks import count_true
from platon_prune.tensors.collectives import Processes

# A tensor counts as nearly empty if its density is at most this, and at most a tenth of the density
# of the whole model: at a target of 99.9 % sparsity, one in a thousand is what every tensor keeps.
NEARLY_EMPTY = 1 / 1000
# A tensor counts as soon empty if its density is at most this fraction of the whole model's, and
# another choice that takes as much from it as the last one did would leave nothing.
BEHIND = 1 / 2


@dataclass(frozen=True)
class Change:
    """What a choice did to one tensor, counted over all processes.

    Args:
        name: Its name before pruning.
        numel: How many entries it has.
        kept: How many of them are kept now.
        left: How many were kept before and are not now; None if masks were not compared.
        came_back: How many are kept now and were not before; likewise.
    """

    name: str
    numel: int
    kept: int
    left: int | None = None
    came_back: int | None = None


def bits_before(tensors: Sequence[ScoredTensor]) -> list[Tensor]:
    """Pack the masks before a choice, one bit for a weight, to compare them with those after it.

    Of a sharded tensor each process packs its owned slice, so that no weight is counted twice.
    """
    return [pack_bits(tensor.flat_mask[tensor.owned]) for tensor in tensors]


def changes(
    tensors: Sequence[ScoredTensor], before: Sequence[Tensor] | None, processes: Processes
) -> list[Change]:
    """Count for each tensor how many weights are kept, left and came back; collective.

    Args:
        tensors: Those of a choice that has just been made.
        before: What :func:`bits_before` returned before it; None not to compare.
        processes: Those that chose together.

    Returns:
        One for each tensor.
    """
    if processes.on_device() is not None:
        return _changes_on_device(tensors, before, processes)
    rows = []
    for i, tensor in enumerate(tensors):
        owned = tensor.flat_mask[tensor.owned]
        # Without a comparison one sum is enough, and the mask need not be packed.
        if before is None:
            rows.append((count_true(owned), 0, 0))
            continue
        bits = pack_bits(owned)
        kept, stayed = count_ones(bits), count_ones(bits & before[i])
        rows.append((kept, count_ones(before[i]) - stayed, kept - stayed))
    # All tensors in one exchange: a collective costs a round trip whatever its size.
    counts = processes.sum(torch.tensor(rows, dtype=torch.int64)).tolist()
    return _as_changes(tensors, counts, tells=before is not None)


def _changes_on_device(
    tensors: Sequence[ScoredTensor], before: Sequence[Tensor] | None, processes: Processes
) -> list[Change]:
    """The same where processes add up on a device: one wait, however many tensors there are."""
    rows = []
    for i, tensor in enumerate(tensors):
        owned = tensor.flat_mask[tensor.owned]
        kept = owned.sum()
        left, back = torch.zeros_like(kept), torch.zeros_like(kept)
        if before is not None:
            stayed = sum_of_ones(pack_bits(owned) & before[i])
            left, back = sum_of_ones(before[i]) - stayed, kept - stayed
        rows.append(torch.stack([kept, left, back]))
    counts = processes.sum(torch.stack(rows)).tolist()
    return _as_changes(tensors, counts, tells=before is not None)


def _as_changes(
    tensors: Sequence[ScoredTensor], counts: Sequence[Sequence[int]], *, tells: bool
) -> list[Change]:
    return [
        Change(t.name, t.whole_numel, kept, *((left, back) if tells else (None, None)))
        for t, (kept, left, back) in zip(tensors, counts, strict=True)
    ]


def changes_of(
    names: Sequence[tuple[str, int]], counts: Sequence[Sequence[int]], tells: bool
) -> list[Change]:
    """What changed, from counts that the choice made on its way.

    Args:
        names: Name and number of entries of each tensor.
        counts: Of each, how many are kept, how many of those were kept before, and how many were.
        tells: Whether what left and came back is wanted.
    """
    return [
        Change(name, numel, kept, *((before - stayed, kept - stayed) if tells else (None, None)))
        for (name, numel), (kept, stayed, before) in zip(names, counts, strict=True)
    ]


def nearly_empty(changed: Sequence[Change]) -> list[Change]:
    """The tensors of which a choice left nothing or next to nothing, while others keep something.

    See :data:`NEARLY_EMPTY` for the limit.
    """
    kept = sum(change.kept for change in changed)
    if not kept:
        return []  # all of the model was asked for
    most = min(NEARLY_EMPTY, kept / sum(change.numel for change in changed) / 10)
    return [change for change in changed if change.kept <= most * change.numel]


def soon_empty(changed: Sequence[Change]) -> list[Change]:
    """The tensors that will be empty if the next choice takes as much from them as this one did.

    They keep something yet, and far less than the model as a whole; see :data:`BEHIND`.
    """
    # Where the whole model is about to be emptied, or regrew, no tensor stands out.
    lost, kept = sum(map(_lost, changed)), sum(change.kept for change in changed)
    if not 0 < lost < kept:
        return []
    most = kept / sum(change.numel for change in changed) * BEHIND
    going = (change for change in changed if 0 < change.kept <= most * change.numel)
    return [change for change in going if _lost(change) >= change.kept]


def _lost(change: Change) -> int:
    """How many fewer are kept than before; 0 if masks were not compared."""
    return (change.left or 0) - (change.came_back or 0)
