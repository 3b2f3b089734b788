"""What transformers' trainer shows of pruning: a section of its model card, its progress bar."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import ProgressCallback, Trainer
from transformers.trainer_callback import TrainerState


def card_section(pruning: Mapping[str, Any]) -> str:
    """The section of a model card, in Markdown.

    Args:
        pruning: Settings and what was measured, by name.
    """
    rows = "".join(f"| {name} | {value} |\n" for name, value in pruning.items())
    return f"\n## Pruning\n\n| | |\n|---|---|\n{rows}"


def log_measured(measured: Mapping[str, Any], logs: dict[str, Any], state: TrainerState) -> None:
    """Add what was measured of pruning to a log of the trainer, and to its history.

    Args:
        measured: By name; None where there is nothing.
        logs: The log; changed in place.
        state: The trainer's; changed in place.
    """
    named = {f"pruning_{name}": value for name, value in measured.items() if value is not None}
    logs.update(named)
    if state.log_history:
        state.log_history[-1].update(named)


def show_sparsity(trainer: Trainer | None, sparsity: float) -> None:
    """Put the sparsity beside the progress bar, if there is a trainer and it has one."""
    for callback in trainer.callback_handler.callbacks if trainer else ():
        bar = getattr(callback, "training_bar", None)
        if isinstance(callback, ProgressCallback) and bar is not None:
            bar.set_postfix(sparsity=f"{sparsity:.1%}")
