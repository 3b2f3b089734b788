"""Where the examples of a GLUE task come from: its flags, and the splits that a run needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import datasets

from platon_prune.integrations.recipes import tables
from platon_prune.integrations.recipes.fields import setting
from platon_prune.integrations.recipes.files import shown_path
from platon_prune.integrations.recipes.glue_tasks import TASKS, Task
from platon_prune.integrations.recipes.parsing import Arguments


@dataclass
class GlueArguments:
    """Which task, and where its data are."""

    _argument_group_name = "data"

    task_name: str | None = setting(
        f"One of {', '.join(TASKS)} (required); or several, which are run one after the other, "
        "each in a folder of its own below --output_dir, with {task} in names of files and models "
        "for theirs.",
        nargs="+",
    )
    train_file: str | None = setting(
        f"Local file to train on, {tables.FORMATS}; the data come from the Hub without."
    )
    validation_file: str | None = setting("Local file to evaluate on; for mnli the matched part.")
    validation_mismatched_file: str | None = setting("For mnli: the mismatched part.")
    test_file: str | None = setting(
        "Local file for --do_predict, with or without labels; of mnli the matched part."
    )
    test_mismatched_file: str | None = setting("For mnli: the mismatched part.")
    max_seq_length: int = setting("Tokens of an input; longer ones are cut.", 128)
    pad_to_max_length: bool = setting(
        "Pad to that length instead of to the longest of a batch.", False
    )
    max_train_samples: int | None = setting("Train on this many examples only.")
    max_eval_samples: int | None = setting("Evaluate on this many examples only.")
    max_predict_samples: int | None = setting("Predict this many examples only.")
    preprocessing_num_workers: int | None = setting("Processes that tokenise.")

    def __post_init__(self) -> None:
        # The parser hands over a list; results.json has always had one task as its name.
        if not isinstance(self.task_name, (str, type(None))):
            self.task_name = " ".join(self.task_name)

    @property
    def files(self) -> dict[str, str]:
        """Split, as datasets names it, to (flag, file) of those that are local."""
        named = {
            "train": self.train_file,
            "validation": self.validation_file,
            "validation_matched": self.validation_file,
            "validation_mismatched": self.validation_mismatched_file,
            "test": self.test_file,
            "test_matched": self.test_file,
            "test_mismatched": self.test_mismatched_file,
        }
        return {split: file for split, file in named.items() if file is not None}


def read_splits(arguments: Arguments[GlueArguments], task: Task) -> dict[str, datasets.Dataset]:
    """Read the examples that the run needs, with the task's columns and labels as numbers.

    Raises:
        ValueError: If a file is missing, or has other columns or labels than the task.
    """
    data, training = arguments.data, arguments.training
    needed = {"train": ("--train_file", data.max_train_samples)} if training.do_train else {}
    if training.do_eval:
        needed |= _flags_of(task.validation, "validation", data.max_eval_samples)
    if training.do_predict:
        needed |= _flags_of(task.test, "test", data.max_predict_samples)
    # Files or the Hub, never both: a forgotten flag would mix two versions of a task.
    source = data.files if data.files else _from_hub(task, arguments)
    splits = {}
    for split, (flag, limit) in needed.items():
        if split in source:
            found = source[split]
            is_file = isinstance(found, str)
            table = tables.read_table(flag, found) if is_file else found
            named = f"{flag} {shown_path(found, 40)}" if is_file else flag
            table = _check(named, table, task, labelled=not split.startswith("test"))
            splits[split] = table.select(range(min(limit or len(table), len(table))))
        # Those who have MNLI's matched part alone may evaluate on it alone.
        elif not split.endswith("mismatched"):
            raise ValueError(
                f"{flag} must name a file for what is to be done, got none: give it, or give no "
                "local files at all to take the task from the Hub"
            )
    return splits


def _flags_of(
    parts: Sequence[tuple[str, str]], word: str, limit: int | None
) -> dict[str, tuple[str, int | None]]:
    return {
        split: (f"--{word}_mismatched_file" if "mismatched" in split else f"--{word}_file", limit)
        for _, split in parts
    }


def _from_hub(task: Task, arguments: Arguments[GlueArguments]) -> Mapping[str, Any]:
    try:
        with arguments.training.main_process_first(desc="loading the data"):
            loaded: Mapping[str, Any] = datasets.load_dataset(
                "nyu-mll/glue", task.name, cache_dir=arguments.model.cache_dir
            )
    except (OSError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"the task {task.name} could not be loaded from the Hub ({error}): give local files "
            "with --train_file and --validation_file"
        ) from error
    return loaded


def _check(
    flag: str, table: tables.Table | datasets.Dataset, task: Task, labelled: bool
) -> datasets.Dataset:
    """Name the columns as the task does, and make the labels numbers."""
    examples = tables.name_columns(flag, table, task.columns, labelled)
    if "label" not in examples.column_names:
        return examples
    labels = list(examples["label"])
    examples = examples.remove_columns("label")
    # GLUE's test files mark every label as -1: there is nothing to measure then.
    if not labelled and all(tables.label_text(label) in ("-1", "") for label in labels):
        return examples
    if task.is_regression:
        return examples.add_column("label", tables.numbers_in(flag, labels, *task.label_range))
    return examples.add_column("label", tables.class_numbers(flag, labels, task.labels))
