"""From finished cells to rows: mean and spread over seeds, differences seed by seed, Markdown."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from platon_prune.studies.cells import DENSE, Cell, Recipe, label_of, shown
from platon_prune.studies.intervals import interval_of_mean
from platon_prune.studies.results import CellRecord


@dataclass(frozen=True)
class Sample:
    """Mean, standard deviation (of a sample, n - 1; None of one value), lowest and highest.

    ``interval`` holds the mean of all seeds with 95 % confidence; None of one value.
    """

    mean: float
    deviation: float | None
    low: float
    high: float
    interval: tuple[float, float] | None = None

    @classmethod
    def of(cls, values: Sequence[float]) -> Sample:
        """Of at least one value."""
        deviation = statistics.stdev(values) if len(values) > 1 else None
        mean, interval = statistics.fmean(values), interval_of_mean(values)
        return cls(mean, deviation, min(values), max(values), interval)


@dataclass(frozen=True)
class Row:
    """The finished cells that differ in nothing but the seed.

    Args:
        criterion: How weights are scored, or "dense".
        amount: Fraction pruned in the end.
        options: Those that differ from the recipe's defaults.
        num_seeds: How many cells were asked for.
        by_seed: What was measured, of those that are finished.
        chosen: An option and its value, where the best of several values was taken.
        num_tried: Of how many values it is the best.
    """

    criterion: str
    amount: float
    options: Mapping[str, Any]
    num_seeds: int
    by_seed: Mapping[int, Mapping[str, float]]
    chosen: Mapping[str, Any] = field(default_factory=dict)
    num_tried: int = 0

    @property
    def label(self) -> str:
        """Criterion and options, in words."""
        return label_of(self.criterion, self.options)

    def values(self, metric: str) -> list[float]:
        """One measured value of each cell that has it."""
        return [measured[metric] for measured in self.by_seed.values() if metric in measured]

    def sample(self, metric: str) -> Sample | None:
        """Of one measured value over the seeds; None if no cell has it."""
        values = self.values(metric)
        return Sample.of(values) if values else None

    def differences(self, other: Row, metric: str) -> dict[int, float]:
        """Seed to how much higher this row's value is, of the seeds that both have."""
        return {
            seed: measured[metric] - other.by_seed[seed][metric]
            for seed, measured in self.by_seed.items()
            if metric in measured and metric in other.by_seed.get(seed, {})
        }


def rows_of(cells: Sequence[Cell], records: Mapping[str, CellRecord]) -> list[Row]:
    """One row for each criterion, amount and options, in the order of the cells."""
    groups: dict[tuple[str, float, str], list[Cell]] = {}
    for cell in cells:
        name = (cell.criterion, cell.amount, json.dumps(cell.options, sort_keys=True))
        groups.setdefault(name, []).append(cell)
    return [
        Row(
            group[0].criterion,
            group[0].amount,
            group[0].options,
            len(group),
            {cell.seed: records[cell.key]["metrics"] for cell in group if cell.key in records},
        )
        for group in groups.values()
    ]


def reference_of(row: Row, rows: Sequence[Row]) -> Row | None:
    """What a row is compared with, at its amount: its criterion without options, or the first.

    Where no row is without options, that is the first criterion with the same ones; where criteria
    are not varied, the first row.
    """
    others = [r for r in rows if r.amount == row.amount and r.by_seed and r.criterion != DENSE]
    plain = [r for r in others if not r.options]
    if row.criterion == DENSE:
        return None
    if row.options and plain:
        return next((r for r in plain if r.criterion == row.criterion), None)
    first = next((r for r in others if r.options == row.options), None)
    if first is row and not row.criterion and others:
        first = others[0]  # a study of options alone: all are compared with the first
    return None if first is row else first


def markdown(
    recipe: Recipe,
    cells: Sequence[Cell],
    rows: Sequence[Row],
    records: Mapping[str, CellRecord],
    view: Comparing,
) -> str:
    """The page ``study.md``, of at least one finished cell."""
    finished = [records[cell.key] for cell in cells if cell.key in records]
    lines = [
        f"# Study: {recipe.name}",
        "",
        f"{recipe.title}: mean ± standard deviation over seeds (lowest to highest). Differences "
        f"are taken seed by seed, {view.comparison}; the interval holds their mean over all seeds "
        "with 95 % confidence (Student's t).",
        *(f"\n{sentence}" for sentence in view.notes(recipe)),
        "",
        *_table(recipe, rows, view),
        "",
        f"{len(finished)} of {len(cells)} cells are finished.",
        "",
        *(f"- Machine: {_sentence(kind)}." for kind in distinct(finished, "machine")),
        *(f"- Versions: {_sentence(found)}." for found in distinct(finished, "versions")),
        *(f"- Settings: {_sentence(found)}." for found in distinct(finished, "settings") if found),
        f"- Measured: {' to '.join(dict.fromkeys(dates_of(finished)))}.",
    ]
    return "\n".join(lines) + "\n"


