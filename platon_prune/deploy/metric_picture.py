"""The picture of a metric against time and file size, with the Pareto front of each marked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from platon_prune.deploy.forms import weights_of
from platon_prune.deploy.picture import title_of
from platon_prune.deploy.report import DeployReport
from platon_prune.deploy.rows import FormRow
from platon_prune.plots._style import COLOURS, FAINT, INK, plain
from platon_prune.writing import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# A form is told by three things: the shape of its point says the weights, its colour what runs it,
# its filling the type.
_SHAPES = {
    "dense": ("s", "with its zeros"),
    "shrunk": ("^", "shrunk"),
    "unpruned": ("o", "unpruned"),
}
_RUNTIMES = (
    ("OpenVINO", COLOURS[3]), ("ONNX Runtime", COLOURS[1]), ("compiled", COLOURS[4]),
    ("CSR", COLOURS[5]), ("2:4", COLOURS[6]), ("PyTorch", COLOURS[0]),
)  # fmt: skip
_TYPES = (
    ("int8 weights", "bottom"), ("int8", "none"), ("bfloat16", "left"), ("float16", "right"),
)  # fmt: skip
# Where a name may stand, in points from its point; the first that covers nothing is taken.
_PLACES = tuple(
    (x, y) for y in (9, -9, 19, -19, 29, -29, 40, -40, 52, -52) for x in (7, -7, 26, -26)
)
_LEGEND_LINES = 3
_UNITS = {"time": 1.0, "file": 1e6}


def save_metric_picture(report: DeployReport, path: str | Path) -> None:
    """Draw a report with a metric into a PNG.

    Args:
        report: Of which at least one form has a metric.
        path: File to write.

    Raises:
        ValueError: If no form has one.
    """
    from matplotlib.figure import Figure

    rows = [row for row in report.rows if row.metric is not None]
    if report.metric is None or not rows:
        raise ValueError("report must have a metric, got one without: measure it with evaluate=")
    figure = Figure(figsize=(7.2, 9.2), layout="constrained", facecolor="white")
    panels = figure.subplots(2, 1)
    times = "median milliseconds"
    if report.machine.get("clock"):
        times += f" of {report.machine['clock']}"
    _draw(panels[0], report, "time", f"{times} at {report.sizes[-1]}")
    _draw(panels[1], report, "file", "file (MB)")
    _legend(figure, rows)
    figure.suptitle(
        title_of(report),
        fontsize=11, fontweight="bold", color=INK,
    )  # fmt: skip
    # Names are placed where the layout has put the axes, which moves nothing after that.
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for axes, cost in zip(panels, ("time", "file"), strict=True):
        _name_front(figure, axes, report, cost)
    with replacing(path) as file:
        figure.savefig(file, dpi=150, format="png")


def _points(report: DeployReport, cost: str) -> dict[str, tuple[float, float]]:
    """Cost and metric of each form that has both, by its name."""
    return {
        row.name: (value / _UNITS[cost], row.metric)
        for row in report.rows
        if row.metric is not None and (value := report.cost(row, cost)) is not None
    }


def _draw(axes: Axes, report: DeployReport, cost: str, label: str) -> None:
    plain(axes)
    points, front = _points(report, cost), report.front(cost)
    axes.set_xlabel(label)
    if not points:  # of forms that run no inputs of the last size
        return
    for name, (x, y) in points.items():
        on_front = name in front
        axes.plot(
            x, y, linestyle="none", zorder=4 if on_front else 3,
            **(_marker(name) | ({} if on_front else {"alpha": 0.55})),
        )  # fmt: skip
    # Between two of its points the cheaper one is what can be had.
    xs, ys = zip(*(points[name] for name in front), strict=True)
    axes.step(xs, ys, where="post", color=INK, linewidth=1.2, zorder=2)
    axes.set_xscale("log")
    _plain_ticks(axes, [x for x, _ in points.values()])
    better = "more" if report.greater_is_better else "less"
    axes.set_ylabel(f"{report.metric} ({better} is better)")
    # Names of the cheapest forms stand left of their points.
    axes.margins(x=0.3, y=0.16)


def _marker(name: str) -> dict[str, Any]:
    colour = next((c for words, c in _RUNTIMES if words in name), COLOURS[0])
    filling = next((style for words, style in _TYPES if words in name), "full")
    shape, _ = _SHAPES[weights_of(name)]
    return {
        "marker": shape, "markersize": 8, "color": colour, "fillstyle": filling,
        "markeredgecolor": colour, "markeredgewidth": 1.4, "markerfacecoloralt": "white",
    }  # fmt: skip


def _plain_ticks(axes: Axes, values: Sequence[float]) -> None:
    """A few plain numbers where values are, on a logarithmic axis."""
    from matplotlib.ticker import FixedLocator, NullLocator

    low, high = min(values), max(values)
    steps = (1, 2, 5) if high / low < 100 else (1, 3)
    if high / low < 4:
        steps = (1, 1.5, 2, 3, 4, 5, 6, 8)  # type: ignore[assignment]
    marks = [step * 10.0**power for power in range(-6, 7) for step in steps]
    shown = [mark for mark in marks if low / 1.3 <= mark <= high * 1.3]
    axes.xaxis.set_major_locator(FixedLocator(shown or [low, high]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(lambda value, position: f"{value:g}")


def _name_front(figure: Figure, axes: Axes, report: DeployReport, cost: str) -> None:
    """Write the names of the front beside its points, none over another name or any point."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    renderer = FigureCanvasAgg(figure).get_renderer()  # type: ignore[no-untyped-call]
    points, taken = _points(report, cost), _boxes_of_points(axes)
    # From the dearest to the cheapest, so that names come in the order of their points.
    for name in reversed(report.front(cost)):
        taken.append(_write_beside(axes, name, points[name], taken, renderer))


