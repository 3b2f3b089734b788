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


def test_a_figure_is_jpeg_where_the_path_says_so_and_png_without_an_ending(tmp_path):
    for name, begins in (("figure.jpg", b"\xff\xd8\xff"), ("figure", b"\x89PNG")):
        plots.schedule(_run(), tmp_path / name)
        assert (tmp_path / name).read_bytes().startswith(begins)


def test_an_ending_of_no_format_is_refused_and_nothing_written(tmp_path):
    with pytest.raises(ValueError, match=r"must end in a format .*png.* got 'figure.bmp2'"):
        plots.schedule(_run(), tmp_path / "figure.bmp2")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["schedule", "regrowth"])
def test_the_names_of_the_phases_are_above_all_that_is_drawn(figures, name):
    getattr(plots, name)(_run(amount=0.99), "unused")
    axes = figures[0].axes[0]
    assert [text.get_text() for text in axes.texts] == ["warm-up", "ramp", "final"]
    assert all(t.get_position()[1] > 1 and t.get_va() == "bottom" for t in axes.texts)


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
        nn.Linear(8, 4),
        total_steps=8,
        window=2,
        criterion="magnitude",
        warmup_steps=0,
        cooldown_steps=0,
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


@pytest.mark.parametrize("steps", [20, 13])
def test_the_map_ends_with_the_run_and_each_column_at_its_choice(figures, steps):
    plots.layers(_run(steps=steps), "unused")
    axes = figures[0].axes[0]
    assert axes.get_xlim() == (4, 20)
    ends = axes.collections[0].get_coordinates()[0, :, 0]
    assert list(ends) == [4, *range(6, steps + 1, 2)]


def test_a_map_of_one_tensor_has_room_for_the_words_of_its_colours(figures):
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    torch.manual_seed(0)
    scheduler = platon_prune.global_unstructured(
        [(nn.Linear(4, 4), "weight")], amount=16, total_steps=4, cooldown_steps=3, window=1,
        criterion="magnitude", warmup_steps=0
    )  # fmt: skip
    scheduler.step()
    assert scheduler.sparsity() == 1
    plots.layers(scheduler, "unused")
    canvas = FigureCanvasAgg(figures[0])
    canvas.draw()
    bar = figures[0].axes[1]
    label = bar.yaxis.label.get_window_extent(canvas.get_renderer())
    assert label.y0 >= 0 and label.y1 <= figures[0].bbox.height
    assert label.height <= bar.get_window_extent().height


def test_a_tensor_that_keeps_nothing_has_a_colour_of_its_own(figures):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 20), nn.Linear(20, 10))
    nn.init.constant_(model[0].weight, 1e-9)
    scheduler = platon_prune.global_unstructured(
        model,
        amount=0.5,
        total_steps=4,
        window=1,
        criterion="magnitude",
        warmup_steps=0,
        cooldown_steps=0,
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
        assert list(line.get_xdata()) == [choice.step for choice in scheduler.history]
        assert list(line.get_ydata()) == pytest.approx([100 * share for share in shares])
    assert sum(choice.came_back for choice in scheduler.history) > 0


@pytest.mark.parametrize(("amount", "criterion"), [(0, "magnitude"), (0.5, "magnitude")])
def test_what_did_not_move_is_drawn_at_a_zero_that_ends_the_axis(figures, amount, criterion):
    scheduler = _run(amount=amount, criterion=criterion)
    assert scheduler.history[-1].left == scheduler.history[-1].came_back == 0
    plots.regrowth(scheduler, "unused")
    axes = figures[0].axes[0]
    assert axes.get_ylim()[0] == 0 in axes.get_yticks()
    for line in axes.lines[:2]:
        assert (line.get_xdata()[-1], line.get_ydata()[-1]) == (20, 0)
        low, zero = axes.transAxes.transform((0, 0))[1], axes.transData.transform((20, 0))[1]
        assert zero == pytest.approx(low)


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


def _of_groups(kind):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8))
    lengths = {"total_steps": 8, "window": 2, "criterion": "magnitude"}
    if kind == "n:m":
        scheduler = platon_prune.semi_structured(
            model, **dict(warmup_steps=0, cooldown_steps=0) | lengths
        )
    else:
        scheduler = platon_prune.global_structured(
            model,
            amount=0.5,
            example_inputs=torch.randn(2, 8),
            **dict(warmup_steps=0, cooldown_steps=0) | lengths,
        )
    for _ in range(8):
        scheduler.step()
    return scheduler


