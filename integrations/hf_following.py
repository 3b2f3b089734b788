"""What a callback of transformers' trainer is not told: where it resumes, and its model card."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from transformers import Trainer

from platon_prune import PlatonScheduler
from platon_prune.integrations.hf_cutting import cut_like_checkpoint
from platon_prune.integrations.hf_progress import card_section
from platon_prune.integrations.hf_seals import newest_if_true
from platon_prune.integrations.writing import write_text


class Follower(Protocol):
    """The callback that is told."""

    resume_from: str | None
    scheduler: PlatonScheduler | None

    def description_for_card(self) -> dict[str, Any]:
        """Settings and sparsity, in the one process that writes a card."""


def follow(trainer: Trainer, callback: Callable[[], Follower]) -> None:
    """Tell a callback where the trainer resumes from, and add to the model card it writes.

    Args:
        trainer: Changed in place.
        callback: Returns the trainer's callback of the moment: it may be replaced by another.
    """
    train, create_model_card = trainer.train, trainer.create_model_card

    def followed_train(
        resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any
    ) -> Any:
        path = newest_if_true(trainer.args.output_dir, resume_from_checkpoint)
        folder = os.fspath(path) if path and not isinstance(path, bool) else None
        callback().resume_from = folder
        cut_like_checkpoint(callback().scheduler, folder, trainer.optimizer)
        return train(path, *args, **kwargs)

    def extended_model_card(*args: Any, **kwargs: Any) -> None:
        create_model_card(*args, **kwargs)
        card = Path(trainer.args.output_dir or ".", "README.md")
        if card.is_file() and trainer.is_world_process_zero():
            write_text(card, card.read_text() + card_section(callback().description_for_card()))

    trainer.train = followed_train  # type: ignore[method-assign]
    trainer.create_model_card = extended_model_card  # type: ignore[method-assign]
