"""`HeldSchedule`: the schedule of a run that went back, and holds what it went back to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from platon_prune.schedule import Schedule


@dataclass(frozen=True)
class HeldSchedule:
    """A schedule that holds an amount from some step on, through a cool-down.

    Args:
        planned: The schedule that the run began with; its settings stay those of the run.
        amount: What is held, in [0, 1].
        since: The step after which it is held.
        total_steps: The last step of the cool-down, at least ``since``.
    """

    planned: Schedule
    amount: float
    since: int
    total_steps: int

    @property
    def initial_amount(self) -> float:
        """That of the planned schedule."""
        return self.planned.initial_amount

    @property
    def warmup_steps(self) -> int:
        """Those of the planned schedule."""
        return self.planned.warmup_steps

    @property
    def window(self) -> int:
        """That of the planned schedule."""
        return self.planned.window

    @property
    def ramp_end(self) -> int:
        """The step after which the amount is held."""
        return self.since

    @property
    def first_choosing_step(self) -> int | None:
        """The step after which the amount is held: its masks were brought back there."""
        return self.since

    @property
    def last_choosing_step(self) -> int:
        """The last step of the cool-down."""
        return self.total_steps

    @property
    def settings(self) -> dict[str, Any]:
        """Those of the planned schedule: how far the run came is in its state."""
        return self.planned.settings

    def amount_at(self, step: int) -> float:
        """The amount that is held; before that, what was planned."""
        return self.amount if step >= self.since else self.planned.amount_at(step)

    def ends_window(self, step: int) -> bool:
        """Whether a window ends at ``step``."""
        return self.planned.ends_window(step)

    def is_choosing_step(self, step: int) -> bool:
        """Whether a mask is chosen at ``step``: at each window's end and at the last step."""
        is_over = not self.since < step <= self.total_steps
        return not is_over and (self.ends_window(step) or step == self.total_steps)

    def starting_at(self, sparsity: float) -> Schedule:
        """The planned schedule of a model that has this sparsity already."""
        return self.planned.starting_at(sparsity)

    def lasting(
        self, total_steps: int, warmup_steps: int | float, cooldown_steps: int | float
    ) -> Schedule:
        """The planned schedule over a run of another length."""
        return self.planned.lasting(total_steps, warmup_steps, cooldown_steps)

    def require_scores(self) -> None:
        """Do nothing: that the planned schedule has scores was asked before the run."""


def planned(schedule: Schedule) -> Schedule:
    """The schedule that a run began with, whatever it holds now."""
    return schedule.planned if isinstance(schedule, HeldSchedule) else schedule
