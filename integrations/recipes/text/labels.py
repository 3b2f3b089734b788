"""What the labels of a file are: classes, several labels at once, or numbers."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from platon_prune.integrations.recipes.files import shown, shown_names
from platon_prune.integrations.recipes.glue_tasks import (
    Metric,
    Task,
    accuracy,
    f1,
    macro_f1,
    matthews_correlation,
    micro_f1,
    pearson,
    spearman,
)
from platon_prune.integrations.recipes.tables import label_text
from platon_prune.integrations.recipes.text.columns import is_missing

CLASSIFICATION, MULTI_LABEL, REGRESSION = "classification", "multi_label", "regression"
_FEW_CLASSES = 20
_IMBALANCE = 3.0  # from this ratio of the largest to the smallest class on it is worth a line


def name_of(value: Any) -> str:
    """A label as the name of its class, the same from text and from numbers."""
    if isinstance(value, bool):
        return str(value).lower()
    return label_text(value)


def kind_of(labels: Sequence[Any]) -> str:
    """What labels are, by what they look like.

    Lists are several labels; fractions, and whole numbers of many values that do not count classes,
    are numbers to predict; all else is a class.
    """
    if any(isinstance(label, (list, tuple)) for label in labels):
        return MULTI_LABEL
    numbers = [_number(label) for label in labels if not is_missing(label)]
    if not numbers or any(number is None for number in numbers):
        return CLASSIFICATION
    values = {number for number in numbers if number is not None}
    if not all(value.is_integer() for value in values):
        return REGRESSION
    counts_classes = max(values) - min(values) < len(values) and min(values) in (0, 1)
    is_frequent = counts_classes and len(numbers) >= 10 * len(values)
    return CLASSIFICATION if len(values) <= _FEW_CLASSES or is_frequent else REGRESSION


def split_labels(labels: Sequence[Any], separator: str | None) -> list[list[Any]]:
    """Each row as the list of its labels."""
    return [
        list(label)
        if isinstance(label, (list, tuple))
        else []
        if is_missing(label)
        else str(label).split(separator)
        if separator
        else [label]
        for label in labels
    ]


def classes_of(where: str, labels: Sequence[Any]) -> list[str]:
    """Names of the classes, in the order of their numbers or of the alphabet.

    Args:
        where: The file, for errors.
        labels: One a row, without missing ones.

    Raises:
        ValueError: If there is one class only, or nearly as many as rows.
    """
    names = {name_of(label) for label in labels}
    if len(names) < 2:
        raise ValueError(
            f"{where}: there must be at least two classes, got {shown_names(names) or 'none'}: "
            "choose another --label_column"
        )
    if len(names) > max(_FEW_CLASSES, len(labels) // 2):
        raise ValueError(
            f"{where}: the label must have few values, got {len(names)} in {len(labels)} rows: "
            "choose another --label_column, or give --task regression if it is a number"
        )
    if all(_number(name) is not None for name in names):
        return sorted(names, key=float)
    return sorted(names)


def numbers_of(where: str, labels: Sequence[Any], classes: Sequence[str]) -> list[int]:
    """Labels as numbers of classes; a number that is no name counts the classes from 0.

    Raises:
        ValueError: If a label is missing or unknown; names the first such row.
    """
    numbers = {str(number): number for number in range(len(classes))}
    if any(_number(name) is not None for name in classes):
        numbers = {}  # 1 is a name then, perhaps that of class 0
    numbers |= {name: number for number, name in enumerate(classes)}
    found = []
    for row, label in enumerate(labels, start=1):
        number = None if is_missing(label) else numbers.get(name_of(label))
        if number is None:
            raise ValueError(
                f"{where}: label must be one of {shown_names(classes)}, got {shown(label)} in row "
                f"{row}: correct or remove it"
            )
        found.append(number)
    return found


def indicators_of(
    where: str, labels: Sequence[Sequence[Any]], classes: Sequence[str]
) -> list[list[float]]:
    """For each row a 1 where it has the class, else a 0."""
    rows = []
    for row, several in enumerate(labels, start=1):
        chosen = {name_of(label) for label in several}
        unknown = chosen - set(classes)
        if unknown:
            raise ValueError(
                f"{where}: labels must be among {shown_names(classes)}, got "
                f"{shown(min(unknown))} in row {row}: correct or remove it"
            )
        rows.append([float(name in chosen) for name in classes])
    return rows


def floats_of(where: str, labels: Sequence[Any]) -> list[float]:
    """Labels as numbers.

    Raises:
        ValueError: If one is none, or not finite; names the first such row.
    """
    found = []
    for row, label in enumerate(labels, start=1):
        number = _number(label)
        if number is None:
            raise ValueError(
                f"{where}: label must be a number, got {shown(label)} in row {row}: correct or "
                "remove it"
            )
        found.append(number)
    return found


def make_task(name: str, kind: str, num_columns: int, classes: Sequence[str]) -> Task:
    """The task of such labels, with the metrics that suit them.

    Args:
        name: For titles.
        kind: One of the three above.
        num_columns: 1 or 2 columns of text.
        classes: Names by number; none for regression.
    """
    columns = ("text",) if num_columns == 1 else ("text1", "text2")
    metrics: list[tuple[str, Metric]] = [("accuracy", accuracy)]
    if kind == REGRESSION:
        metrics = [("pearson", pearson), ("spearmanr", spearman)]
    elif kind == MULTI_LABEL:
        metrics += [("macro_f1", macro_f1), ("micro_f1", micro_f1)]
    else:
        metrics += [("f1", f1)] if len(classes) == 2 else []
        metrics += [("macro_f1", macro_f1), ("matthews_correlation", matthews_correlation)]
    return Task(
        name, columns, tuple(classes), tuple(metrics), multi_label=kind == MULTI_LABEL,
        combines=False,
    )  # fmt: skip


def describe(names: Sequence[Any], classes: Sequence[str]) -> list[str]:
    """Lines that tell how many examples each class has, and whether they are imbalanced.

    Args:
        names: The class of each label of the training data.
        classes: All of them.
    """
    counts, total = Counter(names), max(1, len(names))
    common = sorted(classes, key=lambda name: -counts[name])
    shown_counts = [f"{name} {counts[name]:,} ({counts[name] / total:.1%})" for name in common[:10]]
    more = f" and {len(common) - 10} more" if len(common) > 10 else ""
    lines = [f"{len(classes)} classes: {', '.join(shown_counts)}{more}"]
    most, least = counts[common[0]], counts[common[-1]]
    if most >= _IMBALANCE * max(1, least):
        lines.append(
            f"the classes are imbalanced, {most:,} of {common[0]} to {least:,} of {common[-1]}: "
            f"{common[0]} alone is right in {most / total:.1%}, so read macro_f1 before accuracy"
        )
    return lines


def _number(value: Any) -> float | None:
    if isinstance(value, bool):
        return None
    convert: Callable[[Any], float] = float
    try:
        number = convert(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None