def dates_of(records: Sequence[CellRecord]) -> list[str]:
    """The first and the last day on which a cell was finished, of at least one."""
    dates = [str(record["date"]) for record in records]
    return [min(dates), max(dates)]


def distinct(records: Sequence[CellRecord], name: str) -> list[Any]:
    """Each value of an entry once, in order."""
    found: list[Any] = []
    for record in records:
        if record[name] not in found:
            found.append(record[name])
    return found


class Comparing(Protocol):
    """What the table needs of a report's view."""

    @property
    def comparison(self) -> str:
        """With what rows are compared, as the end of a sentence."""

    def notes(self, recipe: Recipe) -> list[str]:
        """What else there is to say of how the rows were made."""

    def reference_of(self, row: Row, rows: Sequence[Row]) -> Row | None:
        """What a row is compared with."""


def _table(recipe: Recipe, rows: Sequence[Row], view: Comparing) -> list[str]:
    assert recipe.metric is not None
    columns = {
        name: heading
        for name, heading in recipe.columns.items()
        if any(row.sample(name) for row in rows)
    }
    density = ["density"] if recipe.has_amounts else []
    chosen = list(dict.fromkeys(name for row in rows for name in row.chosen))
    heads = [*density, "", *chosen, recipe.title, "seeds", "difference, seed by seed", "95 %"]
    heads += columns.values()
    lines = [
        heads,
        [*["---:" for _ in density], "---", *["---:"] * (len(heads) - 1 - len(density))],
    ]
    for row in sorted(rows, key=lambda row: row.amount):
        score = row.sample(recipe.metric)
        other = view.reference_of(row, rows)
        differences = {} if other is None else row.differences(other, recipe.metric)
        change = Sample.of(list(differences.values())) if differences else None
        compared = [row.values(recipe.metric), [] if other is None else other.values(recipe.metric)]
        # Of both: a row of zeros says nothing of how large its difference to another may be.
        like = Sample.of(sum(compared, [])) if any(compared) else None
        lines.append(
            [
                *[f"{100 * (1 - row.amount):.3g} %" for _ in density],
                row.label,
                *(
                    f"{_plain(row.chosen[n])} (of {row.num_tried})" if n in row.chosen else ""
                    for n in chosen
                ),
                _spread(recipe, score, score),
                f"{len(row.by_seed)} of {row.num_seeds}",
                _spread(recipe, change, like, "+"),
                _interval(recipe, change, like),
                *(_mean(row.sample(name)) for name in columns),
            ]
        )
    return [f"| {' | '.join(line)} |" for line in lines]


def _spread(recipe: Recipe, sample: Sample | None, like: Sample | None, sign: str = "") -> str:
    if sample is None or like is None:
        return ""
    digits = _digits_of(like)
    rounded = (_rounded(value, digits) for value in (sample.mean, sample.low, sample.high))
    mean, low, high = (recipe.shown(value, sign) for value in rounded)
    if sample.deviation is None:
        return mean
    return f"{mean} ± {recipe.shown(_rounded(sample.deviation, digits))} ({low} to {high})"


def _interval(recipe: Recipe, sample: Sample | None, like: Sample | None) -> str:
    if sample is None or like is None or sample.interval is None:
        return ""
    ends = (_rounded(value, _digits_of(like)) for value in sample.interval)
    return " to ".join(recipe.shown(value, "+") for value in ends)


def _digits_of(sample: Sample) -> int:
    """Decimals of the metric itself: what is smaller comes from rounding, as 2e-08."""
    largest = max(abs(sample.low), abs(sample.high))
    return 3 - math.floor(math.log10(largest)) if 0 < largest < math.inf else 0


def _rounded(value: float, digits: int) -> float:
    """The value, or 0 where it is nothing here; shown, it is rounded: twice makes 84.748 84.8."""
    return value if round(value, digits) else 0.0


def _plain(value: Any) -> str:
    """A value of an option, which may be a text, true or false; None is what is not known."""
    if value is None:
        return "default"
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return f"{value:g}" if is_number else shown(value)


def _mean(sample: Sample | None) -> str:
    return "" if sample is None else f"{sample.mean:.3g}"


def _sentence(values: Mapping[str, Any]) -> str:
    shown = {k: " ".join(v) if isinstance(v, list) else v for k, v in values.items()}
    return ", ".join(f"{name} {value}" for name, value in shown.items() if value is not None)
