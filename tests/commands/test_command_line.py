"""What all commands have in common: answers at once, both spellings, no traceback, told places."""

import importlib
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from platon_prune import cli
from platon_prune.commands import _parser
from platon_prune.commands.benchmarks.figures import Figure, Spread, print_table, ratio_table
from platon_prune.commands.study import NAMES
from platon_prune.criteria import CRITERIA
from platon_prune.warning import PruningWarning


def shown_by(capsys, *words):
    """What a command prints before it ends by itself."""
    with pytest.raises(SystemExit) as ended:
        cli.main(list(words))
    assert not ended.value.code
    return capsys.readouterr().out


def refused(capsys, *words):
    """The one line that a command is refused with."""
    assert cli.main([*map(str, words)]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and len(printed.err.splitlines()) == 1
    return printed.err


# --- help ---------------------------------------------------------------------------------------


def test_help_and_version_load_no_torch():
    """All in one process: to start it is what takes time."""
    code = (
        "import contextlib, io, sys\n"
        "from platon_prune import cli\n"
        "for words in ['--help'], ['--version'], *([name, '--help'] for name in cli.COMMANDS):\n"
        "    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):\n"
        "        cli.main(words)\n"
        "    assert 'torch' not in sys.modules, words\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_front_page_lists_every_command(capsys):
    shown = shown_by(capsys, "--help")
    # A long name has its help on the next line.
    assert all(re.search(f"\n    {name}\\s", shown) for name in (*cli.COMMANDS, *cli.RECIPES))


def test_a_command_that_does_not_exist_is_refused_with_those_that_do(capsys):
    with pytest.raises(SystemExit, match="2"):
        cli.main(["prune"])
    assert "demo" in capsys.readouterr().err


def test_the_criteria_and_recipes_that_help_names_are_those_there_are():
    from platon_prune.commands.study.asked import RECIPES

    assert tuple(CRITERIA) == _parser.CRITERION_NAMES
    assert list(RECIPES) == list(NAMES)


# --- spellings ----------------------------------------------------------------------------------


def test_flags_are_taken_with_a_dash_and_with_an_underscore():
    parser = cli.parser_of("study")
    flags = ["--output-dir", "x", "--one-by-one", "--report-only"]
    others = [flag.replace("-", "_").replace("__", "--") for flag in flags]
    assert parser.parse_args(flags) == parser.parse_args(others)


def test_what_stands_behind_a_lone_double_dash_stays_as_it_is():
    words = ["--output-dir=a-b", "--", "--train-file", "a-b"]
    assert _parser.underscored(words) == ["--output_dir=a-b", *words[1:]]


@pytest.mark.parametrize("command", ["demo", "deploy", "study", "export"])
def test_every_command_that_writes_a_folder_takes_output_dir(command):
    assert "--output_dir" in cli.parser_of(command)._option_string_actions


@pytest.mark.parametrize(("command", "name"), [("demo", "amount"), ("study", "amounts")])
def test_amount_and_amounts_are_alike(command, name):
    parser = cli.parser_of(command)
    for flag in ("--amount", "--amounts"):
        assert getattr(parser.parse_args([flag, "0.5", "0.9"]), name) == [0.5, 0.9]


def test_an_error_repeats_a_flag_as_it_was_typed(capsys, tmp_path):
    file = tmp_path / "file"
    file.touch()
    for flag in ("--output-dir", "--output_dir"):
        assert f"{flag} must be" in refused(capsys, "study", flag, file / "below")


def test_a_wrong_flag_is_repeated_as_it_was_typed(capsys):
    for words, said in ((["--not-one=3"], "--not-one=3"), (["--output-dir"], "--output-dir: ex")):
        with pytest.raises(SystemExit, match="2"):
            cli.main(["demo", *words])
        assert said in capsys.readouterr().err


def test_a_command_may_stand_behind_a_lone_double_dash(capsys):
    assert shown_by(capsys, "--", "demo", "--help") == shown_by(capsys, "demo", "--help")


# --- places that can't be written to ------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        ("bench", "--json"), ("scale", "--json"), ("inspect", "MODEL", "--json"),
        ("demo", "--output_dir"), ("study", "--output_dir"), ("deploy", "MODEL", "--output_dir"),
        ("export", "MODEL", "--to", "sparse", "--output"),
    ],
)  # fmt: skip
def test_a_place_below_a_file_is_refused_in_a_line_before_any_work(words, tmp_path, capsys):
    file = tmp_path / "file"
    file.touch()
    # There is no MODEL: whoever looked for it first would speak of that.
    error = refused(capsys, *words, file / "place")
    assert f"{words[-1]} must be" in error and str(file) in error and "another path" in error
    assert list(tmp_path.iterdir()) == [file]


