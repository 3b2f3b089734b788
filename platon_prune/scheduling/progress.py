"""`Progress`: how far a run is, and what is said of one that does not keep to its schedule."""

from __future__ import annotations

from torch import Tensor

from platon_prune.schedule import Schedule
from platon_prune.warning import PruningWarning


class Progress:
    """Where a run is on its schedule; knows neither its scheduler nor the model.

    The methods on a model hold it, for masks are often finalized through the model, when nobody
    holds the scheduler any more.

    Args:
        schedule: The amount at each step.

    Attributes:
        schedule: Likewise; set anew where the scheduler's is.
        step: How many steps were taken.
        adopted: The share of zeros that the model had, if they are its first masks; else 0.
        is_length_free: Whether the run may be shorter or longer than its schedule.
    """

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule
        self.step = 0
        self.adopted = 0.0
        self.is_length_free = False

    @property
    def chosen_amount(self) -> float:
        """The amount of the last choice; before the first, what pruning began with."""
        first = self.schedule.first_choosing_step
        if first is None or self.step < first:
            return self.adopted
        last = min(self.step, self.schedule.last_choosing_step)
        # A window back at most: from the first choice on there is one in each.
        while last > first and not self.schedule.is_choosing_step(last):
            last -= 1
        return self.schedule.amount_at(last)

    def left_before(self, step: int) -> float:
        """Which share of the run was left when the window began that ends at ``step``."""
        total = self.schedule.total_steps
        # Of the step before it, so that even a run of one window has some left.
        return 1 - max(0, step - self.schedule.window) / total if total else 1.0

    def warn_of_early_end(self, gradient: Tensor | None) -> None:
        """Say that a mask is finalized before the final amount is reached, if so; once.

        Args:
            gradient: That of the tensor: without a step, only what was trained has one.
        """
        has_begun = self.step > 0 or gradient is not None
        if self.is_length_free or not has_begun or self.step >= self.schedule.ramp_end:
            return
        # Before the warning: one that is an error must not come again at the next tensor.
        self.is_length_free = True
        schedule = self.schedule
        PruningWarning.warn(
            f"masks are removed at step {self.step} of {schedule.total_steps}: "
            f"{_percent(self.chosen_amount)} pruned of {_percent(schedule.amount)}, which step "
            f"{schedule.ramp_end} would reach; call scheduler.step() after each optimizer step "
            "until then, or scheduler.allow_other_length() before if this is meant"
        )

    def warn_of_late_step(self) -> None:
        """Say that a step is beyond the end of the schedule, if it is; once."""
        total = self.schedule.total_steps
        if self.is_length_free or not 0 < total < self.step:
            return
        self.is_length_free = True
        PruningWarning.warn(
            f"step {self.step} is beyond total_steps={total}, where masks stay as they are: call "
            "scheduler.step() once for each optimizer step, not for each micro-batch, or make "
            "total_steps the length of the run, or call scheduler.allow_other_length() if this is "
            "meant"
        )


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"
