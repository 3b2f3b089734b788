"""From files or a data set by name to the splits of a task that is found in them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
from transformers import AutoConfig

from platon_prune.integrations.recipes.files import shown_path
from platon_prune.integrations.recipes.glue_tasks import Task
from platon_prune.integrations.recipes.loading import load, load_data_set
from platon_prune.integrations.recipes.parsing import Arguments
from platon_prune.integrations.recipes.tables import Table, read_table, texts_in
from platon_prune.integrations.recipes.text import labels as kinds
from platon_prune.integrations.recipes.text.arguments import TextArguments
from platon_prune.integrations.recipes.text.columns import Columns, find_columns, is_missing

_NO_LABEL = "-1"  # as in GLUE's test files


@dataclass
class TextData:
    """What was found.

    Args:
        task: With its classes.
        splits: Split to examples: the task's columns and ``label``.
        summary: For ``results.json``: the columns, and how often each class occurs.
        lines: What to tell the user.
    """

    task: Task
    splits: dict[str, datasets.Dataset]
    summary: dict[str, Any]
    lines: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Source:
    """One split as it was found.

    Args:
        where: For errors, the flag and the file.
        table: Its columns.
        labelled: Whether it has to have labels.
    """

    where: str
    table: Table | datasets.Dataset
    labelled: bool

    def read(self, name: str) -> list[Any]:
        """A column's values; classes that are kept as numbers by their names."""
        feature = getattr(self.table, "features", {}).get(name)
        values = list(self.table[name])
        if isinstance(feature, datasets.ClassLabel):
            names = feature.names
            return [names[v] if v is not None and 0 <= v < len(names) else None for v in values]
        return values


def read_data(arguments: Arguments[TextArguments]) -> TextData:
    """Read the splits that the run needs, and find out what is to be predicted.

    Raises:
        ValueError: If a file, a column or a label is missing or unclear; before any training.
    """
    sources = _sources(arguments)
    first = sources.get("train", next(iter(sources.values())))
    data = arguments.data
    columns = find_columns(
        first.where, first.table.column_names, first.read, data.text_columns, data.label_column,
        first.labelled,
    )  # fmt: skip
    # The first split decides, as a rule the training file: others must have its columns.
    labels = {split: _labels(source, columns, data) for split, source in sources.items()}
    known = next((found for found in labels.values() if found is not None), None)
    kind, classes, lines = _kind_and_classes(arguments, first.where, known)
    task = kinds.make_task(_title(data), kind, len(columns.text), classes)
    splits = {
        split: _examples(source, columns, task, labels[split]) for split, source in sources.items()
    }
    lines = [
        f"text: {', '.join(columns.text)}; label: {', '.join(columns.label) or 'none'} ({kind})"
        + (f"; not used: {', '.join(columns.unused)}" if columns.unused else ""),
        *lines,
    ]
    summary = {
        "text_columns": columns.text,
        "label_column": columns.label,
        "task": kind,
        "classes": list(classes),
    }
    return TextData(task, _divide(splits, arguments), summary, lines)


def _sources(arguments: Arguments[TextArguments]) -> dict[str, _Source]:
    data, training = arguments.data, arguments.training
    tables: dict[str, tuple[str, Table | datasets.Dataset]] = {}
    if data.dataset_name is not None:
        loaded = load_data_set(arguments, data.dataset_name, data.dataset_config_name)
        if "validation" not in loaded and "test" in loaded and not data.train_val_split:
            loaded = {**loaded, "validation": loaded["test"]}
        tables = {split: (f"{data.dataset_name}, {split}", loaded[split]) for split in loaded}
    else:
        for split, file in data.files.items():
            flag = f"--{split}_file"
            tables[split] = (f"{flag} {shown_path(file, 40)}", read_table(flag, file))
    wanted = {
        "train": training.do_train or (training.do_eval and bool(data.train_val_split)),
        "validation": training.do_eval and ("validation" in tables or not data.train_val_split),
        "test": training.do_predict,
    }
    for split, is_wanted in wanted.items():
        if is_wanted and split not in tables:
            more = ", or --train_val_split" if split == "validation" else ""
            raise ValueError(
                f"there must be examples for {split}, got none: give --{split}_file or a "
                f"--dataset_name that has them{more}"
            )
    return {
        split: _Source(*tables[split], labelled=split != "test")
        for split, is_wanted in wanted.items()
        if is_wanted
    }


