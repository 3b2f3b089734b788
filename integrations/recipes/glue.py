"""``platon-prune glue``: fine-tune and prune a model for sentences or pairs of them."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    EvalPrediction,
)

from platon_prune.integrations.recipes import tables
from platon_prune.integrations.recipes.common import (
    begin,
    load,
    load_model,
    load_teacher,
    run,
    title_of,
)
from platon_prune.integrations.recipes.distillation import RecipeTrainer
from platon_prune.integrations.recipes.glue_tasks import TASKS, Task, find_task
from platon_prune.integrations.recipes.parsing import Arguments, parse_arguments
from platon_prune.integrations.recipes.presets import GLUE_PRESETS
from platon_prune.integrations.recipes.text import check_length, prepare_padding

DESCRIPTION = """Fine-tune a model for sentences or pairs of them and prune it meanwhile (PLATON).

Needs a model, a task, and what to do. The data come from the Hub by the task's name, or from
local files (TSV, CSV, JSON lines or Parquet, with the columns sentence, or sentence1 and
sentence2, and label). The pruned model, results.json and report.png are written to --output_dir."""
EXAMPLES = """  platon-prune glue --preset mnli-10 --model_name_or_path bert-base-uncased \\
      --do_train --do_eval --output_dir mnli-10
  platon-prune glue --task_name sst2 --model_name_or_path bert-base-uncased --amount 0.9 \\
      --train_file train.tsv --validation_file dev.tsv --do_train --do_eval --output_dir sst2-10
  platon-prune glue settings.json --seed 1"""


def _flag(help: str, default: Any = None) -> Any:
    return field(default=default, metadata={"help": help})


@dataclass
class GlueArguments:
    """Which task, and where its data are."""

    _argument_group_name = "data"

    task_name: str | None = _flag(f"One of {', '.join(TASKS)} (required).")
    train_file: str | None = _flag(
        f"Local file to train on, {tables.FORMATS}; the data come from the Hub without."
    )
    validation_file: str | None = _flag("Local file to evaluate on; for mnli the matched part.")
    validation_mismatched_file: str | None = _flag("For mnli: the mismatched part.")
    test_file: str | None = _flag(
        "Local file for --do_predict, with or without labels; of mnli the matched part."
    )
    test_mismatched_file: str | None = _flag("For mnli: the mismatched part.")
    max_seq_length: int = _flag("Tokens of an input; longer ones are cut.", 128)
    pad_to_max_length: bool = _flag(
        "Pad to that length instead of to the longest of a batch.", False
    )
    max_train_samples: int | None = _flag("Train on this many examples only.")
    max_eval_samples: int | None = _flag("Evaluate on this many examples only.")
    max_predict_samples: int | None = _flag("Predict this many examples only.")
    preprocessing_num_workers: int | None = _flag("Processes that tokenise.")

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


def main(argv: Sequence[str] | None = None) -> int:
    """Run the recipe with these flags (those of the process by default).

    Returns:
        The exit status, 0.

    Raises:
        ValueError: If flags, files, labels, model and tokenizer do not go together; before any
            training.
    """
    arguments = parse_arguments(
        argv,
        "glue",
        GlueArguments,
        description=DESCRIPTION,
        examples=EXAMPLES,
        presets=GLUE_PRESETS,
    )
    task = find_task(arguments.data.task_name)
    begin(arguments)
    splits = read_splits(arguments, task)
    tokenizer = load(
        "--tokenizer_name must be a tokenizer"
        if arguments.model.tokenizer_name
        else "--model_name_or_path must be a model with a tokenizer",
        AutoTokenizer.from_pretrained,
        arguments.model.tokenizer_name or arguments.model.model_name_or_path or "",
        **arguments.model.loading(),
    )
    model = load_model(arguments, AutoModelForSequenceClassification, **_config_of(task))
    prepare_padding(tokenizer, model)
    check_length(arguments.data.max_seq_length, tokenizer, model)
    teacher = load_teacher(arguments, AutoModelForSequenceClassification, model)
    splits = tokenise(splits, task, tokenizer, arguments)
    evaluation = [(prefix, split) for prefix, split in task.validation if split in splits]
    trainer = RecipeTrainer(
        model=model,
        args=arguments.training,
        train_dataset=splits.get("train"),
        eval_dataset=splits[evaluation[0][1]] if evaluation else None,
        processing_class=tokenizer,
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=lambda outcome: _measure(task, outcome),
        preprocess_logits_for_metrics=_first,
        teacher=teacher,
        distillation=arguments.distillation,
    )

    def evaluate() -> dict[str, float]:
        metrics: dict[str, float] = {}
        for prefix, split in evaluation:
            metrics |= trainer.evaluate(splits[split], metric_key_prefix=prefix)
        for prefix, split in task.test:
            if split in splits:
                metrics |= _predict(trainer, splits[split], task, prefix)
        return metrics

    run(
        trainer,
        arguments,
        evaluate,
        title=title_of(arguments, task.name),
        metric=f"eval_{task.metrics[0][0]}",
    )
    return 0


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
    source = data.files if data.files else _from_hub(task, arguments)
    splits = {}
    for split, (flag, limit) in needed.items():
        if split in source:
            found = source[split]
            table = tables.read_table(flag, found) if isinstance(found, str) else found
            table = _check(flag, table, task, labelled=not split.startswith("test"))
            splits[split] = table.select(range(min(limit or len(table), len(table))))
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


def _check(flag: str, table: datasets.Dataset, task: Task, labelled: bool) -> datasets.Dataset:
    """Name the columns as the task does, and make the labels numbers."""
    table = tables.name_columns(flag, table, task.columns, labelled)
    if "label" not in table.column_names:
        return table
    labels = list(table["label"])
    table = table.remove_columns("label")
    if not labelled and all(str(label) in ("-1", "-1.0", "") for label in labels):
        return table
    if task.is_regression:
        return table.add_column("label", tables.numbers_in(flag, labels, *task.label_range))
    return table.add_column("label", tables.class_numbers(flag, labels, task.labels))


def tokenise(
    splits: Mapping[str, datasets.Dataset],
    task: Task,
    tokenizer: Any,
    arguments: Arguments[GlueArguments],
) -> dict[str, datasets.Dataset]:
    """Turn the text of all splits into tokens; shows a progress bar for each."""
    data = arguments.data

    def encode(examples: Mapping[str, list[str]]) -> Any:
        return tokenizer(
            *(examples[column] for column in task.columns),
            max_length=data.max_seq_length,
            truncation=True,
            padding="max_length" if data.pad_to_max_length else False,
        )

    with arguments.training.main_process_first(desc="tokenising"):
        return {
            split: table.map(
                encode,
                batched=True,
                num_proc=data.preprocessing_num_workers,
                remove_columns=list(task.columns),
                desc=f"tokenising {split}",
            )
            for split, table in splits.items()
        }


def _config_of(task: Task) -> dict[str, Any]:
    if task.is_regression:
        return {"num_labels": 1, "problem_type": "regression"}
    return {
        "num_labels": len(task.labels),
        "id2label": dict(enumerate(task.labels)),
        "label2id": {name: number for number, name in enumerate(task.labels)},
        "problem_type": "single_label_classification",
    }


def _first(logits: Any, labels: Any) -> Any:
    """The logits, of models that return more than them."""
    return logits[0] if isinstance(logits, tuple) else logits


def _measure(task: Task, outcome: EvalPrediction) -> dict[str, float]:
    metrics: dict[str, float] = task.measure(outcome.predictions, outcome.label_ids)
    return metrics


def _predict(
    trainer: RecipeTrainer, examples: datasets.Dataset, task: Task, prefix: str
) -> dict[str, float]:
    """Write the predictions as TSV, and measure them if there are labels."""
    outcome = trainer.predict(examples, metric_key_prefix=prefix)
    predictions = task.predictions(outcome.predictions)
    if trainer.is_world_process_zero():
        path = Path(trainer.args.output_dir or ".", f"predictions_{prefix}.tsv")
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="", encoding="utf-8") as file:
            rows = csv.writer(file, delimiter="\t", lineterminator="\n")
            rows.writerow(("index", "prediction"))
            for index, value in enumerate(predictions):
                shown = f"{value:.3f}" if task.is_regression else task.labels[int(value)]
                rows.writerow((index, shown))
    metrics: dict[str, float] = outcome.metrics or {}
    return metrics
