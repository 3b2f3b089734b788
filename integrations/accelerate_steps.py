"""How many optimizer steps a loop with Accelerate takes, which is what a schedule is as long as."""

from __future__ import annotations

from typing import Any

from accelerate import Accelerator
from accelerate.data_loader import DataLoaderStateMixin


def num_optimizer_steps(accelerator: Accelerator, loader: Any, num_epochs: int = 1) -> int:
    """Optimizer steps that each process takes in so many epochs over a prepared loader.

    ``prepare`` deals a loader's batches out to the processes, so before it the length of a loader
    is that of one process alone. Gradient accumulation is counted as ``accelerator.accumulate``
    does it: by default an epoch ends with a step, however few batches are left for it.

    Args:
        accelerator: Its settings for gradient accumulation count.
        loader: What ``accelerator.prepare`` returned for the training data.
        num_epochs: How often it is walked through, at least 1.

    Returns:
        What ``total_steps`` of :func:`platon_prune.global_unstructured` and its like must be.

    Raises:
        ValueError: If the loader is not prepared, has no length, or there is no epoch.

    Example:
        >>> loader = accelerator.prepare(loader)
        >>> steps = num_optimizer_steps(accelerator, loader, num_epochs=3)
        >>> scheduler = platon_prune.global_unstructured(model, amount=0.9, total_steps=steps)
        >>> model, optimizer = accelerator.prepare(model, optimizer)
    """
    if num_epochs < 1:
        raise ValueError(f"num_epochs must be at least 1, got {num_epochs}")
    if not isinstance(loader, DataLoaderStateMixin):
        raise ValueError(
            f"loader must be prepared, got a {type(loader).__name__} that is not, whose length is "
            "that of one process alone: loader = accelerator.prepare(loader) comes first"
        )
    try:
        num_batches = len(loader)
    except TypeError as error:
        raise ValueError(
            "loader must have a length, got one over data without: count the optimizer steps of a "
            "process yourself and give them as total_steps"
        ) from error
    accumulated: int = accelerator.gradient_accumulation_steps
    if accelerator.gradient_state.sync_with_dataloader:
        return num_epochs * -(-num_batches // accumulated)
    return num_epochs * num_batches // accumulated
