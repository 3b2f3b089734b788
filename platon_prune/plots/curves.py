"""Accuracy against density, with its spread over seeds."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from platon_prune.plots._style import (
    COLOURS,
    INK,
    MARKERS,
    new_figure,
    save,
    title,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_PERCENT_TICKS = (0, 10, 30, 50, 70, 80, 85, 90, 92, 94, 95, 96, 97, 98, 99)


def accuracy_against_density(
    curves: Mapping[str, Mapping[float, Sequence[float]]],
    path: str | Path,
    *,
    dense: Sequence[float] = (),
    ylabel: str = "accuracy (%)",
    heading: str = "Accuracy against density",
    by_distance_to_100: bool = False,
) -> None:
    """Draw a line through the means of each curve, a band from lowest to highest, and each run.

    Args:
        curves: Label to density (fraction kept, in (0, 1]) to the values of some runs, such as one
            for each seed.
        path: PNG, SVG or PDF to write.
        dense: Values of the dense model, for a dotted line at their mean.
        ylabel: What the values are, with their unit.
        heading: Title.
        by_distance_to_100: Whether heights are logarithms of the distance to 100, so that values
            near it are told apart; for percentages.

    Raises:
        ValueError: If there is nothing to draw, a density is not in (0, 1], or the curves are more
            than can be told apart.
    """
    _require_drawable(curves)
    figure, axes = new_figure(6.8, 4.4)
    if dense:
        mean = statistics.fmean(dense)
        axes.axhline(mean, color=INK, linewidth=1.2, linestyle=":", label=f"dense ({mean:.1f})")
    densities = sorted({density for points in curves.values() for density in points})
    # Side by side where they meet, by a few per mille of the axis.
    shift = (densities[-1] / densities[0]) ** 0.006 if len(densities) > 1 else 1.0
    for i, ((label, points), colour, marker) in enumerate(
        zip(curves.items(), COLOURS, MARKERS, strict=False)
    ):
        offset = shift ** (i - (len(curves) - 1) / 2)
        ordered = sorted(points)
        places = [100 * density * offset for density in ordered]
        means = [statistics.fmean(points[density]) for density in ordered]
        lows, highs = ([end(points[density]) for density in ordered] for end in (min, max))
        axes.fill_between(places, lows, highs, color=colour, alpha=0.15, linewidth=0)
        axes.plot(
            places, means, marker=marker, color=colour, markersize=6, linewidth=1.8, label=label
        )
        runs = [(x, v) for x, d in zip(places, ordered, strict=True) for v in points[d]]
        axes.plot(*zip(*runs, strict=True), ".", color=colour, alpha=0.45, markersize=4)
    axes.set_xscale("log")
    axes.set_xticks([100 * density for density in _spaced(densities)])
    axes.minorticks_off()
    axes.xaxis.set_major_formatter(lambda value, position: f"{value:g}")
    axes.set_xlim(*_limits(densities))
    if by_distance_to_100:
        _spread_heights(axes)
    axes.set_xlabel("weights kept (%)")
    axes.set_ylabel(ylabel)
    title(axes, heading)
    num_labels = len(curves) + bool(dense)
    figure.legend(
        loc="outside lower center", ncols=num_labels if num_labels <= 5 else 4, frameon=False,
        columnspacing=1.4,
    )  # fmt: skip
    save(figure, path)


def _require_drawable(curves: Mapping[str, Mapping[float, Sequence[float]]]) -> None:
    if not curves or not all(
        points and all(len(values) for values in points.values()) for points in curves.values()
    ):
        raise ValueError("curves must have values at one density at least each, got none")
    if len(curves) > len(COLOURS):
        raise ValueError(
            f"curves must be at most {len(COLOURS)} to be told apart, got {len(curves)}: draw them "
            "in several figures"
        )
    for label, points in curves.items():
        for density in points:
            if not 0 < density <= 1:
                raise ValueError(f"densities must be in (0, 1], got {density} for {label!r}")


def _spread_heights(axes: Axes) -> None:
    import numpy as np

    low, high = axes.dataLim.y0, axes.dataLim.y1
    if not 0 <= low < high <= 100:
        return
    axes.set_yscale(
        "function",
        functions=(
            lambda y: -np.log10(np.maximum(100.1 - y, 1e-3)),
            lambda z: 100.1 - 10.0**-z,
        ),
    )
    low, high = max(0.0, low - 0.1 * (100 - low)), 100 - 0.8 * (100 - high)
    axes.set_ylim(low, high)
    axes.set_yticks([tick for tick in _PERCENT_TICKS if low <= tick <= high])
    axes.yaxis.set_major_formatter(lambda value, position: f"{value:g}")


def _spaced(densities: Sequence[float]) -> list[float]:
    """Those of the densities whose labels do not run into each other."""
    chosen: list[float] = []
    least = (densities[-1] / densities[0]) ** 0.05
    for density in densities:
        if not chosen or density >= chosen[-1] * least:
            chosen.append(density)
    return chosen


def _limits(densities: Sequence[float]) -> tuple[float, float]:
    """The axis from the densest, at the left, to the sparsest."""
    margin = max((densities[-1] / densities[0]) ** 0.04, 1.05)
    return 100 * densities[-1] * margin, 100 * densities[0] / margin
