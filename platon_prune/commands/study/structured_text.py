"""The study's recipes that cut heads and neurons of a text model: accuracy and measured speed."""

from __future__ import annotations

import dataclasses
import shutil
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

import platon_prune
from platon_prune.commands.study import glue, rivals
from platon_prune.commands.study.cut_first import KINDS, LEARN, cut_before_training_
from platon_prune.commands.study.flags import given_options, settings_of, subject_of, values_of
from platon_prune.commands.study.networks import multiply_adds, num_parameters
from platon_prune.commands.study.speeds import SIZES, speed_name, speeds, wall_speed_name
from platon_prune.criteria import make_criterion
from platon_prune.deploy.models import read_model
from platon_prune.example_inputs import moved_to
from platon_prune.groups.group_scores import NORMALIZERS
from platon_prune.schedule import SCHEDULES, CubicSchedule
from platon_prune.studies.cells import DENSE, Cell, Option, Recipe, Workspace

_SHARED = ("masking", "window", "beta1", "beta2", "warmup", "cooldown", "learning_rate")
_FLAGS = {
    "schedule": "--pruning_schedule",
    "normalizer": "--pruning_normalizer",
    **{name: glue.FLAGS[name] for name in _SHARED},
}
OPTIONS: dict[str, Option] = {
    "schedule": Option("cubic", tuple(SCHEDULES)),
    "learn": Option(LEARN),  # with a schedule that has no ramp
    "normalizer": Option("auto", ("auto", *NORMALIZERS)),
    **{name: glue.OPTIONS[name] for name in _SHARED},
}
# Passed on to global_structured where a model is cut before it is trained.
_PASSED_ON = ("schedule", "normalizer", "masking", "window", "beta1", "beta2")
_TAKEN = (
    "--pruning_granularity", "--pruning_kinds", "--pruning_budget", "--shrink",
)  # fmt: skip


def run(cell: Cell, place: Workspace) -> dict[str, float]:
    """Train the dense model of the seed (once in a folder), go on from it, and measure both.

    All cells of a seed start from that model and are trained further, by the same flags for
    ``--steps`` steps: pruned along the schedule meanwhile, or cut before the first of them. With
    ``--fine_tuned`` all cells start from the model that the flags name.
    """
    from platon_prune.integrations.recipes.arguments import SHRUNK
    from platon_prune.integrations.recipes.common import example_batch

    start, dense_results = _start_of(cell, place)
    folder = place.folder / "runs" / cell.key
    # Of a cell that was killed between its training and its last number: it starts again.
    shutil.rmtree(folder, ignore_errors=True)
    example: dict[str, Tensor] = {}
    models: list[nn.Module] = []

    def prepare(trainer: Any) -> None:
        """Note what multiply-adds are counted on, and cut the model if that is to come first."""
        example.update(moved_to(example_batch(trainer), trainer.args.device))
        if _is_cut_first(cell):
            chosen = _chosen(cell)
            learn = LEARN if cell.criterion in rivals.RIVALS else chosen["learn"]
            # Where a preset of the command may have its own, the library's default is taken.
            given = {name: chosen[name] for name in _PASSED_ON if chosen[name] is not None}
            cut_before_training_(cell, trainer, example, learn, given)
            models.append(trainer.model)

    with warnings.catch_warnings():
        # That a place sits on its floor is what the study shows.
        warnings.filterwarnings("ignore", "at their floor", platon_prune.PruningWarning)
        glue.train(cell, place, folder, _flags_of(cell, start), prepare)
    for model in models:  # whose sizes no config can tell
        platon_prune.save(model, folder / SHRUNK)
    found = _measured(folder if cell.criterion == DENSE else folder / SHRUNK, start, example, place)
    accuracies = {
        name: value
        for name, value in glue.metrics_of(cell.recipe, folder).items()
        if name.endswith("accuracy")
    }
    before = glue.metrics_of(cell.recipe, dense_results)["accuracy"]
    glue.keep_results(folder)
    return {**accuracies, "dense_accuracy": before, **found}


def _start_of(cell: Cell, place: Workspace) -> tuple[Path, Path]:
    """The folders of the dense model that a cell starts from, and of what was measured of it."""
    if not cell.settings.get("fine_tuned"):
        folder = glue.dense_folder(cell, place)
        return folder, folder
    model = Path(values_of(cell.settings["flags"])["--model_name_or_path"])
    # The same for all seeds: nothing is drawn where nothing is trained.
    return model, glue.dense_folder(dataclasses.replace(cell, seed=0), place, trains=False)


def _flags_of(cell: Cell, start: Path) -> list[str]:
    flags = ["--model_name_or_path", str(start)]
    if "steps" in cell.settings:
        flags += ["--max_steps", str(cell.settings["steps"])]
    options = {name: value for name, value in cell.options.items() if name in _FLAGS}
    if cell.criterion == DENSE or _is_cut_first(cell):
        # What is cut already is trained like a dense model.
        options = {name: options[name] for name in ("learning_rate",) if name in options}
        flags += ["--amount", "0"]
    else:
        flags += ["--criterion", cell.criterion, "--amount", str(cell.amount), "--shrink"]
        flags += ["--pruning_granularity", "structured", "--pruning_budget", "macs"]
        flags += ["--pruning_kinds", *KINDS]
    for name, value in options.items():
        flags += [_FLAGS[name], str(value)]
    return flags


