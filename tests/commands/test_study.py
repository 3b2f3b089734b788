"""A study runs each of its cells once, whatever stops it, and reports what was measured."""

import argparse
import dataclasses
import hashlib
import importlib.util
import json
import math
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import study_job
import torch

pytest.importorskip("matplotlib")

from platon_prune import cli  # noqa: E402
from platon_prune.commands.benchmarks import scans  # noqa: E402
from platon_prune.commands.benchmarks.demo_settings import Settings  # noqa: E402
from platon_prune.commands.study import asked as study  # noqa: E402
from platon_prune.commands.study.counted import Counted  # noqa: E402
from platon_prune.commands.study.presets import PRESETS  # noqa: E402
from platon_prune.schedule import CubicSchedule  # noqa: E402
from platon_prune.studies import results  # noqa: E402
from platon_prune.studies.cells import Cell, Grid, Workspace, read_options  # noqa: E402
from platon_prune.studies.settings import without_folders  # noqa: E402
from platon_prune.studies.table import Row, Sample, reference_of  # noqa: E402

JOB = study_job.__file__
FAKE = study_job.fake(lambda cell, place: {"accuracy": study_job.score(cell)})
GRID = ["--recipe", "fake", "--criteria", "dense", "platon", "magnitude", "--amounts", "0.5", "0.9"]
RIVALS = 3 if importlib.util.find_spec("torch_pruning") else 0
PAT, NNCF = (bool(importlib.util.find_spec(name)) for name in ("torchao", "nncf"))
NUM_CELLS = 3 * (1 + 2 * 2)  # three seeds of dense, and of two criteria at two amounts


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Runs the command on a fake recipe; what it returned and printed."""

    def command(*flags, cell=FAKE.run):
        monkeypatch.setitem(study.RECIPES, "fake", study_job.fake(cell))
        status = cli.main(["study", *GRID, "--output-dir", str(tmp_path / "study"), *flags])
        return status, capsys.readouterr()

    return command


def start(folder, **environment):
    """The same study in a process of its own, whose cells are noted in log.txt beside it."""
    return subprocess.Popen(
        [sys.executable, JOB, *GRID, "--output-dir", str(folder)],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        text=True,
    )


def ran(folder):
    return (folder.parent / "log.txt").read_text().split()


def cells_of(grid, settings=None):
    return grid.cells(FAKE, settings or {})


# --- cells --------------------------------------------------------------------------------------


def test_a_grid_has_every_combination_once_and_dense_once_a_seed():
    grid = Grid(("dense", "platon"), (0.5, 0.9), (0, 7), {"width": (1, 2, 3), "kind": ("a", "b")})
    cells = cells_of(grid)
    assert len(cells) == len({cell.key for cell in cells}) == 2 + 2 * 2 * 3 * 2
    assert [(c.amount, c.options) for c in cells if c.criterion == "dense"] == [(0.0, {})] * 2


def test_one_by_one_changes_a_single_option_and_has_a_row_without():
    grid = Grid(("platon",), (0.5,), (0,), {"width": (2, 3), "kind": ("b",)}, one_by_one=True)
    assert [c.options for c in cells_of(grid)] == [{}, {"width": 2}, {"width": 3}, {"kind": "b"}]


def test_an_option_at_its_default_is_the_cell_without_it():
    plain, given = (
        cells_of(Grid(("platon",), (0.5,), (0,), options)) for options in ({}, {"width": (1,)})
    )
    assert plain[0].key == given[0].key
    assert plain[0].label == given[0].label == "platon"


def test_cells_of_movement_are_others_than_when_it_was_the_plain_sum_and_all_others_the_same():
    for criterion, is_new in (("platon", False), ("magnitude", False), ("movement", True)):
        cell = Cell("fake", criterion, 0.5, 0, {"width": 2}, {"steps": 4})
        fields = {
            "recipe": "fake", "criterion": criterion, "amount": 0.5, "seed": 0,
            "options": {"width": 2}, "settings": {"steps": 4},
        }  # fmt: skip
        key = hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:16]
        assert (cell.key != key) == is_new


def test_whatever_decides_a_result_makes_another_cell():
    cell = Cell("fake", "platon", 0.5, 0, {"width": 2}, {"steps": 4})
    others = [
        Cell("other", "platon", 0.5, 0, {"width": 2}, {"steps": 4}),
        Cell("fake", "magnitude", 0.5, 0, {"width": 2}, {"steps": 4}),
        Cell("fake", "platon", 0.6, 0, {"width": 2}, {"steps": 4}),
        Cell("fake", "platon", 0.5, 1, {"width": 2}, {"steps": 4}),
        Cell("fake", "platon", 0.5, 0, {"width": 3}, {"steps": 4}),
        Cell("fake", "platon", 0.5, 0, {"width": 2}, {"steps": 5}),
    ]
    assert len({cell.key, *(other.key for other in others)}) == 7


def test_cells_of_digits_keep_the_keys_that_results_were_recorded_under():
    _, cells = cells_of_preset("digits-options")
    keys = {(cell.amount, cell.label): cell.key for cell in cells if cell.seed == 0}
    assert keys[0.99, "platon"] == "4dc9808f22961623"
    assert keys[0.99, "platon, window=50"] == "120d262c14bac991"
    assert keys[0.98, "platon, masking=window"] == "6e02c2993521bc43"


def save(folder, model="encoder", file="train.tsv", *, text="a", weights="w", config="{}"):
    """A model's folder and a file, and the flags that name them."""
    (folder / model).mkdir(parents=True, exist_ok=True)
    (folder / model / "config.json").write_text(config)
    (folder / model / "model.safetensors").write_text(weights)
    (folder / file).write_text(text)
    return [("--model_name_or_path", str(folder / model)), ("--train_file", str(folder / file))]


