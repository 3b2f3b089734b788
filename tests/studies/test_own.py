"""`platon_prune.study`: one's own function over a grid, each cell once."""

import json
import re
import types

import pytest

pytest.importorskip("matplotlib")

import platon_prune

GRID = {"criterion": ["platon", "magnitude"], "amount": [0.5, 0.9], "width": [1, 2]}


def score(cell):
    """By arithmetic: less with the amount, more with the seed; a second metric beside it."""
    worse = {"dense": 0, "platon": 0.1, "magnitude": 0.2}[cell["criterion"]]
    return {"f1": 1 - worse * cell["amount"] + 0.01 * cell["seed"], "loss": cell["width"]}


def logged(cells, train_fn=score):
    def call(cell):
        cells.append(cell)
        return train_fn(cell)

    return call


def test_the_function_gets_every_combination_once_with_its_seed(tmp_path):
    assert isinstance(platon_prune.study, types.FunctionType)
    called = []
    found = platon_prune.study(logged(called), GRID, seeds=(3, 4), output_dir=tmp_path)
    assert len(called) == len({json.dumps(cell) for cell in called}) == 2 * 2 * 2 * 2
    assert called[0] == {"criterion": "platon", "amount": 0.5, "width": 1, "seed": 3}
    assert [each["cell"] for each in found] == called
    assert [each["metrics"] for each in found] == [score(cell) for cell in called]


def test_finished_cells_are_not_called_again_and_new_ones_are(tmp_path):
    first, second = [], []
    platon_prune.study(logged(first), GRID, output_dir=tmp_path)
    more = {"width": [0, *GRID["width"]], "amount": GRID["amount"], "criterion": ["magnitude"]}
    found = platon_prune.study(logged(second), more, seeds=[0], output_dir=tmp_path)
    assert second == [{"width": 0, "amount": a, "criterion": "magnitude", "seed": 0} for a in (0.5, 0.9)]  # fmt: skip # noqa: E501
    assert len(found) == 6


def test_tables_and_pictures_are_those_of_the_command(tmp_path):
    grid = {"criterion": ["dense", "platon", "magnitude"], "amount": [0.5, 0.9]}
    called = []
    train_fn = logged(called, lambda cell: score({**cell, "width": 7}))
    platon_prune.study(train_fn, grid, seeds=range(3), output_dir=tmp_path)
    assert [c["amount"] for c in called if c["criterion"] == "dense"] == [0.0] * 3
    page = (tmp_path / "study.md").read_text()
    assert "| density |  | f1 | seeds |" in page and "loss |" in page
    # Mean of 0.95, 0.96 and 0.97, whose deviation is 0.01; magnitude is 0.05 below it.
    assert "| 50 % | platon | 0.96 ± 0.01 (0.95 to 0.97) | 3 of 3 |" in page
    assert "| 50 % | magnitude | 0.91 ± 0.01 (0.9 to 0.92) | 3 of 3 | -0.05 ± " in page
    assert json.loads((tmp_path / "study.json").read_text())["metric"] == "f1"
    assert (tmp_path / "accuracy.png").read_bytes().startswith(b"\x89PNG")


def test_a_grid_without_amounts_compares_with_its_first_row(tmp_path):
    platon_prune.study(lambda cell: cell["lr"] * 100, {"lr": [0.25, 0.5]}, output_dir=tmp_path)
    page = (tmp_path / "study.md").read_text()
    assert "density" not in page and "| lr=0.5 | 50 | 1 of 1 | +25 |" in page
    assert (tmp_path / "values.png").is_file() and not (tmp_path / "accuracy.png").exists()


def test_pictures_of_an_earlier_report_go_whichever_grid_has_amounts(tmp_path):
    found = []
    for grid in ({"amount": [0.5]}, {"lr": [1]}, {"amount": [0.5]}):
        platon_prune.study(lambda cell: 1, grid, output_dir=tmp_path)
        found.append([path.name for path in tmp_path.glob("*.png")])
    assert found == [["accuracy.png"], ["values.png"], ["accuracy.png"]]


def test_a_tensor_of_one_number_is_a_metric(tmp_path):
    import torch

    [found] = platon_prune.study(
        lambda cell: torch.tensor(cell["x"]), {"x": [0.5]}, output_dir=tmp_path
    )
    assert found["metrics"] == {"metric": 0.5}


