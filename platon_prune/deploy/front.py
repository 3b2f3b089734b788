"""The Pareto front: forms that no other one beats in both a cost and a metric."""

from __future__ import annotations

from collections.abc import Sequence


def pareto_front(
    costs: Sequence[float], values: Sequence[float], greater_is_better: bool = True
) -> list[int]:
    """The points that no other one dominates, by their costs.

    A point dominates another if it is no worse in cost and value, and better in one of them. Points
    that are equal in both do not dominate each other.

    Args:
        costs: Of each point, such as a time; less is better.
        values: Of each point, such as an accuracy.
        greater_is_better: Whether a larger value is a better one.

    Returns:
        Their numbers, from the least cost to the largest.
    """
    losses = [-value if greater_is_better else value for value in values]
    points = list(zip(costs, losses, strict=True))
    front = [
        number
        for number, (cost, loss) in enumerate(points)
        if not any(c <= cost and v <= loss and (c, v) != (cost, loss) for c, v in points)
    ]
    return sorted(front, key=lambda number: points[number])
