"""Lengths of a run, for trainers that learn its number of steps only when training begins."""

from __future__ import annotations

from numbers import Integral, Real

from platon_prune import PlatonScheduler

# Masks are put on before the length is known; until then any length will do.
UNKNOWN_STEPS = 2**40


def steps_of(name: str, value: int | float, total_steps: int) -> int:
    """A count as it is, a fraction as a share of the run.

    Args:
        name: The argument's name, for the message.
        value: A count of steps, or a fraction of the run in [0, 1).
        total_steps: Length of the run in optimizer steps.

    Returns:
        A count of steps.

    Raises:
        TypeError: If ``value`` is not a number.
        ValueError: If it is a fraction outside [0, 1).
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a count or a fraction of the run, got {value!r}")
    if isinstance(value, Integral):
        return int(value)
    if not 0 <= value < 1:
        raise ValueError(f"{name} must be in [0, 1) if it is a fraction of the run, got {value}")
    return round(value * total_steps)


def start(
    scheduler: PlatonScheduler,
    total_steps: int,
    warmup_steps: int | float,
    cooldown_steps: int | float,
) -> None:
    """Give a scheduler that has not stepped yet the lengths of the run that begins.

    Args:
        scheduler: Set up with any length.
        total_steps: Length of the run in optimizer steps.
        warmup_steps: A count, or a fraction of the run in [0, 1).
        cooldown_steps: A count, or a fraction of the run in [0, 1).
    """
    scheduler.reschedule(
        total_steps=total_steps,
        warmup_steps=steps_of("warmup_steps", warmup_steps, total_steps),
        cooldown_steps=steps_of("cooldown_steps", cooldown_steps, total_steps),
    )