def _labels(source: _Source, columns: Columns, data: TextArguments) -> list[Any] | None:
    """One label a row, or a list of them; None where a file to predict from has none."""
    if not columns.label or not set(columns.label) <= set(source.table.column_names):
        if source.labelled:
            raise ValueError(
                f"{source.where} must have the label column {', '.join(columns.label)}: name it "
                "with --label_column"
            )
        return None
    values = [source.read(name) for name in columns.label]
    # Columns of 0 and 1, such as toxic and rude: their names are the labels.
    if len(values) > 1:
        flags = [kinds.numbers_of(source.where, each, ("0", "1")) for each in values]
        return [
            [name for name, flag in zip(columns.label, row, strict=True) if flag]
            for row in zip(*flags, strict=True)
        ]
    labels = values[0]
    if not source.labelled and all(is_missing(v) or kinds.name_of(v) == _NO_LABEL for v in labels):
        return None
    if data.label_separator is not None or data.task == kinds.MULTI_LABEL:
        return kinds.split_labels(labels, data.label_separator)
    return labels


def _kind_and_classes(
    arguments: Arguments[TextArguments], where: str, labels: Sequence[Any] | None
) -> tuple[str, Sequence[str], list[str]]:
    """What is predicted, the classes, and what to tell of them.

    A model that is only evaluated says itself what it predicts; its classes may have an order, or
    be more, than those of a file.
    """
    kind = arguments.data.task or (kinds.kind_of(labels) if labels is not None else None)
    if not arguments.training.do_train:
        config = load(
            "--model_name_or_path must be a model",
            AutoConfig.from_pretrained,
            arguments.model.config_name or arguments.model.model_name_or_path or "",
            **arguments.model.loading(),
        )
        names = [str(config.id2label[number]) for number in sorted(config.id2label)]
        if config.problem_type == "regression":
            return kinds.REGRESSION, (), []
        if config.problem_type is not None and not all(n.startswith("LABEL_") for n in names):
            several = config.problem_type.startswith("multi")
            return (kinds.MULTI_LABEL if several else kinds.CLASSIFICATION), names, []
    if labels is None or kind is None:
        raise ValueError(
            f"{where} must have labels, or the model must know its classes, got neither: train "
            "with --do_train first"
        )
    if kind == kinds.REGRESSION:
        numbers = kinds.floats_of(where, labels)
        mean = sum(numbers) / len(numbers)
        return kind, (), [f"numbers from {min(numbers):g} to {max(numbers):g}, mean {mean:.4g}"]
    flat = labels
    if kind == kinds.MULTI_LABEL:
        several = kinds.split_labels(labels, arguments.data.label_separator)
        flat = [label for row in several for label in row]
    else:
        _refuse_missing(where, labels)
    classes = arguments.data.label_column or ()
    if len(classes) < 2:
        classes = kinds.classes_of(where, flat)
    return kind, classes, kinds.describe([kinds.name_of(label) for label in flat], classes)


def _refuse_missing(where: str, labels: Sequence[Any]) -> None:
    rows = [row for row, label in enumerate(labels, start=1) if is_missing(label)]
    if rows:
        raise ValueError(
            f"{where}: every row must have a label, got {len(rows)} without, the first in row "
            f"{rows[0]}: remove them, or choose another --label_column"
        )


def _examples(
    source: _Source, columns: Columns, task: Task, labels: Sequence[Any] | None
) -> datasets.Dataset:
    missing = [name for name in columns.text if name not in source.table.column_names]
    if missing:
        raise ValueError(
            f"{source.where} must have the text columns {', '.join(columns.text)}, got none named "
            f"{', '.join(missing)}: name them with --text_columns"
        )
    kept: dict[str, list[Any]] = {
        new: texts_in(source.where, old, source.read(old))
        for old, new in zip(columns.text, task.columns, strict=True)
    }
    if labels is not None:
        if task.is_regression:
            kept["label"] = kinds.floats_of(source.where, labels)
        elif task.multi_label:
            several = kinds.split_labels(labels, None)
            kept["label"] = kinds.indicators_of(source.where, several, task.labels)
        else:
            kept["label"] = kinds.numbers_of(source.where, labels, task.labels)
    return datasets.Dataset.from_dict(kept)


def _divide(
    splits: dict[str, datasets.Dataset], arguments: Arguments[TextArguments]
) -> dict[str, datasets.Dataset]:
    """Hold examples back to evaluate on, if that is asked for, and keep to the limits."""
    data, training = arguments.data, arguments.training
    if training.do_eval and "validation" not in splits and data.train_val_split:
        halves = splits["train"].train_test_split(data.train_val_split, seed=training.seed)
        splits = {**splits, "train": halves["train"], "validation": halves["test"]}
    limits = {
        "train": data.max_train_samples,
        "validation": data.max_eval_samples,
        "test": data.max_predict_samples,
    }
    return {
        split: rows.select(range(min(limits[split] or len(rows), len(rows))))
        for split, rows in splits.items()
        if split != "train" or training.do_train
    }


def _title(data: TextArguments) -> str:
    return data.dataset_name or Path(next(iter(data.files.values()), "text")).name
