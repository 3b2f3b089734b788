"""Figures of a run show its numbers, and any run can be drawn."""

import pytest
import torch
from torch import nn

import platon_prune

pytest.importorskip("matplotlib", reason="figures need matplotlib: platon-prune[plots]")
from platon_prune import plots  # noqa: E402
from platon_prune.plots import curves, distribution, runs  # noqa: E402

OF_RUNS = ("schedule", "layers", "regrowth", "scores")


@pytest.fixture
def figures(monkeypatch):
    """The figures that are drawn, with their axes still there."""
    drawn = []
    for module in (runs, curves, distribution):
        monkeypatch.setattr(module, "save", lambda figure, path: drawn.append(figure))
    return drawn


def _run(steps=20, amount=0.5, criterion="magnitude", **settings):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 20), nn.Linear(20, 10))
    scheduler = platon_prune.global_unstructured(
        model, amount=amount, total_steps=20, warmup_steps=4, cooldown_steps=6, window=2,
        criterion=criterion, **settings,
    )  # fmt: skip
    for _ in range(steps):
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter)
        scheduler.step()
    return scheduler


@pytest.mark.parametrize("ending", ["png", "svg", "pdf"])
@pytest.mark.parametrize("name", OF_RUNS)
def test_each_figure_is_written_in_the_format_of_its_ending(tmp_path, name, ending):
    path = tmp_path / f"figure.{ending}"
    getattr(plots, name)(_run(), path)
    begins = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}
    assert path.read_bytes().startswith(begins[ending])


def test_the_schedule_has_a_point_for_each_choice_on_the_line_that_is_due(figures):
    plots.schedule(_run(), "unused")
    due, measured = figures[0].axes[0].lines[:2]
    assert list(measured.get_xdata()) == [6, 8, 10, 12, 14, 16, 18, 20]
    # 1 - r(t) grows to 0.5 over the 10 steps of the ramp; of 400 weights.
    left = [1 - (step - 4) / 10 for step in (6, 8, 10, 12)]
    kept = [100 - round(400 * 0.5 * (1 - rest**3)) / 4 for rest in left] + [50] * 4
    assert list(measured.get_ydata()) == pytest.approx(kept)
    assert list(due.get_xdata()[:20]) == list(range(1, 21)) and due.get_ydata()[-1] == 50


def test_the_schedule_of_2_of_4_ends_at_the_half_that_is_due(figures):
    torch.manual_seed(0)
    scheduler = platon_prune.semi_structured(
        nn.Linear(8, 4), total_steps=8, window=2, criterion="magnitude"
    )
    for _ in range(8):
        scheduler.step()
    plots.schedule(scheduler, "unused")
    due, measured = figures[0].axes[0].lines[:2]
    assert due.get_ydata()[-1] == measured.get_ydata()[-1] == 50


def test_the_map_has_a_row_for_each_tensor_and_a_column_for_each_choice(figures):
    scheduler = _run()
    plots.layers(scheduler, "unused")
    axes = figures[0].axes[0]
    values = axes.collections[0].get_array()
    assert values.shape == (2, 8)
    expected = [100 * (1 - scheduler.history[i].sparsities["1.weight"]) for i in range(8)]
    assert values[1].tolist() == pytest.approx(expected)
    assert [label.get_text() for label in axes.get_yticklabels()] == ["0", "1"]


def test_a_tensor_that_keeps_nothing_has_a_colour_of_its_own(figures):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 20), nn.Linear(20, 10))
    nn.init.constant_(model[0].weight, 1e-9)
    scheduler = platon_prune.global_unstructured(
        model, amount=0.5, total_steps=4, window=1, criterion="magnitude"
    )
    for _ in range(4):
        scheduler.step()
    plots.layers(scheduler, "unused")
    assert [text.get_text() for text in figures[0].legends[0].get_texts()] == ["nothing is kept"]


def test_what_left_and_what_came_back_are_drawn_in_percent(figures):
    scheduler = _run(criterion="platon")
    plots.regrowth(scheduler, "unused")
    left, came_back = figures[0].axes[0].lines[:2]
    for line, name in ((left, "left"), (came_back, "came_back")):
        shares = [getattr(choice, name) for choice in scheduler.history]
        drawn = [0 if value != value else value for value in line.get_ydata()]
        assert drawn == pytest.approx([100 * share for share in shares])
    assert sum(choice.came_back for choice in scheduler.history) > 0


