"""A batch of a trainer's own data, for budgets that are counted or measured on one."""

from __future__ import annotations

from typing import Any

import torch
from transformers import Trainer


def example_batch(trainer: Trainer) -> dict[str, Any]:
    """The first batch that a trainer evaluates on, or trains on if it has nothing else.

    Args:
        trainer: With its data.

    Returns:
        What the model is given but its labels: deployed, it computes no loss.
    """
    # The seed of a loader is drawn; the run must be what it is without this batch.
    with torch.random.fork_rng():
        if trainer.eval_dataset is None:
            loader = trainer.get_train_dataloader()
        else:
            several = isinstance(trainer.eval_dataset, dict)
            loader = trainer.get_eval_dataloader(
                next(iter(trainer.eval_dataset)) if several else None
            )
        batch = next(iter(loader))
    return {key: value for key, value in batch.items() if key not in trainer.label_names}
