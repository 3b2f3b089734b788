"""The picture of accuracy against measured speed: a curve a method, a panel a size of inputs."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from platon_prune.plots._style import COLOURS, INK, MARKERS, legend_below, plain, save, title
from platon_prune.studies.cells import DENSE
from platon_prune.studies.table import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# What the model that a cell started from had, of recipes that say it.
_BEFORE = "dense_accuracy"


def save_speeds(
    rows: Sequence[Row],
    metric: str,
    speeds: Mapping[str, str],
    path: Path,
    *,
    ylabel: str,
    heading: str,
) -> bool:
    """Draw each method's points, from the least pruned on, with their ranges over the seeds.

    Args:
        rows: What was measured; those without any of the speeds are left out.
        metric: What the heights are.
        speeds: A measured speed to what it is of, in words.
        path: File to write.
        ylabel: What the metric is.
        heading: Title.

    Returns:
        Whether there was anything to draw.
    """
    from matplotlib.figure import Figure

    panels = {name: words for name, words in speeds.items() if any(r.sample(name) for r in rows)}
    if not panels:
        return False
    labels = list(dict.fromkeys(row.label for row in rows if row.criterion != DENSE))
    # One below the other, since a phone is narrow.
    size = (6.8, 2.5 * len(panels) + 1.0)
    figure = Figure(figsize=size, layout="constrained", facecolor="white")
    first: Axes | None = None
    for number, (name, words) in enumerate(panels.items()):
        # One scale for all, which has the dense model at 1: noise would fill a scale of its own.
        axes = figure.add_subplot(len(panels), 1, number + 1, sharex=first, sharey=first)
        _draw_dense(axes, rows, metric, labelled=first is None)
        for i, label in enumerate(labels):
            own = sorted((r for r in rows if r.label == label), key=lambda row: row.amount)
            _draw_method(axes, own, metric, name, i, label if first is None else None)
        axes.set_title(words, loc="right", fontsize=10, color=INK)
        axes.set_ylabel(ylabel)
        plain(axes)
        first = first or axes
    assert first is not None
    values = [value for row in rows for name in panels for value in row.values(name)]
    lowest, highest = min(1.0, *values), max(1.0, *values)
    margin = 0.04 * (highest - lowest)
    first.set_xlim(lowest - margin, highest + margin)
    title(first, heading)
    axes.set_xlabel("times as fast as the dense model")
    legend_below(figure, len(first.get_legend_handles_labels()[1]))
    save(figure, path)
    return True


def _draw_dense(axes: Axes, rows: Sequence[Row], metric: str, *, labelled: bool) -> None:
    """The model that the others were made of, and the same after the further steps."""
    before = [value for row in rows for value in row.values(_BEFORE)]
    if before:
        mean = statistics.fmean(before)
        label = f"dense, before ({mean:.1f})" if labelled else None
        axes.plot([1.0], [mean], "*", color=INK, markersize=9, linestyle="none", label=label)
    for row in rows:
        if row.criterion == DENSE:
            mean = statistics.fmean(row.values(metric))
            label = f"dense, the same steps ({mean:.1f})" if labelled else None
            axes.axhline(mean, color=INK, linewidth=1.2, linestyle=":", label=label)


def _draw_method(
    axes: Axes, rows: Sequence[Row], metric: str, speed: str, i: int, label: str | None
) -> None:
    colour, marker = COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]
    points = [(x, y) for row in rows if (x := row.sample(speed)) and (y := row.sample(metric))]
    # Each run too, so that a range is not taken for a distribution.
    each = [measured for row in rows for measured in row.by_seed.values()]
    runs = [(run[speed], run[metric]) for run in each if speed in run and metric in run]
    axes.plot(*zip(*runs, strict=True), ".", color=colour, alpha=0.45)
    for x, y in points:
        # From the lowest to the highest seed both ways; a deviation of three would mean little.
        axes.plot([x.low, x.high], [y.mean] * 2, color=colour, linewidth=1.2, alpha=0.6)
        axes.plot([x.mean] * 2, [y.low, y.high], color=colour, linewidth=1.2, alpha=0.6)
    axes.plot(
        [x.mean for x, _ in points],
        [y.mean for _, y in points],
        marker=marker,
        color=colour,
        markersize=6,
        linewidth=1.4,
        label=label,
    )
