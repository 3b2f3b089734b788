"""What both trainers' callbacks say of a run that ends with fewer zeros than it was asked for."""

from __future__ import annotations

from platon_prune import PlatonScheduler, PruningWarning


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


def warn_of_shortfall(scheduler: PlatonScheduler, why: str) -> None:
    """Say that a model has fewer zeros than its schedule asks for in the end, if so; once.

    Args:
        scheduler: That of the model, whose masks are about to go.
        why: What may have happened, as a clause.
    """
    sparsity, target = scheduler.sparsity(), scheduler.target_sparsity
    slack = max(0.01, scheduler.granularity.tolerance)
    if scheduler.last_step < scheduler.schedule.ramp_end or sparsity < target - slack:
        PruningWarning.warn(shortfall(sparsity, target, why))
    scheduler.allow_other_length()  # which would be warned about when the masks go
