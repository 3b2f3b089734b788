"""The pictures of a study: accuracy against density, and what each option changes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from platon_prune.commands._study_cells import DENSE, Recipe
from platon_prune.commands._study_table import Row, reference_of
from platon_prune.plots._style import INK

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's colours, told apart with any colour vision; markers differ as well.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#767676", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "X", "v", "P")
PERCENT_TICKS = (0, 10, 30, 50, 70, 80, 85, 90, 92, 94, 95, 96, 97, 98, 99)


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
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained", facecolor="white")
    axes = figure.add_subplot()
    _draw_dense(axes, dense, recipe.metric)
    criteria = list(dict.fromkeys(row.criterion for row in rows))
    for i, criterion in enumerate(criteria):
        own = sorted((row for row in rows if row.criterion == criterion), key=lambda r: r.amount)
        samples = [row.sample(recipe.metric) for row in own]
        densities = [100 * (1 - row.amount) for row in own]
        colour, marker = COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]
        lows, highs = [s.low for s in samples if s], [s.high for s in samples if s]
        axes.fill_between(densities, lows, highs, color=colour, alpha=0.15, linewidth=0)
        axes.plot(
            densities, [s.mean for s in samples if s], color=colour, marker=marker, markersize=5,
            linewidth=2, label=criterion,
        )  # fmt: skip
    ticks = sorted({100 * (1 - row.amount) for row in rows})
    axes.set_xscale("log")
    axes.set_xticks(ticks, [f"{tick:.3g}" for tick in ticks])
    axes.minorticks_off()
    axes.invert_xaxis()
    axes.set_xlabel("density (%)")
    _spread_heights(axes)
    axes.set_ylabel(recipe.title)
    axes.set_title("mean, and lowest to highest over the seeds", loc="left")
    axes.legend(frameon=False)
    _plain(axes)
    figure.savefig(path, dpi=130, format="png")


def _spread_heights(axes: Axes) -> None:
    """Scale percentages by the distance to 100, so that close ones near the top are told apart."""
    low, high = axes.dataLim.y0, axes.dataLim.y1
    if not 0 <= low < high <= 100:
        return
    axes.set_yscale(
        "function", functions=(lambda y: -_log(100.1 - y), lambda z: 100.1 - 10.0 ** (-z))
    )
    low, high = max(0.0, low - 0.1 * (100 - low)), 100 - 0.8 * (100 - high)
    axes.set_ylim(low, high)
    axes.set_yticks([tick for tick in PERCENT_TICKS if low <= tick <= high])
    axes.yaxis.set_major_formatter(lambda value, position: f"{value:g}")


def _log(values: Any) -> Any:
    import numpy as np

    return np.log10(np.maximum(values, 1e-3))


def _draw_dense(axes: Axes, dense: Row | None, metric: str) -> None:
    sample = None if dense is None else dense.sample(metric)
    if sample is not None:
        axes.axhspan(sample.low, sample.high, color=INK, alpha=0.07, linewidth=0)
        axes.axhline(sample.mean, color=INK, linewidth=1.2, linestyle=":", label=DENSE)


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
        _plain(axes)
    assert first is not None
    first.set_yticks(range(len(labels)), labels)
    first.set_ylim(len(labels) - 0.5, -0.5)
    figure.supxlabel("difference of the same seed without the option (points)", fontsize=10)
    figure.savefig(path, dpi=130, format="png")


def _draw_differences(axes: Axes, height: int, values: Sequence[float]) -> None:
    """Every seed as a small dot, their mean as a large one, a line from lowest to highest."""
    if values:
        axes.plot([min(values), max(values)], [height] * 2, color=COLOURS[0], linewidth=1.5)
        axes.plot(values, [height] * len(values), "o", color=COLOURS[0], markersize=3, alpha=0.6)
        axes.plot([sum(values) / len(values)], [height], "o", color=COLOURS[1], markersize=7)


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e5e5e5", linewidth=0.8)
    axes.set_axisbelow(True)
