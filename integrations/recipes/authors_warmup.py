"""`--warmup_steps` with the authors' values, which decide in their programs when pruning begins."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import (
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from platon_prune import PruningWarning
from platon_prune.integrations.recipes.parsing import Arguments
from platon_prune.integrations.recipes.presets import GLUE_PRESETS, SQUAD_PRESETS, Preset

# The authors' own are 4.7 to 12.5 % of their runs: below, 500 steps are anybody's.
_SMALL_SHARE = 0.04
# A learning rate that rises for a quarter of a run is no ordinary one.
_LARGE_SHARE = 0.25
_PRESETS: Mapping[str, Mapping[str, Preset]] = {"glue": GLUE_PRESETS, "squad": SQUAD_PRESETS}


def misread_warmup(arguments: Arguments[Any], total_steps: int) -> str | None:
    """What to tell somebody whose ``--warmup_steps`` were meant for the pruning as well.

    They are where the value is the authors' for this task, or a large share of the run, and no
    ``--pruning_warmup_steps`` say when pruning begins.

    Args:
        arguments: Settings of a run that prunes.
        total_steps: Length of the run in optimizer steps.

    Returns:
        One sentence; None where the learning rate's warm-up is surely meant alone.
    """
    given, pruning = arguments.given, arguments.pruning
    steps = arguments.training.warmup_steps
    # Below 1 it is a share of the run, which the authors' programs do not know.
    if "warmup_steps" not in given or "pruning_warmup_steps" in given or steps < 1:
        return None
    begins, share = pruning.pruning_warmup_steps, steps / total_steps
    is_theirs = steps in _authors_values(arguments) and share >= _SMALL_SHARE
    if begins == steps or not (is_theirs or share >= _LARGE_SHARE):
        return None
    shown = f"{begins} steps" if begins >= 1 or begins == 0 else f"{begins:g} of the run"
    return (
        f"--warmup_steps {steps:g} is the warm-up of the learning rate alone, while pruning begins "
        f"after {shown}: give --pruning_warmup_steps {steps:g} too if it was to wait as long, as "
        "in the authors' programs, or with its present value if not"
    )


def _authors_values(arguments: Arguments[Any]) -> set[int]:
    """Their numbers of steps for the task; with a preset, those for all tasks of the recipe."""
    rows = _PRESETS.get(arguments.recipe, {}).values()
    task = getattr(arguments.data, "task_name", None)
    plain = (task or "").lower().replace("-", "").replace("_", "")
    return {
        row.warmup_steps
        for row in rows
        if row.task in (None, plain) or arguments.pruning.preset is not None
    }


class WarmupHint(TrainerCallback):
    """Warns once the trainer knows how long it will run.

    Args:
        arguments: Settings of a run that prunes.
    """

    def __init__(self, arguments: Arguments[Any]) -> None:
        self.arguments = arguments

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Give the warning, in one process of many."""
        told = misread_warmup(self.arguments, state.max_steps)
        if told is not None and state.is_world_process_zero:
            PruningWarning.warn(told)