def key_of(flags, joined=False):
    flags = ["=".join(f) for f in flags] if joined else [part for f in flags for part in f]
    return cells_of_preset("sst2", flags=flags)[1][0].key


@pytest.mark.parametrize("joined", [False, True])
def test_a_cell_is_the_same_wherever_its_model_and_files_lie(joined, tmp_path, monkeypatch):
    here = key_of(save(tmp_path / "a"), joined)
    elsewhere = save(tmp_path / "b" / "c")
    assert key_of(elsewhere, joined) == here
    for name in ("optimizer.pt", "training_args.bin", "trainer_state.json", "results.json"):
        (tmp_path / "b" / "c" / "encoder" / name).write_text("of one run")
    assert key_of(elsewhere, joined) == here
    monkeypatch.chdir(tmp_path / "a")
    for before in ("", "./", "../a/"):
        flags = [(flag, before + Path(value).name) for flag, value in elsewhere]
        assert key_of(flags, joined) == here


def test_other_content_under_the_same_name_is_another_cell(tmp_path):
    changes = [
        {}, {"text": "b"}, {"weights": "v"}, {"config": '{"a": 1}'}, {"model": "other"},
        {"file": "more.tsv"},
    ]  # fmt: skip
    keys = {key_of(save(tmp_path / str(i), **change)) for i, change in enumerate(changes)}
    assert len(keys) == len(changes)
    one, other = (save(tmp_path / name, weights=name) for name in ("one", "other"))
    mixed = {
        key_of([a[0], ("--tokenizer-name", b[0][1])]) for a in (one, other) for b in (one, other)
    }
    assert len(mixed) == 4


def test_models_of_the_hub_are_told_apart_by_their_whole_names():
    names = ("org1/x", "org2/x", "x")
    assert len({key_of([("--model_name_or_path", name)]) for name in names}) == 3
    [cell] = cells_of_glue(flags=["--tokenizer_name=org1/x", "--cache_dir", "/home/me/cache"])
    shown = without_folders(cell.settings)
    assert shown == {
        "flags": [
            "--model_name_or_path", "m", "--tokenizer_name=org1/x", "--cache_dir", "cache",
        ],
    }  # fmt: skip


def test_a_record_says_what_files_held_but_not_where_they_lay(tmp_path):
    flags = [part for flag in save(tmp_path) for part in flag]
    settings = cells_of_preset("sst2", flags=flags)[1][0].settings
    assert settings["flags"][-4:] == flags
    shown = without_folders(settings)
    assert shown["flags"][-4:] == ["--model_name_or_path", "encoder", "--train_file", "train.tsv"]
    # printf a | sha256sum
    assert shown["contents"][1] == "train.tsv:ca978112ca1b"
    assert str(tmp_path) not in json.dumps(shown)


def cells_of_glue(*options, recipe="glue", flags=()):
    return cells_of_preset(
        None, recipe=recipe, criteria=["platon"], amounts=[0.9], seeds=[0], option=list(options),
        flags=["--model_name_or_path", "m", *flags],
    )[1]  # fmt: skip


@pytest.mark.parametrize(
    ("recipe", "flags", "option"),
    [
        ("glue", [], "warmup=0.1"),
        ("glue", [], "masking=step"),
        ("glue", [], "distillation=0"),
        ("sst2", [], "warmup=100"),
        ("sst2", [], "cooldown=300.0"),
        ("sst2", [], "learning_rate=0.00015"),
        ("glue", ["--pruning_window", "20"], "window=20"),
        ("sst2", ["--learning-rate=1e-3"], "learning_rate=0.001"),
        ("glue", ["--preset", "mnli-10", "--pruning_window", "20"], "window=20"),  # flags win
    ],
)
def test_an_option_of_sentences_at_its_default_is_the_cell_without_it(recipe, flags, option):
    [plain] = cells_of_glue(recipe=recipe, flags=flags)
    [given] = cells_of_glue(option, recipe=recipe, flags=flags)
    assert (given.key, given.label) == (plain.key, "platon")


@pytest.mark.parametrize(
    ("flags", "option"),
    [
        (["--pruning_window", "20"], "window=10"),
        (["--preset", "mnli-10"], "beta2=0.95"),  # of the preset: 0.85
        (["--distillation_weight", "0.9"], "distillation=0.5"),
    ],
)
def test_an_option_that_the_flags_have_moved_from_its_default_is_another_cell(flags, option):
    [given] = cells_of_glue(option, flags=flags)
    assert given.label == f"platon, {option}"


def test_the_defaults_of_sentences_are_those_of_the_recipe():
    pytest.importorskip("transformers")
    import dataclasses

    from platon_prune.commands.study import glue as _study_glue
    from platon_prune.integrations.recipes import arguments

    classes = (
        arguments.PruningArguments,
        arguments.RecipeTrainingArguments,
        arguments.DistillationArguments,
    )
    recipe = {f"--{f.name}": f.default for each in classes for f in dataclasses.fields(each)}
    defaults = {name: option.default for name, option in _study_glue.OPTIONS.items()}
    assert defaults.pop("distillation") == 0
    assert defaults == {name: recipe[_study_glue.FLAGS[name]] for name in defaults}


def test_options_are_read_as_what_they_look_like():
    found = read_options(["a=1,2.5", "b=true,false", "c=step,window"])
    assert found == {"a": (1, 2.5), "b": (True, False), "c": ("step", "window")}
    assert isinstance(found["a"][0], int)


