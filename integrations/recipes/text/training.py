"""Fine-tuning on sentences or pairs of them, whatever the task: what glue and text share."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping
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
    load,
    load_model,
    load_teacher,
    run,
    title_of,
)
from platon_prune.integrations.recipes.distillation import RecipeTrainer
from platon_prune.integrations.recipes.glue_tasks import Task
from platon_prune.integrations.recipes.parsing import Arguments
from platon_prune.integrations.recipes.tokenizer_checks import (
    check_length,
    fit_length,
    prepare_padding,
)
from platon_prune.integrations.writing import write_text

# What a caller does to the model, or learns of the data, once both are loaded.
Prepare = Callable[[RecipeTrainer], object]


def fine_tune(
    arguments: Arguments[Any],
    task: Task,
    splits: Mapping[str, datasets.Dataset],
    summary: Mapping[str, Any] | None = None,
    prepare: Prepare | None = None,
) -> None:
    """Load model and tokenizer, train with pruning, evaluate, predict, and write the report.

    Args:
        arguments: Settings of the run.
        task: What is predicted.
        splits: Examples with the task's columns, and ``label`` where it is known.
        summary: What else belongs into ``results.json``, beside confusion matrices; None adds
            neither.
        prepare: Called with the trainer before it trains: to cut its model, say.

    Raises:
        ValueError: If model, tokenizer, teacher and task do not go together; before any training.
    """
    tokenizer = load(
        "--tokenizer_name must be a tokenizer"
        if arguments.model.tokenizer_name
        else "--model_name_or_path must be a model with a tokenizer",
        AutoTokenizer.from_pretrained,
        arguments.model.tokenizer_name or arguments.model.model_name_or_path or "",
        **arguments.model.loading(),
    )
    # The classes go into the config before the head is made, and so into the saved model.
    model = load_model(arguments, AutoModelForSequenceClassification, **_config_of(task))
    prepare_padding(tokenizer, model)
    fit_length(arguments, tokenizer, model)
    check_length(arguments.data.max_seq_length, tokenizer, model)
    teacher = load_teacher(arguments, AutoModelForSequenceClassification, model)
    splits = tokenise(splits, task, tokenizer, arguments)
    evaluation = [(prefix, split) for prefix, split in task.validation if split in splits]
    measure = _Measure(task)
    trainer = RecipeTrainer(
        model=model,
        args=arguments.training,
        train_dataset=splits.get("train"),
        eval_dataset=splits[evaluation[0][1]] if evaluation else None,
        processing_class=tokenizer,
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=measure,
        preprocess_logits_for_metrics=_first,
        teacher=teacher,
        distillation=arguments.distillation,
    )
    confusion: dict[str, Any] = {}

    def evaluate() -> dict[str, float]:
        metrics: dict[str, float] = {}
        for prefix, split in evaluation:
            metrics |= trainer.evaluate(splits[split], metric_key_prefix=prefix)
            confusion[prefix] = measure.confusion
        for prefix, split in task.test:
            if split in splits:
                # A test file without labels is not measured, and must not show the one before.
                measure.confusion = None
                metrics |= _predict(trainer, splits[split], task, prefix)
                confusion[prefix] = measure.confusion
        return metrics

    def details() -> dict[str, Any]:
        found = {prefix: matrix for prefix, matrix in confusion.items() if matrix is not None}
        return {} if summary is None else {"task": dict(summary), "confusion": found}

    if prepare is not None:
        prepare(trainer)
    run(
        trainer,
        arguments,
        evaluate,
        title=title_of(arguments, task.name),
        metric=f"eval_{task.metrics[0][0]}",
        details=details,
    )


def tokenise(
    splits: Mapping[str, datasets.Dataset],
    task: Task,
    tokenizer: Any,
    arguments: Arguments[Any],
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
    several = "multi" if task.multi_label else "single"
    return {
        "num_labels": len(task.labels),
        "id2label": dict(enumerate(task.labels)),
        "label2id": {name: number for number, name in enumerate(task.labels)},
        "problem_type": f"{several}_label_classification",
    }


def _first(logits: Any, labels: Any) -> Any:
    """The logits, of models that return more than them."""
    return logits[0] if isinstance(logits, tuple) else logits


class _Measure:
    """The task's metrics; keeps the confusion matrix, which is no metric that could be logged."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.confusion: Any = None

    def __call__(self, outcome: EvalPrediction) -> dict[str, float]:
        self.confusion = self.task.confusion(outcome.predictions, outcome.label_ids)
        metrics: dict[str, float] = self.task.measure(outcome.predictions, outcome.label_ids)
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
        content = io.StringIO(newline="")
        rows = csv.writer(content, delimiter="\t", lineterminator="\n")
        rows.writerow(("index", "prediction"))
        for index, value in enumerate(predictions):
            rows.writerow((index, _shown(task, value)))
        write_text(path, content.getvalue())
    metrics: dict[str, float] = outcome.metrics or {}
    return metrics


def _shown(task: Task, value: Any) -> str:
    if task.is_regression:
        return f"{value:.3f}"
    if task.multi_label:
        return "|".join(name for name, has in zip(task.labels, value, strict=True) if has)
    return task.labels[int(value)]
