"""The picture of a curve: a metric, the size of the file and the speed against the density."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from platon_prune.deploy.curve import Point
from platon_prune.plots._style import COLOURS, INK, percent_axis, plain
from platon_prune.writing import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def save_curve(points: Sequence[Point], metric: str, path: str | Path) -> None:
    """Draw points into a PNG.

    Args:
        points: At least one.
        metric: What their values are.
        path: File to write.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 7.0), layout="constrained", facecolor="white")
    all_axes = figure.subplots(3, 1, sharex=True)
    densities = [100 * (1 - point.sparsity) for point in points]
    rows = (
        (metric.removeprefix("eval_"), [point.value for point in points]),
        ("file, share of dense", [point.file_bytes / point.dense_bytes for point in points]),
        ("times as fast as dense", [point.speed for point in points]),
    )
    # Before the ramp and in the cool-down many points have one density. The last of them is the
    # best trained one: a line through all would go up and down.
    last = {density: i for i, density in enumerate(densities)}
    for axes, (label, values), colour in zip(all_axes, rows, COLOURS, strict=False):
        plain(axes)
        axes.plot(densities, values, ".", color=colour, alpha=0.45)
        axes.plot(list(last), [values[i] for i in last.values()], marker="o", color=colour)
        axes.set_ylabel(label)
    _scale(all_axes[-1], min(last), max(last))
    all_axes[-1].set_xlabel("density of the selected weights (%)")
    figure.suptitle("one run, as its ramp passed by", color=INK, fontweight="bold", fontsize=11)
    with replacing(path) as file:
        figure.savefig(file, dpi=150, format="png")


def _scale(axes: Axes, lowest: float, highest: float) -> None:
    """From dense to sparse, as the run went; what is lost from 4 to 2 % is as wide as 40 to 20."""
    if lowest > 0:  # zero has no logarithm
        axes.set_xscale("log")
        percent_axis(axes.xaxis, lowest, highest)
        axes.set_xlim(highest * 1.1, lowest / 1.1)
    else:
        axes.invert_xaxis()