def cells_of_preset(preset, **given):
    arguments = argparse.Namespace(
        preset=preset, recipe=None, criteria=None, amounts=None, seeds=None, option=None,
        one_by_one=False, steps=None, flags=[], best_of=None, mean_over=None, against=None,
        fine_tuned=False,
    )  # fmt: skip
    if preset in ("sst2", "structured-sst2"):
        arguments.flags = ["--model_name_or_path", "encoder"]
    vars(arguments).update(given)
    return study.cells_of(arguments)[:2]


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_asks_only_for_what_its_recipe_has(preset):
    recipe, cells = cells_of_preset(preset)
    assert recipe.name == PRESETS[preset].recipe
    assert (
        len(cells)
        == {
            "digits-criteria": 5 + 5 * 7 * 5,  # five seeds; five criteria at seven amounts
            # Three amounts, five seeds; 13 rows beside the plain one.
            "digits-options": 3 * 5 * (1 + 13),
            "digits-headline": 10 * 2 * (1 + 2 * 2),  # ten seeds, two settings of threads
            "digits-fair": 5 * 3 * (1 + 6 * 2),  # five seeds, three rates; six ways, two amounts
            "digits-noise": 2 * 5 * (1 + 8),
            "digits-rivals": 3 + 3 * 2 * (2 + PAT + NNCF),  # ours, and torch's own pruning
            "digits-n-of-m": 3 * 2 * (3 + PAT),  # two criteria of ours, and one shot
            "sst2": 3 + 3 * 3 * (5 + 1 + 1),
            # Three seeds of two sizes: the first rival, and ours at once and gradually.
            "structured-sst2": 3 + 6 * (bool(RIVALS) + 2),
            # Five seeds of three sizes: each rival, and two criteria each in four ways.
            **dict.fromkeys(("structured-transformer", "structured-cnn"), 5 + 15 * (RIVALS + 8)),
        }[preset]
    )


@pytest.mark.parametrize(
    ("criteria", "labels"),
    [
        (["sensitivity", "magnitude"], {"sensitivity", "magnitude"}),
        (["platon"], {"platon", "platon, distillation=0.5"}),
        (["random"], {"random"}),
        (["platon", "dense"], {"platon", "platon, distillation=0.5", "dense"}),
    ],
)
def test_criteria_narrow_a_preset_and_give_none_of_them_options_it_had_not(criteria, labels):
    _, cells = cells_of_preset("sst2", criteria=criteria)
    assert {cell.label for cell in cells} == labels


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--criteria", "salience"], "'salience'"),
        (["--amounts", "1.0"], "1.0"),
        (["--amounts", "nan"], "nan"),
        (["--seeds", "-1"], "-1"),
        (["--option", "depth=2"], "'depth'"),
        (["--option", "kind=c"], "got c"),
        (["--option", "width=true"], "got true"),
        (["--option", "width=wide"], "got wide"),
        (["--option", "width"], "'width'"),
        (["--option", "width=2", "--option", "width=3"], "got two"),
        (["--steps", "1"], "got 1"),
        (["--preset", "digits-criteria"], "--preset digits-criteria is of the recipe digits"),
    ],
)
def test_a_flag_that_cannot_be_used_is_named_and_nothing_is_run(flags, named, run, tmp_path):
    status, printed = run(*flags)
    assert status == 2
    assert flags[0] in printed.err
    assert named in printed.err
    assert not (tmp_path / "study").exists()


AUTHORS = ["--preset", "mnli-10"]


@pytest.mark.parametrize(
    ("recipe", "options", "flags", "named"),
    [
        ("digits", ["cooldown=0.9", "warmup=0.5"], [], "must be less than total_steps"),
        ("digits", ["window=300"], [], "the first window must end"),
        ("digits", ["beta1=1.0"], [], r"beta1 must be in \[0, 1\)"),
        ("digits", ["max_amount=0.5"], [], "max_amount"),
        ("digits", ["floor=2.0"], [], r"floor must be in \[0, 1\]"),
        ("digits", ["fades=false"], [], "fades=false is an option of movement, got platon"),
        ("digits", ["distillation=-0.5"], [], r"distillation must be in \[0, 1\]"),
        ("glue", ["cooldown=0.9", "warmup=0.5"], [], r"warmup \+ cooldown must be below 1"),
        ("glue", ["cooldown=50"], ["--max_steps", "40"], "must be less than total_steps"),
        ("glue", ["window=30"], ["--max_steps", "40"], "the first window must end"),
        ("glue", ["window=0"], [], "window must be at least 1"),
        ("glue", ["masking=never"], [], "one of step, window"),
        ("glue", ["beta2=NaN"], [], r"beta2 must be in \[0, 1\)"),
        ("glue", ["cooldown=1.5"], [], "a whole number of steps"),
        ("glue", ["window=5"], ["--pruning_window", "many"], "--pruning_window must be a whole"),
        ("glue", ["learning_rate=1e400"], [], "learning_rate must be above 0 and finite"),
        ("glue", [], ["--pruning_masking", "foo"], "--pruning_masking must be one of step, window"),
        ("glue", ["temperature=3"], [], "temperature needs a teacher, got 3 without one"),
        ("glue", [], ["--distillation_weight", "2"], r"distillation must be in \[0, 1\]"),
        ("glue", ["beta1=abc"], AUTHORS, "--option beta1 must be a number, got abc"),
        ("glue", ["window=2.5"], AUTHORS, "--option window must be a whole number, got 2.5"),
        ("glue", ["masking=foo"], AUTHORS, "--option masking must be one of step, window"),
        ("glue", ["beta2=1.0"], AUTHORS, r"beta2 must be in \[0, 1\)"),
        ("glue", ["window=0"], AUTHORS, "window must be at least 1"),
        ("glue", [], [*AUTHORS, "--pruning_masking", "foo"], "--pruning_masking must be one of"),
        ("glue", [], [*AUTHORS, "--pruning_window=2.5"], "--pruning_window must be a whole"),
        ("glue", [], [*AUTHORS, "--pruning-beta1", "2"], r"beta1 must be in \[0, 1\)"),
        ("digits", ["max_amount=most"], [], "--option max_amount must be a number, got most"),
    ],
)
def test_options_that_no_run_could_have_are_refused_before_any(recipe, options, flags, named):
    if recipe == "glue":
        flags = ["--model_name_or_path", "m", *flags]
    with pytest.raises(ValueError, match=named):
        cells_of_preset(
            None, recipe=recipe, criteria=["dense", "platon"], amounts=[0.9], option=options,
            flags=flags,
        )  # fmt: skip


