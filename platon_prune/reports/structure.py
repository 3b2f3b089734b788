"""Numbers about the coupled groups of a model: how many heads, neurons and channels are left."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from platon_prune.groups.find import find_groups
from platon_prune.groups.noted import left_groups, noted_groups
from platon_prune.masks.masked import mask_of, method_of
from platon_prune.masks.targets import bare
from platon_prune.tables import html_table, table
from platon_prune.tensors.shards import whole_of


@dataclass(frozen=True)
class PlaceSummary:
    """One row: a layer's set of heads, neurons or channels, and how many of them are left."""

    name: str
    kind: str
    size: int
    kept: int


@dataclass(frozen=True)
class Structure:
    """The heads, neurons and channels that a model has left; prints as a table."""

    rows: tuple[PlaceSummary, ...]

    def __iter__(self) -> Iterator[PlaceSummary]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __str__(self) -> str:
        return table(self._lines())

    def _repr_html_(self) -> str:
        return html_table(self._lines())

    def _lines(self) -> list[tuple[str, ...]]:
        lines = [("place", "kind", "kept", "of")]
        rows = [(row.name, row.kind, f"{row.kept:,}", f"{row.size:,}") for row in self.rows]
        return [*lines, *rows]


@torch.no_grad()
def structure(
    model: nn.Module, example_inputs: Any = None, *, time_limit: float = 120.0
) -> Structure:
    """Count the heads, neurons and channels of each layer that are left; collective if sharded.

    Args:
        model: A model that :func:`platon_prune.global_structured` prunes or has pruned, also once
            :func:`platon_prune.shrink` has cut it; or one whose layers are known by their names.
        example_inputs: For any other model, a batch as it takes it: its groups are found by it.
        time_limit: Seconds that tracing such a model may take.

    Returns:
        One row per place. A group is gone if its mask or, in a finalized model, all of its entries
        in all its tensors are zero.

    Raises:
        ValueError: If the model's groups are not known and there are no example inputs.
        TimeoutError: If tracing took longer than ``time_limit``.
    """
    rows = []
    model = bare(model)
    noted = noted_groups(model) or left_groups(model)
    for place in noted or find_groups(model, example_inputs, time_limit=time_limit):
        kept = torch.zeros(place.size, dtype=torch.bool)
        for member in place.members:
            # A group is gone only if none of its tensors, weights and biases, has an entry left.
            kept |= place.left(member, _left(model, member.name))
        rows.append(PlaceSummary(place.name, place.kind, place.size, int(kept.sum())))
    return Structure(tuple(rows))


def _left(model: nn.Module, name: str) -> Tensor:
    """Flag the entries of a tensor that are left, by its mask or, without one, by its zeros."""
    path, _, tensor_name = name.rpartition(".")
    module = model.get_submodule(path)
    if method_of(module, tensor_name) is not None:
        return whole_of(mask_of(module, tensor_name))
    weight: Tensor = getattr(module, tensor_name)
    return whole_of(weight).ne(0)
