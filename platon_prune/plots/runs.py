"""Figures of one run, from what its scheduler recorded: schedule, layers over time, regrowth."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from platon_prune.plots._style import (
    COLOURS,
    FAINT,
    INK,
    new_figure,
    percent_axis,
    require_matplotlib,
    save,
    short_names,
    title,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from platon_prune.history.history import History
    from platon_prune.scheduling.scheduler import PlatonScheduler

_EMPTY = "#D55E00"
_ABOVE_PHASES = 20.0  # points between the axes and a title over the names of the phases


def schedule(scheduler: PlatonScheduler, path: str | Path) -> None:
    """Draw the density that is due over the whole run, and what was measured at each choice.

    Args:
        scheduler: Of a run in progress, or one that has ended.
        path: PNG, SVG or PDF to write.

    Raises:
        ValueError: If no choice has been recorded.
    """
    require_matplotlib()
    history, plan = _recorded(scheduler), scheduler.schedule
    figure, axes = new_figure()
    steps = range(1, plan.total_steps + 1, max(1, plan.total_steps // 2000))
    # An amount may be of something else than weights, such as groups of n:m.
    sparsity_of = scheduler.granularity.sparsity_of
    due = [100 * (1 - sparsity_of(plan.amount_at(s))) for s in (*steps, plan.total_steps)]
    if sparsity_of(plan.amount) or not plan.amount:  # else it is not known before a choice
        axes.plot([*steps, plan.total_steps], due, color=INK, linewidth=1.6, label="due")
    axes.plot(
        [choice.step for choice in history],
        [100 * (1 - choice.sparsity) for choice in history],
        "o", color=COLOURS[0], markersize=4.5, label="measured after a choice", clip_on=False,
    )  # fmt: skip
    # What is measured may lie below what is due, by the rounding of counts.
    lowest = min(*due, *(100 * (1 - choice.sparsity) for choice in history))
    # Nothing kept has no logarithm.
    if lowest > 0:
        axes.set_yscale("log")
        percent_axis(axes.yaxis, lowest, 100)
        axes.set_ylim(lowest / 1.25, 125)
    _mark_phases(axes, plan.warmup_steps, plan.ramp_end, plan.total_steps)
    axes.set_ylabel("weights kept (%)")
    title(axes, "Density: what is due and what is there", _ABOVE_PHASES)
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    save(figure, path)


def layers(scheduler: PlatonScheduler, path: str | Path) -> None:
    """Draw how much of each tensor is kept, choice by choice, as a map of colours.

    The column of a choice ends at its step, and begins at that of the one before.

    Args:
        scheduler: Of a run in progress, or one that has ended.
        path: PNG, SVG or PDF to write.

    Raises:
        ValueError: If no choice has been recorded.
    """
    require_matplotlib()
    from matplotlib import colormaps
    from matplotlib.colors import LogNorm
    from matplotlib.patches import Patch
    from matplotlib.ticker import NullLocator

    history, plan = _recorded(scheduler), scheduler.schedule
    names = list(history[0].sparsities)
    kept = [[100 * (1 - choice.sparsities[name]) for choice in history] for name in names]
    least = min((value for row in kept for value in row if value > 0), default=1.0)
    figure, axes = new_figure(7.2, 1.9 + min(0.24 * len(names), 18))
    axes.grid(visible=False)
    # From dark for few weights to light for all; below the least, a colour of its own.
    shades = colormaps["viridis"].with_extremes(under=_EMPTY)
    # Rasterized: a long run has more cells than viewers of vector files bear.
    drawn = axes.pcolormesh(
        [plan.warmup_steps, *(choice.step for choice in history)],
        range(len(names) + 1),
        [[value or least / 2 for value in row] for row in kept],
        norm=LogNorm(min(least, 50), 100), cmap=shades, rasterized=True,
    )  # fmt: skip
    size = 8 if len(names) <= 40 else 8 * math.sqrt(40 / len(names))
    axes.set_yticks([i + 0.5 for i in range(len(names))], short_names(names), fontsize=size)
    axes.tick_params(axis="y", length=0)
    axes.invert_yaxis()
    axes.set_xlim(plan.warmup_steps, plan.total_steps)
    axes.set_xlabel("optimizer step, a column up to each choice")
    bar = figure.colorbar(drawn, ax=axes, aspect=30, pad=0.02)
    bar.set_label("kept (%)")
    percent_axis(bar.ax.yaxis, min(least, 50), 100)
    bar.ax.yaxis.set_minor_locator(NullLocator())
    bar.outline.set_visible(False)
    if any(value == 0 for row in kept for value in row):
        empty = [Patch(color=_EMPTY, label="nothing is kept")]
        figure.legend(handles=empty, loc="outside lower center", frameon=False)
    title(axes, "What is kept of each tensor")
    save(figure, path)


def regrowth(scheduler: PlatonScheduler, path: str | Path) -> None:
    """Draw which share of all weights left, and which came back, at each choice.

    Args:
        scheduler: Of a run in progress, or one that has ended.
        path: PNG, SVG or PDF to write.

    Raises:
        ValueError: If no choice has been recorded.
    """
    require_matplotlib()
    history, plan = _recorded(scheduler), scheduler.schedule
    figure, axes = new_figure()
    steps = [choice.step for choice in history]
    shares = {
        "left": [100 * choice.left for choice in history],
        "came back": [100 * choice.came_back for choice in history],
    }
    # What came back is hollow, so that the other shows where they are equal.
    styles = (("o", COLOURS[0], COLOURS[0]), ("v", COLOURS[1], "white"))
    for (label, values), (marker, colour, inside) in zip(shares.items(), styles, strict=True):
        axes.plot(
            steps, values, marker=marker, color=colour, markerfacecolor=inside, markersize=5,
            linewidth=1.4, label=label, clip_on=False,
        )  # fmt: skip
    _reach_zero(axes, [value for values in shares.values() for value in values if value > 0])
    _mark_phases(axes, plan.warmup_steps, plan.ramp_end, plan.total_steps)
    axes.set_ylabel("share of all weights (%)")
    title(axes, "Weights that left and came back at each choice", _ABOVE_PHASES)
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    save(figure, path)


def _reach_zero(axes: Axes, positive: list[float]) -> None:
    """Logarithmic heights, with 0 at the bottom a short way below the least of what is positive."""
    if positive:
        least, most = min(positive), max(positive)
        # Logarithmic, since regrowth falls by decades; symmetrical, since it may be 0.
        axes.set_yscale("symlog", linthresh=least, linscale=0.4)
        percent_axis(axes.yaxis, least, most, zero=True)
        axes.set_ylim(0, most * 1.6)
    else:
        axes.set_ylim(0, 1)


def _recorded(scheduler: PlatonScheduler) -> History:
    if scheduler.schedule.first_choosing_step is None:
        raise ValueError(
            "scheduler must have recorded a choice to draw, got fixed masks, which are never "
            "chosen: scheduler.masks() has them, and platon_prune.summary counts them"
        )
    if not len(scheduler.history):
        raise ValueError(
            "scheduler must have recorded a choice to draw, got none: leave history=True and take "
            "the first choosing step"
        )
    return scheduler.history


def _mark_phases(axes: Axes, ramp_start: int, ramp_end: int, total: int) -> None:
    """Name the warm-up, the ramp and the final phase above the axes, where there is room."""
    axes.set_xlim(0, total)
    axes.set_xlabel("optimizer step")
    ends = {"warm-up": (0, ramp_start), "ramp": (ramp_start, ramp_end), "final": (ramp_end, total)}
    for name, (start, stop) in ends.items():
        if start:
            axes.axvline(start, color=FAINT, linewidth=0.9, linestyle=":")
        # A shorter phase is narrower than its name.
        if stop - start >= total / 10:
            axes.text(
                (start + stop) / 2, 1.015, name, color=FAINT, fontsize=8.5, ha="center",
                va="bottom", transform=axes.get_xaxis_transform(),
            )  # fmt: skip
