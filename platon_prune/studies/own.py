"""`study`: a grid of runs of one's own function, with the command's cells, tables and pictures."""

from __future__ import annotations

import dataclasses
import importlib
import itertools
import os
from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any

import torch

from platon_prune.studies import results
from platon_prune.studies.cells import DENSE, Cell, Recipe, Workspace
from platon_prune.studies.report import report
from platon_prune.studies.running import run_missing

TrainFn = Callable[[dict[str, Any]], Any]
_ALONE = "metric"  # what the metric of a function that returns one number is called
_NAME = "study"


def study(
    train_fn: TrainFn,
    grid: Mapping[str, Sequence[Any]],
    *,
    seeds: Sequence[int] = (0,),
    output_dir: str | os.PathLike[str],
) -> list[dict[str, Any]]:
    """Run a function over all combinations of a grid's values and seeds, each one once.

    It may be stopped at any moment and called again: what is finished is in ``results.jsonl`` of
    the folder, and is not run again. Several processes may share the work by calling it with one
    folder. In the end ``study.md`` and ``study.json`` have mean and spread over the seeds, and PNG
    files draw them; ``amount`` in the grid is the axis of densities, and ``criterion`` names the
    curves, with whatever else the grid has. Progress is printed.

    Args:
        train_fn: Takes a cell, a dict with the grid's keys and ``seed``, and returns a number or a
            dict of numbers, of which the first is what the study is about. Another function, or
            other data, wants another folder: a cell is known by its values alone.
        grid: Key to its values: numbers, texts, booleans or None. Values of ``amount`` are
            fractions in [0, 1); "dense" as a criterion is run once for all amounts, with amount 0.
        seeds: Whole numbers.
        output_dir: Folder of the results; made if it is not there.

    Returns:
        The finished cells, each as a dict with ``cell`` (what ``train_fn`` got), ``metrics`` and
        ``seconds``.

    Raises:
        TypeError: If a value of the grid is of another type.
        ValueError: If the grid is empty, an amount is out of range, or a key is "seed".
        RuntimeError: If cells failed; after all others were run and reported. The next call tries
            them again.

    Example:
        >>> grid = {"criterion": ["platon", "magnitude"], "amount": [0.8, 0.9]}
        >>> study(train, grid, seeds=range(3), output_dir="my-study")
    """
    given = {cell.key: (cell, values) for cell, values in _cells_of(grid, seeds)}
    importlib.import_module("matplotlib")  # missing, it would be missed after all the work

    def run(cell: Cell, place: Workspace) -> dict[str, float]:
        metrics = _metrics(train_fn(dict(given[cell.key][1])))
        so_far = [each for key, each in results.read(place.folder).items() if key in given]
        headline = _headline(so_far) if so_far else None
        if headline is not None and headline not in metrics:
            raise ValueError(
                f"train_fn must return {headline!r} for every cell, which is what the "
                f"study is about since its first cell, got {', '.join(metrics)}: return it, or "
                "take another folder"
            )
        return metrics

    recipe = Recipe(
        _NAME,
        run,
        metric=None,
        title=_ALONE,
        is_percent=False,
        has_amounts="amount" in grid,
        subject=lambda settings: getattr(train_fn, "__name__", "study"),
    )
    folder, cells = Path(output_dir), [cell for cell, _ in given.values()]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    failed = run_missing(recipe, cells, Workspace(folder, device))
    records = results.read(folder)
    finished = [records[cell.key] for cell in cells if cell.key in records]
    if finished:
        report(_with_metrics(recipe, finished), cells, folder)
    if failed:
        name, error = failed[0]
        raise RuntimeError(
            f"every cell must run, got {len(failed)} of {len(cells)} that failed, the first with "
            f"{type(error).__name__} ({name}): mend it and call study again, which runs those alone"
        ) from error
    return [
        {
            "cell": given[record["key"]][1],
            "metrics": record["metrics"],
            "seconds": record["seconds"],
        }
        for record in finished
    ]


def _cells_of(
    grid: Mapping[str, Sequence[Any]], seeds: Sequence[int]
) -> list[tuple[Cell, dict[str, Any]]]:
    """Each cell with the dict that the function gets for it."""
    _check(grid, seeds)
    found: dict[str, tuple[Cell, dict[str, Any]]] = {}
    for chosen in itertools.product(*grid.values()):
        values = dict(zip(grid, chosen, strict=True))
        if values.get("criterion") == DENSE and "amount" in values:
            values["amount"] = 0.0
        options = {k: v for k, v in values.items() if k not in ("criterion", "amount")}
        criterion = str(values.get("criterion", ""))
        for seed in seeds:
            cell = Cell(_NAME, criterion, float(values.get("amount", 0)), int(seed), options)
            found.setdefault(cell.key, (cell, values | {"seed": int(seed)}))
    return list(found.values())


def _check(grid: Mapping[str, Sequence[Any]], seeds: Sequence[int]) -> None:
    if "seed" in grid:
        raise ValueError("grid must not have the key seed: give the seeds as seeds=...")
    for name, values in {**grid, "seeds": seeds}.items():
        if isinstance(values, str) or not isinstance(values, (Sequence, range)):
            raise TypeError(
                f"{name} must be a list of values, got {values!r}: put a single one into a list"
            )
        if not values:
            raise ValueError(f"{name} must have at least one value, got none")
        for value in values:
            if not (value is None or isinstance(value, (str, bool, int, float))):
                raise TypeError(
                    f"{name} must have numbers, texts, booleans or None, got {value!r}: name it by "
                    "a text, and look it up in train_fn"
                )
    for seed in seeds:
        if isinstance(seed, bool) or not isinstance(seed, int):
            raise TypeError(f"seeds must be whole numbers, got {seed!r}: draw others from them")
    by_name: dict[str, Any] = {}
    for value in grid.get("criterion", ()):
        # Rows are known by names; a value that comes twice is one.
        if by_name.setdefault(str(value), value) != value:
            raise ValueError(
                f"values of criterion must differ as texts, got {by_name[str(value)]!r} and "
                f"{value!r}: name one otherwise"
            )
    for amount in grid.get("amount", ()):
        if isinstance(amount, (str, bool)) or amount is None or not 0 <= amount < 1:
            raise ValueError(f"amount must be a fraction in [0, 1), got {amount!r}")


def _metrics(returned: Any) -> dict[str, float]:
    """What the function returned, as plain numbers."""
    named = returned if isinstance(returned, Mapping) else {_ALONE: returned}
    metrics = {}
    for name, value in named.items():
        # A tensor of one element and NumPy's numbers are numbers too.
        value = value.item() if hasattr(value, "item") else value
        if not isinstance(value, Real):
            raise TypeError(
                f"train_fn must return a number or a dict of numbers, got {name}={value!r}"
            )
        metrics[str(name)] = float(value)
    if not metrics:
        raise ValueError("train_fn must return at least one number, got an empty dict")
    return metrics


def _with_metrics(recipe: Recipe, finished: Sequence[results.CellRecord]) -> Recipe:
    """The recipe with the metrics that its cells have returned."""
    headline = _headline(finished)
    names = {name for record in finished for name in record["metrics"]} - {headline}
    return dataclasses.replace(
        recipe, metric=headline, title=headline, columns={name: name for name in sorted(names)}
    )


def _headline(finished: Sequence[results.CellRecord]) -> str:
    """What the study is about: what a cell returned first, and all have if there is such a one."""
    firsts = [str(record["metric"]) for record in finished]
    return next(
        (name for name in firsts if all(name in each["metrics"] for each in finished)), firsts[0]
    )