def test_a_cell_that_fails_is_named_and_alone_tried_again(tmp_path, capsys):
    def fails(cell):
        if cell["x"] == 2:
            raise KeyError("no such layer")
        return cell["x"]

    with pytest.raises(RuntimeError, match=r"1 of 3 that failed.*KeyError \(x=2, amount 0, seed 0"):
        platon_prune.study(fails, {"x": [1, 2, 3]}, output_dir=tmp_path)
    assert "2 of 3 cells are finished" in (tmp_path / "study.md").read_text()
    called = []
    platon_prune.study(logged(called, lambda cell: 0), {"x": [1, 2, 3]}, output_dir=tmp_path)
    assert [cell["x"] for cell in called] == [2]


@pytest.mark.parametrize(
    ("grid", "seeds", "returned", "error", "message"),
    [
        ({"seed": [1]}, (0,), 1, ValueError, "grid must not have the key seed"),
        ({"x": []}, (0,), 1, ValueError, "x must have at least one value"),
        ({"x": "abc"}, (0,), 1, TypeError, "x must be a list of values, got 'abc'"),
        ({"x": [1]}, 3, 1, TypeError, "seeds must be a list of values, got 3"),
        ({"x": [1]}, (0.2, 0.7), 1, TypeError, "seeds must be whole numbers, got 0.2"),
        ({"x": [1]}, ("a",), 1, TypeError, "seeds must be whole numbers, got 'a'"),
        ({"criterion": [1, "1"]}, (0,), 1, ValueError, "criterion must differ as texts, got 1 and"),
        ({"x": [[1]]}, (0,), 1, TypeError, r"x must have numbers, texts.* got \[1\]"),
        ({"amount": [1.5]}, (0,), 1, ValueError, r"amount must be a fraction in \[0, 1\), got 1.5"),
        ({"x": [1]}, (0,), "good", RuntimeError, "TypeError"),
        ({"x": [1]}, (0,), float("nan"), RuntimeError, "ValueError"),
    ],
)
def test_what_can_not_be_used_is_refused(tmp_path, grid, seeds, returned, error, message):
    with pytest.raises(error, match=message):
        platon_prune.study(lambda cell: returned, grid, seeds=seeds, output_dir=tmp_path / "s")
    assert not (tmp_path / "s" / "results.jsonl").exists()


def test_a_difference_that_is_only_rounding_reads_as_nothing(tmp_path):
    def level(cell):
        return 0.982 + (1e-9 if cell["criterion"] == "magnitude" else 0)

    grid = {"criterion": ["platon", "magnitude"], "amount": [0.9]}
    platon_prune.study(level, grid, seeds=(0, 1), output_dir=tmp_path)
    page = (tmp_path / "study.md").read_text()
    assert "e-" not in page.split("cells are finished")[0]
    assert "- Settings" not in page  # a function has none


def test_a_difference_to_or_of_nothing_but_zeros_is_shown(tmp_path):
    """As of a correlation that is 0 where a model says one thing of all."""

    def correlation(cell):
        return 0.0 if cell["criterion"] == "magnitude" else 0.41 + cell["seed"] / 50

    grid = {"criterion": ["platon", "magnitude"], "amount": [0.9]}
    platon_prune.study(correlation, grid, seeds=(0, 1), output_dir=tmp_path)
    page = (tmp_path / "study.md").read_text()
    # 0.41 and 0.43, of which t of one degree, 12.706, times 0.01 is the reach.
    assert "| -0.42 ± 0.01414 (-0.43 to -0.41) | -0.5471 to -0.2929 |" in page


def test_a_cell_without_the_number_that_the_study_is_about_fails_and_the_others_are_reported(
    tmp_path,
):
    def train_fn(cell):
        return {"acc" if cell["criterion"] == "magnitude" else "accuracy": 0.5, "loss": 1}

    grid = {"criterion": ["platon", "magnitude"], "amount": [0.9]}
    with pytest.raises(RuntimeError, match="1 of 2 that failed") as raised:
        platon_prune.study(train_fn, grid, output_dir=tmp_path)
    said = "must return 'accuracy' for every cell, .* got acc, loss"
    assert re.search(said, str(raised.value.__cause__))
    assert "| platon | 0.5 | 1 of 1 |" in (tmp_path / "study.md").read_text()
