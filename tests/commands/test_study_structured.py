"""The structured study: every method at the same multiply-adds, torch-pruning among them."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

pytest.importorskip("sklearn")
pytest.importorskip("transformers")

from platon_prune import cli  # noqa: E402
from platon_prune.commands.benchmarks import digits as _digits  # noqa: E402
from platon_prune.commands.study import one_shot, rivals  # noqa: E402
from platon_prune.commands.study.networks import (  # noqa: E402
    ResidualCNN,
    multiply_adds,
    num_parameters,
)
from platon_prune.commands.study.structured import STRUCTURED  # noqa: E402
from platon_prune.studies import results  # noqa: E402
from platon_prune.studies.cells import Cell, Grid  # noqa: E402

TRANSFORMER, CNN = STRUCTURED


def test_multiply_adds_are_those_of_all_layers_and_of_attention():
    width, tokens, hidden = 64, 17, 256
    projections, products = 4 * width * width * tokens, 2 * tokens * tokens * width
    layer = projections + products + 2 * width * hidden * tokens
    patches, classes = 16 * 4 * width, width * 10
    model = _digits.make_model(_digits.Settings())
    assert multiply_adds(model) == 4 * layer + patches + classes
    three_by_three = 64 * 9 * (16 + 4 * 16 * 16)  # 8 x 8 positions; the first has one input
    three_by_three += 16 * 9 * (16 * 32 + 3 * 32 * 32) + 4 * 9 * (32 * 64 + 3 * 64 * 64)
    shortcuts = 16 * 16 * 32 + 4 * 32 * 64
    assert multiply_adds(ResidualCNN()) == three_by_three + shortcuts + 64 * 10


def test_rivals_are_one_cell_a_seed_and_size_whatever_the_options():
    grid = Grid(
        criteria=("tp-taylor", "platon"), amounts=(0.5, 0.9), seeds=(0,),
        options={"normalizer": ("none", "mean"), "learn": (0, 20)},
    )  # fmt: skip
    labels = [cell.label for cell in grid.cells(TRANSFORMER, {})]
    assert labels.count("tp-taylor") == 2
    assert len(labels) == 2 + 2 * 4


def test_the_best_head_and_the_best_channel_of_each_layer_stay():
    query, other = nn.Linear(4, 4), nn.Linear(4, 4)

    def best(layer):
        group = [SimpleNamespace(dep=SimpleNamespace(target=SimpleNamespace(module=layer)))]
        importance = one_shot.KeepsTheBest(lambda group: torch.tensor([1.0, 2, 5, 0]), {query: 2})
        return importance(group).tolist()

    assert best(query) == [1, 2, torch.inf, torch.inf]  # means 1.5 and 2.5
    assert best(other) == [1, 2, torch.inf, 0]


def test_a_rival_that_is_not_installed_is_named_with_what_to_install(monkeypatch):
    monkeypatch.setattr(rivals, "is_installed", lambda: False)
    with pytest.raises(ValueError, match=r"tp-taylor: pip install 'platon-prune\[structured\]'"):
        TRANSFORMER.check(
            Cell(TRANSFORMER.name, "tp-taylor", 0.5, 0, {}, TRANSFORMER.settings(4, ()))
        )


@pytest.mark.parametrize(
    ("options", "named"),
    [({"learn": -1}, "learn must be"), ({"min_channels": 2.0}, "min_channels"), ({}, "window")],
)
def test_options_that_no_cell_could_have_are_refused(options, named):
    settings = TRANSFORMER.settings(4, ())  # too short for a window of ten
    with pytest.raises(ValueError, match=named):
        TRANSFORMER.check(Cell(TRANSFORMER.name, "platon", 0.5, 0, options, settings))


@pytest.mark.filterwarnings("ignore:Unwrapped parameters")
def test_ours_and_a_rival_are_cut_to_the_same_multiply_adds(tmp_path):
    pytest.importorskip("torch_pruning")
    pytest.importorskip("matplotlib")
    command = [
        "study", "--recipe", "structured-transformer", "--amounts", "0.85", "--seeds", "0",
        "--criteria", "tp-magnitude", "sensitivity", "--steps", "4", "--device", "cpu",
        "--option", "schedule=once", "--option", "learn=4", "--option", "window=2",
        "--output-dir", str(tmp_path),
    ]  # fmt: skip
    assert cli.main(command) == 0
    shares = [r["metrics"]["multiply_adds"] for r in results.read(tmp_path).values()]
    # 15 % of the groups, and what is in none: patches and the last layer, 0.1 % of the model.
    assert len(shares) == 2
    assert shares == pytest.approx([15.1, 15.1], abs=0.3)
    assert all(r["metrics"]["parameters"] < 20 for r in results.read(tmp_path).values())
    assert "torch-pruning" in next(iter(results.read(tmp_path).values()))["versions"]


def test_all_parameters_count():
    assert num_parameters(nn.Linear(3, 2)) == 8
