"""The authors' settings for each task, as flags."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from platon_prune.integrations.recipes.arguments import ADAMAX


@dataclass(frozen=True)
class Preset:
    """One row of the authors' table.

    Args:
        task: Value of ``--task_name``; None where the recipe has one task.
        kept: Density in the end, in percent.
        beta2: Share of the old uncertainty that a window keeps.
        warmup_steps: Steps of warm-up of the learning rate and, times ``initial_warmup``, before
            pruning starts.
        final_warmup: Multiplies ``warmup_steps``: steps at the end with the final amount.
        learning_rate: Highest learning rate.
        batch_size: Examples per step, on one device.
        epochs: Passes over the training data.
        optimizer: Value of ``--optim``.
    """

    task: str | None
    kept: int
    beta2: float
    warmup_steps: int
    final_warmup: int
    learning_rate: float
    batch_size: int
    epochs: int
    optimizer: str = ADAMAX
    initial_warmup: int = 1

    def flags(self) -> dict[str, Any]:
        """The row as names and values of flags."""
        task = {} if self.task is None else {"task_name": self.task}
        return {
            **task,
            # Rounded: 1 - 0.1 in floating point would be shown as 0.9 with many digits.
            "amount": round(1 - self.kept / 100, 2),
            "pruning_beta1": 0.85,
            "pruning_beta2": self.beta2,
            "pruning_window": 10,
            # The authors' code multiplies the learning rate's warm-up by these two.
            "pruning_warmup_steps": self.initial_warmup * self.warmup_steps,
            "pruning_cooldown_steps": self.final_warmup * self.warmup_steps,
            "warmup_steps": self.warmup_steps,
            "learning_rate": self.learning_rate,
            "per_device_train_batch_size": self.batch_size,
            "num_train_epochs": self.epochs,
            "optim": self.optimizer,
        }


GLUE_PRESETS = {
    f"{row.task}-{row.kept}": row
    for row in (
        Preset("mnli", 20, 0.95, 5400, 5, 8e-5, 32, 8),
        Preset("mnli", 15, 0.90, 5400, 5, 8e-5, 32, 8),
        Preset("mnli", 10, 0.85, 5400, 5, 8e-5, 32, 8),
        Preset("rte", 20, 0.95, 200, 6, 1e-4, 16, 20),
        Preset("rte", 15, 0.65, 200, 6, 1e-4, 16, 20),
        Preset("rte", 10, 0.95, 200, 6, 1e-4, 16, 20),
        Preset("qqp", 20, 0.85, 5400, 5, 1e-4, 32, 10),
        Preset("sst2", 10, 0.85, 1000, 5, 8e-5, 32, 6),
        Preset("qnli", 10, 0.90, 2000, 6, 1e-4, 32, 10),
        Preset("stsb", 10, 0.85, 500, 5, 1e-4, 16, 15),
        Preset("mrpc", 10, 0.95, 300, 3, 1e-4, 8, 10),
        Preset("cola", 10, 0.95, 500, 3, 1e-4, 32, 15),
    )
}
SQUAD_PRESETS = {"squad-10": Preset(None, 10, 0.95, 5400, 5, 3e-5, 16, 10, optimizer="adamw_torch")}
