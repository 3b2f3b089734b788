"""What a study shows: which cells are done, and ``study.md``, ``study.json`` and the pictures."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from platon_prune.studies import results, table
from platon_prune.studies.cells import Cell, Recipe
from platon_prune.studies.figures import save_pictures
from platon_prune.studies.intervals import interval_of_mean
from platon_prune.studies.views import View, is_changed
from platon_prune.writing import write_text


def listing(cells: Sequence[Cell], folder: Path) -> str:
    """One line for each cell: done, running or missing."""
    records = results.read(folder)
    lines, done = [], 0
    for cell in cells:
        state = "missing"
        if cell.key in records:
            state, done = "done", done + 1
        elif results.is_claimed(folder, cell.key):
            state = "running"
        lines.append(f"{state:8} {cell.key}  {cell.name}")
    return "\n".join([*lines, f"{done} of {len(cells)} done"])


def report(recipe: Recipe, cells: Sequence[Cell], folder: Path, view: View | None = None) -> str:
    """Write ``study.md``, ``study.json`` and the pictures of the finished cells; names them."""
    records = results.read(folder)
    view = view or View()
    rows = view.rows(recipe, table.rows_of(cells, records))
    finished = [records[cell.key] for cell in cells if cell.key in records]
    # No files of a report that has nothing in it.
    if not finished:
        return f"nothing to report: none of the {len(cells)} cells is finished in {folder}"
    page = table.markdown(recipe, cells, rows, records, view)
    write_text(folder / "study.md", page)
    content = {
        "recipe": recipe.name,
        "metric": recipe.metric,
        "num_cells": len(cells),
        "rows": [_plain_row(row, rows, recipe, view) for row in rows if row.by_seed],
        "machines": table.distinct(finished, "machine"),
        "versions": table.distinct(finished, "versions"),
        "settings": table.distinct(finished, "settings"),
        "dates": table.dates_of(finished),
    }
    # NaN is no JSON, and other languages' parsers refuse it.
    text = json.dumps(content, indent=2, allow_nan=False)
    write_text(folder / "study.json", text + "\n")
    paths = save_pictures(recipe, rows, folder, recipe.about(cells), view)
    names = ", ".join(["study.md", "study.json", *(path.name for path in paths)])
    return f"{page}\n{names} are in {folder}{_hint(rows, view)}"


def _hint(rows: Sequence[table.Row], view: View) -> str:
    """What to add to the command where options were run, but nothing to compare them with."""
    alone = [row for row in rows if row.by_seed and row.options and not is_changed(row, rows)]
    if not alone or view != View():
        return ""
    return (
        f"\n{alone[0].label} has no row without options beside it, which options.png would compare "
        "it with: add --one_by_one, or the default to the option's values"
    )


def _plain_row(
    row: table.Row, rows: Sequence[table.Row], recipe: Recipe, view: View
) -> dict[str, Any]:
    metrics = sorted({name for measured in row.by_seed.values() for name in measured})
    reference = view.reference_of(row, rows)
    assert recipe.metric is not None
    plain: dict[str, Any] = {
        "criterion": row.criterion,
        "amount": row.amount,
        "options": row.options,
        "seeds": list(row.by_seed),
        "metrics": {name: _plain_sample(row.sample(name)) for name in metrics},
    }
    if row.chosen:
        plain |= {"chosen": row.chosen, "num_tried": row.num_tried}
    if reference is not None:
        differences = row.differences(reference, recipe.metric)
        plain["compared_with"] = reference.label
        plain["differences"] = {str(seed): value for seed, value in differences.items()}
        plain["interval"] = interval_of_mean(list(differences.values()))
    return plain


def _plain_sample(sample: table.Sample | None) -> dict[str, Any] | None:
    return None if sample is None else dataclasses.asdict(sample)
