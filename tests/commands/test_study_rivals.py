"""Methods of other packages in the study of digits: the same start, batches and final amount."""

import dataclasses
import importlib.util
import runpy
import sys
import types

import pytest
import torch
from torch import nn

pytest.importorskip("sklearn")
pytest.importorskip("transformers")

from platon_prune import cli  # noqa: E402
from platon_prune.commands.benchmarks import digits as _digits  # noqa: E402
from platon_prune.commands.study import presets, rival_names, weight_rivals  # noqa: E402
from platon_prune.commands.study.digits import DIGITS, dense_of  # noqa: E402
from platon_prune.commands.study.patterns import Pattern  # noqa: E402
from platon_prune.commands.study.presets import PRESETS  # noqa: E402
from platon_prune.masks.targets import find_tensors  # noqa: E402
from platon_prune.schedule import CubicSchedule  # noqa: E402
from platon_prune.studies.cells import Cell, Grid, Option, Recipe, Workspace  # noqa: E402

TINY = {"hidden_size": 16, "num_layers": 1, "num_heads": 2}
NUM_PATCH_WEIGHTS = 16 * 4
NUM_WEIGHTS = NUM_PATCH_WEIGHTS + 4 * 16 * 16 + 2 * 16 * 64
# Of 3136 weights 90 % are 2822.4: rounded; up; and of NNCF one more than int(3135 * 0.9) = 2821.
KEPT = {"torch-l1": 314, "one-shot": 314, "torchao-pat": 313, "nncf": 314}
# A mask in float32 and the product; another copy in float32; a mask of one byte.
NUM_BYTES = {"torch-l1": 8, "one-shot": 8, "torchao-pat": 4, "nncf": 1}


def needs(rival):
    """Skip where a rival's package is not installed."""
    if rival == "torchao-pat":
        optim = pytest.importorskip("torchao.prototype.pat.optim")
        if not hasattr(optim, "GlobalMinSparsityConstraint"):
            pytest.skip("this torchao has no GlobalMinSparsityConstraint")
    elif rival == "nncf":
        pytest.importorskip("nncf")


def cell_of(criterion, amount=0.9, **options):
    settings = DIGITS.settings(10, ()) | TINY
    return Cell("digits", criterion, amount, 0, {"window": 2, **options}, settings)


@pytest.mark.filterwarnings("ignore::platon_prune.PruningWarning")
@pytest.mark.parametrize("rival", KEPT)
def test_a_rival_ends_with_the_count_that_its_own_rounding_leaves(rival, tmp_path):
    needs(rival)
    measured = DIGITS.run(cell_of(rival), Workspace(tmp_path))
    assert measured["selected"] == NUM_WEIGHTS
    assert measured["kept"] == KEPT[rival]
    assert measured["sparsity"] == pytest.approx(0.9, abs=1 / NUM_WEIGHTS)
    assert measured["state_bytes"] == NUM_BYTES[rival]


@pytest.mark.parametrize("rival", KEPT)
def test_a_rival_runs_without_a_warm_up_or_a_cool_down(rival, tmp_path):
    needs(rival)
    measured = DIGITS.run(cell_of(rival, warmup=0.0, cooldown=0.0), Workspace(tmp_path))
    assert measured["kept"] == KEPT[rival]


@pytest.mark.filterwarnings("ignore::platon_prune.PruningWarning")
@pytest.mark.parametrize("rival", KEPT)
def test_a_rival_starts_from_the_same_dense_model_and_sees_the_same_batches(
    rival, tmp_path, monkeypatch
):
    needs(rival)
    seen = {}
    real = nn.functional.cross_entropy

    def noting(output, labels):
        value = real(output, labels)
        seen[running].append((value.item(), labels.tolist()))
        return value

    monkeypatch.setattr(nn.functional, "cross_entropy", noting)
    for running in ("dense", "platon", rival):
        seen[running] = []
        DIGITS.run(cell_of(running), Workspace(tmp_path))
    del seen["dense"][:10]  # of the model that all start from
    ours, theirs = seen["platon"], seen[rival]
    assert [labels for _, labels in theirs] == [labels for _, labels in ours]
    if rival != "one-shot":  # which is pruned before its first step
        assert theirs[0][0] == pytest.approx(ours[0][0], abs=1e-4)
    assert ours[0][0] == seen["dense"][0][0]


