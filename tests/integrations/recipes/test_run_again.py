"""A recipe run again in a folder that holds a run: resumed, finished already, or refused."""

import json
import os
import shutil

os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch
from recipe_models import results, run, save_bert, save_sst2
from safetensors.torch import load_file


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    folder = tmp_path_factory.mktemp("given")
    return [
        "--task_name", "sst2", "--model_name_or_path", save_bert(folder), *save_sst2(folder),
        "--max_seq_length", 16, "--pruning_window", 2, "--learning_rate", 1e-2, "--do_train",
        "--do_eval", "--max_steps", 8, "--amount", 0.5, "--save_strategy", "steps",
        "--save_steps", 4,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def whole(given, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert run("glue", *given, "--output_dir", folder) == 0
    return folder


@pytest.fixture
def interrupted(whole, tmp_path):
    """As a run leaves its folder that was killed after step 4."""
    folder = tmp_path / "run"
    folder.mkdir()
    shutil.copytree(whole / "checkpoint-4", folder / "checkpoint-4")
    shutil.copy(whole / "run_settings.json", folder)
    return folder


def test_an_interrupted_run_of_equal_settings_is_resumed_and_says_so(
    given, whole, interrupted, capsys
):
    more = ("--output_dir", interrupted, "--logging_steps", 3, "--save_total_limit", 5)
    assert run("glue", *given, *more) == 0
    assert "is resumed from checkpoint-4: its settings are equal" in capsys.readouterr().out
    one, other = (load_file(each / "model.safetensors") for each in (interrupted, whole))
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())
    assert results(interrupted)["pruning_choices"] == results(whole)["pruning_choices"]


def test_a_finished_run_of_equal_settings_is_not_run_again(given, whole, capsys):
    before = {path.name: path.stat().st_mtime_ns for path in whole.iterdir()}
    assert run("glue", *given, "--output_dir", whole) == 0
    assert "is resumed: it has ended, so nothing is left to do" in capsys.readouterr().out
    assert {path.name: path.stat().st_mtime_ns for path in whole.iterdir()} == before


@pytest.mark.parametrize(
    ("more", "named"),
    [
        (("--seed", 7), "seed 42, now 7"),
        (("--amount", 0.25), "amount 0.5, now 0.25"),
        (("--learning_rate", 1e-3, "--seed", 7), "learning_rate 0.01, now 0.001 and 1 more"),
        (("--criterion", "magnitude"), "criterion 'platon', now 'magnitude'"),
    ],
)
@pytest.mark.parametrize("state", ["whole", "interrupted"])
def test_other_settings_are_refused_with_both_ways_on(request, given, state, more, named, capsys):
    folder = request.getfixturevalue(state)
    before = sorted(path.name for path in folder.iterdir())
    assert run("glue", *given, "--output_dir", folder, *more) == 2
    shown = capsys.readouterr().err
    assert named in shown
    assert "give another --output_dir, or go on with that run by --resume_from_che" in shown
    assert sorted(path.name for path in folder.iterdir()) == before


def test_the_settings_may_change_where_one_says_so(given, interrupted):
    more = ("--output_dir", interrupted, "--resume_from_checkpoint", "true")
    assert run("glue", *given, *more, "--learning_rate", 1e-3) == 0
    settings = json.loads((interrupted / "run_settings.json").read_text())
    assert settings["learning_rate"] == 1e-3


def test_a_model_of_which_nothing_is_known_is_not_written_over(given, tmp_path, capsys):
    save_bert(tmp_path)
    assert run("glue", *given, "--output_dir", tmp_path) == 2
    assert "with a model of another (it has no run_settings.json)" in capsys.readouterr().err


def test_a_run_that_was_killed_before_its_first_checkpoint_starts_from_its_beginning(
    given, whole, tmp_path, capsys
):
    shutil.copy(whole / "run_settings.json", tmp_path)
    torn = tmp_path / "checkpoint-4"
    torn.mkdir()
    assert run("glue", *given, "--output_dir", tmp_path) == 0
    assert "left no whole checkpoint: it starts from its beginning" in capsys.readouterr().out
    assert results(tmp_path)["metrics"]["train_steps"] == 8