@pytest.mark.parametrize("kind", ["n:m", "neurons"])
def test_a_threshold_of_groups_is_not_drawn_over_the_scores_of_weights(figures, kind):
    scheduler = _of_groups(kind)
    assert scheduler.threshold is not None
    plots.scores(scheduler, "unused")
    axes = figures[0].axes[0]
    assert not axes.lines
    assert "chosen in groups" in axes.get_xlabel()


def test_the_largest_threshold_of_many_is_not_drawn_as_that_of_all_tensors(figures):
    scheduler = _run(criterion="movement", scope="layer")
    assert scheduler.threshold is not None
    plots.scores(scheduler, "unused")
    assert not figures[0].axes[0].lines
    assert "chosen in each tensor: no common threshold" in figures[0].axes[0].get_xlabel()


def test_scores_of_random_pruning_are_refused_for_what_they_are(tmp_path):
    with pytest.raises(ValueError, match='criterion="random", which scores every weight 0'):
        plots.scores(_run(criterion="random"), tmp_path / "figure.png")


@pytest.mark.parametrize("name", OF_RUNS)
def test_adopted_zeros_have_nothing_to_draw_and_no_setting_is_blamed(tmp_path, name):
    model = nn.Sequential(nn.Linear(10, 20), nn.Linear(20, 10))
    nn.init.zeros_(model[0].weight[:3])
    scheduler = platon_prune.adopt_zeros(model, include="0.weight")
    scheduler.step()
    with pytest.raises((ValueError, RuntimeError), match="got fixed masks"):
        getattr(plots, name)(scheduler, tmp_path / "figure.png")


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


def test_the_mean_of_dense_fractions_is_told_in_more_than_one_digit(figures):
    plots.accuracy_against_density({"a": {0.1: [0.9]}}, "unused", dense=[0.92])
    assert figures[0].axes[0].lines[0].get_label() == "dense (0.92)"


@pytest.mark.parametrize("num_curves", [1, 7])
@pytest.mark.parametrize("length", [5, 25, 200])
def test_the_legend_is_within_the_figure(figures, num_curves, length):
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    labels = [f"{i} {'word ' * (length // 5)}" for i in range(num_curves)]
    plots.accuracy_against_density(
        {label: {0.1: [90.0], 0.5: [95.0]} for label in labels}, "unused", dense=[96.0]
    )
    canvas = FigureCanvasAgg(figures[0])
    canvas.draw()
    [legend] = figures[0].legends
    extent = legend.get_window_extent(canvas.get_renderer())
    assert extent.x0 >= 0 and extent.x1 <= figures[0].bbox.width
    assert len(legend.get_texts()) == num_curves + 1
    assert figures[0].axes[0].get_window_extent().height > 200  # of at least 440


@pytest.mark.parametrize(("values", "says"), [([80.0, 99.0], True), ([80.0, 120.0], False)])
def test_an_axis_that_widens_near_100_says_so(figures, values, says):
    plots.accuracy_against_density({"a": {0.1: values}}, "unused", by_distance_to_100=True)
    assert ("scale widens near 100" in figures[0].axes[0].get_ylabel()) == says


@pytest.mark.parametrize(
    ("curves", "message"),
    [
        ({0.1: [90.0]}, r"curves\[0.1\] must map a density to the values"),
        ({"a": {0.1: 90.0}}, r"curves\['a'\]\[0.1\] must be a sequence .* got 90.0"),
        ([90.0], "curves must map a label"),
    ],
)
def test_curves_of_another_kind_are_refused_with_what_they_must_be(tmp_path, curves, message):
    with pytest.raises(TypeError, match=message):
        plots.accuracy_against_density(curves, tmp_path / "figure.png")


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


@pytest.mark.parametrize("values", [(96.2, 96.8), (12.1, 12.4), (0.5, 99.5), (99.96, 99.99)])
def test_percentages_have_numbers_on_their_axis_however_alike_they_are(figures, values):
    plots.accuracy_against_density({"a": {0.5: values}}, "x.png", by_distance_to_100=True)
    axes = figures[0].axes[0]
    low, high = axes.get_ylim()
    shown = [tick for tick in axes.get_yticks() if low <= tick <= high]
    assert len(shown) >= 2 and low <= min(values) and max(values) <= high


def test_figures_fit_a_phone(figures):
    scheduler = _run()
    for name in OF_RUNS:
        getattr(plots, name)(scheduler, "x.png")
    plots.accuracy_against_density({"a": {0.5: (1.0, 2.0)}}, "x.png")
    assert max(figure.get_figwidth() for figure in figures) <= 7.5
