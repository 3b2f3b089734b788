"""What all figures have in common: colours, axes, names, and how they are saved."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from platon_prune.extras import need
from platon_prune.writing import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, told apart with any colour vision; markers differ as well.
COLOURS = ("#0072B2", "#D55E00", "#767676", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "X", "D", "v", "P", "^")
INK = "#222222"
FAINT = "#767676"


def require_matplotlib() -> None:
    """Raise a ModuleNotFoundError that says what to install; first in all that draws."""
    need("matplotlib", who="a figure of platon_prune.plots", extra="plots")


def new_figure(width: float = 6.4, height: float = 4.0) -> tuple[Figure, Axes]:
    """A white figure of a size in inches, and its one pair of axes."""
    from matplotlib.figure import Figure

    # Not through pyplot, which would keep every figure and may want a display.
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    axes = figure.add_subplot()
    plain(axes)
    return figure, axes


def save(figure: Figure, path: str | Path) -> None:
    """Write a figure; the format is that of the path's ending, PNG without one.

    Raises:
        ValueError: If matplotlib writes no such format.
    """
    # Asked before drawing is written: matplotlib's own error names no remedy.
    ending = Path(path).suffix.lower().removeprefix(".")
    known = figure.canvas.get_supported_filetypes()
    if ending and ending not in known:
        raise ValueError(
            f"path must end in a format that matplotlib writes ({', '.join(sorted(known))}), got "
            f"{Path(path).name!r}: use .png"
        )
    with replacing(path) as file:
        figure.savefig(file, dpi=150, format=ending or "png")


def legend_below(figure: Figure, num_labels: int, most: int = 5) -> None:
    """A legend under the axes, in as many columns as fit; the figure grows with its rows."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    renderer = FigureCanvasAgg(figure).get_renderer()  # type: ignore[no-untyped-call]
    # Several rows of equal length look better than a full one and a rest.
    rows = -(-num_labels // most)
    for columns in range(-(-num_labels // rows), 0, -1):
        legend = figure.legend(
            loc="outside lower center", ncols=columns, frameon=False, columnspacing=1.4
        )
        for text in legend.get_texts():
            # One long label would else take the columns from all others.
            text.set_text(textwrap.fill(text.get_text(), 64))
        extent = legend.get_window_extent(renderer)
        if columns == 1 or extent.width <= figure.bbox.width:
            break
        legend.remove()
    # Two rows fit beside axes of the usual height.
    figure.set_figheight(figure.get_figheight() + max(0.0, extent.height / figure.dpi - 0.5))


def plain(axes: Axes) -> None:
    """Two spines and a grid behind the data."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e5e5e5", linewidth=0.8)
    axes.set_axisbelow(True)


def percent_axis(axis: object, lowest: float, highest: float, *, zero: bool = False) -> None:
    """A logarithmic axis of percentages, with a few plain numbers as its ticks.

    Args:
        axis: ``axes.xaxis`` or ``axes.yaxis``, whose scale is logarithmic already.
        lowest: The least of what is shown, in percent.
        highest: The largest.
        zero: Whether 0 is a tick too.
    """
    from matplotlib.ticker import FixedLocator, NullLocator

    # Over more decades the numbers would run into each other.
    steps = (1, 2, 5) if highest / lowest < 300 else (1,)
    marks = [step * 10.0**power for power in range(-7, 3) for step in steps]
    shown = [mark for mark in marks if lowest * 0.999 <= mark <= highest * 1.001]
    ticks = [0.0] * zero + (shown or [lowest, highest])
    axis.set_major_locator(FixedLocator(ticks))  # type: ignore[attr-defined]
    axis.set_minor_locator(NullLocator())  # type: ignore[attr-defined]
    axis.set_major_formatter(lambda value, position: f"{value:g}")  # type: ignore[attr-defined]


def title(axes: Axes, text: str, pad: float | None = None) -> None:
    """A title above the left end, by so many points if they are given."""
    axes.set_title(text, loc="left", color=INK, fontweight="bold", fontsize=11, pad=pad)


def short_names(names: Sequence[str]) -> list[str]:
    """Names without what they all begin with, ``.weight``, and parts that the next one repeats."""
    parts = [name.removesuffix(".weight").split(".") for name in names]
    # A word that all names begin with tells no layer from another, and takes its room.
    while len(parts[0]) > 1 and all(len(part) > 1 and part[0] == parts[0][0] for part in parts):
        parts = [part[1:] for part in parts]
    return [
        " ".join(
            word for word, following in zip(part, [*part[1:], ""], strict=True)
            if word not in following
        )
        for part in parts
    ]  # fmt: skip


def percent(share: float) -> str:
    """A share as a percentage of three digits."""
    return f"{100 * share:.3g} %"
