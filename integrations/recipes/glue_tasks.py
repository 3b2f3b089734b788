"""The eight GLUE tasks of the paper: their columns, their labels and their metrics."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

Metric = Callable[[Any, Any], float]


def accuracy(predictions: Any, labels: Any) -> float:
    """Share of the predictions that equal their label; of several labels, all of them."""
    equal = np.asarray(predictions) == np.asarray(labels)
    return float(np.mean(equal if equal.ndim == 1 else equal.all(axis=-1)))


def f1(predictions: Any, labels: Any) -> float:
    """Harmonic mean of precision and recall of class 1; 0 if there are no true positives."""
    from sklearn.metrics import f1_score

    return float(f1_score(labels, predictions, zero_division=0))


def macro_f1(predictions: Any, labels: Any) -> float:
    """Mean of the F1 of every class that is predicted or right somewhere."""
    from sklearn.metrics import f1_score

    return float(f1_score(labels, predictions, average="macro", zero_division=0))


def micro_f1(predictions: Any, labels: Any) -> float:
    """F1 over all labels of all examples together."""
    from sklearn.metrics import f1_score

    return float(f1_score(labels, predictions, average="micro", zero_division=0))


def matthews_correlation(predictions: Any, labels: Any) -> float:
    """Matthews' correlation coefficient, in [-1, 1]; 0 if all predictions are equal."""
    from sklearn.metrics import matthews_corrcoef

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a single class in both
        return float(matthews_corrcoef(labels, predictions))


def pearson(predictions: Any, labels: Any) -> float:
    """Pearson's correlation, in [-1, 1]; 0 if all predictions are equal."""
    from scipy.stats import pearsonr

    return _correlation(pearsonr, predictions, labels)


def spearman(predictions: Any, labels: Any) -> float:
    """Spearman's rank correlation, in [-1, 1]; 0 if all predictions are equal."""
    from scipy.stats import spearmanr

    return _correlation(spearmanr, predictions, labels)


def _correlation(measure: Callable[..., Any], predictions: Any, labels: Any) -> float:
    if np.ptp(predictions) == 0 or np.ptp(labels) == 0:
        return 0.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nearly constant input
        return float(measure(predictions, labels)[0])


@dataclass(frozen=True)
class Task:
    """What is predicted from one or two columns of text: a task of GLUE, or of one's own file.

    Args:
        name: As ``datasets`` calls it.
        columns: The text columns, one or two.
        labels: Names of the classes, by number; none for regression.
        metrics: Name to function of (predictions, labels).
        validation: Splits to evaluate on, and the prefix of their metrics.
        test: Splits to predict.
        label_range: Of a regression task.
        multi_label: Whether an example may have any number of the labels.
        combines: Whether the mean of several metrics is one as well, as GLUE has it.
    """

    name: str
    columns: tuple[str, ...]
    labels: tuple[str, ...]
    metrics: tuple[tuple[str, Metric], ...]
    validation: tuple[tuple[str, str], ...] = (("eval", "validation"),)
    test: tuple[tuple[str, str], ...] = (("test", "test"),)
    label_range: tuple[float, float] = (0.0, 0.0)
    multi_label: bool = False
    combines: bool = True

    @property
    def is_regression(self) -> bool:
        """Whether the label is a number to predict."""
        return not self.labels

    def predictions(self, logits: Any) -> Any:
        """What the logits say: the number of a class, a 1 for each label, or the value itself."""
        logits = np.asarray(logits)
        if self.multi_label:
            return (logits > 0).astype(np.int64)  # where the probability is above a half
        return logits[..., 0] if self.is_regression else logits.argmax(axis=-1)

    def measure(self, logits: Any, labels: Any) -> dict[str, float]:
        """The task's metrics, and with several of them their mean as ``combined_score``.

        Args:
            logits: (examples, classes), or (examples, 1) for regression.
            labels: (examples,), or (examples, labels) of 0 and 1.
        """
        predictions = self.predictions(logits)
        labels = np.asarray(labels)
        found = {name: function(predictions, labels) for name, function in self.metrics}
        if len(found) > 1 and self.combines:
            found["combined_score"] = float(np.mean(list(found.values())))
        return found

    def confusion(self, logits: Any, labels: Any) -> list[Any] | None:
        """How often each class (row) was taken for each (column); None for regression.

        Of several labels: for each label two rows, of examples without it and with it.
        """
        if self.is_regression:
            return None
        predictions, labels = self.predictions(logits), np.asarray(labels, np.int64)
        if self.multi_label:
            return [_counts(labels[:, i], predictions[:, i], 2) for i in range(labels.shape[1])]
        return _counts(labels, predictions, len(self.labels))


def _counts(labels: Any, predictions: Any, num_classes: int) -> list[list[int]]:
    counts = np.zeros((num_classes, num_classes), np.int64)
    np.add.at(counts, (labels, predictions), 1)
    return [[int(count) for count in row] for row in counts]


_ACCURACY = (("accuracy", accuracy),)
_ACCURACY_AND_F1 = (("accuracy", accuracy), ("f1", f1))
_PAIR = ("sentence1", "sentence2")
_ENTAILMENT = ("entailment", "not_entailment")
_PARAPHRASE = ("not_equivalent", "equivalent")

TASKS = {
    task.name: task
    for task in (
        Task(
            "mnli",
            ("premise", "hypothesis"),
            ("entailment", "neutral", "contradiction"),
            _ACCURACY,
            (("eval", "validation_matched"), ("eval_mm", "validation_mismatched")),
            (("test", "test_matched"), ("test_mm", "test_mismatched")),
        ),
        Task("rte", _PAIR, _ENTAILMENT, _ACCURACY),
        Task(
            "qqp", ("question1", "question2"), ("not_duplicate", "duplicate"), _ACCURACY_AND_F1
        ),
        Task("sst2", ("sentence",), ("negative", "positive"), _ACCURACY),
        Task("qnli", ("question", "sentence"), _ENTAILMENT, _ACCURACY),
        Task(
            "stsb", _PAIR, (), (("pearson", pearson), ("spearmanr", spearman)),
            label_range=(0.0, 5.0),
        ),
        Task("mrpc", _PAIR, _PARAPHRASE, _ACCURACY_AND_F1),
        Task(
            "cola", ("sentence",), ("unacceptable", "acceptable"),
            (("matthews_correlation", matthews_correlation),),
        ),
    )
}  # fmt: skip


def find_task(name: str | None) -> Task:
    """The task of ``--task_name``; SST-2 and STS-B may be written so.

    Raises:
        ValueError: If there is none of that name.
    """
    task = TASKS.get((name or "").lower().replace("-", "").replace("_", ""))
    if task is None:
        raise ValueError(
            f"--task_name must be one of {', '.join(TASKS)}, got {name!r}: local files need it "
            "too, for their columns, labels and metrics"
        )
    return task
