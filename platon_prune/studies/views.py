"""How a report looks at its cells: best of an option, mean over one, against a criterion."""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from platon_prune.studies.cells import DENSE, Cell, Recipe
from platon_prune.studies.table import Row, reference_of

_SET_ASIDE = "validation"  # the option of a recipe that has no validation part without it


@dataclass(frozen=True)
class View:
    """What a report makes of the rows.

    Args:
        best_of: An option of which each row has its own best value: that with the best mean, over
            the seeds that all its values have, of what the recipe chooses by.
        mean_over: An option whose values are averaged within each seed, before anything is said of
            the seeds.
        against: A criterion; every other row is compared with its row of the same options, or with
            its only row of that amount.
    """

    best_of: str | None = None
    mean_over: str | None = None
    against: str | None = None

    def check(self, recipe: Recipe, cells: Sequence[Cell]) -> None:
        """Raise a ValueError that says what must hold, unless the cells can be looked at so."""
        for flag, name in (("--best_of", self.best_of), ("--mean_over", self.mean_over)):
            if name is not None and len(_values(recipe, cells, name)) < 2:
                varied = [n for n in recipe.options if len(_values(recipe, cells, n)) > 1]
                raise ValueError(
                    f"{flag} must be an option with several values, "
                    f"{'one of ' + ', '.join(varied) if varied else 'of which none is given'}; "
                    f"got {name!r}: give its values with --option {name}=..."
                )
        if self.best_of is not None and self.best_of == self.mean_over:
            raise ValueError(f"--best_of and --mean_over must differ, got {self.best_of!r} twice")
        lacks_part = _SET_ASIDE in recipe.options and any(
            not cell.options.get(_SET_ASIDE) for cell in cells
        )
        if self.best_of is not None and lacks_part:
            raise ValueError(
                f"--best_of needs a part to choose by, got none: add --option {_SET_ASIDE}=0.2, "
                "which sets a fifth of what is trained on aside"
            )
        criteria = list(dict.fromkeys(cell.criterion for cell in cells if cell.criterion != DENSE))
        if self.against is not None and self.against not in criteria:
            raise ValueError(
                f"--against must be one of the criteria, {', '.join(criteria)}; got "
                f"{self.against!r}"
            )

    def rows(self, recipe: Recipe, rows: Sequence[Row]) -> list[Row]:
        """The rows as they are shown."""
        shown = list(rows)
        if self.mean_over is not None:
            shown = _averaged(shown, self.mean_over)
        if self.best_of is not None:
            shown = _best(recipe, _without_shared(shown), self.best_of)
        return shown

    @property
    def comparison(self) -> str:
        """With what rows are compared, as the end of a sentence."""
        if self.against is not None:
            return f"to {self.against} with the same options"
        return "to the same criterion without options, or to the first criterion with the same ones"

    def notes(self, recipe: Recipe) -> list[str]:
        """What else there is to say of how the rows were made."""
        notes = []
        if self.mean_over is not None:
            notes.append(f"Each seed's value is the mean over its values of {self.mean_over}.")
        if self.best_of is not None:
            metric = recipe.chosen_by or recipe.metric
            notes.append(
                f"{self.best_of} is each row's own best: that with the best mean of {metric} over "
                "the seeds that all its values have."
            )
        return notes

    def reference_of(self, row: Row, rows: Sequence[Row]) -> Row | None:
        """What a row is compared with; None where there is nothing, or it is that itself."""
        if self.against is None:
            return reference_of(row, rows)
        if row.criterion in (self.against, DENSE):
            return None
        others = [r for r in rows if r.criterion == self.against and r.amount == row.amount]
        alone = others[0] if len(others) == 1 else None  # a rival knows no options of pruning
        return next((r for r in others if r.options == row.options), alone)


def is_changed(row: Row, rows: Sequence[Row]) -> bool:
    """Whether a row has options, and there is one without to compare it with."""
    reference = reference_of(row, rows)
    return bool(row.options) and reference is not None and not reference.options


def _shared_options(rows: Sequence[Row]) -> dict[str, Any]:
    """The options that all rows have, with one value."""
    found = [set(_items(row.options)) for row in rows]
    common = set.intersection(*found) if found else set()
    return {name: json.loads(value) for name, value in sorted(common)}


def _values(recipe: Recipe, cells: Sequence[Cell], name: str) -> set[str]:
    if name not in recipe.options:
        return set()
    default = recipe.options[name].default
    return {json.dumps(c.options.get(name, default)) for c in cells if c.criterion != DENSE}


def _items(options: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(name, json.dumps(value)) for name, value in options.items()]


def _without_shared(rows: Sequence[Row]) -> list[Row]:
    shared = _shared_options(rows)
    return [dataclasses.replace(row, options=_left(row.options, *shared)) for row in rows]


def _left(options: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name not in names}


def _groups(rows: Sequence[Row], name: str) -> list[list[Row]]:
    """The rows that differ in nothing but one option, in the order of the first of each."""
    groups: dict[tuple[str, float, str], list[Row]] = {}
    for row in rows:
        options = json.dumps(_left(row.options, name), sort_keys=True)
        groups.setdefault((row.criterion, row.amount, options), []).append(row)
    return list(groups.values())


def _averaged(rows: Sequence[Row], name: str) -> list[Row]:
    found = []
    for group in _groups(rows, name):
        first = group[0]
        # A seed of which a value is missing would be a mean of something else.
        seeds = [seed for seed in first.by_seed if all(seed in row.by_seed for row in group)]
        by_seed = {seed: _mean([row.by_seed[seed] for row in group]) for seed in seeds}
        options = _left(first.options, name)
        found.append(dataclasses.replace(first, options=options, by_seed=by_seed))
    return found


def _mean(measured: Sequence[Mapping[str, float]]) -> dict[str, float]:
    names = [name for name in measured[0] if all(name in each for each in measured)]
    return {name: statistics.fmean(each[name] for each in measured) for name in names}


def _best(recipe: Recipe, rows: Sequence[Row], name: str) -> list[Row]:
    """One row of each group: the best, with the value that made it so."""
    metric = recipe.chosen_by or recipe.metric
    assert metric is not None
    default = recipe.options[name].default
    choose = min if recipe.lower_is_better else max
    found = []
    for group in _groups(rows, name):
        if name not in recipe.options_of(group[0].criterion):
            found += group  # a rival or a dense model, of which it changes nothing
            continue
        means = _comparable_means(group, metric)
        best = choose(means, key=lambda pair: pair[1])[0] if means else group[0]
        value = {name: best.options.get(name, default)} if means else {}
        options = _left(best.options, name)
        found.append(dataclasses.replace(best, options=options, chosen=value, num_tried=len(means)))
    return found


def _comparable_means(group: Sequence[Row], metric: str) -> list[tuple[Row, float]]:
    """Each row with its mean over the seeds that all have; rows without one in common are out."""
    scores = [
        (row, {seed: each[metric] for seed, each in row.by_seed.items() if metric in each})
        for row in group
    ]
    # A seed that is a good one would speak for the only value that has it.
    seeds: set[int] = set()
    while scores and not seeds:
        seeds = set.intersection(*(set(by_seed) for _, by_seed in scores))
        if not seeds:
            fewest = min(len(by_seed) for _, by_seed in scores)
            out = max(i for i, (_, by_seed) in enumerate(scores) if len(by_seed) == fewest)
            del scores[out]
    return [(row, statistics.fmean(by_seed[seed] for seed in seeds)) for row, by_seed in scores]
