"""Flags after ``--`` of recipes that are commands, and options that need one another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from platon_prune.studies.cells import Option
from platon_prune.studies.settings import with_contents

_TAKEN = (
    "--amount", "--amounts", "--pruning_amount", "--criterion", "--pruning_criterion", "--seed",
    "--output_dir", "--teacher_name_or_path",
)  # fmt: skip
# With these the command finds out itself how much is pruned.
_DECIDING = ("--max_drop", "--metric", "--pruning_speedup")


def values_of(flags: Sequence[str]) -> dict[str, str]:
    """Flag, with underscores, to the value after it or after its ``=``; of several, the last."""
    found = {}
    for flag, following in zip(flags, [*flags, ""][1:], strict=True):
        if flag.startswith("--"):
            name, equals, value = flag.removeprefix("--").partition("=")
            found["--" + name.replace("-", "_")] = value if equals else following
    return found


def settings_of(
    defaults: Sequence[str], steps: int | None, flags: Sequence[str], taken: Sequence[str] = ()
) -> dict[str, Any]:
    """The settings of every cell, from a recipe's own flags and those that were typed.

    Args:
        defaults: The recipe's own; what was typed comes after them, and wins.
        steps: Of the optimizer; None leaves them to the flags.
        flags: As they were typed.
        taken: Flags that the recipe sets itself, beside those that every grid sets.

    Raises:
        ValueError: If there is no model among them, or a flag that is set for each cell or
            decides its amount.
    """
    names = values_of(flags)
    # Two values of one flag would leave it to the parser which one a cell has.
    for flag in (*_TAKEN, *taken):
        if flag in names:
            raise ValueError(f"{flag} is set by the grid for each cell: leave it out after --")
    for flag in _DECIDING:
        if flag in names:
            raise ValueError(
                f"{flag} would prune another amount than the grid has for each cell: leave it out "
                "after --"
            )
    if "--model_name_or_path" not in names:
        raise ValueError(
            "the recipe needs its own flags after --, a model among them: "
            "-- --model_name_or_path FOLDER --train_file train.tsv --validation_file dev.tsv"
        )
    limit = [] if steps is None else ["--max_steps", str(steps)]
    return with_contents([*defaults, *flags, *limit])


def given_options(
    settings: Mapping[str, Any], options: Mapping[str, Option], flag_of: Mapping[str, str]
) -> dict[str, Any]:
    """The values of those options whose flags are among a cell's flags.

    Args:
        settings: Of the cell.
        options: Of the recipe.
        flag_of: Name of an option to its flag; others have none.

    Raises:
        ValueError: If a value is of another kind.
    """
    values = values_of(settings["flags"])
    return {
        name: _read(flag, values[flag], options[name])
        for name, flag in flag_of.items()
        if flag in values
    }


def subject_of(name: str, settings: Mapping[str, Any]) -> str:
    """The task, or the recipe, and the model."""
    values = values_of(settings["flags"])
    task = values.get("--task_name", name)
    model = Path(values.get("--model_name_or_path", "")).name
    return f"{task}, {model}" if model else task


def _read(flag: str, text: str, option: Option) -> Any:
    kinds = {int: "a whole number", float: "a number"}
    kind = type(option.default)
    if option.choices and text not in option.choices:
        raise ValueError(f"{flag} must be one of {', '.join(option.choices)}, got {text!r}")
    try:
        return kind(text)
    except ValueError:
        raise ValueError(f"{flag} must be {kinds[kind]}, got {text!r}") from None


def require_teacher(options: Mapping[str, Any]) -> None:
    """Raise a ValueError if a temperature would be ignored."""
    if "temperature" in options and not options.get("distillation"):
        raise ValueError(
            f"temperature needs a teacher, got {options['temperature']} without one: give "
            "--option distillation=0.5 too, or leave it out"
        )
