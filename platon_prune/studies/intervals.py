"""The interval that holds a mean with 95 % confidence, by Student's t."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

_CONFIDENCE = 0.95
_HALVINGS = 60  # of an angle: to the last bit of a float


def interval_of_mean(values: Sequence[float]) -> tuple[float, float] | None:
    """Mean ± t · s / √n: where the mean of all seeds lies, by what these few say.

    It takes the values as independent draws of one normal distribution.

    Args:
        values: One number a seed.

    Returns:
        Lowest and highest, or None of fewer than two values.

    Source: Student, The probable error of a mean, Biometrika 1908.
    """
    if len(values) < 2:
        return None
    mean = statistics.fmean(values)
    error = statistics.stdev(values) / math.sqrt(len(values))
    reach = t_quantile(len(values) - 1) * error
    return mean - reach, mean + reach


def t_quantile(degrees: int) -> float:
    """The t that Student's distribution exceeds on either side in 5 % of all cases."""
    low, high = 0.0, math.pi / 2
    for _ in range(_HALVINGS):
        angle = (low + high) / 2
        low, high = (angle, high) if _within(angle, degrees) < _CONFIDENCE else (low, angle)
    return math.sqrt(degrees) * math.tan(low)


def _within(angle: float, degrees: int) -> float:
    """The probability of less than √degrees · tan(angle) on either side: a finite sum.

    Source: Abramowitz and Stegun, Handbook of Mathematical Functions, 26.7.3 and 26.7.4.
    """
    cosine = math.cos(angle)
    odd = degrees % 2
    term, total = (cosine if odd else 1.0), 0.0
    for power in range(odd, degrees - 1, 2):
        total += term
        term *= cosine**2 * (power + 1) / (power + 2)
    total *= math.sin(angle)
    return 2 / math.pi * (angle + total) if odd else total
