"""``platon-prune glue``: the text recipe with the tasks, columns and settings of GLUE."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from platon_prune.integrations.recipes.common import begin, say
from platon_prune.integrations.recipes.glue_data import GlueArguments, read_splits
from platon_prune.integrations.recipes.glue_tasks import Task, find_task
from platon_prune.integrations.recipes.parsing import Arguments, parse_arguments
from platon_prune.integrations.recipes.presets import GLUE_PRESETS
from platon_prune.integrations.recipes.run_again import RESULTS_FILE
from platon_prune.integrations.recipes.text.training import Prepare, fine_tune

PLACE = "{task}"  # in names of files and models, for the task where there are several
DESCRIPTION = """Fine-tune a model for sentences or pairs of them and prune it meanwhile (PLATON).

Needs a model, a task, and what to do. The data come from the Hub by the task's name, or from
local files (TSV, CSV, JSON lines or Parquet, with the columns sentence, or sentence1 and
sentence2, and label). The pruned model, results.json and report.png are written to --output_dir."""
EXAMPLES = """  platon-prune glue --preset mnli-10 --model_name_or_path bert-base-uncased \\
      --do_train --do_eval --output_dir mnli-10
  platon-prune glue --task_name sst2 --model_name_or_path bert-base-uncased --amount 0.9 \\
      --train_file train.tsv --validation_file dev.tsv --do_train --do_eval --output_dir sst2-10
  platon-prune glue --task_name rte mrpc cola --model_name_or_path bert-base-uncased \\
      --do_train --do_eval --output_dir runs
  platon-prune glue settings.json --seed 1"""


def main(argv: Sequence[str] | None = None, prepare: Prepare | None = None) -> int:
    """Run the recipe with these flags (those of the process by default).

    Args:
        argv: The flags.
        prepare: Called with the trainer of one task before it trains.

    Returns:
        The exit status, 0.

    Raises:
        ValueError: If flags, files, labels, model and tokenizer do not go together; before any
            training.
    """
    flags = list(sys.argv[1:] if argv is None else argv)
    arguments = _parse(flags)
    if len((arguments.data.task_name or "").split()) > 1:
        _run_each(arguments, flags)
    else:
        _run(arguments, prepare)
    return 0


def _parse(flags: Sequence[str]) -> Arguments[GlueArguments]:
    return parse_arguments(
        flags,
        "glue",
        GlueArguments,
        description=DESCRIPTION,
        examples=EXAMPLES,
        presets=GLUE_PRESETS,
    )


def _run(arguments: Arguments[GlueArguments], prepare: Prepare | None = None) -> None:
    task = find_task(arguments.data.task_name)
    if begin(arguments):
        fine_tune(arguments, task, read_splits(arguments, task), prepare=prepare)


def _run_each(arguments: Arguments[GlueArguments], flags: Sequence[str]) -> None:
    """Run the recipe for each task of ``--task_name``, below ``--output_dir``.

    The same call once more leaves the tasks that have ended as they are, and goes on with the rest.

    Args:
        arguments: What the flags say, with several tasks.
        flags: As they were typed; a file of settings may be the first.

    Raises:
        ValueError: If a task is unknown, or a file is not there for each of them; before any run.
    """
    tasks = list(dict.fromkeys(map(find_task, (arguments.data.task_name or "").split())))
    if arguments.training.resume_from_checkpoint is not None:
        raise ValueError(
            "--resume_from_checkpoint must go with one task in --task_name, got "
            f"{len(tasks)}: leave it out, as the same call goes on with the tasks by itself"
        )
    _check_files(arguments, tasks)
    rows = [("task", "measured", "sparsity", "steps")]
    for task in tasks:
        folder = Path(arguments.training.output_dir or ".", task.name)
        say(arguments, f"\n--- {task.name}, in {folder} ---")
        _run(_parse(_flags_of(arguments, flags, task, folder)))
        # The first process alone knows that the file is there: it has written it.
        if arguments.training.process_index == 0:
            rows.append(_row(task, folder))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
    say(arguments, "\n" + "\n".join(lines))


def _check_files(arguments: Arguments[GlueArguments], tasks: Sequence[Task]) -> None:
    data, training = arguments.data, arguments.training
    used = {"train_file": training.do_train, "validation_file": training.do_eval}
    used["test_file"] = training.do_predict
    for name, is_used in used.items():
        file = getattr(data, name)
        if file is None or not is_used:
            continue
        if PLACE not in file:
            raise ValueError(
                f"--{name} must have {PLACE} in its name where --task_name has several tasks, got "
                f"{file!r}: write such as data/{PLACE}/train.tsv, or give no files at all to take "
                "the tasks from the Hub"
            )
        for task in tasks:
            if not Path(file.replace(PLACE, task.name)).is_file():
                raise ValueError(
                    f"--{name} must name a file for each task, got {file!r}, of which "
                    f"{file.replace(PLACE, task.name)} is missing: add it, or leave {task.name} out"
                )


def _flags_of(
    arguments: Arguments[GlueArguments], flags: Sequence[str], task: Task, folder: Path
) -> list[str]:
    """The flags of one task's run: later ones win over those that were typed."""
    placed = {
        name: value.replace(PLACE, task.name)
        for part in (arguments.model, arguments.data, arguments.distillation)
        for name, value in vars(part).items()
        if isinstance(value, str) and PLACE in value
    }
    placed |= {"task_name": task.name, "output_dir": str(folder)}
    return [*flags, *(f"--{name}={value}" for name, value in placed.items())]


def _row(task: Task, folder: Path) -> tuple[str, str, str, str]:
    """What a run measured, from the file that it left."""
    found = json.loads((folder / RESULTS_FILE).read_text(encoding="utf-8"))
    metrics = found["metrics"]
    names = [f"{prefix}_{name}" for prefix, _ in task.validation for name, _ in task.metrics]
    measured = [f"{name} {metrics[name]:.4f}" for name in names if name in metrics]
    steps = str(metrics.get("train_steps", "-"))
    return task.name, ", ".join(measured) or "-", f"{found['sparsity']:.2%}", steps
