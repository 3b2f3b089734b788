"""A trainer's model that gets smaller as it is pruned: its optimizer, and its checkpoints."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
from transformers import TrainingArguments

from platon_prune import PlatonScheduler
from platon_prune.integrations.hf_checkpoints import saved_states


def refuse_cutting_with(args: TrainingArguments, settings: Mapping[str, Any]) -> None:
    """Raise a ValueError for what a trainer can't do with a model that gets smaller."""
    if settings.get("cut_after") is not None and args.load_best_model_at_end:
        raise ValueError(
            "load_best_model_at_end must be False with cut_after, got True: the best checkpoint "
            "may be of a larger model than the last one; evaluate the checkpoints after the run"
        )


def note_optimizer(scheduler: PlatonScheduler, optimizer: Any) -> None:
    """Tell a scheduler which optimizer steps its model, whose state is cut along."""
    while hasattr(optimizer, "optimizer"):  # Accelerate's wraps it
        optimizer = optimizer.optimizer
    if isinstance(optimizer, torch.optim.Optimizer) and scheduler.optimizer is not optimizer:
        scheduler.optimizer = optimizer


def cut_like_checkpoint(
    scheduler: PlatonScheduler | None, folder: str | os.PathLike[str] | None, optimizer: Any
) -> None:
    """Make a model as small as a checkpoint's, before the trainer loads the weights from there.

    Args:
        scheduler: The one that will go on; on a whole model.
        folder: The checkpoint's; nothing is done if there is none or its model was not cut.
        optimizer: The trainer's, if it has one by now.
    """
    saved = saved_states(folder) if folder else []
    if scheduler is None or not saved or "cuts" not in saved[0].scheduler:
        return
    if optimizer is not None:
        note_optimizer(scheduler, optimizer)
    scheduler.cut_like(saved[0].scheduler)
