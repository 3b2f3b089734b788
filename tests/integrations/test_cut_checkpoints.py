"""A checkpoint of the trainer that was cut off while it was written is never resumed from."""

import logging
import shutil

import pytest
import torch
from tiny_trainer import Examples, pruning_callback, small_bert, trainer_arguments
from transformers import Trainer

from platon_prune.integrations.hf_checkpoints import (
    STATE_FILE,
    STATE_FOLDER,
    last_complete_checkpoint,
)


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


CUTS = [
    _without_state,
    _without_trainers_state,
    _with_half_of_trainers_state,
    _with_shards_but_no_outline,
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
