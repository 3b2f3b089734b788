"""Numbers about a model: how much of each tensor is zero."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from platon_prune.masks.masked import mask_of, pruned_tensors, weight_of
from platon_prune.masks.targets import find_tensors
from platon_prune.tables import table
from platon_prune.tensors.blocks import count_kept
from platon_prune.tensors.shards import is_sharded


@dataclass(frozen=True)
class TensorSummary:
    """One row of a summary: a tensor, its shape, and how many of its entries are not zero."""

    name: str
    shape: tuple[int, ...]
    kept: int

    @property
    def numel(self) -> int:
        """Number of entries."""
        return math.prod(self.shape)

    @property
    def sparsity(self) -> float:
        """Measured fraction of zeros."""
        return 1 - self.kept / self.numel


@dataclass(frozen=True)
class Summary:
    """The sparsity of a model, one row for each tensor; prints as a table."""

    rows: tuple[TensorSummary, ...]

    def __iter__(self) -> Iterator[TensorSummary]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def total(self) -> TensorSummary:
        """The sums of all rows, as one tensor of shape ``(numel,)``."""
        return TensorSummary(
            "total", (sum(row.numel for row in self.rows),), sum(row.kept for row in self.rows)
        )

    def __str__(self) -> str:
        lines = [("tensor", "shape", "kept", "sparsity")]
        lines += [
            (row.name, "x".join(map(str, row.shape)), f"{row.kept:,}", f"{row.sparsity:.2%}")
            for row in (*self.rows, self.total)
        ]
        return table(lines)


@torch.no_grad()
def summary(model: nn.Module, include: str | Sequence[str] | None = None) -> Summary:
    """Measure the zeros of a model's tensors, as evaluation uses them; collective if sharded.

    Args:
        model: A model that is being pruned (its rows are the tensors with a mask), or any other
            (its rows are the weights that would be pruned by default), such as a finalized one.
        include: Substrings of parameter names, for a model without masks that was pruned by them.

    Returns:
        One row per tensor, a shared one once.

    Raises:
        ValueError: If the model has no such tensor.
    """
    rows, seen = [], set()
    for name, weight, mask in _tensors_of(model, include):
        # A tensor shared by several modules is pruned, saved and counted once.
        if id(weight) not in seen and weight.numel():
            seen.add(id(weight))
            rows.append(TensorSummary(name, tuple(weight.shape), _count_kept(weight, mask)))
    if not rows:
        raise ValueError("model must have weights that can be pruned, got none")
    return Summary(tuple(rows))


def _count_kept(weight: Tensor, mask: Tensor | None) -> int:
    if not is_sharded(weight):
        return count_kept(weight, mask)
    # DTensor operations count over all processes without gathering the weight.
    kept = weight.ne(0) if mask is None else weight.ne(0).logical_and_(mask)
    return int(kept.sum().full_tensor())  # type: ignore[attr-defined]


def _tensors_of(
    model: nn.Module, include: str | Sequence[str] | None
) -> Iterator[tuple[str, Tensor, Tensor | None]]:
    # Masks win over ``include``: what is being pruned is known, and need not be named again.
    masked = list(pruned_tensors(model))
    for name, module, tensor_name in masked:
        yield name, weight_of(module, tensor_name), mask_of(module, tensor_name)
    if not masked:
        for name, module, tensor_name in find_tensors(model, include):
            yield name, getattr(module, tensor_name), None
