"""Heads and neurons of a text model in the study: cut alike by all methods, and measured."""

import copy
import itertools
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("datasets")
pytest.importorskip("matplotlib")

import datasets  # noqa: E402
import recipe_models  # noqa: E402
from transformers import BertForSequenceClassification, default_data_collator  # noqa: E402

import platon_prune  # noqa: E402
from platon_prune import cli  # noqa: E402
from platon_prune.commands.study import cut_first, one_shot, rivals, speeds  # noqa: E402
from platon_prune.commands.study import structured_text as study  # noqa: E402
from platon_prune.commands.study.asked import RECIPES  # noqa: E402
from platon_prune.commands.study.networks import multiply_adds  # noqa: E402
from platon_prune.example_inputs import text_inputs  # noqa: E402
from platon_prune.studies import results  # noqa: E402
from platon_prune.studies.cells import Cell, Workspace  # noqa: E402

SST2 = RECIPES["structured-sst2"]
HEADS, NEURONS = 4, 64


def settings(*flags, steps=None):
    return SST2.settings(steps, ["--model_name_or_path", "encoder", *flags])


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Of a tiny encoder."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "bert").mkdir()
    sizes = {"num_attention_heads": HEADS, "intermediate_size": NEURONS}
    recipe_models.save_bert(tmp_path / "bert", **sizes)
    return tmp_path / "bert"


@pytest.fixture
def encoder(folder):
    return BertForSequenceClassification.from_pretrained(folder).eval()


def trainer_of(model, data):
    """What scoring reads of a trainer."""
    return SimpleNamespace(
        model=model,
        train_dataset=data,
        data_collator=default_data_collator,
        args=SimpleNamespace(train_batch_size=4, device=torch.device("cpu")),
    )


@pytest.mark.filterwarnings("ignore:Unwrapped parameters")
def test_every_method_ends_at_the_same_multiply_adds_and_is_measured(tmp_path, folder):
    pytest.importorskip("torch_pruning")
    (tmp_path / "data").mkdir()
    files = recipe_models.save_sst2(tmp_path / "data")
    command = [
        "study", "--recipe", "structured-text", "--criteria", "tp-taylor", "platon", "dense",
        "--amounts", "0.5", "--seeds", "0", "--steps", "6", "--device", "cpu",
        "--option", "schedule=cubic,once", "--option", "window=2",
        "--output-dir", str(tmp_path / "study"),
        "--", "--model_name_or_path", str(folder), *files, "--test_file", files[-1],
        "--max_seq_length", "16", "--disable_tqdm", "true",
    ]  # fmt: skip
    assert cli.main(command) == 0
    found = list(results.read(tmp_path / "study").values())
    assert len(found) == 4
    for record in found:
        measured = record["metrics"]
        wanted = 100 if record["criterion"] == "dense" else 50
        # A head of four is 6 % of a layer; what is in no group, 1 % of the model.
        assert measured["multiply_adds"] == pytest.approx(wanted, abs=4)
        assert {"accuracy", "test_accuracy", "dense_accuracy", "parameters"} <= measured.keys()
        # The tiny model has no more than 32 positions.
        names = {name for name in measured if name.startswith("speed")}
        assert names == {"speed_1x32", "speed_32x32"}
        assert all(measured[name] > 0 for name in names)
    assert (tmp_path / "study" / "speed.png").is_file()
    # One dense model for all, and of the others only the numbers.
    assert len([p for p in (tmp_path / "study" / "dense").iterdir() if p.is_dir()]) == 1
    assert not list((tmp_path / "study" / "runs").rglob("*.safetensors"))


@pytest.mark.filterwarnings("ignore:Unwrapped parameters")
def test_a_model_that_torch_pruning_cut_is_taken_over_whole_and_can_be_saved(
    encoder, tmp_path, monkeypatch
):
    pytest.importorskip("torch_pruning")
    cuts = []
    cutting = one_shot.prune_one_shot
    monkeypatch.setattr(one_shot, "prune_one_shot", lambda *a: cuts.append(cutting(*a)) or cuts[0])
    example = text_inputs(encoder, 2, 8)
    batch = {**example, "labels": torch.tensor([0, 1])}
    first = next(encoder.parameters())
    cell = Cell(SST2.name, "tp-magnitude", 0.6, 0, {}, settings())
    cut_first._cut_by_rival_(cell, encoder, example, [batch])
    expected = cuts[0].eval()(**example).logits
    assert next(encoder.parameters()) is first
    assert torch.equal(encoder(**example).logits, expected)
    platon_prune.save(encoder, tmp_path / "cut")
    again = platon_prune.load(tmp_path / "cut")
    assert torch.allclose(again(**example).logits, expected, atol=1e-6)
    attention = again.bert.encoder.layer[0].attention.self
    assert attention.num_attention_heads == attention.query.out_features // (16 // HEADS) < HEADS


