"""A trainer's run and the schedule that has to fit it, for callbacks that learn its length late."""

from __future__ import annotations

from platon_prune import PlatonScheduler
from platon_prune.integrations.granularities import UNKNOWN_STEPS


def fit_schedule(
    scheduler: PlatonScheduler,
    total_steps: int,
    warmup_steps: int | float,
    cooldown_steps: int | float,
    *,
    set_by: str,
    resumes: bool,
) -> None:
    """Set the lengths of a schedule by a trainer's number of steps, before it takes any.

    Args:
        scheduler: Before its first step.
        total_steps: What the trainer will take.
        warmup_steps: As for ``scheduler.reschedule``.
        cooldown_steps: Likewise.
        set_by: What of the trainer decides how many steps there are, for the message.
        resumes: Whether a state will be loaded.

    Raises:
        ValueError: If the schedule does not fit into so many steps, or a new run can't reach its
            amount.
    """
    if not resumes:
        scheduler.granularity.require_ready()
    try:
        scheduler.reschedule(
            total_steps=total_steps, warmup_steps=warmup_steps, cooldown_steps=cooldown_steps
        )
    except ValueError as error:
        # Its sentence speaks of a choice and of total_steps, which nobody has given a trainer.
        raise ValueError(
            f"the schedule must fit the trainer's steps, got {total_steps} (set by {set_by}): "
            f"{error}"
        ) from error


def shown(scheduler: PlatonScheduler | None) -> str:
    """The scheduler in the ``repr`` of a callback; before training begins it has no length."""
    if scheduler is None or scheduler.schedule.total_steps == UNKNOWN_STEPS:
        return "before training"
    return repr(scheduler)
