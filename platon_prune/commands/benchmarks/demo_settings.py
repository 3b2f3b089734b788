"""The demo's settings; without torch, so that the help of a command that shows them is quick."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from platon_prune.criteria import CriterionName

BASELINE: CriterionName = "magnitude"  # what the demo compares with


@dataclass(frozen=True)
class Settings:
    """Everything that decides the demo's numbers, beside the package itself."""

    amounts: tuple[float, ...] = (0.9, 0.99)
    criterion: CriterionName = "platon"
    seed: int = 0  # of the split, the initial weights and the order of the batches
    steps: int = 400  # optimizer steps of each phase: dense training, then each fine-tuning
    # The model: 17 tokens (16 patches and one for the class).
    hidden_size: int = 64
    num_layers: int = 4
    num_heads: int = 4
    patch_size: int = 2
    # Training, the same dense and pruned: AdamW, short warm-up, then linear decay to zero.
    batch_size: int = 64
    learning_rate: float = 1e-3
    # Of fine-tuning: below it magnitude, the baseline, does much worse at 1 % than PLATON does.
    fine_tuning_learning_rate: float = 6e-3
    learning_rate_warmup_steps: int = 20
    held_out: float = 1 / 3
    # Of the training part; a study asks for them, the demo never does.
    validation: float = 0.0  # share that is set aside, to choose settings by
    examples: int = 0  # how many are trained on; 0: all
    label_noise: float = 0.0  # share whose label is that of another class
    # Pruning: shares of the steps before the ramp and after it, and the window in steps.
    warmup: float = 0.1
    cooldown: float = 0.4
    window: int = 10
    # Measuring.
    num_evaluations: int = 10  # points of an accuracy curve
    num_threads: int = 1  # for tensors this small, more threads are slower and less repeatable
    tolerance: float = 1e-4  # of the logits of the compiled model

    @property
    def warmup_steps(self) -> int:
        """Steps before pruning starts, t_i."""
        return round(self.warmup * self.steps)

    @property
    def cooldown_steps(self) -> int:
        """Steps with the final amount, t_f."""
        return round(self.cooldown * self.steps)
