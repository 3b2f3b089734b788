"""The demo: its table says what was measured, the picture is there, options are checked."""

import re
import struct
import warnings
from dataclasses import dataclass
from typing import NamedTuple

import pytest
import torch
from torch import nn

pytest.importorskip("sklearn")
pytest.importorskip("transformers")
pytest.importorskip("matplotlib")

import platon_prune  # noqa: E402
from platon_prune import cli  # noqa: E402
from platon_prune.commands import demo  # noqa: E402
from platon_prune.commands.benchmarks import compiled  # noqa: E402
from platon_prune.commands.benchmarks import digits as _digits  # noqa: E402
from platon_prune.commands.benchmarks.compiled import check_compiled  # noqa: E402
from platon_prune.commands.benchmarks.digits import Digits, Settings  # noqa: E402
from platon_prune.plots import Comparison, save_demo_report  # noqa: E402

# Patch projection 64 x 4; in both layers four 64 x 64 in attention and two 64 x 256 in the MLP.
NUM_WEIGHTS = 64 * 4 + 2 * (4 * 64 * 64 + 2 * 64 * 256)
NUM_SMALL_WEIGHTS = 16 * 4 + 4 * 16 * 16 + 2 * 16 * 64
ROW = re.compile(
    r"^ *(?P<density>[\d.]+) %  (?P<model>.*?) +(?P<accuracy>[\d.]+) % +(?P<sparsity>[\d.]+) % +"
    r"(?P<kept>[\d,]+) of (?P<total>[\d,]+)$",
    re.MULTILINE,
)


def run_demo(capsys, folder, *options):
    status = cli.main(["demo", "--steps", "20", "--output-dir", str(folder), *options])
    return status, capsys.readouterr().out


def rows_of(printed):
    return [match.groupdict() for match in ROW.finditer(printed)]


@dataclass(frozen=True)
class Shorter(Settings):
    """The demo of two layers, since each is compiled, and of few evaluations, which are slow."""

    num_layers: int = 2
    num_evaluations: int = 2


@dataclass(frozen=True)
class Small(Shorter):
    """The demo of one narrow layer."""

    hidden_size: int = 16
    num_layers: int = 1


@pytest.fixture
def shorter(monkeypatch):
    monkeypatch.setattr(demo, "Settings", Shorter)


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(demo, "Settings", Small)
    monkeypatch.setattr(compiled, "check_compiled", lambda *arguments: 0)


def test_the_table_shows_the_exact_sparsity_and_the_compiled_model_is_equal(
    tmp_path, capsys, shorter
):
    num_threads = torch.get_num_threads()
    status, printed = run_demo(capsys, tmp_path / "new" / "folder")
    assert status == 0
    assert torch.get_num_threads() == num_threads
    rows = rows_of(printed)
    assert [(row["density"], row["model"]) for row in rows] == [
        ("100", "dense"),
        ("100", "dense, the same further steps"),
        ("10", "PLATON"),
        ("10", "gradual magnitude"),
        ("10", "one-shot magnitude"),
        ("1", "PLATON"),
        ("1", "gradual magnitude"),
        ("1", "one-shot magnitude"),
    ]
    for row in rows:
        amount = {"100": 0.0, "10": 0.9, "1": 0.99}[row["density"]]
        num_pruned = round(amount * NUM_WEIGHTS)
        assert row["sparsity"] == f"{100 * num_pruned / NUM_WEIGHTS:.4f}"
        assert row["kept"] == f"{NUM_WEIGHTS - num_pruned:,}"
        assert row["total"] == f"{NUM_WEIGHTS:,}"
        assert 0 <= float(row["accuracy"]) <= 100
    assert "599 held-out digits" in printed  # a third of 1,797
    assert re.search("equal outputs|compile check skipped", printed)
    assert_is_png_of_sensible_size(tmp_path / "new" / "folder" / "report.png")


def test_the_same_seed_gives_the_same_table_and_another_seed_another(tmp_path, capsys, small):
    tables = [
        rows_of(run_demo(capsys, tmp_path, "--amount", "0.5", "--seed", seed)[1])
        for seed in ("3", "3", "4")
    ]
    assert tables[0] == tables[1]
    assert tables[0] != tables[2]