@pytest.mark.parametrize("criterion", ["platon", "movement"])
def test_the_bars_of_all_scores_add_up_and_the_threshold_parts_them(figures, criterion):
    scheduler = _run(criterion=criterion)
    plots.scores(scheduler, "unused")
    axes = figures[0].axes[0]
    zeros = sum(int((scheduler.score(n) == 0).sum()) for n in scheduler.masks())
    assert sum(bar.get_height() for bar in axes.patches) == pytest.approx(100 * (1 - zeros / 400))
    assert axes.lines[0].get_xdata()[0] == scheduler.threshold
    kept = sum(bar.get_height() for bar in axes.patches[80:])
    assert kept == pytest.approx(50)


def test_scores_that_are_zero_are_counted_in_the_title(figures):
    plots.scores(_run(), "unused")  # no optimizer moves the half that is zero
    axes = figures[0].axes[0]
    assert axes.get_title("right") == "50 % are 0" and not axes.lines
    assert sum(bar.get_height() for bar in axes.patches) == pytest.approx(50)


@pytest.mark.parametrize("name", OF_RUNS)
@pytest.mark.parametrize("amount", [0, 0.99])
def test_a_run_that_prunes_nothing_or_nearly_all_can_be_drawn(tmp_path, name, amount):
    getattr(plots, name)(_run(amount=amount), tmp_path / "figure.png")
    getattr(plots, name)(_run(steps=6, amount=amount), tmp_path / "one choice.png")


@pytest.mark.parametrize("name", ["schedule", "layers", "regrowth"])
def test_a_run_without_recorded_choices_is_refused(tmp_path, name):
    for scheduler in (_run(steps=5), _run(history=False)):
        with pytest.raises(ValueError, match="must have recorded a choice"):
            getattr(plots, name)(scheduler, tmp_path / "figure.png")


def test_scores_before_a_window_has_ended_are_refused(tmp_path):
    with pytest.raises(ValueError, match="must have scores"):
        plots.scores(_run(steps=0, criterion="platon"), tmp_path / "figure.png")


# --- accuracy against density -------------------------------------------------------------------

CURVES = {
    "PLATON": {0.5: [95.0, 97.0], 0.1: [90.0, 92.0, 94.0]},
    "magnitude": {0.5: [95.0], 0.1: [80.0]},
}


def test_curves_go_through_the_means_with_a_band_from_lowest_to_highest(figures):
    plots.accuracy_against_density(CURVES, "unused", dense=[98.0, 96.0])
    axes = figures[0].axes[0]
    lines = {line.get_label(): line for line in axes.lines}
    assert list(lines["PLATON"].get_ydata()) == [92, 96]
    assert list(lines["magnitude"].get_ydata()) == [80, 95]
    assert list(lines["dense (97.0)"].get_ydata()) == [97, 97]
    heights = axes.collections[0].get_paths()[0].vertices[:, 1]
    assert (heights.min(), heights.max()) == (90, 97)
    left, right = axes.get_xlim()
    assert left > 50 > 10 > right  # the densest at the left
    assert len(lines) == 2 + 1 + 2  # and the runs of each


def test_curves_are_written(tmp_path):
    plots.accuracy_against_density(CURVES, tmp_path / "figure.png")
    plots.accuracy_against_density({"one": {0.1: [90.0]}}, tmp_path / "one point.png")
    assert (tmp_path / "one point.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("curves", "message"),
    [
        ({}, "must have values"),
        ({"a": {}}, "must have values"),
        ({"a": {0.1: []}}, "must have values"),
        ({"a": {10: [1.0]}}, r"must be in \(0, 1\], got 10 for 'a'"),
        ({str(i): {0.1: [1.0]} for i in range(8)}, "at most 7"),
    ],
)
def test_curves_that_cannot_be_drawn_are_refused(tmp_path, curves, message):
    with pytest.raises(ValueError, match=message):
        plots.accuracy_against_density(curves, tmp_path / "figure.png")