def test_torch_pruning_is_told_the_places_that_ours_has(encoder):
    subject = cut_first._subject_of(encoder, text_inputs(encoder, 1, 8))
    layers = [f"bert.encoder.layer.{i}." for i in range(2)]
    heads = [f"{layer}attention.self.{n}" for layer in layers for n in ("query", "key", "value")]
    assert subject.num_heads == dict.fromkeys(heads, HEADS)
    leaves = [name for name, module in encoder.named_modules() if not list(module.children())]
    cut = {name for name in leaves if not subject.kept_whole(name)}
    assert cut == {*heads, *(f"{layer}intermediate.dense" for layer in layers)}
    # A container that is left out would take all of its layers along.
    assert not subject.kept_whole("bert.encoder")


@pytest.mark.parametrize(("learn", "window"), [(4, 2), (5, 2), (3, 3), (5, 4), (3, 1)])
def test_ours_is_cut_by_the_last_batch_whatever_the_window(learn, window, encoder):
    examples = {"input_ids": [[i, i + 1, 2] for i in range(10)], "label": [0, 1] * 5}
    example = text_inputs(encoder, 2, 8)
    whole = multiply_adds(encoder, example)
    cell = Cell(SST2.name, "platon", 0.5, 0, {}, settings())
    given = {"schedule": "once", "window": window}
    trainer = trainer_of(encoder, datasets.Dataset.from_dict(examples))
    cut_first.cut_before_training_(cell, trainer, example, learn, given)
    assert multiply_adds(encoder, example) == pytest.approx(whole / 2, rel=0.1)
    study.check(Cell(SST2.name, "platon", 0.5, 0, {**given, "learn": learn}, settings()))


def test_scoring_reads_every_example_once_a_pass_and_draws_nothing(encoder):
    data = datasets.Dataset.from_dict({"input_ids": [[i] * 3 for i in range(10)], "idx": [7] * 10})
    trainer = trainer_of(encoder, data)
    before = torch.get_rng_state()

    def seen(seed):
        batches = itertools.islice(cut_first._batches(trainer, seed), 6)
        return torch.cat([batch["input_ids"][:, 0] for batch in batches]).tolist()

    one, other = seen(1), seen(2)
    assert sorted(one[:10]) == sorted(one[10:]) == list(range(10))
    assert one == seen(1) != other
    assert torch.equal(torch.get_rng_state(), before)


def test_steps_are_those_after_the_dense_model():
    cell = Cell(SST2.name, "platon", 0.5, 0, {"window": 5}, settings(steps=40))
    assert "--max_steps" not in cell.settings["flags"]
    flags = study._flags_of(cell, Path("dense"))
    assert flags[flags.index("--max_steps") + 1] == "40"
    assert flags[flags.index("--model_name_or_path") + 1] == "dense"


@pytest.mark.parametrize(
    ("criterion", "options", "is_cut_first"),
    [
        ("platon", {}, False),
        ("platon", {"schedule": "once"}, True),
        ("platon", {"schedule": "once", "learn": 0}, False),  # after the training's warm-up
        ("tp-taylor", {}, True),
        ("dense", {}, False),
    ],
)
def test_what_is_cut_first_is_trained_as_a_dense_model(criterion, options, is_cut_first):
    cell = Cell(SST2.name, criterion, 0.5, 0, options, settings())
    assert study._is_cut_first(cell) is is_cut_first
    flags = study._flags_of(cell, Path("dense"))
    is_dense = is_cut_first or criterion == "dense"
    assert flags[flags.index("--amount") + 1] == ("0" if is_dense else "0.5")
    assert ("--shrink" in flags) is not is_dense


