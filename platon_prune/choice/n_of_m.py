"""n:m: in a constrained group of m neighbours n entries are kept; which groups are is chosen."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from platon_prune.choice.granularity import Granularity, Scope, checked_scope, scope_settings
from platon_prune.choice.limits import prune_smallest_within_
from platon_prune.choice.n_of_m_walk import constrain_in_one_walk_
from platon_prune.choice.one_walk import Chosen
from platon_prune.choice.scored import ScoredLine, ScoredTensor
from platon_prune.choice.selection import prune_smallest_, require_same_replicas
from platon_prune.choice.shares import shares_of
from platon_prune.tensors import digits
from platon_prune.tensors.bits import pack_bits
from platon_prune.tensors.blocks import Scratch, digest
from platon_prune.tensors.collectives import ALONE, Processes
from platon_prune.tensors.lanes import (
    Layout,
    keep_largest,
    keep_largest_of_tied,
    sorted_lanes,
    sum_of,
)
from platon_prune.tensors.ranking import positions_of
from platon_prune.tensors.shards import Shard


class SemiStructured(Granularity):
    """Of groups of m neighbours n are kept; the amount is the share of groups so constrained.

    Exactly ``round(amount * G)`` of all G groups are constrained, those that lose least: the sum of
    their m - n smallest scores. A constrained group keeps exactly its n largest scores, any other
    all of its entries. Ties between groups: those that are constrained already go first, then the
    lowest in a fixed pseudo-random order. Ties within a group: entries that are pruned already go
    first, then a fixed order that differs from group to group.

    Args:
        n: Entries that a constrained group keeps.
        m: Entries of a group.
        dims: For each tensor, by its name, the dimension along which its groups lie, from 0.
        scope: "global" to compare the groups of all tensors; "layer" to constrain the same share of
            each tensor's groups, but for rounding.
    """

    name: ClassVar[str] = "semi_structured"

    def __init__(self, n: int, m: int, dims: Mapping[str, int], scope: Scope = "global") -> None:
        self.n = n
        self.m = m
        self.dims = dict(dims)
        self.scope = checked_scope(scope)

    @property
    def settings(self) -> dict[str, Any]:
        """The name and the pattern, and the scope if it is not global."""
        return {**super().settings, "n": self.n, "m": self.m, **scope_settings(self.scope)}

    def may_empty(self, name: str) -> bool:
        """False: n entries of every group stay, so that no tensor is emptied."""
        return False

    def sparsity_of(self, amount: float) -> float:
        """The fraction of zeros, ``amount * (1 - n / m)``: the amount is of groups."""
        return amount * (1 - self.n / self.m)

    def require_shard(self, name: str, shard: Shard) -> None:
        """Raise a ValueError if the shard of this process cuts through groups."""
        _shard_of_groups(shard, self.dims[name], self.m, name)

    def chooses_in_line(self, line: ScoredLine) -> bool:
        """Where all groups are compared, lie side by side, and no slab cuts one."""
        return (
            self.scope == "global"
            and line.line.slab_size % self.m == 0
            and all(self.dims[name] == len(shape) - 1 for name, shape in line.shapes.items())
        )

    def choose_in_line_(self, line: ScoredLine, amount: float) -> Chosen:
        """Constrain the groups that lose least, slab by slab."""
        groups = _Groups.in_line(line, self.m)
        count, scratch = round(amount * groups.scored.numel), Scratch()
        # An accelerator finds the threshold with one wait, which a bracket would double.
        if count and not digits.serves([line.device], ALONE):
            chosen = constrain_in_one_walk_(line, self.n, self.m, count)
            if chosen is not None:
                return chosen
        # An eighth of a byte for each entry, to tell afterwards what changed.
        before = [pack_bits(line.kept(slab)) for slab in line.line.slabs]
        # All groups first, as tensor by tensor: what one loses is known only then.
        groups.constrain_(self.n, scratch)
        threshold = prune_smallest_([groups.scored], count)
        groups.release_(scratch)
        return Chosen(threshold, line.counts_since(before))

    def choose_(
        self, tensors: Sequence[ScoredTensor], amount: float, processes: Processes
    ) -> float | None:
        """Constrain the groups that lose least, of all tensors together or of each.

        Returns:
            The largest sum of m - n smallest scores among the groups that are constrained.
        """
        groups: list[_Groups] = []
        total = 0  # groups have global numbers, which fix the order of ties in every process
        for tensor in tensors:
            groups.append(_Groups.of(tensor, self.dims[tensor.name], self.m, total))
            total += groups[-1].scored.whole_numel
        scratch = Scratch()
        # Constrain all first: what a group loses is known only once its n largest are.
        digests = [each.constrain_(self.n, scratch) for each in groups]
        require_same_replicas(tensors, digests, processes)
        scored, count = [each.scored for each in groups], round(amount * total)
        if self.scope == "layer":
            shares = shares_of(count, [each.whole_numel for each in scored])
            threshold = prune_smallest_within_(scored, count, shares, processes)
        else:
            threshold = prune_smallest_(scored, count, processes)
        for each in groups:
            each.release_(scratch)
        return threshold


@dataclass(frozen=True)
class _Groups:
    """The groups of one tensor, or of the shard of it that this process holds.

    Args:
        tensor: Its entries.
        layout: Where those of a group lie.
        costs: What constraining each group loses; float32, one for each, filled in later.
        scored: The groups as what takes part in a choice; True in its mask means unconstrained.
    """

    tensor: ScoredTensor | ScoredLine
    layout: Layout
    costs: Tensor
    scored: ScoredTensor

    @classmethod
    def of(cls, tensor: ScoredTensor, dim: int, m: int, offset: int) -> _Groups:
        """Groups of m along a dimension; the first has the global number ``offset``."""
        layout = Layout(m, tensor.mask.shape[dim + 1 :].numel())
        num_groups, device = tensor.numel // m, tensor.mask.device
        shard = None
        if tensor.shard is not None:
            shard = _shard_of_groups(tensor.shard, dim, m, tensor.name)
        costs = torch.empty(num_groups, dtype=torch.float32, device=device)
        is_free = torch.empty(num_groups, dtype=torch.bool, device=device)
        scored = ScoredTensor(costs.__getitem__, is_free, offset, shard, tensor.name)
        return cls(tensor, layout, costs, scored)

    @classmethod
    def in_line(cls, line: ScoredLine, m: int) -> _Groups:
        """Groups of m that lie side by side, of all tensors of a line."""
        num_groups = line.numel // m
        costs = torch.empty(num_groups, dtype=torch.float32, device=line.device)
        is_free = torch.empty(num_groups, dtype=torch.bool, device=line.device)
        scored = ScoredTensor(costs.__getitem__, is_free, 0, signed=line.signed)
        return cls(line, Layout(m, 1), costs, scored)

    def constrain_(self, n: int, scratch: Scratch) -> int | Tensor:
        """Write the mask as if all groups were constrained, and what that costs each.

        Returns:
            A digest of the scores and of the old mask, if other processes hold the same shard.
        """
        layout = self.layout
        of_scores: int | Tensor = 0
        for entries, groups in self._pieces():
            scores, mask = self.tensor.score(entries), self.tensor.kept(entries)
            if self.tensor.num_replicas > 1:
                of_scores += (entries.start + 1) * digest(scores, mask, scratch)
            lanes = layout.split(scores, scratch, "lanes")
            ordered = sorted_lanes(lanes, scratch)
            sum_of(ordered[:-n], out=self.costs[groups])
            flags, tied = keep_largest(lanes, ordered, n, scratch)
            # Ties are rare and dear: the quick way flags too few there, and only those are redone.
            if int(tied.sum()):
                which = positions_of(tied)
                at = layout.entries(which)
                numbers = self.scored.positions(which + groups.start)
                flags[:, which] = keep_largest_of_tied(scores[at], n, mask[at], numbers, scratch)
            # Before the mask is overwritten: it says which groups were free until now.
            self.scored.mask[groups] = layout.is_whole(mask, scratch)
            layout.write_(mask, flags, scratch)
            self.tensor.keep_(entries, mask)
        return of_scores

    def release_(self, scratch: Scratch) -> None:
        """Set the mask to True in all groups that are not constrained after all."""
        for entries, groups in self._pieces():
            mask = self.tensor.kept(entries)
            self.layout.fill_(mask, self.scored.mask[groups], scratch)
            self.tensor.keep_(entries, mask)

    def _pieces(self) -> Iterator[tuple[slice, slice]]:
        """Slices of the flat tensor with the slices of their groups."""
        m, tensor = self.layout.m, self.tensor
        pieces: Iterable[slice] = self.layout.pieces(tensor.numel, tensor.device)
        # A line is scored slab by slab; its slabs cut no group, or it would not be chosen in.
        if isinstance(tensor, ScoredLine):
            pieces = tensor.line.slabs
        for entries in pieces:
            yield entries, slice(entries.start // m, entries.stop // m)


def _shard_of_groups(shard: Shard, dim: int, m: int, name: str) -> Shard:
    """The shard of this process counted in groups, as a shard of the tensor of all groups."""
    shape, indices = list(shard.shape), list(shard.indices)
    index = indices[dim]
    shape[dim] //= m
    if index is not None:
        first = index[::m]
        whole = first[:, None] + torch.arange(m, device=index.device)
        if not (torch.equal(whole.flatten(), index) and bool((first % m == 0).all())):
            raise ValueError(
                f"{name} must be sharded in whole groups of {m} along dimension {dim}, where its "
                f"groups lie, got a process with {index.numel()} of {shard.shape[dim]} entries "
                "there: shard another dimension (fully_shard's shard_placement_fn) or over another "
                "number of processes, or leave it out with exclude=[...]"
            )
        indices[dim] = first // m
    return replace(shard, shape=torch.Size(shape), indices=tuple(indices))
