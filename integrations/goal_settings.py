"""A metric by its name, what must come with it, and its reports, for callbacks that watch one."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from platon_prune import PlatonScheduler

logger = logging.getLogger(__name__)

# What is better when it is smaller, by how names of metrics end.
_SMALLER_IS_BETTER = ("loss", "perplexity")


def check_metric(metric: str | None, settings: Mapping[str, Any]) -> None:
    """Raise an error if one of ``metric`` and ``max_drop`` is given without the other.

    Args:
        metric: The name of the metric, or None.
        settings: The other settings of the callback.

    Raises:
        TypeError: If the name is no text.
        ValueError: If one is missing.
    """
    max_drop = settings.get("max_drop")
    if metric is None and max_drop is not None:
        raise ValueError(
            f"metric must be given for max_drop={max_drop}, got none: name what may fall so far, "
            'such as metric="eval_accuracy"'
        )
    if metric is None:
        return
    if not isinstance(metric, str):
        raise TypeError(f"metric must be the name of a metric, got {metric!r}")
    if max_drop is None:
        raise ValueError(
            f"max_drop must be given for metric={metric!r}, got none: say how far it may fall, in "
            "its own unit"
        )


def is_greater_better(metric: str) -> bool:
    """Whether a larger value of a metric is a better one, by its name."""
    return not metric.lower().endswith(_SMALLER_IS_BETTER)


def report(scheduler: PlatonScheduler, value: float, optimizer: Any, lr_scheduler: Any) -> None:
    """Report a value, and log where the run goes back or ends.

    Args:
        scheduler: Of a run with a metric.
        value: Of the metric, the same in all processes.
        optimizer: That of the trainer.
        lr_scheduler: What sets its learning rates at each step; None for none.
    """
    goal = scheduler.goal
    assert goal is not None
    was_over, since = goal.is_over, goal.held_since
    scheduler.report(value, optimizer, lr_scheduler)
    if goal.is_over and not was_over:
        say = logger.info if goal.is_as_asked else logger.warning
        say("the run ends: %s", goal)
    elif goal.held_since != since:
        # The ramp is left, and the amount falls: whoever watches the run has to know why.
        logger.warning("%s", goal.why_back(value))
