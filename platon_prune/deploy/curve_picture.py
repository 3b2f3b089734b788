"""The picture of a curve: a metric, the size of the file and the speed against the density."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from platon_prune.deploy.curve import Point
from platon_prune.plots._style import COLOURS, INK, plain
from platon_prune.writing import replacing


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
    for axes, (label, values), colour in zip(all_axes, rows, COLOURS, strict=False):
        plain(axes)
        axes.plot(densities, values, marker="o", color=colour)
        axes.set_ylabel(label)
    # From dense to sparse, as the run went.
    all_axes[-1].invert_xaxis()
    all_axes[-1].set_xlabel("density of the selected weights (%)")
    figure.suptitle("one run, as its ramp passed by", color=INK, fontweight="bold", fontsize=11)
    with replacing(path) as file:
        figure.savefig(file, dpi=150, format="png")
