"""`platon-prune curve`: the checkpoints of one run as a table, a picture, and a model to keep."""

import json
import shutil

import pytest

pytest.importorskip("transformers")
pytest.importorskip("matplotlib")
from tiny_trainer import (  # noqa: E402
    SELECTED,
    Examples,
    pruning_callback,
    small_bert,
    trainer_arguments,
    zeros_of,
)
from transformers import BertForSequenceClassification, Trainer  # noqa: E402

from platon_prune import cli  # noqa: E402

QUICK = ("--tokens", 4, "--rounds", 1)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Twenty steps, whose ramp goes from 3 to 15; checkpoints of 8, 16 and the last."""
    folder = tmp_path_factory.mktemp("run")
    arguments = trainer_arguments(
        folder, eval_strategy="steps", eval_steps=8, save_strategy="steps", save_steps=8
    )
    trainer = Trainer(
        model=small_bert(),
        args=arguments,
        train_dataset=Examples(),
        eval_dataset=Examples(8),
        compute_metrics=lambda p: {"accuracy": (p.predictions.argmax(1) == p.label_ids).mean()},
        callbacks=[pruning_callback()],
    )  # fmt: skip
    trainer.train()
    return folder, {
        entry["step"]: entry for entry in trainer.state.log_history if "eval_accuracy" in entry
    }


def _curve(capsys, *options):
    status = cli.main(["curve", *map(str, options)])
    return status, capsys.readouterr()


def test_each_checkpoint_is_a_point_and_the_nearest_one_is_kept(run, tmp_path, capsys):
    folder, logged = run
    options = (*QUICK, "--keep", 0.75, "--output-dir", tmp_path)
    status, printed = _curve(capsys, folder, *options)
    assert status == 0 and "eval_accuracy" in printed.out
    content = json.loads((tmp_path / "curve.json").read_text())
    points = content["points"]
    assert [point["step"] for point in points] == [8, 16, 20]
    # At 8 five of the twelve steps of the ramp are over, at 15 all.
    expected = [round(0.8 * share * SELECTED) for share in (1 - (7 / 12) ** 3, 1, 1)]
    assert [round(point["sparsity"] * SELECTED) for point in points] == expected
    assert [point["value"] for point in points] == [
        logged[point["step"]]["eval_accuracy"] for point in points
    ]
    # Of so small a model the header of a sparse file outweighs what its zeros save.
    assert all(0 < point["file_bytes"] <= point["dense_bytes"] for point in points)
    assert all(point["milliseconds"] > 0 for point in points)
    assert (tmp_path / "curve.png").read_bytes()[:4] == b"\x89PNG"
    assert "the model of step 20, 80.0% sparse" in printed.out
    model = BertForSequenceClassification.from_pretrained(tmp_path / "kept")
    assert zeros_of(model) == round(0.8 * SELECTED)
    assert not list((tmp_path / "kept").glob("*.pt"))


def test_a_value_that_is_not_finite_is_null_in_the_file(run, tmp_path, capsys):
    shutil.copytree(run[0] / "checkpoint-8", tmp_path / "checkpoint-8")
    path = tmp_path / "checkpoint-8" / "trainer_state.json"
    state = json.loads(path.read_text())
    for entry in state["log_history"]:
        if "eval_loss" in entry:
            entry["eval_loss"] = float("nan")
    path.write_text(json.dumps(state))
    options = (*QUICK, "--metric", "loss", "--output-dir", tmp_path / "curve")
    status, printed = _curve(capsys, tmp_path, *options)
    assert status == 0 and " nan " in printed.out
    text = (tmp_path / "curve" / "curve.json").read_text()
    assert "NaN" not in text and json.loads(text)["points"][0]["value"] is None


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--metric", "f1"], "--metric must be one of eval_accuracy, eval_loss; got 'f1'"),
        (["--keep", "1.5"], "--keep must be a sparsity in [0, 1), got 1.5"),
        (["--rounds", "0"], "--rounds must be at least 1"),
    ],
)
def test_options_that_can_not_be_used_are_refused_by_name(run, tmp_path, capsys, options, says):
    status, printed = _curve(capsys, run[0], *options, "--output-dir", tmp_path)
    assert status == 2 and says in printed.err


def test_a_run_without_checkpoints_or_evaluations_is_told_what_to_do(run, tmp_path, capsys):
    status, printed = _curve(capsys, tmp_path, "--output-dir", tmp_path)
    assert status == 2 and "RUN must hold checkpoints" in printed.err
    shutil.copytree(run[0] / "checkpoint-8", tmp_path / "checkpoint-9")  # evaluated at no step 9
    status, printed = _curve(capsys, tmp_path, "--output-dir", tmp_path)
    assert status == 2 and "--eval_strategy steps" in printed.err


def test_where_a_run_went_back_the_evaluation_is_of_another_model_and_makes_no_point(
    tmp_path, capsys
):
    # A ramp from 3 to 21, along a line. What was evaluated at 12 had 40 % pruned; the checkpoint
    # of 12 has the model of 9 again, of which the cool-down ends at 21.
    values = {12: 0.5}
    callback = pruning_callback(
        metric="eval_accuracy", max_drop=0.1, warmup_steps=3, cooldown_steps=9, window=3,
        schedule="linear",
    )  # fmt: skip
    trainer = Trainer(
        model=small_bert(),
        args=trainer_arguments(
            tmp_path, max_steps=30, eval_strategy="steps", eval_steps=3, save_strategy="steps",
            save_steps=3,
        ),
        train_dataset=Examples(),
        eval_dataset=Examples(8),
        compute_metrics=lambda _: {"accuracy": values.get(trainer.state.global_step, 1.0)},
        callbacks=[callback],
    )  # fmt: skip
    trainer.train()
    assert _curve(capsys, tmp_path, *QUICK, "--output-dir", tmp_path / "curve")[0] == 0
    points = json.loads((tmp_path / "curve" / "curve.json").read_text())["points"]
    assert [point["step"] for point in points] == [3, 6, 9, 15, 18, 21]
    assert all(point["value"] == 1 for point in points)
    # 0.8 of the way along the ramp: 3, then 6 of its 18 steps; the last of these is held.
    expected = [round(0.8 * steps / 18 * SELECTED) for steps in (0, 3, 6, 6, 6, 6)]
    assert [round(point["sparsity"] * SELECTED) for point in points] == expected


def test_the_picture_joins_the_last_point_of_each_density_and_spreads_the_sparse_ones(
    tmp_path, monkeypatch
):
    from matplotlib.figure import Figure

    from platon_prune.deploy.curve import Point
    from platon_prune.deploy.curve_picture import save_curve

    kept = []
    monkeypatch.setattr(
        Figure, "savefig", lambda figure, file, **how: kept.append(figure) or file.write(b"x")
    )
    # Two steps of warm-up, three of the ramp, two of the cool-down.
    run = [(0, 0.7), (0, 0.9), (0.5, 0.8), (0.75, 0.6), (0.875, 0.2), (0.875, 0.3), (0.875, 0.5)]
    points = [Point(i, tmp_path, *each, 10, 20, 1.0, 1.0) for i, each in enumerate(run)]
    save_curve(points, "eval_accuracy", tmp_path / "curve.png")
    ((axes, *others),) = (figure.axes for figure in kept)
    dots, line = axes.lines
    assert list(dots.get_ydata()) == [0.7, 0.9, 0.8, 0.6, 0.2, 0.3, 0.5]
    assert list(line.get_xdata()) == [100, 50, 25, 12.5]
    assert list(line.get_ydata()) == [0.9, 0.8, 0.6, 0.5]
    # Each halving is as wide as the others, from the left to the right.
    places = [axes.transData.transform((density, 0.5))[0] for density in (100, 50, 25, 12.5)]
    steps = [after - before for before, after in zip(places, places[1:], strict=False)]
    assert steps[0] > 0 and steps == pytest.approx([steps[0]] * 3)
    assert len(others) == 2
