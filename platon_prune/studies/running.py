"""The cells of a study are run: each once, by whichever process claims it."""

from __future__ import annotations

import dataclasses
import datetime
import math
import sys
import time
from collections.abc import Mapping, Sequence

from platon_prune.studies import results
from platon_prune.studies.cells import Cell, Recipe, Workspace
from platon_prune.studies.machine import machine_kind, versions
from platon_prune.studies.settings import without_folders


def run_missing(
    recipe: Recipe, cells: Sequence[Cell], place: Workspace
) -> list[tuple[str, Exception]]:
    """Run every cell that no one has finished or is running.

    Args:
        recipe: Runs one.
        cells: All that are wanted.
        place: Where; finished cells are found in its folder.

    Returns:
        What failed: the cell in words, and why. Others go on meanwhile.
    """
    failed: dict[str, tuple[str, Exception]] = {}
    progressed = True
    # Once more for those that another process held and gave up.
    while progressed:
        progressed = False
        for cell in cells:
            if cell.key in failed or cell.key in results.read(place.folder):
                continue
            with results.claim(place.folder, cell.key) as mine:
                # It may have been finished between the first look and the claim.
                if not mine or cell.key in results.read(place.folder):
                    continue
                progressed = True
                try:
                    outcome = _run_cell(recipe, cell, place)
                except ModuleNotFoundError:
                    raise  # no cell can run then
                except Exception as error:
                    failed[cell.key] = cell.name, error
                    print(
                        f"{cell.name} failed: {type(error).__name__}: {error}",
                        file=sys.stderr,
                        flush=True,
                    )
                    continue
                done = len(results.read(place.folder).keys() & {each.key for each in cells})
                print(f"[{done}/{len(cells)}] {outcome}", flush=True)
    return list(failed.values())


def _run_cell(recipe: Recipe, cell: Cell, place: Workspace) -> str:
    """Run a cell, write down what it measured, and say it."""
    start = time.perf_counter()
    metrics = dict(recipe.run(cell, place))
    _require_numbers(metrics)
    seconds = time.perf_counter() - start
    record = _record(cell, metrics, seconds, place.device)
    headline = recipe.metric
    if headline is None:  # that of the first cell; sorted names do not tell it any more
        headline = record["metric"] = next(iter(metrics))
    results.append(place.folder, record)
    return f"{cell.name}: {recipe.shown(metrics[headline])} ({seconds:.0f} s)"


def _record(
    cell: Cell, metrics: Mapping[str, float], seconds: float, device: str
) -> results.CellRecord:
    return {
        "key": cell.key,
        **dataclasses.asdict(cell),
        "settings": without_folders(cell.settings),
        "metrics": metrics,
        "seconds": round(seconds, 1),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": machine_kind(device),
        "versions": versions(),
    }


def _require_numbers(metrics: Mapping[str, float]) -> None:
    for name, value in metrics.items():
        if not math.isfinite(value):
            raise ValueError(f"{name} must be a finite number, got {value}: training diverged")