def test_a_model_that_is_fine_tuned_already_is_measured_once_and_is_where_all_seeds_start(
    tmp_path, folder, monkeypatch
):
    own = ["--model_name_or_path", str(folder)]
    given = study.from_fine_tuned("structured-text", RECIPES["structured-text"].settings(6, own))
    calls = []
    monkeypatch.setattr(study.glue, "train", lambda *a, **k: calls.append((a, k)))
    starts = {
        study._start_of(Cell("structured-text", name, 0.5, seed, {}, given), Workspace(tmp_path))
        for name, seed in [("platon", 1), ("tp-taylor", 2)]
    }
    [(model, measured)] = starts
    assert model == folder
    assert all(call[1] == {"trains": False} and call[0][2] == measured for call in calls)


@pytest.mark.parametrize(
    ("recipe", "named"),
    [
        ("structured-sst2", "--model_name_or_path must be a folder with --fine_tuned, got 'm'"),
        ("sst2", "--fine_tuned must go with --recipe structured-text or structured-sst2, got sst2"),
    ],
)
def test_only_a_folder_can_be_fine_tuned_already_and_only_where_all_cells_start_from_it(
    recipe, named, tmp_path, capsys
):
    place = ["--output-dir", str(tmp_path / "study")]
    command = ["study", "--recipe", recipe, "--fine_tuned", *place]
    assert cli.main([*command, "--", "--model_name_or_path", "m"]) == 2
    assert named in capsys.readouterr().err
    assert not (tmp_path / "study").exists()


@pytest.mark.parametrize("flag", ["--shrink", "--pruning_budget=macs", "--pruning-kinds", "--seed"])
def test_flags_that_the_recipe_sets_itself_are_refused(flag):
    with pytest.raises(ValueError, match="is set by the grid for each cell: leave it out"):
        settings(flag)


@pytest.mark.parametrize("flag", ["--max_drop=0.1", "--metric=loss", "--pruning-speedup=2"])
@pytest.mark.parametrize("recipe", ["glue", "clm", "sst2", "structured-text"])
def test_flags_that_decide_how_much_is_pruned_are_refused_whatever_the_recipe(recipe, flag):
    with pytest.raises(ValueError, match="would prune another amount than the grid has"):
        RECIPES[recipe].settings(None, ["--model_name_or_path", "m", flag])


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"learn": 20}, "learn must go with schedule=once, got schedule=cubic"),
        ({"schedule": "once", "learn": -1}, "learn must be a number of batches"),
        ({"schedule": "once", "learn": 5}, "window"),  # of ten: no score before it ends
        ({"learning_rate": -1.0}, "learning_rate must be above 0"),
        ({"warmup": 0.6, "cooldown": 0.5}, "must be less than total_steps"),
        ({"beta1": 2.0}, "beta1"),
    ],
)
def test_options_that_no_cell_could_have_are_refused(options, named):
    with pytest.raises(ValueError, match=named):
        SST2.check(Cell(SST2.name, "platon", 0.5, 0, options, settings(steps=100)))


def test_a_rival_that_is_not_installed_is_named_with_what_to_install(monkeypatch):
    monkeypatch.setattr(rivals, "is_installed", lambda: False)
    with pytest.raises(ValueError, match=r"tp-taylor: pip install 'platon-prune\[structured\]'"):
        SST2.check(Cell(SST2.name, "tp-taylor", 0.5, 0, {}, settings()))


def test_a_speed_is_the_dense_time_over_the_models_whichever_clock(encoder, monkeypatch):
    dense, threads = copy.deepcopy(encoder), torch.get_num_threads()
    own, wall = iter([6.0, 2.0]), iter([9.0, 3.0])

    def clock_of(times):
        return lambda call: (call(), next(times))[1]

    def clock(device, processor_time=False):
        return clock_of(own if processor_time else wall)

    monkeypatch.setattr(speeds, "SIZES", ((1, 8), (1, 64)))  # the latter beyond its 32 positions
    monkeypatch.setattr(speeds, "clock", clock)
    monkeypatch.setattr(speeds, "shortest_times", lambda calls, timed: list(map(timed, calls)))
    assert speeds.speeds(encoder, dense, "cpu") == {
        "speed_1x8": 3,
        "milliseconds_1x8": 2,
        "dense_milliseconds_1x8": 6,
        "wall_speed_1x8": 3,
    }
    assert torch.get_num_threads() == threads
