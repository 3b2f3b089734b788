"""``platon-prune glue``: fine-tune and prune a model for sentences or pairs of them."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    EvalPrediction,
)

from platon_prune.integrations.recipes.common import (
    begin,
    load,
    load_model,
    load_teacher,
    run,
    title_of,
)
from platon_prune.integrations.recipes.distillation import RecipeTrainer
from platon_prune.integrations.recipes.glue_data import GlueArguments, read_splits
from platon_prune.integrations.recipes.glue_tasks import Task, find_task
from platon_prune.integrations.recipes.parsing import Arguments, parse_arguments
from platon_prune.integrations.recipes.presets import GLUE_PRESETS
from platon_prune.integrations.recipes.tokenizer_checks import check_length, prepare_padding

DESCRIPTION = """Fine-tune a model for sentences or pairs of them and prune it meanwhile (PLATON).

Needs a model, a task, and what to do. The data come from the Hub by the task's name, or from
local files (TSV, CSV, JSON lines or Parquet, with the columns sentence, or sentence1 and
sentence2, and label). The pruned model, results.json and report.png are written to --output_dir."""
EXAMPLES = """  platon-prune glue --preset mnli-10 --model_name_or_path bert-base-uncased \\
      --do_train --do_eval --output_dir mnli-10
  platon-prune glue --task_name sst2 --model_name_or_path bert-base-uncased --amount 0.9 \\
      --train_file train.tsv --validation_file dev.tsv --do_train --do_eval --output_dir sst2-10
  platon-prune glue settings.json --seed 1"""


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
