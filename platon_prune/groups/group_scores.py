"""Scores of coupled groups from those of their entries, walked block by block."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from platon_prune.choice.scored import ScoredTensor
from platon_prune.choice.selection import require_same_replicas
from platon_prune.groups.costs import indices_per_group
from platon_prune.groups.coupled import CoupledGroups
from platon_prune.groups.over_shards import is_whole_everywhere, whole_shape
from platon_prune.tensors.blocks import Scratch, block_size, digest
from platon_prune.tensors.collectives import Processes

Aggregate = Literal["mean", "sum", "max", "l2"]
AGGREGATES: tuple[Aggregate, ...] = ("mean", "sum", "max", "l2")
Normalizer = Literal["auto", "none", "mean", "cost"]
NORMALIZERS: tuple[Normalizer, ...] = ("auto", "none", "mean", "cost")


def group_scores(
    groups: Sequence[CoupledGroups],
    tensors: Sequence[ScoredTensor],
    aggregate: str,
    processes: Processes,
) -> Tensor:
    """The score of each group of all places, one after another.

    Args:
        groups: All places.
        tensors: All of their tensors; of a sharded one, this process's shard.
        aggregate: "mean", "sum", "max" or "l2" (the root of the sum of squares) over all entries
            of a group.
        processes: Those that hold the same, or the other shards; collective.

    Returns:
        float64, on the CPU, never NaN: what can't be told is infinite, and so is kept. The same in
        all processes; over shards it may differ from that of one process by the rounding of a
        float64 sum.

    Raises:
        RuntimeError: If processes had different scores or masks of what they hold alike.
    """
    sums = _Sums(aggregate)
    along: dict[tuple[str, int], Tensor] = {}
    dims: dict[str, set[int]] = {}
    for place in groups:
        for member in place.members:
            dims.setdefault(member.name, set()).add(member.dim)
    digests = []
    for tensor in tensors:
        results, digested = sums.along(tensor, sorted(dims[tensor.name]))
        along |= {(tensor.name, dim): result for dim, result in results.items()}
        digests.append(digested)
    require_same_replicas(tensors, digests, processes)
    shapes = {tensor.name: whole_shape(tensor) for tensor in tensors}
    sharded = {t.name for t in tensors if not is_whole_everywhere(t, processes)}
    totals = sums.totals(groups, along, without=sharded)
    if sharded:
        # Only the first of those that hold the same shard tells of it: each entry counts once.
        told = {t.name for t in tensors if t.shard is not None and t.shard.replica}
        parts = sums.totals(groups, along, without=shapes.keys() - sharded | told)
        totals = sums.together(totals, parts, processes)
    scores = sums.scores(totals, groups, shapes)
    scores.nan_to_num_(nan=math.inf, posinf=math.inf, neginf=-math.inf)
    return _of_first(scores, processes)


def normalized(
    scores: Tensor,
    groups: Sequence[CoupledGroups],
    normalizer: str,
    costs: Sequence[int | Tensor],
    num_cut: Sequence[int] | None = None,
) -> Tensor:
    """Scores that can be compared between places.

    Args:
        scores: Of the groups of all places, one after another; float64.
        groups: All places.
        normalizer: "none"; "mean", by the mean over the place; "cost", by what a group costs.
        costs: What one group of each place costs, of the budget; or of each of its groups.
        num_cut: How many groups of each place were cut out, which count as zero in its mean.

    Returns:
        Same shape and dtype; what is infinite stays so.
    """
    if normalizer == "none":
        return scores
    result = scores.clone()
    pieces = torch.split(result, [place.size for place in groups])
    for piece, cost, cut in zip(pieces, costs, num_cut or [0] * len(groups), strict=True):
        divisor = torch.as_tensor(cost)
        if normalizer == "mean":
            finite = piece[piece.isfinite()]
            share = len(finite) / max(1, len(finite) + cut)
            divisor = share * finite.mean() if len(finite) else torch.zeros(())
        # A place whose scores are all 0, or whose groups cost nothing, is left as it is.
        piece /= torch.where(divisor > 0, divisor, 1)
    return result


class _Sums:
    """Sums, or maxima, in float64: over all dimensions but one, then over indices of a group."""

    def __init__(self, aggregate: str) -> None:
        self.aggregate = aggregate
        self._nothing = -math.inf if aggregate == "max" else 0.0

    def along(
        self, tensor: ScoredTensor, dims: Sequence[int]
    ) -> tuple[dict[int, Tensor], int | Tensor]:
        """One number per index of each dimension; and the digest that replicas are compared by.

        Of a shard, the other indices have what nothing adds up to.
        """
        shape, device = tensor.mask.shape, tensor.mask.device
        # On the tensor's device: one read of the scores serves all dimensions, and only the sums
        # go to the CPU.
        results = {
            dim: torch.full((shape[dim],), self._nothing, dtype=torch.float64, device=device)
            for dim in dims
        }
        scratch = Scratch()
        digested: int | Tensor = 0
        for rows in _row_blocks(shape, device):
            per_row = shape[1:].numel()
            flat = slice(rows.start * per_row, rows.stop * per_row)
            scores = tensor.score(flat)
            if tensor.num_replicas > 1:
                digested += (flat.start + 1) * digest(scores, tensor.flat_mask[flat], scratch)
            block = scores.view(-1, *shape[1:])
            for dim, result in results.items():
                self._accumulate(block, dim, result[rows] if dim == 0 else result)
        return {dim: self._spread(tensor, dim, each) for dim, each in results.items()}, digested

    def _spread(self, tensor: ScoredTensor, dim: int, local: Tensor) -> Tensor:
        """Numbers of a shard's indices at their places among those of the whole tensor."""
        index = None if tensor.shard is None else tensor.shard.indices[dim]
        if index is None:
            return local.cpu()
        assert tensor.shard is not None
        whole = torch.full((tensor.shard.shape[dim],), self._nothing, dtype=torch.float64)
        return whole.index_copy_(0, index.cpu(), local.cpu())

    def _accumulate(self, block: Tensor, dim: int, result: Tensor) -> None:
        others = [i for i in range(block.ndim) if i != dim]
        if self.aggregate == "max":
            largest = block.amax(others) if others else block
            torch.maximum(result, largest.double(), out=result)
            return
        if self.aggregate == "l2":
            # In float64 before the square: those of small float32 scores would vanish.
            block = block.double().square()
        result += block.sum(others, dtype=torch.float64) if others else block

    def totals(
        self,
        groups: Sequence[CoupledGroups],
        along: Mapping[tuple[str, int], Tensor],
        without: Collection[str],
    ) -> Tensor:
        """What the entries of each group add up to, in all tensors but some; all places."""
        return torch.cat([self._of_place(place, along, without) for place in groups])

    def _of_place(
        self,
        place: CoupledGroups,
        along: Mapping[tuple[str, int], Tensor],
        without: Collection[str],
    ) -> Tensor:
        # The last one takes what belongs to no group.
        totals = torch.full((place.size + 1,), self._nothing, dtype=torch.float64)
        for member in place.members:
            if member.name in without:
                continue
            index = member.group_of.remainder(place.size + 1)
            values = along[member.name, member.dim]
            if self.aggregate == "max":
                totals.scatter_reduce_(0, index, values, "amax")
            else:
                totals.index_add_(0, index, values)
        return totals[:-1]

    def together(self, totals: Tensor, parts: Tensor, processes: Processes) -> Tensor:
        """Totals that every process has, with those of which each has a part; collective."""
        if self.aggregate == "max":
            return torch.maximum(totals, processes.largest(parts))
        return totals + processes.total(parts)

    def scores(
        self,
        totals: Tensor,
        groups: Sequence[CoupledGroups],
        shapes: Mapping[str, torch.Size],
    ) -> Tensor:
        """The scores of all groups from what their entries add up to."""
        if self.aggregate == "mean":
            return totals / torch.cat([_num_entries(place, shapes) for place in groups])
        return totals.sqrt() if self.aggregate == "l2" else totals


def _num_entries(place: CoupledGroups, shapes: Mapping[str, torch.Size]) -> Tensor:
    """How many entries each group of a place has in all tensors; int64."""
    found = torch.zeros(place.size, dtype=torch.int64)
    for member in place.members:
        shape = shapes[member.name]
        per_index = shape.numel() // shape[member.dim]
        found += indices_per_group(member, place.size) * per_index
    return found


def _of_first(scores: Tensor, processes: Processes) -> Tensor:
    """The scores of the first process: sums may be rounded otherwise in another."""
    # As integers, which add up exactly: the others send zeros.
    bits = scores.view(torch.int64)
    if processes.rank:
        bits = torch.zeros_like(bits)
    return processes.sum(bits).view(torch.float64)


def _row_blocks(shape: torch.Size, device: torch.device) -> Iterator[slice]:
    if not shape.numel():
        return  # a process may have no shard of a tensor at all
    num_rows = max(1, block_size(device) // max(1, shape[1:].numel()))
    for start in range(0, shape[0], num_rows):
        yield slice(start, min(start + num_rows, shape[0]))
