"""`FixedSchedule` and `Unscored`: the schedule and the criterion of masks that are never chosen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from platon_prune.amounts import ZEROS
from platon_prune.criteria import Criterion


@dataclass(frozen=True)
class FixedSchedule:
    """No schedule: the masks stay as they are, and nothing is ever chosen.

    Args:
        amount: Fraction pruned, in [0, 1].
    """

    amount: float = 0.0
    # What a scheduler asks for; saved with its state since before they were constants.
    total_steps: ClassVar[int] = 0
    warmup_steps: ClassVar[int] = 0
    cooldown_steps: ClassVar[int] = 0
    window: ClassVar[int] = 10
    ramp_end: ClassVar[int] = 0
    first_choosing_step: ClassVar[int | None] = None
    last_choosing_step: ClassVar[int] = 0

    @property
    def initial_amount(self) -> float:
        """The amount, from the first step on."""
        return self.amount

    @property
    def settings(self) -> dict[str, Any]:
        """Settings that say that the zeros decide; the lengths among them have no meaning."""
        # How many there are is in the state: a model that was pruned further has more now.
        lengths = ("total_steps", "warmup_steps", "cooldown_steps", "window")
        return {"amount": ZEROS, "initial_amount": ZEROS} | {n: getattr(self, n) for n in lengths}

    def amount_at(self, step: int) -> float:
        """The same fraction at every step."""
        return self.amount

    def ends_window(self, step: int) -> bool:
        """Always False: fixed masks have no windows."""
        return False

    def is_choosing_step(self, step: int) -> bool:
        """Always False: nothing is ever chosen."""
        return False

    def starting_at(self, sparsity: float) -> FixedSchedule:
        """The schedule of fixed masks with this sparsity."""
        return FixedSchedule(sparsity)

    def lasting(
        self, total_steps: int, warmup_steps: int | float, cooldown_steps: int | float
    ) -> FixedSchedule:
        """The schedule itself, which has no length."""
        return self

    def require_scores(self) -> None:
        """Do nothing: without a choice no scores are needed."""


class Unscored(Criterion):
    """Of masks that are never chosen: nothing is remembered, and there are no scores."""

    name: ClassVar[str] = "none"
    windowed: ClassVar[bool] = False

    def score(self, weight: Tensor, averages: Sequence[Tensor], out: Tensor) -> Tensor:
        """Raise a RuntimeError."""
        raise RuntimeError(
            "scores must be kept to be read, got fixed masks, which need none: set pruning up with "
            "global_unstructured for a criterion"
        )