def _is_cut_first(cell: Cell) -> bool:
    if cell.criterion == DENSE:
        return False
    chosen = _chosen(cell)
    has_ramp = chosen["schedule"] is None or SCHEDULES[chosen["schedule"]].has_ramp
    return cell.criterion in rivals.RIVALS or bool(not has_ramp and chosen["learn"])


def _measured(
    folder: Path, start: Path, example: Mapping[str, Tensor], place: Workspace
) -> dict[str, float]:
    """Sizes and speeds of a finished model, beside the dense one that it was made of."""
    model, dense = (read_model(path).to(place.device).eval() for path in (folder, start))
    return {
        "multiply_adds": 100 * multiply_adds(model, example) / multiply_adds(dense, example),
        "parameters": 100 * num_parameters(model) / num_parameters(dense),
        **speeds(model, dense, place.device),
    }


def _chosen(cell: Cell) -> dict[str, Any]:
    """All options with their values; None where a preset of the command may have its own."""
    found = {name: option.default for name, option in OPTIONS.items()}
    return found | _defaults(cell.settings) | dict(cell.options)


def _defaults(settings: Mapping[str, Any]) -> dict[str, Any]:
    has_preset = "--preset" in values_of(settings["flags"])
    given = given_options(settings, OPTIONS, _FLAGS)
    return {**dict.fromkeys(_FLAGS if has_preset else ()), **given}


def check(cell: Cell) -> None:
    """Raise a ValueError that says what must hold, unless a cell can run."""
    if cell.criterion == DENSE:
        return
    if cell.criterion in rivals.RIVALS:
        rivals.require_installed(cell.criterion)
        return
    chosen = _chosen(cell)
    known = {name: value for name, value in chosen.items() if value is not None}
    glue.check_ranges(known)
    if chosen["learn"] < 0:
        raise ValueError(
            f"learn must be a number of batches, 0 or more, got {chosen['learn']}: 0 chooses after "
            "the warm-up of the training"
        )
    criterion = make_criterion(cell.criterion, known.get("beta1", 0.85), known.get("beta2", 0.95))
    CubicSchedule(cell.amount, total_steps=1, window=known.get("window", 1))
    if _is_cut_first(cell):
        learn = chosen["learn"]
        shape = SCHEDULES[chosen["schedule"]](
            cell.amount, learn, learn - 1, window=known.get("window", 10)
        )
        if criterion.windowed:
            shape.require_scores()
        return
    if "learn" in cell.options:
        raise ValueError(
            f"learn must go with schedule=once, got schedule={chosen['schedule']}: only a choice "
            "before the training has batches of its own"
        )
    if len(known) == len(chosen):  # else a preset decides
        glue.check_length(cell, chosen, cell.settings.get("steps"))


def _recipe(name: str, title: str, defaults: Sequence[str] = ()) -> Recipe:
    return Recipe(
        name,
        run,
        columns={
            "test_accuracy": "on the test part (%)",
            "multiply_adds": "multiply-adds (%)",
            "parameters": "parameters (%)",
            **{speed_name(*size): f"speed, {_shown(size)}" for size in SIZES},
            **{wall_speed_name(*size): f"wall clock, {_shown(size)}" for size in SIZES},
        },
        title=title,
        options=OPTIONS,
        extras=("transformers", "datasets"),
        settings=lambda steps, flags: _settings(defaults, steps, flags),
        defaults=_defaults,
        check=check,
        rivals=dict.fromkeys(rivals.RIVALS, ()),
        counted="multiply-adds",
        subject=lambda settings: subject_of(name, settings),
        speeds={speed_name(*size): _shown(size) for size in SIZES},
    )


def _settings(defaults: Sequence[str], steps: int | None, flags: Sequence[str]) -> dict[str, Any]:
    """Steps apart from the flags: the dense model is trained as long as these say."""
    found = settings_of(defaults, None, flags, _TAKEN)
    return found if steps is None else {**found, "steps": steps}


def from_fine_tuned(name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings by which all cells start from the model that the flags name.

    Args:
        name: Of the recipe.
        settings: Of its cells.

    Raises:
        ValueError: If the recipe is another one, or the model is no folder.
    """
    names = [recipe.name for recipe in STRUCTURED_TEXT]
    if name not in names:
        raise ValueError(
            f"--fine_tuned must go with --recipe {' or '.join(names)}, got {name}: leave it out"
        )
    model = values_of(settings["flags"])["--model_name_or_path"]
    if not Path(model).is_dir():
        raise ValueError(
            f"--model_name_or_path must be a folder with --fine_tuned, got {model!r}: give that of "
            "a model that was fine-tuned by the command of the recipe"
        )
    return {**settings, "fine_tuned": True}


def _shown(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]} tokens"


STRUCTURED_TEXT = (
    _recipe("structured-text", "accuracy, or correlation (%)"),
    _recipe("structured-sst2", "accuracy (%)", glue.SST2_TRAINING),
)
