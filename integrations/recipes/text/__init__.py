"""``platon-prune text``: fine-tune and prune a model on any file of sentences or pairs of them."""

from __future__ import annotations

from collections.abc import Sequence

from platon_prune.integrations.recipes.common import begin, say
from platon_prune.integrations.recipes.parsing import parse_arguments
from platon_prune.integrations.recipes.text.arguments import TextArguments
from platon_prune.integrations.recipes.text.data import read_data
from platon_prune.integrations.recipes.text.training import Prepare, fine_tune

DESCRIPTION = """Fine-tune a model on texts of your own and prune it meanwhile (PLATON).

Needs a model, files (CSV, TSV, JSON lines, a JSON array, Parquet) or a data set by name, and what
to do. One or two columns of text, and the label, are found and printed: a class, several labels at
once, or a number. The pruned model, results.json and report.png are written to --output_dir."""
EXAMPLES = """  platon-prune text --model_name_or_path bert-base-uncased --train_file train.csv \\
      --validation_file dev.csv --amount 0.9 --do_train --do_eval --output_dir reviews-10
  platon-prune text --model_name_or_path bert-base-uncased --train_file all.jsonl \\
      --train_val_split 0.1 --text_columns title body --label_column topic \\
      --do_train --do_eval --output_dir topics-10
  platon-prune text settings.yaml --seed 1"""


def main(argv: Sequence[str] | None = None, prepare: Prepare | None = None) -> int:
    """Run the recipe with these flags (those of the process by default).

    Args:
        argv: The flags.
        prepare: Called with the trainer before it trains.

    Returns:
        The exit status, 0.

    Raises:
        ValueError: If flags, files, labels, model and tokenizer do not go together; before any
            training.
    """
    arguments = parse_arguments(
        argv, "text", TextArguments, description=DESCRIPTION, examples=EXAMPLES
    )
    if not begin(arguments):
        return 0
    found = read_data(arguments)
    if found.task.multi_label and arguments.distillation.teacher_name_or_path is not None:
        raise ValueError(
            "--teacher_name_or_path must go with one label an example, got a task of several: "
            "distillation compares probabilities that add up to 1; leave it out"
        )
    for line in found.lines:
        say(arguments, line)
    fine_tune(arguments, found.task, found.splits, found.summary, prepare)
    return 0