def test_another_criterion_and_an_amount_that_leaves_one_weight(tmp_path, capsys, small):
    amount = 1 - 1 / NUM_SMALL_WEIGHTS
    status, printed = run_demo(
        capsys, tmp_path, "--criterion", "movement", "--amount", repr(amount)
    )
    assert status == 0
    pruned = rows_of(printed)[2:]
    assert [row["model"] for row in pruned] == [
        "movement",
        "gradual magnitude",
        "one-shot magnitude",
    ]
    assert [row["kept"] for row in pruned] == ["1", "1", "1"]
    assert_is_png_of_sensible_size(tmp_path / "report.png")


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--amount", "1.0"], "1.0"),
        (["--amount", "0.9", "-0.5"], "-0.5"),
        (["--amount", "nan"], "nan"),
        (["--amount", "0.9", "0.9"], "0.9 twice"),
        (["--criterion", "salience"], "'salience'"),
        (["--criterion", "magnitude"], "'magnitude'"),
        (["--seed", "-1"], "-1"),
        (["--steps", "19"], "19"),
    ],
)
def test_an_option_that_cannot_be_used_is_named_and_nothing_is_written(
    options, named, tmp_path, capsys
):
    folder = tmp_path / "unmade"
    assert cli.main(["demo", "--output-dir", str(folder), *options]) == 2
    message = capsys.readouterr().err
    assert options[0] in message
    assert named in message
    assert not folder.exists()


def test_an_output_folder_that_is_a_file_is_named(tmp_path, capsys):
    file = tmp_path / "report"
    file.touch()
    assert cli.main(["demo", "--output-dir", str(file)]) == 2
    message = capsys.readouterr().err
    assert "--output-dir" in message
    assert str(file) in message


def test_an_amount_that_is_no_number_ends_with_status_2(capsys):
    with pytest.raises(SystemExit) as exit_:
        cli.main(["demo", "--amount", "most"])
    assert exit_.value.code == 2
    assert "'most'" in capsys.readouterr().err


class Output(NamedTuple):
    logits: torch.Tensor


class Classifier(nn.Module):
    """As small as a model with ``.logits`` can be."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, images):
        return Output(self.layer(images).tanh())


def some_digits():
    images, labels = torch.ones(4, 3), torch.zeros(4, dtype=torch.int64)
    return Digits(images, labels, images, labels, images[:0], labels[:0])


def test_without_a_compiler_the_check_is_skipped_and_says_so(capsys):
    import torch._inductor.config as inductor

    torch._dynamo.reset()
    # Not by monkeypatch: it deletes what is in no __dict__, and Inductor hides that ever after.
    changes = {"cpp.cxx": (None, "no-such-compiler"), "force_disable_caches": True}
    with inductor.patch(changes):
        assert check_compiled(Classifier(), some_digits(), Settings()) == 0
    assert capsys.readouterr().out == "compile check skipped: no compiler\n"


def test_a_compiled_model_with_other_outputs_fails(monkeypatch, capsys):
    other = Classifier()
    monkeypatch.setattr(torch, "compile", lambda model, **options: other)
    assert check_compiled(Classifier(), some_digits(), Settings()) == 1
    assert "DIFFERENT" in capsys.readouterr().out


def test_the_report_can_show_tensors_that_are_empty_or_full(tmp_path):
    comparison = Comparison(
        density=0.5,
        schedule={0: 1.0, 10: 0.5},
        accuracies={"PLATON": {0: 90.0, 10: 91.0}, "one-shot": {0: 40.0}},
        sparsities={"PLATON": {"a": 1.0, "b": 0.0}, "one-shot": {"a": 0.5, "b": 0.5}},
    )
    save_demo_report([comparison], 95.0, tmp_path / "report.png")
    assert_is_png_of_sensible_size(tmp_path / "report.png")


def assert_is_png_of_sensible_size(path):
    head = path.read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", head[16:])
    assert 800 <= width <= 4000
    assert 500 <= height <= 2000
    assert path.stat().st_size > 20_000


def test_tensors_that_are_emptied_are_drawn_and_not_warned_about():
    settings = _digits.Settings(steps=40, num_evaluations=1)
    digits = _digits.load_digits(settings)
    dense = _digits.Run("dense", _digits.make_model(settings), accuracies={0: 0.0})
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        run = _digits.fine_tune_pruned(dense, "platon", 0.999, digits, settings, lambda: None)
    assert any(row.kept == 0 for row in platon_prune.summary(run.model))
    assert not [each for each in said if issubclass(each.category, platon_prune.PruningWarning)]
