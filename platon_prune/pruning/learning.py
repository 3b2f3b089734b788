"""`learn_scores`: scores from some batches, without a step of an optimizer."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

from torch import Tensor, nn

from platon_prune.scheduling.scheduler import PlatonScheduler

Batch = TypeVar("Batch")


def learn_scores(
    model: nn.Module,
    scheduler: PlatonScheduler,
    batches: Iterable[Batch],
    loss: Callable[[Batch], Tensor],
) -> int:
    """Let a scheduler learn its scores over some batches while the weights stay as they are.

    Each batch is a step of the schedule: forward, backward, ``scheduler.step()``. With
    ``schedule="once"`` and as many ``warmup_steps`` as batches, the choice is made by these scores
    alone, and all steps of the optimizer are left for recovery.

    Args:
        model: The model that the scheduler prunes, in the mode in which it is to run: in training
            its batch norms learn, and dropout is part of the scores.
        scheduler: Its scheduler.
        batches: As many as there are to be steps.
        loss: From a batch to its loss, such as ``lambda batch: model(**batch).loss``.

    Returns:
        How many batches there were. The gradients are cleared.

    Raises:
        RuntimeError: If there are more batches than the schedule has steps left.

    Example:
        >>> scheduler = platon_prune.global_structured(
        ...     model, amount=0.7, total_steps=1000, warmup_steps=50, schedule="once"
        ... )
        >>> platon_prune.learn_scores(model, scheduler, batches[:50], loss)

    Source:
        One choice by first-order scores of a trained model: Molchanov et al., Importance Estimation
        for Neural Network Pruning, CVPR 2019.
    """
    num_batches = 0
    for batch in batches:
        model.zero_grad()
        loss(batch).backward()  # type: ignore[no-untyped-call]
        scheduler.step()
        num_batches += 1
    model.zero_grad()
    return num_batches
