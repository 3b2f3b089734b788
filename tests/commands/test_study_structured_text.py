"""Heads and neurons of a text model in the study: cut alike by all methods, and measured."""


import pytest

pytest.importorskip("transformers")
pytest.importorskip("datasets")
pytest.importorskip("matplotlib")

import recipe_models  # noqa: E402

from platon_prune import cli  # noqa: E402
from platon_prune.studies import results  # noqa: E402


def given(folder, monkeypatch):
    """Flags of a tiny encoder and tiny data, a test file among them."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name in ("bert", "data"):
        (folder / name).mkdir()
    model = recipe_models.save_bert(folder / "bert", num_attention_heads=4, intermediate_size=64)
    files = recipe_models.save_sst2(folder / "data")
    return ["--", "--model_name_or_path", model, *files, "--test_file", files[-1],
            "--max_seq_length", "16", "--disable_tqdm", "true"]  # fmt: skip


def run(folder, own, *grid, recipe="structured-text"):
    command = ["study", "--recipe", recipe, "--seeds", "0", "--steps", "6", "--device", "cpu"]
    assert cli.main([*command, *grid, "--output-dir", str(folder), *own]) == 0
    return list(results.read(folder).values())


@pytest.mark.filterwarnings("ignore:Unwrapped parameters")
def test_every_method_ends_at_the_same_multiply_adds_and_is_measured(tmp_path, monkeypatch):
    pytest.importorskip("torch_pruning")
    grid = ["--criteria", "tp-taylor", "tp-hessian", "platon", "dense", "--amounts", "0.5",
            "--option", "schedule=cubic,once", "--option", "window=2"]  # fmt: skip
    found = run(tmp_path / "study", given(tmp_path, monkeypatch), *grid)
    assert len(found) == 5
    for record in found:
        measured = record["metrics"]
        wanted = 100 if record["criterion"] == "dense" else 50
        # A head of four is 6 % of a layer; what is in no group, 1 % of the model.
        assert measured["multiply_adds"] == pytest.approx(wanted, abs=4)
        assert {"accuracy", "test_accuracy", "dense_accuracy", "parameters"} <= measured.keys()
        # The tiny model has no more than 32 positions.
        speeds = {name for name in measured if name.startswith("speed")}
        assert speeds == {"speed_1x32", "speed_32x32"}
        assert all(measured[name] > 0 for name in speeds)
    assert (tmp_path / "study" / "speed.png").is_file()
    # One dense model for all, and of the others only the numbers.
    assert len([p for p in (tmp_path / "study" / "dense").iterdir() if p.is_dir()]) == 1
    assert not list((tmp_path / "study" / "runs").rglob("*.safetensors"))
