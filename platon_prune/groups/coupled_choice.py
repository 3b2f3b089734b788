"""Which coupled groups go: those with the smallest scores, as near to the amount as it gets."""

from __future__ import annotations

import bisect
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from platon_prune.choice.granularity import Granularity
from platon_prune.choice.scored import ScoredTensor
from platon_prune.groups.blocks import KIND as BLOCKS
from platon_prune.groups.costs import Prices, Savings
from platon_prune.groups.coupled import CoupledGroups, Member, telling
from platon_prune.groups.emptied import Emptied
from platon_prune.groups.group_scores import group_scores, normalized
from platon_prune.groups.over_shards import kept_groups, member_of_shard
from platon_prune.groups.units import Units, num_units, units_of
from platon_prune.tensors.collectives import Processes
from platon_prune.tensors.ordering import tie_keys
from platon_prune.warning import PruningWarning

# Of places with as many groups, being at the floor means that most of a layer is gone.
_LARGE = 32


class Structured(Granularity):
    """Coupled groups: those with the smallest scores go until the amount is reached.

    In ascending order of their scores, groups go until what that saves, of what all groups together
    cost, is as near to the amount as it gets: a group that would take it further away than leaving
    it is passed over, and so is the rest of its place, and groups that cost less fill up what is
    missing. Of equal scores those that are pruned already go first, then the lowest in a fixed
    pseudo-random order. The last groups of each place, as many as its floor, stay whatever their
    scores. Where a place has sets that must stay equal, one group of each set goes at once.

    Args:
        groups: All places.
        shapes: The shape of each of their tensors.
        prices: What entries and groups cost.
        floors: How many groups each place keeps at least.
        aggregate: How a group's score is made of those of all its entries: "mean", "sum", "max" or
            "l2", the root of the sum of squares.
        budget: What the prices are, for settings.
        normalizer: How scores of different places are made comparable: "none", "mean" or "cost";
            "auto" is "mean" where there are channels, and else "none".

    Attributes:
        total: What an amount is a share of, in the unit of the budget: what all groups together
            cost, or the time of the whole forward.
        smallest: What the cheapest group costs, as a fraction of that.
    """

    name: ClassVar[str] = "structured"
    puts_back: ClassVar[bool] = True

    def __init__(
        self,
        groups: Sequence[CoupledGroups],
        shapes: Mapping[str, torch.Size],
        prices: Prices,
        floors: Sequence[int],
        aggregate: str = "mean",
        budget: str = "parameters",
        normalizer: str = "none",
    ) -> None:
        self.groups = tuple(groups)
        self.floors = tuple(
            _in_whole_sets(place, floor) for place, floor in zip(groups, floors, strict=True)
        )
        # What a cut has taken out: its cost, groups of each place, and settings from before it.
        self._saved = 0
        self._num_cut = [0] * len(self.groups)
        self._floors_before = self.floors
        self.num_choices_out = torch.zeros(sum(place.size for place in groups), dtype=torch.int64)
        self.aggregate = aggregate
        self.budget = budget
        if normalizer == "auto":
            # By measurement (docs/structured.md): stages of channels differ in scale by far more
            # than the layers of a transformer do, whose heads and neurons are best compared raw.
            has_channels = any(place.kind == "channels" for place in groups)
            normalizer = "mean" if has_channels else "none"
        self.normalizer = normalizer
        self.num_groups = sum(place.size for place in groups)
        self._num_entries = sum(shape.numel() for shape in shapes.values())
        self._shapes = shapes
        self._set_prices(prices)
        self._digest = digest_of(groups, self.total)
        sizes = torch.tensor([num_units(place) for place in groups])
        self._place_of = torch.arange(len(sizes)).repeat_interleave(sizes)  # of each unit
        self._told: set[str] = set()  # places at their floor, that were warned of
        self._telling = [telling(place) for place in self.groups]
        self._emptied = Emptied(self.groups)
        self._members: dict[str, list[tuple[int, Member]]] = {}  # by tensor, with their places
        for i, place in enumerate(groups):
            for member in place.members:
                self._members.setdefault(member.name, []).append((i, member))

    def _set_prices(self, prices: Prices) -> None:
        self._prices = prices
        self._savings = Savings(self.groups, self._shapes, prices)
        self.total = self._savings.total if prices.whole is None else prices.whole
        self._costs = torch.cat([self._costs_in(i) for i in range(len(self.groups))])
        self._unit_costs = torch.cat([self._unit_costs_in(i) for i in range(len(self.groups))])
        self.smallest = int(self._unit_costs.min()) / max(1, self.total)

    @property
    def settings(self) -> dict[str, Any]:
        """How groups are scored and counted, and a digest of what they are."""
        return {
            **super().settings,
            "aggregate": self.aggregate,
            "budget": self.budget,
            "floors": list(self._floors_before),
            "groups": self._digest,
            # Only where it is in use: a state that was saved before there was one still fits.
            **({} if self.normalizer == "none" else {"normalizer": self.normalizer}),
        }

    @property
    def largest_amount(self) -> float:
        """What can be pruned at most, with all places at their floors."""
        pruned = torch.ones(self.num_groups, dtype=torch.bool)
        views = (self.per_place(pruned), self.per_place(self._costs))
        for flags, costs, floor in zip(*views, self.floors, strict=True):
            flags[costs.argsort(stable=True)[:floor]] = False  # blocks may differ in size
        return (self._saved + self._savings.of(pruned)) / self.total

    @property
    def tolerance(self) -> float:
        """Half of the largest group, as a fraction of all entries."""
        # A group is passed over, or goes beyond the amount, by half of what it costs at most.
        largest = int(self._unit_costs.max())
        return largest / 2 / self._num_entries if self.budget == "parameters" else 0.0

    def sparsity_of(self, amount: float) -> float:
        """About this: what multiply-adds or time leave of the entries, only a choice tells."""
        if self.budget != "parameters":
            return 0.0
        return amount * self.total / self._num_entries

    def may_be_gone(self, name: str) -> bool:
        """Of a tensor of a block, or of a place without a floor: its residual leads around it."""
        holding = [i for i, _ in self._members[name]]
        return any(self.groups[i].kind == BLOCKS or not self.floors[i] for i in holding)

    def may_empty(self, name: str) -> bool:
        """No: each place keeps its floor."""
        return False

    def without_gradient(self, names: Sequence[str]) -> list[str]:
        """Places of which no tensor had one: elsewhere the others score the groups."""
        without = set(names)
        return [
            f"{place.name} ({place.kind})"
            for place in self.groups
            if without.issuperset(member.name for member in place.members)
        ]

    def choose_(
        self, tensors: Sequence[ScoredTensor], amount: float, processes: Processes
    ) -> float | None:
        """Prune the groups with the smallest scores, of all places together.

        Returns:
            The largest score of a group that is pruned, normalized.
        """
        scores = group_scores(self.groups, tensors, self.aggregate, processes)
        scores = normalized(
            scores, self.groups, self.normalizer, list(self.per_place(self._costs)), self._num_cut
        )
        kept = kept_groups(self.groups, self._telling, tensors, processes)
        units = units_of(self.groups, scores, kept)
        order = _in_order(units.scores, units.kept)
        candidates = order[~self._protected(order)[order]]
        chosen = self._nearest(candidates, round(amount * self.total) - self._saved, units)
        pruned = self._emptied.completed(units.groups_of(_flags(chosen, len(order))))
        self._tell_floors(scores, pruned)
        self.num_choices_out = torch.where(pruned, self.num_choices_out + 1, 0)
        for tensor in tensors:
            self._write_(tensor, pruned)
        return float(units.scores[chosen[-1]]) if len(chosen) else None

    def kept(self, masks: Mapping[str, Tensor]) -> list[Tensor]:
        """For each place, which of its groups the masks of all tensors leave; bool, on the CPU."""
        # One tensor tells: a choice writes all members of a group alike, and a group whose rows are
        # left is left, though another place may have taken some of their entries.
        found = []
        for place, members in zip(self.groups, self._telling, strict=True):
            left = [place.left(member, masks[member.name]) for member in members]
            found.append(torch.stack(left).any(dim=0))
        return found

    def refuse_cut(self) -> None:
        """Raise a ValueError if groups can't be cut out while the run goes on."""

    def after_cut(
        self,
        groups: Sequence[CoupledGroups],
        shapes: Mapping[str, torch.Size],
        stays: Tensor,
        called: Mapping[str, str],
    ) -> Structured:
        """The same choice over what is left of a model once groups are cut out of it.

        The amount goes on to count what was cut: it is of all that there was in the beginning.

        Args:
            groups: The places that are left, in the order in which they were.
            shapes: The shape of each of their tensors now.
            stays: For each group of before whether it is there still; bool.
            called: What tensors that are left were called before.
        """
        numbers = [i for i, place in enumerate(self.per_place(stays)) if place.any()]
        prices = Prices(
            {name: self._prices.of_entry[called[name]] for name in shapes},
            tuple(self._prices.of_group[i] for i in numbers),
        )
        floors = [self.floors[i] for i in numbers]
        left = Structured(
            groups, shapes, prices, floors, self.aggregate, self.budget, self.normalizer
        )
        left._saved = self._saved + self._savings.of(~stays)
        left._num_cut = [
            self._num_cut[i] + self.groups[i].size - place.size
            for i, place in zip(numbers, groups, strict=True)
        ]
        left.num_choices_out = self.num_choices_out[stays]
        # What is said of the run, and what processes and states compare, is as it began.
        left.total, left._num_entries = self.total, self._num_entries
        left._digest, left._floors_before = self._digest, self._floors_before
        left._told = self._told
        return left

    def per_place(self, values: Tensor) -> Iterator[Tensor]:
        """Views of values of all groups, place by place."""
        yield from torch.split(values, [place.size for place in self.groups])

    def _protected(self, order: Tensor) -> Tensor:
        """Which units the floors keep: the last of each place."""
        rank = torch.empty_like(order)
        rank[order] = torch.arange(len(order))
        protected = torch.zeros(len(order), dtype=torch.bool)
        sizes = [num_units(place) for place in self.groups]
        pairs = (torch.split(rank, sizes), torch.split(protected, sizes))
        for place, ranks, flags, floor in zip(self.groups, *pairs, self.floors, strict=True):
            flags[ranks.topk(floor // place.num_sets).indices] = True
        return protected

    def _nearest(self, candidates: Tensor, due: int, units: Units) -> Tensor:
        """Those of the candidates, in their order, that save as near to what is due as it gets."""
        chosen = candidates[:0]
        while len(candidates):

            def saved(count: int, before: Tensor = chosen, rest: Tensor = candidates) -> int:
                flags = _flags(torch.cat([before, rest[:count]]), len(units.scores))
                return self._savings.of(units.groups_of(flags))

            # By halves: what is saved grows with each group, but not by sums, since groups overlap.
            count = bisect.bisect_left(range(len(candidates) + 1), due, key=saved)
            reaches = count <= len(candidates)
            # On a tie it is reached: who asks for an amount wants no less where both are as near.
            if not count or not reaches or saved(count) - due <= due - saved(count - 1):
                return torch.cat([chosen, candidates[:count]])
            chosen = torch.cat([chosen, candidates[: count - 1]])
            passed, candidates = candidates[count - 1], candidates[count:]
            # With all of its place that cost as much, which would be passed over one by one.
            beside = self._place_of[candidates] == self._place_of[passed]
            costs = self._unit_costs[candidates]
            candidates = candidates[~(beside & (costs >= self._unit_costs[passed]))]
        return chosen

    def _tell_floors(self, scores: Tensor, pruned: Tensor) -> None:
        """Warn once of each place of which more would have gone, had its floor not held it."""
        if not pruned.any():
            return
        largest = scores[pruned].max()
        held = []
        places = zip(
            self.groups,
            self.floors,
            self._num_cut,
            self.per_place(scores),
            self.per_place(pruned),
            strict=True,
        )
        for place, floor, cut, own, gone in places:
            is_held = int(gone.sum()) == place.size - floor and bool((own[~gone] < largest).any())
            # One of a few is nothing to be warned of: its layer is small itself.
            if is_held and place.size + cut >= _LARGE and place.name not in self._told:
                whole = place.size + cut
                held.append(f"{place.name} keeps {floor} of {whole} {place.kind}")
                self._told.add(place.name)
        if held:
            is_mean = self.normalizer == "mean"
            other = "or prune less" if is_mean else 'or compare places with normalizer="mean"'
            PruningWarning.warn(
                f"at their floor, below which more would go: {', '.join(held)}; raise the floor "
                f"(min_channels, min_neurons, min_experts), {other}"
            )

    def _cost_of(self, place: int, groups: int | slice) -> int:
        """What is saved when some groups of a place go and all else stays."""
        pruned = torch.zeros(self.num_groups, dtype=torch.bool)
        list(self.per_place(pruned))[place][groups] = True
        return self._savings.of(pruned)

    def _costs_in(self, place: int) -> Tensor:
        """What each group of a place saves when it goes and all else stays; int64."""
        size = self.groups[place].size
        # Those of a place are slices of the same size, but for blocks, which are whole layers.
        num_costs = size if self.groups[place].kind == BLOCKS else 1
        costs = [self._cost_of(place, group) for group in range(num_costs)]
        return torch.tensor(costs).expand(size)

    def _unit_costs_in(self, place: int) -> Tensor:
        """What each unit of a place saves when it goes and all else stays; int64."""
        num_sets = self.groups[place].num_sets
        if num_sets == 1:
            return self._costs_in(place)
        cost = self._cost_of(place, slice(0, num_sets))
        return torch.full((num_units(self.groups[place]),), cost)

    def _write_(self, tensor: ScoredTensor, pruned: Tensor) -> None:
        """An entry is kept if all groups that hold it are."""
        # In place: the module and the scheduler hold this very tensor.
        mask = tensor.mask.fill_(True)
        places = list(self.per_place(pruned))
        for i, member in self._members[tensor.name]:
            here = member_of_shard(member, tensor.shard)
            gone = self.groups[i].indices(here, places[i].nonzero().flatten())
            mask.index_fill_(member.dim, gone.to(mask.device), False)


def _in_whole_sets(place: CoupledGroups, floor: int) -> int:
    """A floor by which each set of a place keeps as many as the others."""
    return min(place.size, floor + -floor % place.num_sets)


def _flags(chosen: Tensor, count: int) -> Tensor:
    return torch.zeros(count, dtype=torch.bool).index_fill_(0, chosen, True)


def _in_order(scores: Tensor, kept: Tensor) -> Tensor:
    """Numbers of the groups in the order in which they go."""
    # From the least to the most important key, each sort stable: ties, what is gone, scores.
    order = tie_keys(torch.arange(len(scores))).argsort()
    order = order[kept[order].to(torch.int8).argsort(stable=True)]
    return order[scores[order].argsort(stable=True)]


def digest_of(groups: Sequence[CoupledGroups], total: int) -> str:
    """The same for the same groups at the same cost, in every process and run."""
    found = hashlib.sha256(str(total).encode())
    for place in groups:
        sets = f" {place.num_sets} sets" if place.num_sets > 1 else ""
        found.update(f"{place.name} {place.kind} {place.size}{sets}".encode())
        for member in place.members:
            found.update(f"{member.name} {member.dim} {member.group_of.tolist()}".encode())
    return found.hexdigest()[:16]
