"""The picture of accuracy against measured speed has each method, at the means of its seeds."""

import pytest

pytest.importorskip("matplotlib")

from platon_prune.studies import speed_picture  # noqa: E402
from platon_prune.studies.table import Row  # noqa: E402

SPEEDS = {"speed_1x32": "1 x 32 tokens", "speed_32x32": "32 x 32 tokens"}


def row(criterion, amount, *cells):
    names = ("accuracy", "speed_1x32")
    by_seed = {i: dict(zip(names, cell, strict=True)) for i, cell in enumerate(cells)}
    return Row(criterion, amount, {}, len(cells), by_seed)


ROWS = [
    row("dense", 0.0, (90.0, 1.0), (92.0, 1.0)),
    row("platon", 0.7, (86.0, 2.0), (88.0, 3.0)),
    row("platon", 0.5, (89.0, 1.5), (89.0, 1.5)),
    row("tp-taylor", 0.7, (85.0, 2.0), (85.0, 2.5)),
]


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """Draws rows; the figure, or None where there was nothing to draw."""
    figures = []
    monkeypatch.setattr(speed_picture, "save", lambda figure, path: figures.append(figure))

    def draw(rows):
        settings = {"ylabel": "accuracy (%)", "heading": "sst2"}
        path = tmp_path / "speed.png"
        done = speed_picture.save_speeds(rows, "accuracy", SPEEDS, path, **settings)
        assert done is bool(figures)
        return figures[0] if figures else None

    return draw


def test_each_method_has_a_curve_from_its_least_pruned_point_on(drawn):
    [axes] = drawn(ROWS).axes  # nothing was measured at the other size
    curves = {line.get_label(): line for line in axes.lines if line.get_label()[0] != "_"}
    assert set(curves) == {"dense, the same steps (91.0)", "platon", "tp-taylor"}
    assert list(curves["platon"].get_xdata()) == [1.5, 2.5]
    assert list(curves["platon"].get_ydata()) == [89, 87]
    assert list(curves["tp-taylor"].get_xdata()) == [2.25]
    # From the lowest to the highest seed, both ways.
    ranges = [(list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines]
    assert ([2.0, 3.0], [87, 87]) in ranges
    assert ([2.5, 2.5], [86.0, 88.0]) in ranges
    low, high = axes.get_xlim()
    assert low < 1 < 3 < high  # the dense model's place is in it


def test_the_model_that_all_was_made_of_stands_at_1(drawn):
    found = {"accuracy": 88.0, "speed_1x32": 2.0, "dense_accuracy": 90.5}
    [axes] = drawn([Row("platon", 0.7, {}, 1, {0: found})]).axes
    [star] = [line for line in axes.lines if line.get_label() == "dense, before (90.5)"]
    assert (list(star.get_xdata()), list(star.get_ydata())) == ([1], [90.5])


def test_a_study_without_speeds_has_no_such_picture(drawn):
    assert drawn([Row("platon", 0.7, {}, 1, {0: {"accuracy": 88.0}})]) is None