def test_unusual_options_of_digits_that_a_run_can_have_are_taken():
    options = ["warmup=0.0,0.5", "scope=layer", "biases=true", "frozen=true", "max_amount=0.99"]
    _, cells = cells_of_preset(None, criteria=["platon"], amounts=[0.9], option=options)
    assert len(cells) == 3 * 2


def test_a_gpu_that_is_not_there_is_refused_before_any_cell(run, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    status, printed = run("--device", "cuda")
    assert status == 2
    assert "--device cuda needs a GPU" in printed.err
    assert not (tmp_path / "study").exists()


# --- interruption -------------------------------------------------------------------------------


def test_a_killed_study_goes_on_with_what_is_missing_and_ends_with_the_same_table(tmp_path):
    whole, broken = tmp_path / "whole" / "study", tmp_path / "broken" / "study"
    for folder in (whole, broken):
        folder.parent.mkdir()
    processes = [start(whole), start(broken, DIE_IN="platon 2")]
    for process in processes:
        process.communicate()
    assert [process.returncode for process in processes] == [0, -signal.SIGKILL]
    before = ran(broken)
    assert len(results.read(broken)) == len(before) - 1 == 3 + 2  # dense; two seeds of platon
    again = start(broken)
    again.communicate()
    assert again.returncode == 0
    assert ran(broken)[len(before) :] == ran(whole)[len(before) - 1 :]
    assert (broken / "study.md").read_text() == (whole / "study.md").read_text()
    assert not list((broken / "claims").iterdir())


def test_two_processes_in_one_folder_share_the_cells(tmp_path):
    folder = tmp_path / "study"
    ready = str(tmp_path / "ready")
    processes = [start(folder, SLEEP="0.05", READY=ready) for _ in range(2)]
    printed = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert len(ran(folder)) == len(set(ran(folder))) == NUM_CELLS
    assert len(results.read(folder)) == NUM_CELLS
    assert any(f"{NUM_CELLS} of {NUM_CELLS} cells are finished" in text for text in printed)


def test_a_claim_is_held_once_and_is_free_when_its_process_was_killed(tmp_path):
    code = (
        "import os, signal, sys, pathlib\n"
        "from platon_prune.studies import results\n"
        "with results.claim(pathlib.Path(sys.argv[1]), 'cell'):\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert (tmp_path / "claims" / "cell").exists()
    assert not results.is_claimed(tmp_path, "cell")
    with results.claim(tmp_path, "cell") as first, results.claim(tmp_path, "cell") as second:
        assert (first, second) == (True, False)
        assert results.is_claimed(tmp_path, "cell")
        assert not results.is_claimed(tmp_path, "other")


def test_a_claimed_cell_is_left_to_who_holds_it(run, tmp_path):
    folder = tmp_path / "study"
    grid = Grid(("dense", "platon", "magnitude"), (0.5, 0.9), (0, 1, 2))
    held = cells_of(grid, {"steps": None, "flags": []})[4]
    with results.claim(folder, held.key):
        assert run()[0] == 0
        assert set(results.read(folder)) == {
            cell.key for cell in cells_of(grid, {"steps": None, "flags": []})
        } - {held.key}
        printed = run("--list")[1].out
        assert f"running  {held.key}" in printed
        assert printed.endswith(f"{NUM_CELLS - 1} of {NUM_CELLS} done\n")
    assert run()[0] == 0
    assert len(results.read(folder)) == NUM_CELLS


@pytest.mark.parametrize("torn", [b'{"key": "b", "metr', b"\0" * 40, b'{"key"', b"\xff\xfe", b"7"])
def test_a_torn_last_line_is_no_result_and_the_next_one_replaces_it(torn, tmp_path):
    results.append(tmp_path, {"key": "a", "metrics": {}})
    path = tmp_path / "results.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole + torn)
    assert set(results.read(tmp_path)) == {"a"}
    results.append(tmp_path, {"key": "b", "metrics": {}})
    assert set(results.read(tmp_path)) == {"a", "b"}
    lines = path.read_bytes().splitlines()
    assert [json.loads(line)["key"] for line in lines] == ["a", "b"]


def test_a_whole_last_line_that_only_lacks_its_end_is_kept(tmp_path):
    (tmp_path / "results.jsonl").write_bytes(b'{"key": "a"}')
    assert set(results.read(tmp_path)) == {"a"}
    results.append(tmp_path, {"key": "b"})
    assert (tmp_path / "results.jsonl").read_bytes() == b'{"key": "a"}\n{"key": "b"}\n'


def test_a_bad_line_in_the_middle_is_named(run, tmp_path):
    run()
    path = tmp_path / "study" / "results.jsonl"
    lines = path.read_bytes().splitlines()
    lines[2] = b"garbage"
    path.write_bytes(b"\n".join(lines) + b"\n")
    status, printed = run()
    assert status == 2
    assert "line 3 of" in printed.err


def test_of_a_cell_that_is_there_twice_the_first_counts(tmp_path):
    for value in (1, 2):
        results.append(tmp_path, {"key": "a", "value": value})
    assert results.read(tmp_path) == {"a": {"key": "a", "value": 1}}


def test_results_of_several_folders_can_be_joined(run, tmp_path):
    run("--criteria", "platon")
    (tmp_path / "parts").mkdir()
    (tmp_path / "study").rename(tmp_path / "parts" / "one")
    run("--criteria", "magnitude")
    joined = b"".join(
        (folder / "results.jsonl").read_bytes()
        for folder in (tmp_path / "parts" / "one", tmp_path / "study")
    )
    (tmp_path / "study" / "results.jsonl").write_bytes(joined)

    def fail(cell, place):
        raise AssertionError("is there")

    status, printed = run("--criteria", "platon", "magnitude", cell=fail)
    assert status == 0
    assert "12 of 12 cells are finished" in printed.out


def test_a_cell_that_fails_is_named_and_left_for_the_next_time(run, tmp_path):
    def breaking(cell, place):
        if cell.criterion == "platon" and cell.seed == 1:
            raise RuntimeError("no luck")
        return FAKE.run(cell, place)

    status, printed = run(cell=breaking)
    assert status == 1
    assert printed.err.splitlines() == [
        f"platon, amount {amount}, seed 1 failed: RuntimeError: no luck" for amount in (0.5, 0.9)
    ]
    assert "13 of 15 cells are finished" in printed.out
    status, printed = run()
    assert status == 0
    assert "15 of 15 cells are finished" in printed.out


def test_what_is_no_number_is_no_result(run, tmp_path):
    status, printed = run("--criteria", "platon", cell=lambda cell, place: {"accuracy": math.nan})
    assert status == 1
    assert "accuracy must be a finite number" in printed.err
    assert "none of the 6 cells is finished" in printed.out


def test_a_study_that_is_stopped_from_the_keyboard_says_how_to_go_on(run, tmp_path):
    def stopped(cell, place):
        if cell.seed == 2:
            raise KeyboardInterrupt
        return FAKE.run(cell, place)

    status, printed = run(cell=stopped)
    assert status == 130
    assert "the same command goes on" in printed.out
    assert len(results.read(tmp_path / "study")) == 2
    assert run()[0] == 0


# --- what is shown ------------------------------------------------------------------------------


def test_mean_and_deviation_are_those_of_a_sample():
    sample = Sample.of([1.0, 2.0, 3.0, 4.0])
    assert sample.mean == 2.5
    assert sample.deviation == pytest.approx(math.sqrt(5 / 3))  # 2 * (1.5**2 + 0.5**2) / (4 - 1)
    assert (sample.low, sample.high) == (1.0, 4.0)
    assert Sample.of([7.0]) == Sample(7.0, None, 7.0, 7.0)


def test_differences_pair_equal_seeds_and_leave_out_the_others():
    def row(values, criterion="platon", **options):
        by_seed = {seed: {"accuracy": value} for seed, value in values.items()}
        return Row(criterion, 0.9, options, 3, by_seed)

    plain = row({0: 90.0, 1: 92.0, 2: 91.0})
    changed = row({0: 91.5, 2: 90.0, 3: 99.0}, width=2)
    other = row({0: 80.0}, "magnitude")
    lone = row({0: 70.0}, "movement", width=2)
    rows = [plain, changed, other, lone]
    assert [reference_of(each, [changed, lone]) for each in (changed, lone)] == [None, changed]
    assert changed.differences(plain, "accuracy") == {0: 1.5, 2: -1.0}
    assert [reference_of(each, rows) for each in rows] == [None, plain, plain, None]


def test_the_report_has_the_spread_the_versions_and_the_machine_but_no_path(run, tmp_path):
    status, printed = run("--", "--file", str(tmp_path / "data.tsv"))
    assert status == 0
    folder = tmp_path / "study"
    # Seeds 0, 1 and 2 add their own number to the score: 100; 95 and 91; 90 and 82.
    page = (folder / "study.md").read_text()
    assert page in printed.out
    rows = [line for line in page.splitlines() if line.startswith("| ")]
    assert rows[2:] == [
        "| 100 % | dense | 101.0 ± 1.0 (100.0 to 102.0) | 3 of 3 |  |  |",
        "| 50 % | platon | 96.0 ± 1.0 (95.0 to 97.0) | 3 of 3 |  |  |",
        "| 50 % | magnitude | 91.0 ± 1.0 (90.0 to 92.0) | 3 of 3 | "
        "-5.0 ± 0.0 (-5.0 to -5.0) | -5.0 to -5.0 |",
        "| 10 % | platon | 92.0 ± 1.0 (91.0 to 93.0) | 3 of 3 |  |  |",
        "| 10 % | magnitude | 83.0 ± 1.0 (82.0 to 84.0) | 3 of 3 | "
        "-9.0 ± 0.0 (-9.0 to -9.0) | -9.0 to -9.0 |",
    ]
    found = json.loads((folder / "study.json").read_text())
    assert found["rows"][1]["metrics"]["accuracy"] == {
        "mean": pytest.approx(96), "deviation": pytest.approx(1), "low": 95, "high": 97,
        # 4.302653 standard errors of 1 / √3 on either side.
        "interval": [pytest.approx(96 - 2.484138), pytest.approx(96 + 2.484138)],
    }  # fmt: skip
    assert found["rows"][3]["differences"] == {seed: pytest.approx(-5) for seed in ("0", "1", "2")}
    assert found["versions"][0]["torch"] == torch.__version__
    assert found["machines"][0]["cores"] >= 1
    assert found["settings"] == [{"steps": None, "flags": ["--file", "data.tsv"]}]
    for path in (folder / "study.md", folder / "study.json", folder / "results.jsonl"):
        assert str(tmp_path) not in path.read_text()
    assert not (folder / "options.png").exists()
    assert (folder / "accuracy.png").read_bytes()[:4] == b"\x89PNG"


def test_only_the_report_is_made_again_and_options_have_a_picture_of_their_own(run, tmp_path):
    def failing(cell, place):
        raise AssertionError("only a report was asked for")

    flags = ["--one-by-one", "--option", "width=2,3"]
    assert run(*flags)[0] == 0
    folder = tmp_path / "study"
    pictures = [folder / "accuracy.png", folder / "options.png"]
    for picture in pictures:
        picture.unlink()
    status, printed = run(*flags, "--report-only", cell=failing)
    assert status == 0
    assert "| 50 % | platon, width=3 | 96.0 ± 1.0" in printed.out
    assert all(picture.stat().st_size > 10_000 for picture in pictures)


@pytest.fixture
def drawn(monkeypatch):
    """The labels of each picture of accuracies."""
    from platon_prune.studies import figures

    labels = {}

    def draw(curves, path, **settings):
        labels[path.name] = list(curves)
        path.write_bytes(b"")

    monkeypatch.setattr(figures, "accuracy_against_density", draw)
    return labels


def test_without_a_row_without_options_each_is_drawn_by_its_label(run, tmp_path, drawn):
    status, printed = run("--option", "width=2")
    assert status == 0
    assert drawn == {"accuracy.png": ["platon, width=2", "magnitude, width=2"]}
    assert "study.md, study.json, accuracy.png are in" in printed.out
    assert "platon, width=2 has no row without options" in printed.out
    found = json.loads((tmp_path / "study" / "study.json").read_text())["rows"]
    assert [row.get("compared_with") for row in found] == [
        None, None, None, "platon, width=2", "platon, width=2",
    ]  # fmt: skip


def test_more_labels_than_one_picture_tells_apart_go_on_in_a_second(run, drawn):
    values = ",".join(map(str, range(2, 10)))
    assert run("--criteria", "platon", "--option", f"width={values}")[0] == 0
    assert {name: len(labels) for name, labels in drawn.items()} == {
        "accuracy.png": 7, "accuracy_2.png": 1,
    }  # fmt: skip


def test_a_report_takes_away_the_pictures_that_an_earlier_one_drew(run, tmp_path, drawn):
    folder = tmp_path / "study"
    folder.mkdir()
    for name in ("options.png", "accuracy_2.png", "accuracy_mine.png", "own.png"):
        (folder / name).touch()
    assert run("--seeds", "0")[0] == 0
    assert {path.name for path in folder.glob("*.png")} == {
        "accuracy.png", "accuracy_mine.png", "own.png",
    }  # fmt: skip
    assert run("--seeds", "0", "--criteria", "dense")[0] == 0
    assert not (folder / "accuracy.png").exists()


def test_the_report_says_from_when_to_when_its_cells_were_measured(run, tmp_path):
    run("--criteria", "platon", "--amounts", "0.5")
    path = tmp_path / "study" / "results.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    for record, day in zip(records, ("2026-02-10", "2026-01-31", "2026-02-09"), strict=True):
        record["date"] = day
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    printed = run("--criteria", "platon", "--amounts", "0.5", "--report-only")[1].out
    assert "- Measured: 2026-01-31 to 2026-02-10.\n" in printed
    found = json.loads((tmp_path / "study" / "study.json").read_text())
    assert found["dates"] == ["2026-01-31", "2026-02-10"]


def test_a_report_of_nothing_says_so(run, tmp_path):
    status, printed = run("--report-only")
    assert status == 0
    assert "none of the 15 cells is finished" in printed.out


def test_another_number_of_steps_is_another_study_in_the_same_folder(run, tmp_path):
    run("--criteria", "platon", "--steps", "5")
    run("--criteria", "platon", "--steps", "6")
    assert len(results.read(tmp_path / "study")) == 2 * 6
    assert "6 of 6 cells" in (tmp_path / "study" / "study.md").read_text()


# --- recipes ------------------------------------------------------------------------------------


class Choosing:
    """As much of a scheduler as counting needs: masks that are given beforehand."""

    def __init__(self, *masks):
        self.schedule = CubicSchedule(0.5, total_steps=len(masks) - 1, cooldown_steps=1, window=1)
        self.amount, self.last_step, self._masks = 0.5, 0, masks

    def step(self):
        self.last_step += 1

    def masks(self):
        return {"weight": torch.tensor(self._masks[self.last_step], dtype=torch.bool)}


def test_regrowth_counts_what_was_pruned_and_is_kept_in_the_end():
    masks = ([1, 1, 1, 1], [0, 1, 1, 1], [1, 0, 1, 1], [0, 1, 1, 0])
    scheduler = Counted(Choosing(*([*mask, 1, 1] for mask in masks)))
    for _ in range(3):
        scheduler.step()
    # Kept in the end: 2 and 2; one of them had been pruned. Of 5 kept after the second choice one
    # came back, of 4 after the third one; only the third is later than the ramp's end, step 2.
    assert scheduler.regrowth() == {
        "regrown": pytest.approx(100 * 1 / 4),
        "returning": pytest.approx(100 * (1 / 5 + 1 / 4) / 2),
        "returning_late": pytest.approx(100 * 1 / 4),
    }


NUM_WEIGHTS = 64 * 4 + 4 * (4 * 64 * 64 + 2 * 64 * 256)
NUM_BIASES = 64 + 4 * (4 * 64 + 256 + 64)


def test_digits_are_pruned_exactly_with_every_option(tmp_path, capsys):
    pytest.importorskip("sklearn")
    flags = ["--criteria", "dense", "platon", "--amounts", "0.9", "--seeds", "3", "--steps", "4"]
    options = ["window=2", "masking=window", "scope=layer", "biases=true", "frozen=true"]
    options += ["distillation=0.5", "cooldown=0.25"]
    varied = [part for option in options for part in ("--option", option)]
    assert cli.main(["study", *flags, *varied[:2], "--output-dir", str(tmp_path)]) == 0
    capsys.readouterr()
    # All of them at once, for a window of ten does not fit into four steps.
    assert cli.main(["study", *flags, *varied, "--output-dir", str(tmp_path)]) == 0
    records = [r for r in results.read(tmp_path).values() if r["criterion"] == "platon"]
    plain, changed = (record["metrics"] for record in records)
    assert plain["selected"] == NUM_WEIGHTS
    assert plain["kept"] == NUM_WEIGHTS - round(0.9 * NUM_WEIGHTS)
    assert changed["selected"] == NUM_WEIGHTS + NUM_BIASES
    sizes = [256, 64] + 4 * (4 * [4096, 64] + 2 * [64 * 256] + [256, 64])
    assert sum(sizes) == NUM_WEIGHTS + NUM_BIASES
    assert changed["kept"] == sum(sizes) - round(0.9 * sum(sizes))
    assert changed["empty_tensors"] == changed["regrown"] == 0
    assert len(list((tmp_path / "dense").iterdir())) == 1  # trained once for all four cells


def test_sentences_are_pruned_by_the_recipe_and_taught_by_the_dense_model(
    tmp_path, capsys, monkeypatch
):
    pytest.importorskip("transformers")
    pytest.importorskip("datasets")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import recipe_models

    for name in ("bert", "sst2"):
        (tmp_path / name).mkdir()
    own = [
        "--", "--task_name", "sst2", "--model_name_or_path",
        recipe_models.save_bert(tmp_path / "bert"),
        *recipe_models.save_sst2(tmp_path / "sst2"),
        "--max_seq_length", "16", "--disable_tqdm", "true",
    ]  # fmt: skip
    grid = [
        "study", "--recipe", "glue", "--criteria", "platon", "dense", "--amounts", "0.5",
        "--seeds", "0", "--steps", "4", "--option", "window=2", "--option",
        "distillation=0.5", "--device", "cpu", "--output-dir", str(tmp_path / "study"),
    ]  # fmt: skip
    assert cli.main([*grid, *own]) == 0
    by_criterion = {r["criterion"]: r for r in results.read(tmp_path / "study").values()}
    selected = recipe_models.SELECTED
    pruned = by_criterion["platon"]["metrics"]
    assert (pruned["kept"], pruned["selected"]) == (selected - round(0.5 * selected), selected)
    assert by_criterion["dense"]["metrics"]["sparsity"] == 0
    assert 0 <= by_criterion["dense"]["metrics"]["accuracy"] <= 100
    [folder] = (tmp_path / "study" / "runs").iterdir()
    assert {path.name for path in folder.iterdir()} == {"results.json", "report.png"}
    settings = json.loads((folder / "results.json").read_text())["settings"]
    assert settings["training"]["max_steps"] == 4
    assert settings["pruning"]["pruning_window"] == 2
    assert settings["distillation"]["distillation_weight"] == 0.5
    assert settings["distillation"]["teacher_name_or_path"].startswith(
        str(tmp_path / "study" / "dense")
    )
    assert str(tmp_path) not in (tmp_path / "study" / "study.json").read_text()


def given_to(recipe, folder):
    """Flags of a command that name a tiny model and tiny data."""
    import recipe_models
    import squad_files

    def made(name):
        (folder / name).mkdir(parents=True)
        return folder / name

    if recipe == "text":
        flags = [recipe_models.save_bert(made("bert")), *recipe_models.save_sst2(made("data"))]
        return [*flags, "--max_seq_length", "16"]
    if recipe == "clm":
        (made("data") / "cats.txt").write_text("the cat sat on the mat .\n" * 20)
        files = ["--train_file", str(folder / "data" / "cats.txt"), "--train_val_split", "0.2"]
        return [recipe_models.save_llama(made("llama")), *files, "--block_size", "16"]
    if recipe == "image":
        images = recipe_models.save_images(made("images"))
        return [recipe_models.save_vit(made("vit")), "--train_dir", str(images), "--validation_dir", str(images)]  # fmt: skip # noqa: E501
    train, dev = (squad_files.rivers(made(name) / "f.json", 8) for name in ("train", "dev"))
    flags = [squad_files.write_model(made("model")), "--train_file", train]
    return [*flags, "--validation_file", dev, "--max_seq_length", "48", "--doc_stride", "12"]


@pytest.mark.parametrize(
    ("recipe", "metric"),
    [("text", "accuracy"), ("clm", "perplexity"), ("image", "accuracy"), ("squad", "f1")],
)
def test_every_recipe_can_be_studied(recipe, metric, tmp_path, monkeypatch):
    pytest.importorskip("transformers")
    pytest.importorskip("datasets")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folder = tmp_path / "study"
    grid = ["study", "--recipe", recipe, "--criteria", "magnitude", "--amounts", "0.5", "--seeds",
            "0", "--steps", "4", "--option", "window=2", "--device", "cpu"]  # fmt: skip
    own = ["--", "--model_name_or_path", *given_to(recipe, tmp_path), "--disable_tqdm", "true"]
    assert cli.main([*grid, "--output-dir", str(folder), *own]) == 0
    [record] = results.read(folder).values()
    assert next(iter(study.RECIPES[recipe].options)) == "masking"
    assert record["metrics"]["sparsity"] == 0.5
    found = json.loads((folder / "runs" / record["key"] / "results.json").read_text())["metrics"]
    scale = 100 if metric == "accuracy" else 1
    assert record["metrics"][metric] == pytest.approx(scale * found[f"eval_{metric}"])
    assert (folder / "accuracy.png").is_file()


@pytest.mark.parametrize(
    ("flags", "predicts"),
    [
        (["--test_file", "t.tsv"], True),
        (["--test-file", "t.tsv"], True),
        (["--test_file=t.tsv"], True),
        (["--train_file", "test_file"], False),
    ],
)
def test_a_test_file_is_predicted_however_its_flag_is_written(flags, predicts, monkeypatch):
    pytest.importorskip("datasets")
    from platon_prune.commands.study import glue as _study_glue
    from platon_prune.integrations.recipes import glue

    called = []
    monkeypatch.setattr(glue, "main", called.append)
    [cell] = cells_of_glue(flags=flags)
    _study_glue.train(cell, Workspace(Path("s")), Path("s/run"), [])
    assert ("--do_predict" in called[0]) is predicts


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ([], "--model_name_or_path"),
        (["--model_name_or_path", "m", "--seed=4"], "--seed"),
        (["--model_name_or_path", "m", "--amount", "0.5"], "--amount"),
    ],
)
def test_flags_that_the_recipe_lacks_or_the_grid_sets_are_named(flags, named, tmp_path, capsys):
    folder = tmp_path / "study"
    assert cli.main(["study", "--recipe", "sst2", "--output-dir", str(folder), "--", *flags]) == 2
    assert named in capsys.readouterr().err
    assert not folder.exists()