class TwoLayers(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(8, 10), nn.Linear(10, 2)

    def forward(self, inputs):
        return self.second(self.first(inputs).relu())


def task_of(schedule):
    torch.manual_seed(0)
    model = TwoLayers()
    selected = [(f"{name}.weight", module, "weight") for name, module in model.named_children()]
    return weight_rivals.Task(model, selected, schedule, None, torch.zeros(1, 8))


def test_torchs_own_pruning_is_on_the_cubic_schedule_at_our_choices():
    task = task_of(CubicSchedule(0.9, total_steps=10, warmup_steps=2, cooldown_steps=4, window=2))
    rival = weight_rivals.TorchL1(task)
    counts = []
    for _ in range(10):
        rival.step()
        counts.append(sum(int((m.weight == 0).sum()) for m, _ in task.weights))
    # Half way up the ramp, at step 4, 0.9 * (1 - 0.5³) of 100 weights are due.
    assert counts == [0, 0, 0, 79, 79, 90, 90, 90, 90, 90]
    rival.finish()
    assert sum(int((m.weight == 0).sum()) for m, _ in task.weights) == 90
    names = {f"{layer}.{name}" for layer in ("first", "second") for name in ("weight", "bias")}
    assert {name for name, _ in task.model.named_parameters()} == names


def test_pat_leaves_every_parameter_in_one_group_with_the_same_rate():
    needs("torchao-pat")
    task = task_of(CubicSchedule(0.5, total_steps=8, warmup_steps=2, cooldown_steps=2, window=2))
    optimizer = torch.optim.AdamW(task.model.parameters(), lr=1e-2)
    stepped = weight_rivals.TorchaoPat(task).around(optimizer)
    rates = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    zeros = []
    for step in range(8):
        found = [group["lr"] for group in optimizer.param_groups]
        assert found == pytest.approx([1e-2 / (1 + step)] * 2)
        task.model(torch.ones(1, 8)).sum().backward()
        stepped.step()
        optimizer.zero_grad()
        rates.step()
        zeros.append(sum(int((m.weight == 0).sum()) for m, _ in task.weights))
    held = [id(each) for group in optimizer.param_groups for each in group["params"]]
    assert sorted(held) == sorted(id(each) for each in task.model.parameters())
    assert zeros[:2] == [0, 0]
    assert zeros[5:] == [50, 50, 50]  # from our ramp's end on


def test_nncf_prunes_by_its_exponential_schedule_over_our_ramp():
    needs("nncf")
    import nncf

    task = task_of(CubicSchedule(0.99, total_steps=10, warmup_steps=2, cooldown_steps=4, window=2))
    rival = weight_rivals.Nncf(task)
    ratios = []
    for _ in range(10):
        rival.step()
        ratios.append(nncf.pruning_statistic(task.model).pruning_ratio)
    # A tenth is left half way, a hundredth in the end; it prunes the threshold's own weight too.
    assert ratios[3] == pytest.approx(0.9, abs=0.01)
    assert ratios[5:] == [0.99] * 5


# --- packages that are not there ----------------------------------------------------------------


@pytest.fixture
def without(monkeypatch):
    """Makes a package look as if it were not installed."""
    real = importlib.util.find_spec

    def hide(package):
        monkeypatch.setattr(
            importlib.util,
            "find_spec",
            lambda name, *rest: None if name == package else real(name, *rest),
        )

    return hide


@pytest.mark.parametrize(("rival", "package"), [("torchao-pat", "torchao"), ("nncf", "nncf")])
def test_a_rival_that_is_not_installed_is_refused_before_any_cell(
    rival, package, without, tmp_path, capsys
):
    without(package)
    folder = tmp_path / "study"
    assert cli.main(["study", "--criteria", "dense", rival, "--output-dir", str(folder)]) == 2
    assert f"pip install {package}" in capsys.readouterr().err
    assert not folder.exists()


def test_a_package_that_is_too_old_is_refused_with_a_version_that_will_do(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    module = "torchao.prototype.pat.optim"
    monkeypatch.setitem(sys.modules, module, types.ModuleType(module))
    with pytest.raises(ValueError, match=r"GlobalMinSparsityConstraint .* as version 0\.18 does"):
        DIGITS.check(cell_of("torchao-pat"))


def test_presets_leave_out_what_is_not_installed(without):
    without("nncf")
    found = runpy.run_path(presets.__file__)["PRESETS"]["digits-rivals"].grids[0].criteria
    assert "nncf" not in found
    assert {"dense", "platon", "torch-l1"} <= set(found)


def test_rivals_of_torch_alone_are_always_there(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert rival_names.installed(rival_names.WEIGHT_RIVALS) == ("torch-l1", "one-shot")


# --- options ------------------------------------------------------------------------------------


def test_dense_and_rivals_have_the_options_of_training_and_rivals_those_they_know():
    recipe = Recipe(
        "fake",
        lambda cell, place: {},
        options={"rate": Option(1.0), "warmup": Option(0.1), "beta": Option(0.5)},
        shared_options=("rate",),
        rivals={"other": ("warmup",)},
    )
    options = {"rate": (1, 2), "warmup": (0.1, 0.2), "beta": (0.5, 0.6)}
    found = {}
    for cell in Grid(("dense", "other", "platon"), (0.5, 0.9), (0,), options).cells(recipe, {}):
        found.setdefault(cell.criterion, []).append(cell.options)
    assert found["dense"] == [{}, {"rate": 2}]
    assert found["other"] == 2 * [{}, {"warmup": 0.2}, {"rate": 2}, {"rate": 2, "warmup": 0.2}]
    assert len(found["platon"]) == 2 * 2 * 2 * 2


def test_at_the_fair_preset_a_rival_has_three_rates_to_choose_from_on_validation():
    [grid] = [each for each in PRESETS["digits-fair"].grids if "platon" in each.criteria]
    cells = dataclasses.replace(grid, criteria=("torch-l1",), seeds=(0,)).cells(DIGITS, {})
    rates = {cell.options.get("learning_rate", 0.006) for cell in cells}
    assert len(rates) == 3
    assert len(cells) == 3 * len(grid.amounts)
    assert all(cell.options["validation"] > 0 for cell in cells)


def test_a_rival_is_one_cell_for_options_that_it_does_not_know():
    grid = Grid(("nncf", "one-shot"), (0.5,), (0,), {"beta1": (0.5, 0.9), "window": (5, 10)})
    labels = [cell.label for cell in grid.cells(DIGITS, {})]
    assert labels == ["nncf, window=5", "nncf", "one-shot"]


@pytest.mark.parametrize(
    ("criterion", "amount", "options", "named"),
    [
        ("platon", 0.5, {"pattern": "two of four"}, "pattern must be n:m"),
        ("platon", 0.5, {"pattern": "4:2"}, "n must be at least 1 and less than m"),
        ("platon", 0.6, {"pattern": "2:4"}, "amount must be at most 0.5 with pattern=2:4"),
        ("one-shot", 0.4, {"pattern": "2:4"}, "amount must be 0.5 for one-shot"),
        ("platon", 0.5, {"pattern": "3:7"}, "m must divide the inputs"),
        ("one-shot", 0.571, {"pattern": "3:7"}, "m must divide the inputs"),
        ("platon", 0.5, {"pattern": "2:4", "biases": True}, "biases must be left out"),
        ("platon", 0.5, {"pattern": "2:4", "floor": 0.2}, "floor must be left out"),
        ("torch-l1", 0.5, {"cooldown": 0.95, "warmup": 0.1}, "must be less than total_steps"),
    ],
)
def test_what_no_cell_could_run_with_is_refused(criterion, amount, options, named):
    with pytest.raises(ValueError, match=named):
        DIGITS.check(cell_of(criterion, amount, **options))


# --- n of m -------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::platon_prune.PruningWarning")
@pytest.mark.parametrize("criterion", ["platon", "magnitude", "one-shot", "torchao-pat"])
def test_a_pattern_keeps_n_of_every_m_of_what_m_divides(criterion, tmp_path):
    needs(criterion)
    measured = DIGITS.run(cell_of(criterion, 0.875, pattern="1:8"), Workspace(tmp_path))
    assert measured["selected"] == NUM_WEIGHTS - NUM_PATCH_WEIGHTS  # one colour, no group of 8
    assert measured["sparsity"] == 0.875


def test_less_than_the_patterns_amount_constrains_a_share_of_the_groups(tmp_path):
    measured = DIGITS.run(cell_of("platon", 0.25, pattern="2:4"), Workspace(tmp_path))
    assert measured["sparsity"] == 0.25


@pytest.mark.parametrize(("amount", "share"), [(0.667, 1.0), (0.6666, 1.0), (0.3333333, 0.5)])
def test_an_amount_becomes_the_share_of_groups_and_may_be_rounded(amount, share):
    assert Pattern(1, 3).share(amount) == pytest.approx(share, abs=1e-6)


def test_one_shot_keeps_the_largest_of_each_group_along_the_inputs():
    layer = nn.Linear(4, 2, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, -3, 2, 0.5], [0, 1, -1.5, 4]]))
    assert Pattern(1, 2).mask(layer, "weight").tolist() == [
        [False, True, True, False],
        [False, True, False, True],
    ]
    from transformers.pytorch_utils import Conv1D

    turned = Conv1D(2, 4)  # (in, out)
    turned.weight.data = layer.weight.data.t().clone()
    expected = Pattern(1, 2).mask(layer, "weight").t()
    assert torch.equal(Pattern(1, 2).mask(turned, "weight"), expected)


def test_a_fixed_mask_stays_where_the_dense_model_had_its_largest_weights(tmp_path):
    place = Workspace(tmp_path)
    cell = cell_of("one-shot", 0.75, pattern="1:4")
    training = _digits.Settings(**cell.settings, seed=0, num_evaluations=1, window=2)
    digits = _digits.load_digits(training)
    model = dense_of(training, digits, place.folder).model
    pattern = Pattern(1, 4)
    selected = pattern.fitting(list(find_tensors(model)))
    masks = {name: pattern.mask(module, tensor) for name, module, tensor in selected}
    run = _digits.Run("one-shot", model, 0.75)
    weight_rivals.fine_tune(run, selected, cell, digits, training, "1:4")
    for name, module, tensor in selected:
        assert not getattr(module, tensor)[~masks[name]].any()
