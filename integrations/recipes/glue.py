"""``platon-prune glue``: the text recipe with the tasks, columns and settings of GLUE."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from platon_prune.integrations.recipes.common import begin
from platon_prune.integrations.recipes.glue_data import GlueArguments, read_splits
from platon_prune.integrations.recipes.glue_several import run_each
from platon_prune.integrations.recipes.glue_tasks import find_task
from platon_prune.integrations.recipes.parsing import Arguments, parse_arguments
from platon_prune.integrations.recipes.presets import GLUE_PRESETS
from platon_prune.integrations.recipes.text.training import fine_tune

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


def main(argv: Sequence[str] | None = None) -> int:
    """Run the recipe with these flags (those of the process by default).

    Returns:
        The exit status, 0.

    Raises:
        ValueError: If flags, files, labels, model and tokenizer do not go together; before any
            training.
    """
    flags = list(sys.argv[1:] if argv is None else argv)
    arguments = _parse(flags)
    if len((arguments.data.task_name or "").split()) > 1:
        run_each(arguments, flags, lambda flags: _run(_parse(flags)))
    else:
        _run(arguments)
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


def _run(arguments: Arguments[GlueArguments]) -> None:
    task = find_task(arguments.data.task_name)
    if begin(arguments):
        fine_tune(arguments, task, read_splits(arguments, task))
