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
    legend_below,
    new_figure,
    require_matplotlib,
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
    xlabel: str = "weights kept (%)",
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
        xlabel: What densities are of, for what does not count weights.
        ylabel: What the values are, with their unit.
        heading: Title.
        by_distance_to_100: Whether heights are logarithms of the distance to 100, so that values
            near it are told apart; for percentages. The axis says so.

    Raises:
        ValueError: If there is nothing to draw, a density is not in (0, 1], or the curves are more
            than can be told apart.
        TypeError: If curves are not mappings, or the values of some runs no sequence.
    """
    require_matplotlib()
    _require_drawable(curves)
    figure, axes = new_figure(6.8, 4.4)
    if dense:
        mean = statistics.fmean(dense)
        axes.axhline(mean, color=INK, linewidth=1.2, linestyle=":", label=f"dense ({_shown(mean)})")
    # Of all curves together: they need not have runs at the same densities.
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
        # The band has the extremes, not a deviation: of three seeds that would mean little.
        axes.fill_between(places, lows, highs, color=colour, alpha=0.15, linewidth=0)
        axes.plot(
            places, means, marker=marker, color=colour, markersize=6, linewidth=1.8, label=label
        )
        # Each run too, so that a band's width is not taken for a distribution.
        runs = [(x, v) for x, d in zip(places, ordered, strict=True) for v in points[d]]
        axes.plot(*zip(*runs, strict=True), ".", color=colour, alpha=0.45, markersize=4)
    # What is lost between 1 % and 2 % matters as much as between 10 % and 20 %.
    axes.set_xscale("log")
    axes.set_xticks([100 * density for density in _spaced(densities)])
    axes.minorticks_off()
    axes.xaxis.set_major_formatter(lambda value, position: f"{value:g}")
    axes.set_xlim(*_limits(densities))
    # After all is drawn, since the scale depends on how low values go.
    is_spread = by_distance_to_100 and _spread_heights(axes)
    axes.set_xlabel(xlabel)
    axes.set_ylabel(f"{ylabel}\n(scale widens near 100)" if is_spread else ylabel)
    title(axes, heading)
    legend_below(figure, len(curves) + bool(dense))
    save(figure, path)


def _require_drawable(curves: Mapping[str, Mapping[float, Sequence[float]]]) -> None:
    if not isinstance(curves, Mapping):
        raise TypeError(f"curves must map a label to its points, got {type(curves).__name__}")
    for label, points in curves.items():
        _require_points(label, points)
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


def _require_points(label: str, points: object) -> None:
    if not isinstance(points, Mapping):
        raise TypeError(
            f"curves[{label!r}] must map a density to the values of some runs, got {points!r}: "
            'give each curve a label, as in {"PLATON": {0.1: [91.2, 91.6]}}'
        )
    for density, values in points.items():
        # A lone number is the usual slip, and a string would be drawn letter by letter.
        if isinstance(values, str) or not hasattr(values, "__len__"):
            raise TypeError(
                f"curves[{label!r}][{density}] must be a sequence of values, one for each run, got "
                f"{values!r}: put a single one into a list"
            )


def _shown(mean: float) -> str:
    """One decimal of a percentage, three digits of what is as small as a fraction."""
    return f"{mean:.1f}" if abs(mean) >= 10 else f"{mean:.3g}"


def _spread_heights(axes: Axes) -> bool:
    """Widen the scale towards 100, if all there is lies from 0 to 100; whether it was."""
    import numpy as np

    low, high = axes.dataLim.y0, axes.dataLim.y1
    # Values that are no percentages have no distance to 100.
    if not 0 <= low < high <= 100:
        return False
    axes.set_yscale(
        "function",
        functions=(
            # A tenth beyond 100, so that 100 itself has a finite height.
            lambda y: -np.log10(np.maximum(100.1 - y, 1e-3)),
            lambda z: 100.1 - 10.0**-z,
        ),
    )
    low, high = max(0.0, low - 0.1 * (100 - low)), 100 - 0.8 * (100 - high)
    axes.set_ylim(low, high)
    axes.set_yticks(_percent_ticks(low, high))
    axes.yaxis.set_major_formatter(lambda value, position: f"{value:g}")
    return True


def _percent_ticks(low: float, high: float) -> list[float]:
    """Percentages between two that are told apart on the scale that widens near 100."""
    from matplotlib.ticker import MaxNLocator

    usual = [float(tick) for tick in _PERCENT_TICKS if low <= tick <= high]
    if len(usual) >= 2:
        return usual
    # Runs that are alike lie between two of the usual ones: an axis must have numbers even so.
    found = MaxNLocator(4, steps=[1, 2, 5, 10]).tick_values(low, high)
    return [float(tick) for tick in found if low <= tick <= high]


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
