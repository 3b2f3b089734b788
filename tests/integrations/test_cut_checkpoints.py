"""A checkpoint of the trainer that was cut off while it was written is never resumed from."""

import json
import logging
import shutil

import pytest
import torch
from tiny_trainer import Examples, pruning_callback, small_bert, trainer_arguments
from transformers import Trainer
from transformers.trainer_callback import TrainerState

from platon_prune.integrations import hf_trainer
from platon_prune.integrations.hf_checkpoints import STATE_FILE, STATE_FOLDER
from platon_prune.integrations.hf_seals import SEAL, last_complete_checkpoint


def _trainer(folder):
    arguments = trainer_arguments(folder, save_strategy="steps", save_steps=5, max_steps=10)
    callback = pruning_callback(warmup_steps=1, cooldown_steps=2)
    trainer = Trainer(model=small_bert(), args=arguments, train_dataset=Examples())
    callback.install(trainer)
    return trainer


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    trainer = _trainer(folder)
    trainer.train()
    return folder, trainer.model.state_dict()


@pytest.fixture
def folder(whole_run, tmp_path):
    for name in ("checkpoint-5", "checkpoint-10"):
        shutil.copytree(whole_run[0] / name, tmp_path / name)
    return tmp_path


def _without_state(checkpoint):
    (checkpoint / STATE_FILE).rename(checkpoint / "platon_scheduler.new")


def _without_trainers_state(checkpoint):
    (checkpoint / "trainer_state.json").unlink()


def _with_half_of_trainers_state(checkpoint):
    path = checkpoint / "trainer_state.json"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _with_shards_but_no_outline(checkpoint):
    (checkpoint / STATE_FILE).unlink()
    (checkpoint / STATE_FOLDER).mkdir()
    (checkpoint / STATE_FOLDER / ".metadata").touch()


def _without_seal(checkpoint):
    (checkpoint / SEAL).unlink()


def _with_half_of_a_seal(checkpoint):
    path = checkpoint / SEAL
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _with_half_of_the_weights(checkpoint):
    path = checkpoint / "model.safetensors"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _with_another_files_bytes(name):
    def cut(checkpoint):
        # As where it is written over by a run that differs: as long, and as whole.
        path = checkpoint / name
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)

    return cut


CUTS = [
    _without_state,
    _without_trainers_state,
    _with_half_of_trainers_state,
    _with_shards_but_no_outline,
    _without_seal,
    _with_half_of_a_seal,
    _with_half_of_the_weights,
    _with_another_files_bytes("model.safetensors"),
    _with_another_files_bytes("optimizer.pt"),
    _with_another_files_bytes("rng_state.pth"),
    shutil.rmtree,
]


@pytest.mark.parametrize("cut", CUTS)
def test_the_one_before_it_is_resumed_instead(whole_run, folder, caplog, cut):
    cut(folder / "checkpoint-10")
    with caplog.at_level(logging.WARNING, "platon_prune"):
        assert last_complete_checkpoint(folder) == str(folder / "checkpoint-5")
    passed = [record for record in caplog.messages if "checkpoint-10 is passed over" in record]
    assert len(passed) == (cut is not shutil.rmtree)
    trainer = _trainer(folder)
    trainer.train(resume_from_checkpoint=True)
    for name, tensor in trainer.model.state_dict().items():
        assert torch.equal(tensor, whole_run[1][name]), name


def test_the_newest_is_the_one_of_the_most_steps_not_of_the_last_name(folder):
    assert last_complete_checkpoint(folder) == str(folder / "checkpoint-10")
    (folder / "checkpoint-best").mkdir()
    assert last_complete_checkpoint(folder) == str(folder / "checkpoint-10")


def test_where_there_is_none_the_trainer_says_so(tmp_path):
    assert last_complete_checkpoint(tmp_path) is None
    with pytest.raises(ValueError, match="No valid checkpoint found"):
        _trainer(tmp_path).train(resume_from_checkpoint=True)


def test_one_that_is_named_is_refused(tmp_path):
    _trainer(tmp_path).train()
    _without_state(tmp_path / "checkpoint-10")
    with pytest.raises(ValueError, match="save_only_model, or cut off, can't be resumed"):
        _trainer(tmp_path).train(resume_from_checkpoint=str(tmp_path / "checkpoint-10"))


# --- written over -------------------------------------------------------------------------------

CALLED_WHILE_SAVING = ["_save_optimizer_and_scheduler", "_save_rng_state", "save_to_json", "seal"]


@pytest.mark.case
@pytest.mark.parametrize("where", CALLED_WHILE_SAVING)
def test_a_complete_one_that_is_written_over_and_cut_off_is_passed_over(
    whole_run, folder, monkeypatch, where
):
    owner = {"save_to_json": TrainerState, "seal": hf_trainer}.get(where, Trainer)

    def cut_off(*args, **kwargs):
        raise KeyboardInterrupt

    trainer = _trainer(folder)
    # Other weights in the optimizer, so that what is written over is not as it was.
    trainer.args.learning_rate = 0.5
    monkeypatch.setattr(owner, where, cut_off)
    with pytest.raises(KeyboardInterrupt):
        trainer.train(resume_from_checkpoint=str(folder / "checkpoint-5"))
    monkeypatch.undo()
    assert last_complete_checkpoint(folder) == str(folder / "checkpoint-5")
    trainer = _trainer(folder)
    trainer.train(resume_from_checkpoint=True)
    for name, tensor in trainer.model.state_dict().items():
        assert torch.equal(tensor, whole_run[1][name]), name
    assert last_complete_checkpoint(folder) == str(folder / "checkpoint-10")


def test_a_torn_one_that_is_named_is_refused(folder):
    _with_another_files_bytes("optimizer.pt")(folder / "checkpoint-5")
    with pytest.raises(ValueError, match="checkpoint-5 must hold the files of one save"):
        _trainer(folder).train(resume_from_checkpoint=str(folder / "checkpoint-5"))


def test_a_config_that_is_corrected_by_hand_does_not_tear_it(folder):
    config = folder / "checkpoint-10" / "config.json"
    config.write_text(config.read_text() + "\n")
    (folder / "checkpoint-10" / "README.md").write_text("notes")
    assert last_complete_checkpoint(folder) == str(folder / "checkpoint-10")


def test_the_seal_names_the_run_the_step_and_what_is_resumed_from(whole_run):
    folder = whole_run[0] / "checkpoint-10"
    content = json.loads((folder / SEAL).read_text())
    assert content["step"] == 10 and set(content["files"]) >= {
        "model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json",
        STATE_FILE,
    }  # fmt: skip
    state = torch.load(folder / STATE_FILE, weights_only=True)
    assert content["run"] == state["run"]


def test_a_save_that_fails_leaves_the_trainers_limit_as_it_was_for_the_next_run(
    tmp_path, monkeypatch
):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    trainer = _trainer(tmp_path)
    trainer.args.save_total_limit = 1
    monkeypatch.setattr(TrainerState, "save_to_json", full)
    with pytest.raises(OSError):
        trainer.train()
    monkeypatch.undo()
    trainer.train()
    assert trainer.args.save_total_limit == 1
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-10"]
