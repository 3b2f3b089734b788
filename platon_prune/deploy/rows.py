"""What was measured of one form of a model, and of one way to save it."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Times:
    """Milliseconds of one form at one size.

    Args:
        median: Half of the times are shorter.
        low: The shortest.
        high: The longest.
        spread: How far the middle half of the times lies apart.
    """

    median: float
    low: float
    high: float
    spread: float = 0.0

    @classmethod
    def of(cls, values: Sequence[float]) -> Times:
        """Of at least one value."""
        ordered, last = sorted(values), len(values) - 1
        # The middle half: one slow call in a hundred is no busy machine.
        spread = ordered[last - last // 4] - ordered[last // 4]
        return cls(statistics.median(ordered), ordered[0], ordered[-1], spread)


@dataclass(frozen=True)
class FormRow:
    """One form of the model.

    Args:
        name: Such as "dense" or "CSR".
        reason: Why nothing was measured; None if something was.
        file_bytes: Of the file that it is loaded from.
        num_weights: Entries of the matrices that pruning selects; None for other runtimes.
        times: By the label of a size; a size that the form can't run is left out.
        peak_bytes: The most memory that a process of its own needed for it, or that of the GPU;
            None if not measured.
        difference: The largest difference of an output from that of ``compared_with``.
        note: What else there is to know.
        tolerance: The difference up to which it counts as the same model; None for the report's.
        compared_with: The form that computes with the same weights as the model has them: "dense",
            "shrunk" or "unpruned".
        rounds_weights: Whether its weights are rounded to int8, which makes it another model.
        metric: What the evaluation function says of it; None if it was not asked, or could not be.
    """

    name: str
    reason: str | None = None
    file_bytes: int | None = None
    num_weights: int | None = None
    times: Mapping[str, Times] = field(default_factory=dict)
    peak_bytes: int | None = None
    difference: float | None = None
    note: str = ""
    tolerance: float | None = None
    compared_with: str = "dense"
    rounds_weights: bool = False
    metric: float | None = None


@dataclass(frozen=True)
class FileSize:
    """One way to save the model.

    Args:
        name: Such as "sparse".
        num_bytes: Of all files with weights.
        matrix_bytes: Of these, what the matrices take that pruning selects.
    """

    name: str
    num_bytes: int
    matrix_bytes: int
