"""The pictures of a study: accuracy against density, and what each option changes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from platon_prune.commands._study_cells import DENSE, Recipe
from platon_prune.commands._study_table import Row, reference_of
from platon_prune.plots import accuracy_against_density
from platon_prune.plots._style import COLOURS, INK, plain, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def save_pictures(recipe: Recipe, rows: Sequence[Row], folder: Path) -> list[Path]:
    """Draw what the rows have: criteria into ``accuracy.png``, options into ``options.png``.

    Returns:
        The files that were written.
    """
    measured = [row for row in rows if row.sample(recipe.metric)]
    plain = [row for row in measured if not row.options and row.criterion != DENSE]
    changed = [row for row in measured if row.options and reference_of(row, rows)]
    dense = next((row for row in measured if row.criterion == DENSE), None)
    paths = []
    if plain:
        paths.append(folder / "accuracy.png")
        _save_accuracy(recipe, plain, dense, paths[-1])
    if changed:
        paths.append(folder / "options.png")
        _save_options(recipe, changed, rows, paths[-1])
    return paths


def _save_accuracy(recipe: Recipe, rows: Sequence[Row], dense: Row | None, path: Path) -> None:
    curves: dict[str, dict[float, list[float]]] = {}
    for row in rows:
        curves.setdefault(row.criterion, {})[1 - row.amount] = row.values(recipe.metric)
    accuracy_against_density(
        curves,
        path,
        dense=dense.values(recipe.metric) if dense is not None else (),
        ylabel=recipe.title,
        heading="Mean, lowest to highest, and every seed",
        by_distance_to_100=True,
    )


def _save_options(recipe: Recipe, rows: Sequence[Row], all_rows: Sequence[Row], path: Path) -> None:
    from matplotlib.figure import Figure

    amounts = sorted({row.amount for row in rows})
    alone = len({row.criterion for row in rows}) == 1
    names = [row.label.partition(", ")[2] if alone else row.label for row in rows]
    labels = list(dict.fromkeys(names))
    size = (3.2 * len(amounts) + 2.6, 0.34 * len(labels) + 1.6)
    figure = Figure(figsize=size, layout="constrained", facecolor="white")
    first: Axes | None = None
    for column, amount in enumerate(amounts):
        axes = figure.add_subplot(1, len(amounts), column + 1, sharey=first)
        first = first or axes
        axes.axvline(0, color=INK, linewidth=1, linestyle=":")
        for row, name in zip(rows, names, strict=True):
            reference = reference_of(row, all_rows)
            if row.amount == amount and reference is not None:
                values = list(row.differences(reference, recipe.metric).values())
                _draw_differences(axes, labels.index(name), values)
        axes.set_title(f"density {100 * (1 - amount):.3g} %", loc="left")
        axes.tick_params(labelleft=column == 0)
        plain(axes)
    assert first is not None
    first.set_yticks(range(len(labels)), labels)
    first.set_ylim(len(labels) - 0.5, -0.5)
    figure.supxlabel("difference of the same seed without the option (points)", fontsize=10)
    save(figure, path)


def _draw_differences(axes: Axes, height: int, values: Sequence[float]) -> None:
    """Every seed as a small dot, their mean as a large one, a line from lowest to highest."""
    if values:
        axes.plot([min(values), max(values)], [height] * 2, color=COLOURS[0], linewidth=1.5)
        axes.plot(values, [height] * len(values), "o", color=COLOURS[0], markersize=3, alpha=0.6)
        axes.plot([sum(values) / len(values)], [height], "o", color=COLOURS[1], markersize=7)
