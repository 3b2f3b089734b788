"""What both trainers' callbacks say of a run that ends with fewer zeros than it was asked for."""

from __future__ import annotations


def shortfall(sparsity: float, target: float, why: str) -> str:
    """The sentence that tells measured and asked sparsity apart.

    Args:
        sparsity: Measured fraction, in [0, 1].
        target: The fraction that was asked for.
        why: What happened, as a clause.

    Returns:
        One sentence without a full stop, in which two different numbers never read the same.
    """
    digits = next((d for d in range(1, 6) if f"{sparsity:.{d}%}" != f"{target:.{d}%}"), 1)
    return (
        f"the model is {sparsity:.{digits}%} sparse, less than the {target:.{digits}%} asked for: "
        f"{why}"
    )
