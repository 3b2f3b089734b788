"""The pictures of a study: accuracy against density, and what each option changes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from platon_prune.plots import accuracy_against_density
from platon_prune.plots._style import COLOURS, INK, plain, save, title
from platon_prune.studies.cells import DENSE, Recipe
from platon_prune.studies.intervals import interval_of_mean
from platon_prune.studies.speed_picture import save_speeds
from platon_prune.studies.table import Row
from platon_prune.studies.views import View, is_changed

if TYPE_CHECKING:
    from matplotlib.axes import Axes


# All that a report may draw; those of an earlier one that it does not are taken away.
_PICTURE = re.compile(r"(accuracy(_\d+)?|options|against|values|speed)\.png")


def save_pictures(
    recipe: Recipe, rows: Sequence[Row], folder: Path, subject: str, view: View
) -> list[Path]:
    """Draw what the rows have, each row once, and take away the pictures of an earlier report.

    Rows with options go to ``options.png`` where there is one without them to compare with; all
    others to ``accuracy.png``, and to ``accuracy_2.png`` and on where they are too many for one;
    those of a study that does not vary the amount to ``values.png``. Where all are compared with
    one criterion, ``against.png`` has the differences in place of ``options.png``. Where
    speeds were measured, ``speed.png`` has all rows against them.

    Args:
        recipe: What was run.
        rows: What was measured.
        folder: Where the pictures go.
        subject: What they are of, for their titles.
        view: What rows are compared with.

    Returns:
        The files that were written.
    """
    assert recipe.metric is not None
    measured = [row for row in rows if row.sample(recipe.metric)]
    if not recipe.has_amounts:
        _save_values(recipe, measured, folder / "values.png", subject)
        return _alone(folder, [folder / "values.png"])
    changed = [row for row in measured if is_changed(row, rows)]
    dense = next((row for row in measured if row.criterion == DENSE), None)
    paths = _save_accuracies(
        recipe, [r for r in measured if r not in changed and r is not dense], dense, folder, subject
    )
    compared = [row for row in measured if view.reference_of(row, rows) is not None]
    if view.against is not None and compared:
        paths.append(folder / "against.png")
        names = {row.criterion for row in compared}
        what = f"{names.pop()} against {view.against}" if len(names) == 1 else subject
        _save_differences(recipe, compared, rows, paths[-1], what, view)
    elif changed:
        paths.append(folder / "options.png")
        heading = f"{subject}: what an option changes"
        _save_differences(recipe, changed, rows, paths[-1], heading, view)
    heading = f"{subject}: mean and range over seeds"
    speed = folder / "speed.png"
    if save_speeds(
        measured, recipe.metric, recipe.speeds, speed, ylabel=recipe.title, heading=heading
    ):
        paths.append(speed)
    return _alone(folder, paths)


def _alone(folder: Path, paths: list[Path]) -> list[Path]:
    """The pictures of this report, once those of earlier ones are gone."""
    for path in folder.iterdir():
        if _PICTURE.fullmatch(path.name) and path not in paths:
            path.unlink()
    return paths


def _save_accuracies(
    recipe: Recipe, rows: Sequence[Row], dense: Row | None, folder: Path, subject: str
) -> list[Path]:
    assert recipe.metric is not None
    curves: dict[str, dict[float, list[float]]] = {}
    for row in rows:
        curves.setdefault(row.label, {})[1 - row.amount] = row.values(recipe.metric)
    labels, most = list(curves), len(COLOURS)
    paths = []
    for first in range(0, len(labels), most):
        suffix = f"_{first // most + 1}" if first else ""
        paths.append(folder / f"accuracy{suffix}.png")
        accuracy_against_density(
            {label: curves[label] for label in labels[first : first + most]},
            paths[-1],
            dense=dense.values(recipe.metric) if dense is not None else (),
            xlabel=f"{recipe.counted} kept (%)",
            ylabel=recipe.title,
            heading=f"{subject}: mean, range and every seed",
            by_distance_to_100=recipe.is_percent,
        )
    return paths


def _save_values(recipe: Recipe, rows: Sequence[Row], path: Path, subject: str) -> None:
    """Every row as dots, with its mean and a line over the interval of that."""
    from matplotlib.figure import Figure

    assert recipe.metric is not None
    figure = Figure(figsize=(6.8, 0.34 * len(rows) + 1.6), layout="constrained", facecolor="white")
    axes = figure.add_subplot()
    for height, row in enumerate(rows):
        _draw_differences(axes, height, row.values(recipe.metric))
    axes.set_yticks(range(len(rows)), [row.label for row in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlabel(recipe.title)
    plain(axes)
    title(axes, f"{subject}: every seed, mean, 95 % interval")
    save(figure, path)


def _save_differences(
    recipe: Recipe,
    rows: Sequence[Row],
    all_rows: Sequence[Row],
    path: Path,
    heading: str,
    view: View,
) -> None:
    """Each row's differences to what it is compared with, a panel for each amount."""
    from matplotlib.figure import Figure

    assert recipe.metric is not None
    amounts = sorted({row.amount for row in rows})
    alone = len({row.criterion for row in rows}) == 1
    names = [(row.label.partition(", ")[2] or "plain") if alone else row.label for row in rows]
    labels = list(dict.fromkeys(names))
    # One below the other, since a phone is narrow.
    size = (6.8, len(amounts) * (0.3 * len(labels) + 0.7) + 0.9)
    figure = Figure(figsize=size, layout="constrained", facecolor="white")
    first: Axes | None = None
    for number, amount in enumerate(amounts):
        # One scale for all, so that differences can be compared.
        axes = figure.add_subplot(len(amounts), 1, number + 1, sharex=first, sharey=first)
        first = first or axes
        axes.axvline(0, color=INK, linewidth=1, linestyle=":")
        for row, name in zip(rows, names, strict=True):
            reference = view.reference_of(row, all_rows)
            if row.amount == amount and reference is not None:
                values = list(row.differences(reference, recipe.metric).values())
                _draw_differences(axes, labels.index(name), values)
        axes.set_title(f"density {100 * (1 - amount):.3g} %", loc="left")
        plain(axes)
    assert first is not None
    first.set_yticks(range(len(labels)), labels)
    # Upside down: the first option on top, as in the table.
    first.set_ylim(len(labels) - 0.5, -0.5)
    figure.suptitle(heading, fontweight="bold", color=INK)
    versus = view.against or "the same criterion without the option"
    text = f"difference to {versus}, same seed ({_unit(recipe)}): every seed, mean, 95 % interval"
    figure.supxlabel(text, fontsize=10)
    save(figure, path)


def _unit(recipe: Recipe) -> str:
    return "points" if recipe.is_percent else recipe.title


def _draw_differences(axes: Axes, height: int, values: Sequence[float]) -> None:
    """Every seed as a small dot, their mean as a large one, a line over its interval."""
    if values:
        interval = interval_of_mean(values)
        if interval is not None:
            axes.plot(interval, [height] * 2, color=COLOURS[0], linewidth=1.5)
        axes.plot(values, [height] * len(values), "o", color=COLOURS[0], markersize=3, alpha=0.6)
        axes.plot([sum(values) / len(values)], [height], "o", color=COLOURS[1], markersize=7)
