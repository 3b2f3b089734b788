"""The picture of a deploy report: speed, file and memory of each form beside those of dense."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from platon_prune.deploy.report import DeployReport
from platon_prune.deploy.rows import FormRow
from platon_prune.plots._style import COLOURS, INK
from platon_prune.writing import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Light to dark: more tokens.
_SIZE_COLOURS = ("#9ecae1", "#4292c6", "#084594", "#041f4a")


def save_picture(report: DeployReport, path: str | Path) -> None:
    """Draw a report into a PNG.

    Args:
        report: With at least one form that was measured.
        path: File to write.
    """
    from matplotlib.figure import Figure

    # What could not be measured has no bar; the tables name it with its reason.
    rows = [row for row in report.rows if row.reason is None]
    what = "of the device" if "cuda" in report.machine else "beyond libraries"
    columns: list[tuple[str, list[int | None]]] = [("file (MB)", [row.file_bytes for row in rows])]
    # Nothing is drawn of what was not asked for.
    if any(row.peak_bytes is not None for row in rows):
        columns.append((f"peak memory {what} (MB)", [row.peak_bytes for row in rows]))
    each = 0.7 + 0.3 * len(rows)
    times = 1.4 + 0.22 * len(rows) * len(report.sizes)
    # One below the other, since a phone is narrow.
    size = (7.2, times + len(columns) * each + 0.6)
    figure = Figure(figsize=size, layout="constrained", facecolor="white")
    heights = (times, *[each] * len(columns))
    speed, *below = figure.subplots(len(heights), 1, height_ratios=heights)
    _draw_speed(speed, report, rows)
    for axes, (label, values) in zip(below, columns, strict=True):
        _draw_bytes(axes, rows, values, label)
    for axes in (speed, *below):
        axes.set_yticks(range(len(rows)), [row.name for row in rows])
        axes.set_ylim(len(rows) - 0.4, -0.6)
    figure.suptitle(
        title_of(report),
        fontsize=11,
        fontweight="bold",
        color=INK,
    )
    with replacing(path) as file:
        figure.savefig(file, dpi=150, format="png")


def title_of(report: DeployReport) -> str:
    """What was measured, and on what."""
    model, machine = report.model, report.machine
    threads = "1 thread" if machine["threads"] == 1 else f"{machine['threads']} threads"
    return (
        f"{model['class']}, {model['sparsity']:.0%} of the selected weights zero,\non "
        f"{machine['device']}, {threads}"
    )


def _draw_speed(axes: Axes, report: DeployReport, rows: Sequence[FormRow]) -> None:
    num_sizes = len(report.sizes)
    thickness = 0.8 / num_sizes
    for i, size in enumerate(report.sizes):
        # A form that can't run a size keeps its row, so that the colours stay aligned.
        shown = [(y, report.speed(row.name, size) or 0.0) for y, row in enumerate(rows)]
        offset = (i - (num_sizes - 1) / 2) * thickness
        colour = _SIZE_COLOURS[min(i, len(_SIZE_COLOURS) - 1) if num_sizes > 1 else 1]
        positions = [y + offset for y, _ in shown]
        values = [value for _, value in shown]
        axes.barh(positions, values, thickness * 0.9, color=colour, label=size)
        for position, row, value in zip(positions, rows, values, strict=True):
            times = row.times.get(size)
            text = f" {value:.2f}   ({times.median:.3g} ms)" if times else " not for this size"
            axes.text(value, position, text, va="center", fontsize=8, color=INK)
    # Where dense is: what ends left of it is slower.
    axes.axvline(1, color=COLOURS[1], linewidth=1, linestyle=":")
    axes.set_xlabel("times as fast as dense (median time)")
    axes.margins(x=0.25)
    if num_sizes > 1:
        axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(0, -0.12), ncols=4)
    _plain(axes)


def _draw_bytes(
    axes: Axes, rows: Sequence[FormRow], values: Sequence[int | None], label: str
) -> None:
    sizes = [(value or 0) / 1e6 for value in values]
    axes.barh(range(len(rows)), sizes, 0.6, color=COLOURS[2])
    for y, (value, size) in enumerate(zip(values, sizes, strict=True)):
        text = " -" if value is None else f" {size:,.3g}"
        axes.text(size, y, text, va="center", fontsize=8, color=INK)
    axes.set_xlabel(label)
    axes.margins(x=0.2)
    _plain(axes)


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color="#e5e5e5", linewidth=0.8)
    axes.set_axisbelow(True)