# --- what the digits are trained on -------------------------------------------------------------


def digits_with(**changes):
    pytest.importorskip("sklearn")
    return scans.load_digits(dataclasses.replace(Settings(), seed=3, **changes))


def test_a_validation_part_is_taken_from_what_is_trained_on_and_not_from_the_held_out_digits():
    plain, split = digits_with(), digits_with(validation=0.2)
    assert len(plain.train_labels) == scans.num_training(Settings()) == 1797 - 599
    assert len(plain.validation_labels) == 0
    settings = dataclasses.replace(Settings(), validation=0.2)
    assert len(split.train_labels) == scans.num_training(settings) == 1198 - 240
    assert len(split.validation_labels) == 240
    assert torch.equal(split.held_out_labels, plain.held_out_labels)
    # Every class in proportion: of some 120 digits each, 24.
    assert all(20 <= int(count) <= 28 for count in split.validation_labels.bincount())


def test_few_examples_and_wrong_labels_are_as_many_as_asked_for():
    few, noisy, plain = digits_with(examples=500), digits_with(label_noise=0.3), digits_with()
    assert len(few.train_labels) == 500
    assert abs(float(few.train_images.mean())) < 1e-5  # normalised by the digits that are left
    assert int((noisy.train_labels != plain.train_labels).sum()) == round(0.3 * 1198)
    assert torch.equal(noisy.train_images, plain.train_images)
    assert torch.equal(noisy.held_out_labels, plain.held_out_labels)


