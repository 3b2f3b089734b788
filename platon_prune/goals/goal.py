"""`Goal`: how far a metric may fall below the dense model's."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from platon_prune.amounts import is_count, is_number


@dataclass(frozen=True)
class Goal:
    """What a run must keep of a metric while it prunes as far as that allows.

    Args:
        max_drop: How much worse than the baseline the metric may get, at least 0, in its own unit.
        baseline: The dense model's value; None if it is measured when the ramp begins.
        greater_is_better: Whether a larger value is a better one.
        patience: How many evaluations in a row must fail before the run goes back, at least 1.

    Raises:
        ValueError: If a number is out of range.
        TypeError: If one is of the wrong type.
    """

    max_drop: float
    baseline: float | None = None
    greater_is_better: bool = True
    patience: int = 1

    def __post_init__(self) -> None:
        _require_number("max_drop", self.max_drop)
        if self.max_drop < 0:
            raise ValueError(
                f"max_drop must be at least 0, got {self.max_drop}: it is how much worse the "
                "metric may get, in its own unit, whether larger or smaller is better"
            )
        if self.baseline is not None:
            _require_number("baseline", self.baseline)
        if not isinstance(self.greater_is_better, bool):
            raise TypeError(f"greater_is_better must be a bool, got {self.greater_is_better!r}")
        if not is_count(self.patience) or self.patience < 1:
            raise ValueError(f"patience must be a count of at least 1, got {self.patience!r}")

    @classmethod
    def of(
        cls, max_drop: Any, baseline: Any = None, greater_is_better: Any = True, patience: Any = 1
    ) -> Goal | None:
        """The goal of these arguments; None without ``max_drop``.

        Raises:
            ValueError: If another is given without ``max_drop``, or a number is out of range.
            TypeError: If one is of the wrong type.
        """
        if max_drop is not None:
            return cls(max_drop, baseline, greater_is_better, patience)
        others = {
            "baseline": (baseline, None),
            "greater_is_better": (greater_is_better, True),
            "patience": (patience, 1),
        }
        for argument, (value, default) in others.items():
            if value is not default and value != default:
                raise ValueError(
                    f"max_drop must be given for {argument}={value!r} to matter, got none: say how "
                    "far the metric may fall"
                )
        return None

    @property
    def settings(self) -> dict[str, Any]:
        """The numbers that decide, for states and comparison."""
        given = {} if self.baseline is None else {"baseline": float(self.baseline)}
        return {
            "max_drop": float(self.max_drop),
            "greater_is_better": self.greater_is_better,
            "patience": int(self.patience),
        } | given

    def holds(self, value: float, baseline: float) -> bool:
        """Whether a value is good enough; one that is not finite never is."""
        if not math.isfinite(value):
            return False
        drop = baseline - value if self.greater_is_better else value - baseline
        # The difference of two decimals is not exact: a drop of exactly max_drop must hold.
        return drop <= self.max_drop + 1e-9 * max(abs(baseline), abs(value), self.max_drop)


def _require_number(argument: str, value: Any) -> None:
    if not is_number(value):
        raise TypeError(f"{argument} must be a number in the metric's unit, got {value!r}")
    if not math.isfinite(value):
        raise ValueError(f"{argument} must be finite, got {value}")
