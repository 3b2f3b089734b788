"""The study's recipes that are commands: ``platon-prune glue`` and so on, with flags of a cell."""

from __future__ import annotations

import dataclasses
import importlib
import json
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from platon_prune.commands.study.flags import (
    given_options,
    require_teacher,
    settings_of,
    subject_of,
    values_of,
)
from platon_prune.criteria import make_criterion
from platon_prune.schedule import SCHEDULES, CubicSchedule
from platon_prune.studies import results
from platon_prune.studies.cells import DENSE, Cell, Option, Recipe, Workspace


@dataclass(frozen=True)
class _Command:
    """What a study takes of what a command measures.

    Args:
        module: Of ``platon_prune.integrations.recipes``.
        title: What the metric is, for tables and axes.
        metric: What it is called in the study.
        headlines: What it is called by the command, the first that is there; none for the first
            metric of a task of GLUE.
        scale: From the command's value to the study's.
        test_prefix: Of metrics on a test file, if the command has them.
    """

    module: str
    title: str = "accuracy (%)"
    metric: str = "accuracy"
    headlines: tuple[str, ...] = ()
    scale: float = 100
    test_prefix: str = "test"


_TEXT = _Command("text", "accuracy, or correlation (%)", headlines=("accuracy", "pearson"))
_COMMANDS = {
    "glue": _Command("glue", "first metric on the validation part (%)"),
    "sst2": _Command("glue"),
    "structured-sst2": _Command("glue"),
    "text": _TEXT,
    "structured-text": _TEXT,
    "clm": _Command("clm", "perplexity", "perplexity", ("perplexity",), 1, ""),
    "image": _Command("image", headlines=("accuracy",), test_prefix=""),
    "squad": _Command("squad", "F1 (%)", "f1", ("f1",), 1, "predict"),
}
# Each option is a flag of the recipe.
FLAGS = {
    "masking": "--pruning_masking",
    "window": "--pruning_window",
    "beta1": "--pruning_beta1",
    "beta2": "--pruning_beta2",
    "warmup": "--pruning_warmup_steps",
    "cooldown": "--pruning_cooldown_steps",
    "learning_rate": "--learning_rate",
    "schedule": "--pruning_schedule",
    "distillation": "--distillation_weight",  # of the dense model of the same seed
    "temperature": "--distillation_temperature",
}
# The recipe's defaults; without the option there is no teacher, whatever its flag says.
OPTIONS: dict[str, Option] = {
    "masking": Option("step", ("step", "window")),
    "window": Option(10),
    "beta1": Option(0.85),
    "beta2": Option(0.95),
    "warmup": Option(0.1),
    "cooldown": Option(0.3),
    "learning_rate": Option(5e-5),
    "schedule": Option("cubic", tuple(SCHEDULES)),
    "distillation": Option(0.0),
    "temperature": Option(2.0),
}
_IN_STEPS = (lambda v: 0 <= v < 1 or v == v // 1 >= 1, "a share below 1 or a whole number of steps")
# The others are checked by what they are settings of.
_RANGES: dict[str, tuple[Callable[[float], bool], str]] = {
    "warmup": _IN_STEPS,
    "cooldown": _IN_STEPS,
    "learning_rate": (lambda v: 0 < v < math.inf, "above 0 and finite"),
    "distillation": (lambda v: 0 <= v <= 1, "in [0, 1]"),
    "temperature": (lambda v: 0 < v < math.inf, "above 0 and finite"),
}
_KEPT = ("results.json", "report.png")
# What docs/sst2.md was measured with.
_SST2_TRAINING: dict[str, tuple[str, ...]] = {
    "--task_name": ("sst2",),
    "--max_seq_length": ("40",),
    "--per_device_train_batch_size": ("32",),
    "--num_train_epochs": ("5",),
    "--learning_rate": ("1.5e-4",),
    "--weight_decay": ("0",),
    "--warmup_steps": ("100",),
    "--bf16": ("True",),
}
_SST2 = _SST2_TRAINING | {
    "--pruning_warmup_steps": ("100",),
    "--pruning_cooldown_steps": ("300",),
    "--pruning_include": (
        "attention.self",
        "attention.output.dense",
        "output.dense",
        "intermediate.dense",
    ),
}


def run(cell: Cell, place: Workspace) -> dict[str, float]:
    """Train one model; of its folder only the results stay, and the model if it is dense."""
    distilled = "distillation" in cell.options
    teacher = dense_folder(cell, place) if distilled or cell.criterion == DENSE else None
    if cell.criterion == DENSE:
        assert teacher is not None
        return metrics_of(cell.recipe, teacher)
    folder = place.folder / "runs" / cell.key
    flags = ["--criterion", cell.criterion, "--amount", str(cell.amount)]
    for name, value in cell.options.items():
        flags += [FLAGS[name], str(value)]
    if teacher is not None:
        flags += ["--teacher_name_or_path", str(teacher)]
    train(cell, place, folder, flags)
    keep_results(folder)
    return metrics_of(cell.recipe, folder)


def keep_results(folder: Path) -> None:
    """Take all else out of the folder of a finished run, its model too."""
    # A grid of models would fill the disk, and the report needs their numbers only.
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name not in _KEPT:
            path.unlink()


def dense_folder(cell: Cell, place: Workspace, *, trains: bool = True) -> Path:
    """The folder of the dense model of a cell's seed, which is trained if it is not there.

    Args:
        cell: With its settings and seed.
        place: Where the folder is.
        trains: Whether it is trained, or the model that the flags name is measured as it is.
    """
    dense = dataclasses.replace(cell, criterion=DENSE, amount=0.0, options={})
    folder = place.folder / "dense" / dense.key
    # Of several processes one trains it, and the others wait for it.
    with results.locked(folder.with_suffix(".lock"), wait=True):
        if not (folder / "results.json").exists():  # which is written last
            train(dense, place, folder, ["--amount", "0"], trains=trains)
    return folder


def train(
    cell: Cell,
    place: Workspace,
    folder: Path,
    flags: Sequence[str],
    prepare: Callable[[Any], object] | None = None,
    *,
    trains: bool = True,
) -> None:
    """Run the command of a cell's recipe.

    Args:
        cell: Whose settings and seed it has.
        place: Where it runs.
        folder: What it writes into.
        flags: Beside those of the settings, over which they win.
        prepare: Called with the trainer before it trains; of text and glue alone.
        trains: Whether it trains, or only measures the model.
    """
    command = _COMMANDS[cell.recipe]
    module = importlib.import_module(f"platon_prune.integrations.recipes.{command.module}")
    shared = cell.settings["flags"]
    done = ["--do_train", "--do_eval"] if trains else ["--do_eval"]
    if "--test_file" in values_of(shared) and command.test_prefix:
        done.append("--do_predict")
    where = ["--use_cpu"] if place.device == "cpu" else []
    seeded = ["--seed", str(cell.seed), "--output_dir", str(folder)]
    # Without checkpoints: a cell that was killed starts again, since one may be half written.
    argv = ["--save_strategy", "no", *shared, *flags, *seeded, *done, *where]
    if prepare is None:
        module.main(argv)
    else:
        module.main(argv, prepare)


def metrics_of(recipe: str, folder: Path) -> dict[str, float]:
    """What the command measured, its headline first; in percent where the recipe is."""
    command = _COMMANDS[recipe]
    found = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    measured = found["metrics"]
    headlines = command.headlines or (_headline(found["settings"]["data"]["task_name"]),)
    headline = next(name for name in headlines if f"eval_{name}" in measured)
    metrics = {
        command.metric: command.scale * measured[f"eval_{headline}"],
        "sparsity": found["sparsity"],
        "kept": found["selected_weights"] - found["pruned_weights"],
        "selected": found["selected_weights"],
    }
    test = measured.get(f"{command.test_prefix}_{headline}") if command.test_prefix else None
    return metrics if test is None else {**metrics, "test_accuracy": command.scale * test}


def _headline(task_name: str) -> str:
    from platon_prune.integrations.recipes.glue_tasks import find_task

    return str(find_task(task_name).metrics[0][0])


def _defaults(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What the flags make of the options' defaults; None where a preset may have its own."""
    given = given_options(settings, OPTIONS, FLAGS)
    has_preset = "--preset" in values_of(settings["flags"])
    found = {**dict.fromkeys(OPTIONS if has_preset else ()), **given}
    found.pop("distillation", None)
    return found


def _check(cell: Cell) -> None:
    """Raise a ValueError that says what must hold, unless a cell's options can be used."""
    if cell.criterion == DENSE:
        return
    chosen = {name: option.default for name, option in OPTIONS.items()}
    given = given_options(cell.settings, OPTIONS, FLAGS)
    chosen |= {**_defaults(cell.settings), **given, **cell.options}
    usable = {name: value for name, value in chosen.items() if value is not None}
    check_ranges(usable)
    require_teacher(cell.options)
    make_criterion(cell.criterion, usable.get("beta1", 0.85), usable.get("beta2", 0.95))
    CubicSchedule(cell.amount, total_steps=1, window=usable.get("window", 1))
    if usable.keys() == OPTIONS.keys():  # else a preset decides
        check_length(cell, chosen)


def check_ranges(known: Mapping[str, Any]) -> None:
    """Raise a ValueError that names an option which is out of its range."""
    for name, (fits, wanted) in _RANGES.items():
        if name in known and not fits(known[name]):
            raise ValueError(f"{name} must be {wanted}, got {known[name]}")


def check_length(cell: Cell, chosen: Mapping[str, Any], steps: int | None = None) -> None:
    """Check the whole schedule where the number of steps is known, else the sum of two shares.

    Args:
        cell: With its flags.
        chosen: All options with their values.
        steps: Of the optimizer, where it is not the flags that tell it.
    """
    phases = [chosen["warmup"], chosen["cooldown"]]
    given = values_of(cell.settings["flags"]).get("--max_steps", "")
    steps = steps or (int(given) if given.isdecimal() else 0)
    if steps:
        warmup, cooldown = (int(p if p >= 1 else round(p * steps)) for p in phases)
        schedule = CubicSchedule(cell.amount, steps, warmup, cooldown, window=chosen["window"])
        if make_criterion(cell.criterion, chosen["beta1"], chosen["beta2"]).windowed:
            schedule.require_scores()
    elif max(phases) < 1 <= sum(phases):
        raise ValueError(
            "warmup + cooldown must be below 1, the whole run, got "
            f"{phases[0]} + {phases[1]}: shorten them"
        )


def _recipe(name: str, defaults: Sequence[str] = ()) -> Recipe:
    command = _COMMANDS[name]
    return Recipe(
        name,
        run,
        metric=command.metric,
        title=command.title,
        columns={"test_accuracy": "on the test part (%)"},
        options=OPTIONS,
        extras=("transformers", "datasets"),
        settings=lambda steps, flags: settings_of(defaults, steps, flags),
        defaults=_defaults,
        check=_check,
        lower_is_better=command.metric == "perplexity",
        is_percent=command.scale == 100 or name == "squad",
        subject=lambda settings: subject_of(name, settings),
    )


def _flat(flags: Mapping[str, Sequence[str]]) -> list[str]:
    return [part for flag, values in flags.items() for part in (flag, *values)]


SST2_TRAINING = _flat(_SST2_TRAINING)  # for other recipes on the same data
SST2 = _recipe("sst2", _flat(_SST2))
OF_COMMANDS = (*map(_recipe, ("glue", "text", "clm", "image", "squad")), SST2)