def _write_beside(
    axes: Axes, name: str, point: tuple[float, float], taken: Sequence[Any], renderer: Any
) -> Any:
    """Write a name at the place beside its point that covers least; the box that it takes."""
    from matplotlib.text import Text

    def written(place: tuple[int, int]) -> Any:
        return axes.annotate(
            name, point, place, textcoords="offset points", fontsize=8, color=INK, zorder=5,
            ha="left" if place[0] > 0 else "right", va="center",
            arrowprops={"arrowstyle": "-", "color": FAINT, "linewidth": 0.6},
        )  # fmt: skip

    def box(text: Any) -> Any:
        text.update_positions(renderer)
        # Of the letters alone: the line to the point may cross what it likes.
        return Text.get_window_extent(text, renderer)

    def covered(place: tuple[int, int]) -> int:
        text = written(place)
        found = box(text)
        text.remove()
        frame = axes.get_window_extent(renderer)
        outside = found.x0 < frame.x0 or found.x1 > frame.x1 or found.y1 > frame.y1
        outside = outside or found.y0 < frame.y0
        return sum(bool(found.overlaps(other)) for other in taken) + 100 * bool(outside)

    return box(written(min(_PLACES, key=covered)))


def _boxes_of_points(axes: Axes) -> list[Any]:
    """What names are not to cover: each point, and the line of the front piece by piece."""
    from matplotlib.transforms import Bbox

    boxes = []
    for line in axes.lines:
        path = [(x, y) for x, y in axes.transData.transform(line.get_path().vertices)]
        if line.get_linestyle() == "None":
            boxes += [Bbox.from_extents(x - 7, y - 7, x + 7, y + 7) for x, y in path]
            continue
        if line.get_drawstyle() == "steps-post":
            path = [
                corner for (x, y), (nx, _) in zip(path, path[1:], strict=False)
                for corner in ((x, y), (nx, y))
            ] + [path[-1]]  # fmt: skip
        # As boxes without an inside they would overlap nothing.
        boxes += [
            Bbox.from_extents(min(x, nx) - 1, min(y, ny) - 1, max(x, nx) + 1, max(y, ny) + 1)
            for (x, y), (nx, ny) in zip(path, path[1:], strict=False)
        ]
    return boxes


def _legend(figure: Figure, rows: Sequence[FormRow]) -> None:
    """What shapes, colours and fillings of the points that are there mean, a column each."""
    from matplotlib.lines import Line2D

    names = [row.name for row in rows]
    weights = {weights_of(name) for name in names}
    shapes = [
        _sign(_SHAPES[each][1], marker=_SHAPES[each][0], color=FAINT)
        for each in ("unpruned", "dense", "shrunk")
        if each in weights
    ]
    runtimes = {next((w for w, _ in _RUNTIMES if w in name), "PyTorch") for name in names}
    colours = [
        _sign(words, marker="o", color=colour)
        for words, colour in reversed(_RUNTIMES)
        if words in runtimes
    ]
    types = {next((w for w, _ in _TYPES if w in name), "float32") for name in names}
    fillings = [
        _sign(words, marker="o", color=FAINT, fillstyle=filling)
        for words, filling in (("float32", "full"), *reversed(_TYPES))
        if words in types
    ]
    fillings.append(Line2D([], [], color=INK, linewidth=1.2, label="Pareto front"))
    handles = []
    for group in (shapes, colours, fillings):
        empty = [_sign("", marker="none")] * (-len(group) % _LEGEND_LINES)
        handles += group + empty
    figure.legend(
        handles=handles, loc="outside lower center", ncols=len(handles) // _LEGEND_LINES,
        frameon=False, fontsize=8, columnspacing=1.6,
    )  # fmt: skip


def _sign(label: str, **marker: Any) -> Any:
    from matplotlib.lines import Line2D

    return Line2D(
        [], [], linestyle="none", label=label, markersize=7, markerfacecoloralt="white", **marker
    )
