"""The one parser of amounts: fractions, shares and counts, as users type them."""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any

ZEROS = "zeros"  # instead of an amount: what is zero in the model


def is_count(value: Any) -> bool:
    """Whether a value is a whole number; numpy's are, True and 3.0 are not."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Whether a value is a real number; numpy's are, True is not."""
    return isinstance(value, Real) and not isinstance(value, bool)


def fraction(
    argument: str,
    value: Any,
    *,
    meaning: str,
    kind: str = "a fraction",
    otherwise: str = "",
    closed: bool = False,
) -> float:
    """An argument as a fraction in [0, 1), or in [0, 1] if that is closed.

    Args:
        argument: Its name, for the message.
        value: What was given.
        meaning: What it is, such as "the share of the groups that are constrained".
        kind: What it is called when it is no number at all.
        otherwise: What else it may be then.
        closed: Whether 1 is in range.

    Raises:
        TypeError: If it is not a number.
        ValueError: If it is out of range.
    """
    interval = "[0, 1]" if closed else "[0, 1)"
    if not is_number(value):
        raise TypeError(f"{argument} must be {kind} in {interval}{otherwise}, got {value!r}")
    # Written so that NaN, which compares as False with everything, is refused too.
    if not (0 <= value < 1 or (closed and value == 1)):
        raise ValueError(f"{argument} must be in {interval}, got {value}: it is {meaning}")
    return float(value)


def fraction_of_weights(argument: str, value: Any, num_weights: int) -> float:
    """An amount, a fraction in [0, 1) or a count of weights, as a fraction of the selected ones.

    Args:
        argument: Its name, for the message.
        value: What was given; a whole number is a count, whatever its size.
        num_weights: How many weights are selected.

    Raises:
        TypeError: If it is not a number.
        ValueError: If it is out of range.
    """
    # By type, not by size: 1 is one weight, and 1.0 is refused as a fraction.
    if not is_count(value):
        return fraction(
            argument,
            value,
            meaning="the fraction of the selected weights to prune, such as 0.9",
            otherwise=" or a count of weights",
        )
    if not 0 <= value <= num_weights:
        raise ValueError(
            f"{argument} must be at most the {num_weights} selected weights if it is a count, "
            f"got {value}: give a fraction in [0, 1) or a smaller count"
        )
    return int(value) / num_weights


def steps_of(argument: str, value: Any, total_steps: int) -> int:
    """A number of steps: a count as it is, a fraction in [0, 1) as a share of the run.

    Args:
        argument: Its name, for the message.
        value: What was given.
        total_steps: Length of the run in optimizer steps.

    Raises:
        TypeError: If it is not a number.
        ValueError: If it is a fraction out of range.
    """
    if not is_number(value):
        raise TypeError(f"{argument} must be a count or a fraction of the run, got {value!r}")
    # A whole number is a count, 1 too: a share of the whole run would leave no ramp.
    if is_count(value):
        return int(value)
    if not 0 <= value < 1:
        raise ValueError(
            f"{argument} must be in [0, 1) if it is a fraction of the run, got {value}"
        )
    return round(float(value) * total_steps)
