"""The picture of ``platon-prune demo``: accuracy, density and sparsity per layer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from platon_prune.plots._style import (
    COLOURS,
    INK,
    MARKERS,
    percent,
    plain,
    require_matplotlib,
    short_names,
)
from platon_prune.writing import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SPARSITY_TICKS = (0.0, 0.5, 0.9, 0.99, 0.999)


@dataclass(frozen=True)
class Comparison:
    """Runs that end at the same density.

    Args:
        density: Fraction kept in the end, in (0, 1).
        schedule: Step to the density that was due.
        accuracies: Label of a run to its accuracy in percent by step; a run with a single one was
            not fine-tuned.
        sparsities: Label of a run to the final sparsity by tensor name.
    """

    density: float
    schedule: Mapping[int, float]
    accuracies: Mapping[str, Mapping[int, float]]
    sparsities: Mapping[str, Mapping[str, float]]


def save_demo_report(
    comparisons: Sequence[Comparison], dense_accuracy: float, path: str | Path
) -> None:
    """Draw accuracy and density over training, and sparsity per layer, into a PNG.

    Args:
        comparisons: One column of curves each; layers are shown for the lowest density.
        dense_accuracy: In percent, of the dense model after the same further steps: the dotted
            line.
        path: File to write.
    """
    require_matplotlib()
    from matplotlib.figure import Figure

    columns = len(comparisons)
    # Where most is pruned, layers differ most.
    sparsest = min(comparisons, key=lambda comparison: comparison.density)
    layers = 0.8 + 0.2 * len(next(iter(sparsest.sparsities.values())))
    # Layers below the curves, since a phone is narrow.
    size = (max(6.4, 3.5 * columns + 0.4), 5.4 + layers)
    figure = Figure(figsize=size, layout="constrained", facecolor="white")
    grid = figure.add_gridspec(3, columns, height_ratios=(3.2, 1.4, layers))
    first: tuple[Axes, Axes] | None = None
    for column, comparison in enumerate(comparisons):
        # One scale for all columns: they are there to be compared.
        top = figure.add_subplot(grid[0, column], sharey=first and first[0])
        bottom = figure.add_subplot(grid[1, column], sharex=top, sharey=first and first[1])
        _draw_accuracies(top, comparison, dense_accuracy)
        _draw_schedule(bottom, comparison)
        if first is None:
            first = top, bottom
            top.set_ylabel("accuracy on held-out digits (%)")
            bottom.set_ylabel("density (%)")
        else:
            top.tick_params(labelleft=False)
            bottom.tick_params(labelleft=False)
    _draw_layers(figure.add_subplot(grid[2, :]), sparsest)
    assert first is not None
    # One legend for all columns: the runs have the same labels in each.
    handles, labels = first[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
    figure.suptitle(
        "A vision transformer for handwritten digits,\npruned while it is fine-tuned",
        fontsize=13,
        fontweight="bold",
        color=INK,
    )
    with replacing(path) as file:
        figure.savefig(file, dpi=150, format="png")


def _draw_accuracies(axes: Axes, comparison: Comparison, dense_accuracy: float) -> None:
    last_step = max(comparison.schedule)
    axes.plot(
        [0, last_step], [dense_accuracy] * 2, color=INK, linewidth=1.2, linestyle=":",
        label="dense, the same further steps",
    )  # fmt: skip
    for (label, points), colour, marker in _styled(comparison.accuracies):
        final = points[max(points)]
        if len(points) > 1:
            axes.plot(
                list(points), list(points.values()), color=colour, marker=marker, markersize=5,
                linewidth=2, label=label,
            )  # fmt: skip
        else:
            axes.plot([last_step], [final], marker, color=colour, markersize=8, label=label)
    _label_ends(axes, comparison, last_step)
    axes.set_title(f"accuracy, down to {percent(comparison.density)} density", loc="left")
    axes.set_ylim(0, 104)
    axes.set_xlim(0, last_step * 1.2)
    axes.set_xticks([last_step * quarter // 4 for quarter in range(5)])
    axes.tick_params(labelbottom=False)
    plain(axes)


def _label_ends(axes: Axes, comparison: Comparison, last_step: int) -> None:
    """Write the final accuracies beside the curves, pushed up where they would overlap."""
    ends = [
        (points[max(points)], colour) for (_, points), colour, _ in _styled(comparison.accuracies)
    ]
    height = -math.inf
    for value, colour in sorted(ends):
        height = max(value, height + 6)
        axes.annotate(
            f"{value:.1f}", (last_step, height), xytext=(9, 0), textcoords="offset points",
            color=colour, va="center", fontweight="bold", annotation_clip=False,
        )  # fmt: skip


def _draw_schedule(axes: Axes, comparison: Comparison) -> None:
    steps = list(comparison.schedule)
    densities = [100 * density for density in comparison.schedule.values()]
    axes.plot(steps, densities, color=INK, linewidth=2)
    axes.set_yscale("log")
    axes.set_title("density schedule", loc="left")
    axes.set_xlabel("fine-tuning step")
    axes.yaxis.set_major_formatter(lambda value, position: f"{value:g}")
    plain(axes)


def _draw_layers(axes: Axes, comparison: Comparison) -> None:
    names = list(next(iter(comparison.sparsities.values())))
    ends = [
        _log_density(sparsity)
        for row in comparison.sparsities.values()
        for sparsity in row.values()
    ]
    # A tensor of which nothing is left has no logarithm: it gets a mark beyond the others.
    empty = max([end for end in ends if end < math.inf], default=1.0) + 0.35
    for (_, sparsities), colour, marker in _styled(comparison.sparsities):
        axes.plot(
            [min(_log_density(sparsities[name]), empty) for name in names], range(len(names)),
            marker, color=colour, markersize=6, alpha=0.85, clip_on=False,
        )  # fmt: skip
    # Those short of the mark for empty tensors, or their labels would meet.
    ticks = [tick for tick in SPARSITY_TICKS if _log_density(tick) < empty - 0.3]
    axes.set_xticks(
        [*map(_log_density, ticks), empty], [*(f"{100 * tick:g}" for tick in ticks), "100"]
    )
    axes.set_xlim(right=empty)
    axes.set_yticks(range(len(names)), short_names(names), fontsize=8)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlabel("sparsity of the tensor (%)")
    axes.set_title(f"sparsity per layer, at {percent(comparison.density)} density", loc="left")
    plain(axes)
    axes.grid(axis="y", color="#eeeeee")


def _log_density(sparsity: float) -> float:
    """Nines of a sparsity: 0.9 is 1, 0.99 is 2."""
    return -math.log10(1 - sparsity) if sparsity < 1 else math.inf


def _styled(runs: Mapping) -> list[tuple]:
    return list(zip(runs.items(), COLOURS, MARKERS, strict=False))