def test_options_of_training_start_from_one_dense_model_and_noise_from_another(tmp_path, capsys):
    pytest.importorskip("sklearn")
    flags = ["--criteria", "dense", "platon", "--amounts", "0.9", "--seeds", "3", "--steps", "4"]
    flags += ["--option", "window=2", "--output-dir", str(tmp_path)]
    for option in ("steps=6", "batch_size=8", "learning_rate=0.002", "threads=2", "examples=100"):
        assert cli.main(["study", *flags, "--option", option]) == 0
    capsys.readouterr()
    records = list(results.read(tmp_path).values())
    of_dense = [r["options"] for r in records if r["criterion"] == "dense"]
    assert of_dense == [
        {"steps": 6}, {"batch_size": 8}, {"learning_rate": 0.002}, {"threads": 2},
        {"examples": 100},
    ]  # fmt: skip
    assert (
        len({r["metrics"]["dense_accuracy"] for r in records if "examples" not in r["options"]})
        == 1
    )
    assert len(list((tmp_path / "dense").iterdir())) == 2


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("learning_rate=0.0", "learning_rate must be above 0"),
        ("batch_size=0", "batch_size must be at least 1"),
        ("steps=1", "steps must be at least 2"),
        ("threads=0", "threads must be at least 1"),
        ("validation=0.6", r"validation must be in \[0, 0.5\]"),
        ("label_noise=1.5", r"label_noise must be in \[0, 1\]"),
        ("temperature=4", "temperature needs a teacher, got 4 without one"),
        ("examples=9", "examples must be from 10, one of each class, to 1188"),
        ("examples=1195", "examples must be from 10, one of each class, to 1188"),
    ],
)
def test_training_that_could_not_be_done_is_refused_before_any(option, message, capsys, tmp_path):
    flags = [
        "--criteria",
        "dense",
        "platon",
        "--option",
        option,
        "--output-dir",
        str(tmp_path / "study"),
    ]
    assert cli.main(["study", *flags]) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "study").exists()


def test_what_a_step_keeps_for_a_weight_is_reported_for_each_criterion(tmp_path, capsys):
    pytest.importorskip("sklearn")
    flags = ["--criteria", "platon", "fisher", "scaled_magnitude", "--amounts", "0.9", "--seeds"]
    flags += ["3", "--steps", "4", "--option", "window=1", "--output-dir", str(tmp_path)]
    assert cli.main(["study", *flags]) == 0
    capsys.readouterr()
    kept = {r["criterion"]: r["metrics"]["state_bytes"] for r in results.read(tmp_path).values()}
    # A byte of mask; four of the window and four of each average where there are any.
    assert kept == {"platon": 13, "fisher": 9, "scaled_magnitude": 1}
    assert all(r["metrics"]["step_ms"] > 0 for r in results.read(tmp_path).values())
