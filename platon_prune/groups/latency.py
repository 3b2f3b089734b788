"""Coupled groups that are counted by their time: a table of what was measured, and the choice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from typing import Any

import torch

from platon_prune.groups.costs import Prices
from platon_prune.groups.coupled import CoupledGroups
from platon_prune.groups.coupled_choice import Structured, digest_of
from platon_prune.tables import table

# Whole picoseconds: sums are exact, and a neuron of a small layer costs less than a nanosecond.
PER_MILLISECOND = 10**9


@dataclass(frozen=True)
class PlaceTime:
    """What was measured of one place.

    Args:
        name: The place.
        kind: What its groups are.
        size: How many groups it has.
        left: How many it had at the floor, where it was measured too; ``size`` if it was not.
        full: Picoseconds at its full width.
        at_floor: Picoseconds with ``left`` groups.
    """

    name: str
    kind: str
    size: int
    left: int
    full: int
    at_floor: int

    @property
    def saved(self) -> int:
        """What the place saves at its floor; 0 where it was not faster there."""
        return max(0, self.full - self.at_floor)

    @property
    def per_group(self) -> int:
        """What one group costs: the saving over the groups that go for it."""
        return self.saved // (self.size - self.left) if self.size > self.left else 0


@dataclass(frozen=True)
class LatencyTable:
    """What one forward and the places of a model take on a machine; prints as a table.

    Args:
        forward: Picoseconds of the whole forward.
        places: What was measured of each place, in order.
    """

    forward: int
    places: tuple[PlaceTime, ...]

    def prices(self, groups: Sequence[CoupledGroups]) -> Prices:
        """What groups cost of the forward: by place, and nothing by entry."""
        names = [member.name for place in groups for member in place.members]
        of_group = tuple(place.per_group for place in self.places)
        return Prices(dict.fromkeys(names, 0), of_group, self.forward)

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers and strings, for the state of a scheduler."""
        return {"forward": self.forward, "places": [list(astuple(each)) for each in self.places]}

    @classmethod
    def of_state(cls, state: Any, like: LatencyTable) -> LatencyTable:
        """The table of a state.

        Args:
            state: What :meth:`state_dict` returned.
            like: A table of the same places.

        Raises:
            ValueError: If it is no such table, or of other places.
        """
        rows = state.get("places") if isinstance(state, Mapping) else None
        if not isinstance(rows, list) or not _is_time(state.get("forward")) or not state["forward"]:
            raise ValueError(_wrong("a table of measured times", type(state).__name__))
        if len(rows) != len(like.places):
            raise ValueError(_wrong(f"times of {len(like.places)} places", f"{len(rows)}"))
        return cls(state["forward"], tuple(map(_row_like, rows, like.places)))

    def __str__(self) -> str:
        lines = [("place", "kind", "groups", "ms", "at the floor", "ms there")]
        lines += [
            (each.name, each.kind, f"{each.size:,}", _shown(each.full), f"{each.left:,}",
             _shown(each.at_floor))
            for each in self.places
        ]  # fmt: skip
        left = self.forward - sum(each.saved for each in self.places)
        total = ("total", "forward", "", _shown(self.forward), "", _shown(max(0, left)))
        return table([*lines, total])


def _shown(picoseconds: int) -> str:
    return f"{picoseconds / PER_MILLISECOND:.3f}"


def _is_time(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 63


def _row_like(row: Any, like: PlaceTime) -> PlaceTime:
    wanted = (like.name, like.kind, like.size)
    is_row = isinstance(row, (list, tuple)) and len(row) == len(fields(PlaceTime))
    if not is_row or tuple(row[:3]) != wanted or not all(map(_is_time, row[3:])):
        raise ValueError(_wrong(f"times of {like.name}, {like.size} {like.kind}", str(row)[:80]))
    return PlaceTime(*row)


def _wrong(must: str, got: str) -> str:
    return (
        f"granularity in the state must be {must}, got {got}: load what scheduler.state_dict() "
        "returned"
    )


class StructuredByLatency(Structured):
    """Coupled groups of which those with the smallest scores go until enough time is saved.

    A place that was not faster at its floor is left whole: to narrow it would gain nothing.

    Args:
        groups: All places.
        shapes: The shape of each of their tensors.
        latency: What was measured of them.
        floors: How many groups each place keeps at least.
        aggregate: As for :class:`Structured`.
        normalizer: Likewise.

    Attributes:
        latency: What the groups cost: as measured, or as a loaded state says.
        out_of_reach: Why the amount can't be reached by what was measured; None if it can, or if a
            loaded state says otherwise.
    """

    out_of_reach: str | None = None

    def __init__(
        self,
        groups: Sequence[CoupledGroups],
        shapes: Mapping[str, torch.Size],
        latency: LatencyTable,
        floors: Sequence[int],
        aggregate: str = "mean",
        normalizer: str = "none",
    ) -> None:
        super().__init__(
            groups, shapes, latency.prices(groups), floors, aggregate, "latency", normalizer
        )
        # Without the times, which are others in each process and run.
        self._digest = digest_of(groups, 0)
        self._adopt(latency)

    def _adopt(self, latency: LatencyTable) -> None:
        self.latency = latency
        self._set_prices(latency.prices(self.groups))
        costs = self._unit_costs[self._unit_costs > 0]
        self.smallest = (int(costs.min()) if len(costs) else 0) / max(1, self.total)
        floors = zip(self._floors_before, latency.places, strict=True)
        self.floors = tuple(each.size if not each.per_group else floor for floor, each in floors)
        self._told.update(self.without_gain)  # told of at set-up, and not to be lowered

    @property
    def without_gain(self) -> list[str]:
        """Names of the places that stay whole, for they were not faster at their floors."""
        return [each.name for each in self.latency.places if not each.per_group]

    def refuse_cut(self) -> None:
        """Raise a ValueError: the times are of places as wide as they were."""
        refuse_cuts(self.budget)

    def require_ready(self) -> None:
        """Raise a ValueError if a new run asks for more than the floors leave."""
        if self.out_of_reach is not None:
            raise ValueError(self.out_of_reach)

    def state_dict(self) -> dict[str, Any]:
        """The table of times, by which a resumed run chooses as this one would have."""
        return {"granularity": self.latency.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go by the times of the state from here on.

        Raises:
            ValueError: If it has no times of these places.
        """
        self._adopt(LatencyTable.of_state(state.get("granularity"), self.latency))
        self.out_of_reach = None  # it was within reach by these times


def refuse_cuts(budget: str) -> None:
    """Raise a ValueError if groups that are counted so can't be cut out while a run goes on."""
    if budget == "latency":
        raise ValueError(
            'budget must be "parameters" or "macs" where groups are cut out during the run, got '
            '"latency", whose times are of the model as it was: take them out with shrink in the '
            "end"
        )
