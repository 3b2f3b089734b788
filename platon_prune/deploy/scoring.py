"""`Scoring`: an evaluation function, what its number is called, and which is better."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from platon_prune.deploy.evaluation import Evaluate, is_greater_better, metric_of
from platon_prune.deploy.form import Form, Source
from platon_prune.deploy.rows import FormRow
from platon_prune.runtimes.onnx_file import one_line


@dataclass(frozen=True)
class Scoring:
    """How forms are scored.

    Args:
        evaluate: Gives the metric of a form.
        name: What the metric is called.
        greater_is_better: Whether a larger one is better.
        known: Metrics by the names of forms, as far as they are measured.
    """

    evaluate: Evaluate
    name: str
    greater_is_better: bool
    known: dict[str, float]

    @classmethod
    def of(cls, evaluate: Any, metric: Any, greater_is_better: Any) -> Scoring | None:
        """What these arguments say; None without a function.

        Raises:
            TypeError: If one is of a wrong type.
            ValueError: If another is given without a function.
        """
        for name, value, kind in (
            ("metric", metric, str),
            ("greater_is_better", greater_is_better, bool),
        ):
            if value is not None and not isinstance(value, kind):
                raise TypeError(f"{name} must be a {kind.__name__}, got {value!r}")
            if value is not None and evaluate is None:
                raise ValueError(
                    f"evaluate must be given for {name}={value!r} to matter, got none: pass a "
                    "function that takes a model and returns a number"
                )
        if evaluate is None:
            return None
        if not callable(evaluate):
            raise TypeError(
                "evaluate must be a function that takes a model and returns a number, got "
                f"{type(evaluate).__name__}"
            )
        name = metric or getattr(evaluate, "__name__", "metric")
        # Names such as that of a lambda would say nothing in a table.
        name = name if name not in ("<lambda>", "evaluate") else "metric"
        better = is_greater_better(name) if greater_is_better is None else greater_is_better
        return cls(evaluate, name, better, {})

    def first(self, form: Form, source: Source, say: Callable[[str], object]) -> None:
        """Score the dense form, whose errors are the function's own."""
        say("evaluating dense")
        self.known["dense"] = metric_of(self.evaluate, form, source.dense, source.largest)

    def with_metric(
        self, row: FormRow, form: Form | None, source: Source, say: Callable[[str], object]
    ) -> FormRow:
        """The row with its metric, or with a note that says why there is none."""
        if form is None:
            return row
        if row.name not in self.known:
            say(f"evaluating {row.name}")
            try:
                model = source.dense if form.model is None else form.model
                self.known[row.name] = metric_of(self.evaluate, form, model, source.largest)
            # Of a file that takes other inputs, or whatever else one form can't do.
            except Exception as error:
                note = f"{self.name} not measured: {one_line(error)}"
                return replace(row, note="; ".join(filter(None, [row.note, note])))
        return replace(row, metric=self.known[row.name])
