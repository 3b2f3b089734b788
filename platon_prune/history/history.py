"""`History`: what each choice of the masks did, as a few numbers."""

from __future__ import annotations

import math
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, overload

from platon_prune.history.changes import Change
from platon_prune.tables import html_table, table

_COLUMNS = ("step", "amount", "threshold", "left", "came back")


@dataclass(frozen=True)
class Choice:
    """What one choice of the masks did.

    Args:
        step: At which step it was made.
        amount: The fraction that was due by the schedule.
        sparsity: The fraction that the masks prune, counted.
        threshold: The largest score that was pruned; None if nothing was.
        left: Share of all weights that were kept before this choice and are pruned now.
        came_back: Share of all weights that were pruned before this choice and are kept now.
        sparsities: Of each tensor, by its name before pruning.
    """

    step: int
    amount: float
    sparsity: float
    threshold: float | None
    left: float
    came_back: float
    sparsities: Mapping[str, float]


class History(Sequence[Choice]):
    """The choices of a run, in their order; prints as a table.

    Of each it keeps a few numbers and one for each tensor.

    Args:
        sizes: Name and number of entries of each tensor.
    """

    def __init__(self, sizes: Sequence[tuple[str, int]]) -> None:
        self._names = [name for name, _ in sizes]
        self._sizes = [size for _, size in sizes]
        self._rows: list[tuple[int, float, float | None, int, int]] = []
        # Counts, not shares: they add up exactly, and 8 bytes a tensor and choice stay small in
        # every checkpoint of a long run.
        self._pruned: list[array[int]] = []  # of each tensor, beside each row

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> Choice: ...
    @overload
    def __getitem__(self, index: slice) -> list[Choice]: ...

    def __getitem__(self, index: int | slice) -> Choice | list[Choice]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        step, amount, threshold, left, came_back = self._rows[index]
        pruned, total = self._pruned[index], sum(self._sizes)
        sparsities = {
            name: number / size
            for name, number, size in zip(self._names, pruned, self._sizes, strict=True)
        }
        return Choice(
            step,
            amount,
            sum(pruned) / total,
            threshold,
            left / total,
            came_back / total,
            sparsities,
        )

    def __str__(self) -> str:
        return table(self._lines())

    def _repr_html_(self) -> str:
        return html_table(self._lines())

    def __repr__(self) -> str:
        if not len(self):
            return "<History of no choice>"
        last, count = self[-1], len(self)
        return (
            f"<History of {count} choice{'' if count == 1 else 's'}, the last at step {last.step}: "
            f"amount {last.amount:.2%}, sparsity {last.sparsity:.2%}>"
        )

    def _lines(self) -> list[tuple[str, ...]]:
        lines: list[tuple[str, ...]] = [
            ("step", "amount", "sparsity", "threshold", "left", "came back")
        ]
        for choice in self:
            threshold = "-" if choice.threshold is None else f"{choice.threshold:.3g}"
            shares = (choice.left, choice.came_back)
            lines.append(
                (
                    str(choice.step), f"{choice.amount:.2%}", f"{choice.sparsity:.2%}", threshold,
                    *(f"{share:.2%}" for share in shares),
                )
            )  # fmt: skip
        return lines

    def record(
        self, step: int, amount: float, threshold: float | None, changed: Sequence[Change]
    ) -> None:
        """Append one choice to the history.

        Args:
            step: The step at which it was made.
            amount: The fraction that was due by the schedule.
            threshold: The largest score that it pruned; None if it pruned nothing.
            changed: What it did to each tensor, in the order of the sizes.
        """
        left = sum(change.left or 0 for change in changed)
        came_back = sum(change.came_back or 0 for change in changed)
        self._rows.append((step, amount, threshold, left, came_back))
        self._pruned.append(array("q", [change.numel - change.kept for change in changed]))

    # --- saving -----------------------------------------------------------------------------

    def state(self) -> list[list[Any]]:
        """What a checkpoint keeps of the history: for each choice one list of plain numbers.

        Step, amount, threshold, weights that left and came back, then the pruned of each tensor.
        """
        # Lists in a list: torch.distributed.checkpoint takes it as one value, of any length.
        return [[*row, *pruned] for row, pruned in zip(self._rows, self._pruned, strict=True)]

    def load_state(self, rows: Sequence[Sequence[Any]]) -> None:
        """Replace the history by one that :meth:`state` returned and :func:`check_rows` passed."""
        first = len(_COLUMNS)
        self._rows = [tuple(row[:first]) for row in rows]  # type: ignore[misc]
        self._pruned = [array("q", row[first:]) for row in rows]


def check_rows(rows: Any, num_tensors: int) -> None:
    """Raise a ValueError unless ``rows`` is a saved history of a model with so many tensors."""
    num_columns = len(_COLUMNS) + num_tensors
    for row in rows if isinstance(rows, list) else [rows]:
        if not (isinstance(row, list) and len(row) == num_columns and _are_numbers(row)):
            raise ValueError(
                f"history in the state must be lists of {num_columns} numbers, a count for each "
                f"tensor after {', '.join(_COLUMNS)}; got {' '.join(str(row).split())[:80]}: load "
                "what scheduler.state_dict() returned, whole"
            )


def _are_numbers(row: list[Any]) -> bool:
    step, amount, threshold, *counts = row
    # They go into signed 64-bit arrays; a larger one would fail half-way through loading.
    is_count = [isinstance(count, int) and 0 <= count < 1 << 63 for count in (step, *counts)]
    # An infinite threshold is a score like any other; a NaN compares with none.
    reals = (amount, 0.0 if threshold is None else threshold)
    return all(is_count) and all(isinstance(r, Real) and not math.isnan(r) for r in reals)
