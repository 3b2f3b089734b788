"""Numbers about a model: how much of each tensor is zero."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from platon_prune.masks.masked import form_of, mask_of, pruned_tensors, weight_of
from platon_prune.masks.targets import find_tensors
from platon_prune.tables import html_table, table
from platon_prune.tensors.blocks import count_kept
from platon_prune.tensors.shards import is_sharded


@dataclass(frozen=True)
class TensorSummary:
    """One row of a summary: a tensor, its shape, and how many of its entries are not zero.

    Args:
        name: The tensor's name without masks.
        shape: Its shape.
        kept: How many entries are not zero in an evaluation.
        outside: How many are not zero though their mask prunes them: averaging or training has
            filled them in since. An evaluation uses them, and ``kept`` counts them, but in
            ``masking="window"``, where it does not.
    """

    name: str
    shape: tuple[int, ...]
    kept: int
    outside: int = 0

    @property
    def numel(self) -> int:
        """Number of entries."""
        return math.prod(self.shape)

    @property
    def sparsity(self) -> float:
        """Measured fraction of zeros."""
        return 1 - self.kept / self.numel


Column = Literal["name", "sparsity", "kept", "numel"]


@dataclass(frozen=True, repr=False)
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
            "total",
            (sum(row.numel for row in self.rows),),
            sum(row.kept for row in self.rows),
            sum(row.outside for row in self.rows),
        )

    def sort(self, by: Column = "sparsity") -> Summary:
        """The same rows in another order: of numbers the largest first, of names from a to z.

        Args:
            by: "sparsity" (which tensors lost most), "kept", "numel" or "name". Rows that are equal
                stay in the order of the model.

        Returns:
            A new summary; this one stays as it is.

        Raises:
            ValueError: If there is no such column.

        Example:
            >>> print(platon_prune.summary(model).sort("sparsity"))
        """
        if by not in get_args(Column):
            raise ValueError(f"by must be one of {', '.join(get_args(Column))}; got {by!r}")
        descending = by != "name"
        return Summary(
            tuple(sorted(self.rows, key=lambda row: getattr(row, by), reverse=descending))
        )

    def __repr__(self) -> str:
        total = self.total
        return (
            f"Summary({len(self)} tensors, {total.numel - total.kept:,} of {total.numel:,} weights "
            f"zero: {total.sparsity:.2%})"
        )

    def __str__(self) -> str:
        return table(self._lines())

    def _repr_html_(self) -> str:
        return html_table(self._lines())

    def _lines(self) -> list[tuple[str, ...]]:
        lines: list[tuple[str, ...]] = [("tensor", "shape", "kept", "sparsity")]
        lines += [
            (row.name, "x".join(map(str, row.shape)), f"{row.kept:,}", f"{row.sparsity:.2%}")
            for row in (*self.rows, self.total)
        ]
        if outside := self.total.outside:
            lines.append((f"{outside:,} outside their mask", "", "", ""))
        return lines


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
    for name, weight, mask, masks_anew in _tensors_of(model, include):
        # A tensor shared by several modules is pruned, saved and counted once.
        if id(weight) not in seen and weight.numel():
            seen.add(id(weight))
            rows.append(_row(name, weight, mask, masks_anew))
    if not rows and include is not None:
        raise ValueError(
            f"include must match parameter names, got {include!r}, which matches none of this "
            "model: see its names with model.named_parameters()"
        )
    if not rows:
        raise ValueError("model must have weights that can be pruned, got none")
    return Summary(tuple(rows))


def _row(name: str, weight: Tensor, mask: Tensor | None, masks_anew: bool) -> TensorSummary:
    weight = _dequantised(name, weight)
    all_in_all = _count_kept(weight, None)
    within = all_in_all if mask is None else _count_kept(weight, mask)
    kept = within if masks_anew else all_in_all
    return TensorSummary(name, tuple(weight.shape), kept, all_in_all - within)


def _dequantised(name: str, weight: Tensor) -> Tensor:
    """The values of a weight that was quantised after it was pruned, as torchao does it."""
    if type(weight) in (Tensor, nn.Parameter) or is_sharded(weight):
        return weight
    try:
        return weight.dequantize()
    except Exception as error:  # each kind of such tensors has its own
        raise ValueError(
            f"{name} must have values that can be read, got a {type(weight).__name__}: take the "
            "summary before the model is quantised"
        ) from error


def _count_kept(weight: Tensor, mask: Tensor | None) -> int:
    if not is_sharded(weight):
        return count_kept(weight, mask)
    # DTensor operations count over all processes without gathering the weight.
    kept = weight.ne(0) if mask is None else weight.ne(0).logical_and_(mask)
    return int(kept.sum().full_tensor())  # type: ignore[attr-defined]


def _tensors_of(
    model: nn.Module, include: str | Sequence[str] | None
) -> Iterator[tuple[str, Tensor, Tensor | None, bool]]:
    """Name, weight, mask, and whether an evaluation masks the weight anew."""
    # Masks win over ``include``: what is being pruned is known, and need not be named again.
    masked = list(pruned_tensors(model))
    for name, module, tensor_name in masked:
        masks_anew = form_of(module, tensor_name).masking == "window"
        yield name, weight_of(module, tensor_name), mask_of(module, tensor_name), masks_anew
    if not masked:
        for name, module, tensor_name in find_tensors(model, include):
            yield name, getattr(module, tensor_name), None, False
