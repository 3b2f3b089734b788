"""``report.png``: the schedule, the training and the layers of a run; needs matplotlib."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from platon_prune import Summary
from platon_prune.integrations.writing import replacing

INK, BLUE, ORANGE = "#222222", "#0072B2", "#D55E00"
WIDTH = 7.2  # inches: wider, and text is too small on a phone


def can_draw() -> bool:
    """Whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def save_report(
    title: str,
    table: Summary,
    history: Sequence[dict[str, Any]],
    log: Sequence[dict[str, Any]],
    metric: str,
    path: Path,
) -> None:
    """Draw loss, metric and sparsity over the steps, and the sparsity of each layer.

    Args:
        title: Shown on top.
        table: The layers.
        history: Target and measured sparsity by step, of the scheduler's choices or of the log;
            empty for a dense run.
        log: The trainer's log, which has the losses and the metrics by step.
        metric: Name of the metric in the log, such as ``eval_accuracy``.
        path: File to write.
    """
    # Not pyplot, which would open a window or need a display.
    from matplotlib.figure import Figure

    # A row for each layer has to be legible, however many there are.
    layers = max(1.6, 0.7 + 0.17 * len(table))
    # One below the other, since a phone is narrow.
    size = (WIDTH, 3 * 1.8 + layers + 0.5)
    figure = Figure(figsize=size, layout="constrained", facecolor="white")
    grid = figure.add_gridspec(4, 1, height_ratios=(1.8, 1.8, 1.8, layers))
    below = figure.add_subplot(grid[2])
    _draw_sparsity(below, history)
    for row, name, colour in ((0, "loss", ORANGE), (1, metric, BLUE)):
        axes = figure.add_subplot(grid[row], sharex=below)
        _draw_curve(axes, name.replace("_", " "), log, name, colour)
    below.set_xlim(left=0)
    _draw_layers(figure.add_subplot(grid[3]), table)
    figure.suptitle(title, fontweight="bold", color=INK)
    with replacing(path) as file:
        figure.savefig(file, dpi=120, format="png")


def _draw_curve(
    axes: Any, title: str, log: Sequence[dict[str, Any]], name: str, colour: str
) -> None:
    points = [(entry["step"], entry[name]) for entry in log if name in entry and "step" in entry]
    if not points and name == "loss":
        # A run shorter than the interval of the log has the mean of its steps only.
        points = [(each["step"], each["train_loss"]) for each in log if "train_loss" in each]
    if points:
        axes.plot(*zip(*points, strict=True), color=colour, marker="o", markersize=3)
    else:
        _say_nothing_to_show(axes)
    _style(axes, title)


def _draw_sparsity(axes: Any, history: Sequence[dict[str, Any]]) -> None:
    if history:
        steps = [entry["step"] for entry in history]
        target = [100 * entry["amount"] for entry in history]
        measured = [100 * entry["sparsity"] for entry in history]
        axes.plot(steps, target, color=INK, linewidth=1, linestyle="--", label="target")
        axes.plot(steps, measured, color=BLUE, marker="o", markersize=3, label="measured")
        axes.set_ylim(0, 100)
        axes.legend(frameon=False, loc="lower right")
    else:
        _say_nothing_to_show(axes)
    axes.set_xlabel("step")
    _style(axes, "sparsity (%)")


def _draw_layers(axes: Any, table: Summary) -> None:
    rows = list(table)
    axes.barh(range(len(rows)), [100 * row.sparsity for row in rows], color=BLUE, height=0.7)
    axes.axvline(100 * table.total.sparsity, color=INK, linewidth=1, linestyle=":")
    axes.set_yticks(range(len(rows)), [row.name for row in rows], fontsize=7)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlim(0, 100)
    _style(axes, f"sparsity per layer (%), {table.total.sparsity:.2%} over all")


def _say_nothing_to_show(axes: Any) -> None:
    axes.text(0.5, 0.5, "nothing was logged", ha="center", va="center", transform=axes.transAxes)


def _style(axes: Any, title: str) -> None:
    axes.set_title(title, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e5e5e5", linewidth=0.8)
    axes.set_axisbelow(True)