def test_a_folder_in_place_of_a_file_is_refused(tmp_path, capsys):
    assert "Is a directory" in refused(capsys, "bench", "--json", tmp_path)


def test_a_device_is_a_place_for_a_file():
    from platon_prune.commands._output import require_file

    require_file("--json", Path("/dev/stdout"))


# --- how it ends --------------------------------------------------------------------------------


def run_as(monkeypatch, run):
    """Have ``platon-prune inspect FILE`` do something else."""
    monkeypatch.setattr("platon_prune.commands.inspect.run", run)
    return cli.main(["inspect", "FILE"])


def test_ctrl_c_ends_a_command_with_130_and_one_line(monkeypatch, capsys):
    def stopped(arguments):
        raise KeyboardInterrupt

    assert run_as(monkeypatch, stopped) == 130
    assert capsys.readouterr().err == "\nstopped\n"


def test_a_closed_pipe_ends_a_command_with_0_and_nothing_more(monkeypatch, capsys):
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)

        def printing(arguments):
            print("x" * 100_000)  # more than a buffer holds
            return 0

        assert run_as(monkeypatch, printing) == 0
        print("the pipe leads nowhere now", flush=True)
    assert capsys.readouterr().err == ""


def test_a_table_that_fits_the_buffer_of_a_closed_pipe_is_no_error_either(monkeypatch):
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        assert run_as(monkeypatch, lambda arguments: print("short") or 0) == 0


def test_another_broken_pipe_is_an_error(monkeypatch):
    def broken(arguments):
        raise BrokenPipeError(32, "of a worker")

    with pytest.raises(BrokenPipeError, match="of a worker"):
        run_as(monkeypatch, broken)


# --- extras -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "package"),
    [("sklearn.datasets", "scikit-learn"), ("torch_pruning", "torch-pruning"), ("onnx", "onnx")],
)
def test_a_missing_module_is_told_with_the_package_that_brings_it(
    module, package, monkeypatch, capsys
):
    def missing(arguments):
        raise ModuleNotFoundError(f"No module named {module!r}", name=module)

    assert run_as(monkeypatch, missing) == 2
    assert f"pip install {package}, or pip install 'platon-prune[" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("module", "extra", "package"),
    [
        ("hf_trainer", "transformers", "transformers"),
        ("lightning_callback", "lightning", "lightning"),
        ("torch_pruning_importance", "torch_pruning", "torch-pruning"),
    ],
)
def test_a_callback_without_its_framework_names_the_command(module, extra, package, monkeypatch):
    name = f"platon_prune.integrations.{module}"
    monkeypatch.delitem(sys.modules, name, raising=False)
    for loaded in [extra, *(each for each in sys.modules if each.startswith(f"{extra}."))]:
        monkeypatch.setitem(sys.modules, loaded, None)
    with pytest.raises(ImportError, match=f"pip install {package}"):
        importlib.import_module(name)


def test_a_figure_without_matplotlib_names_the_command(monkeypatch, tmp_path):
    from platon_prune import plots  # importable without it

    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for draw in (plots.schedule, plots.layers, plots.regrowth, plots.scores):
        with pytest.raises(ModuleNotFoundError, match="pip install matplotlib"):
            draw(None, tmp_path / "x.png")
    with pytest.raises(ModuleNotFoundError, match="pip install matplotlib"):
        plots.accuracy_against_density({"a": {0.5: [1.0]}}, tmp_path / "x.png")


# --- tables -------------------------------------------------------------------------------------


def test_the_table_of_the_bench_fits_100_columns_and_says_which_ratio_is_good(capsys):
    spread = Spread(1234.56, 1200.0, 1300.0)
    figures = [
        Figure("compat.Pruner, average over SQuAD's schedule", "ms", spread, spread),
        Figure("no textbook", "MB", Spread(0.123456, 0.1, 0.2), None),
    ]
    print_table([10, 20], "cpu", figures, "BERT-base by plain")
    print(ratio_table({"BERT-base": figures[:1], "small encoder": figures[:1]}))
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 100
    assert "1,235 (1,200-1,300)" in shown and "0.123 (0.100-0.200)" in shown
    assert shown.replace("\n", " ").count("above 1 is good") == 2


def test_a_warning_of_the_library_is_a_line_of_the_command(capsys, monkeypatch):
    def warns(name, arguments):
        for category in PruningWarning, UserWarning:
            print(warnings.formatwarning("nearly empty", category, "file.py", 8, ""), end="")
        return 0

    monkeypatch.setattr(cli, "_run_command", warns)
    ordinary = warnings.formatwarning
    assert cli.main(["inspect", "nothing"]) == 0
    assert capsys.readouterr().out == (
        "platon-prune inspect: warning: nearly empty\nfile.py:8: UserWarning: nearly empty\n"
    )
    assert warnings.formatwarning is ordinary
