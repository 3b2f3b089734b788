"""What transformers' trainer shows of pruning: a section of its model card, its progress bar."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import ProgressCallback, Trainer


def card_section(pruning: Mapping[str, Any]) -> str:
    """The section of a model card, in Markdown.

    Args:
        pruning: Settings and what was measured, by name.
    """
    rows = "".join(f"| {name} | {value} |\n" for name, value in pruning.items())
    return f"\n## Pruning\n\n| | |\n|---|---|\n{rows}"


def show_sparsity(trainer: Trainer | None, sparsity: float) -> None:
    """Put the sparsity beside the progress bar, if there is a trainer and it has one."""
    for callback in trainer.callback_handler.callbacks if trainer else ():
        bar = getattr(callback, "training_bar", None)
        if isinstance(callback, ProgressCallback) and bar is not None:
            bar.set_postfix(sparsity=f"{sparsity:.1%}")
