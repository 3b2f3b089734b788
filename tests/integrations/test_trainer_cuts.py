"""The trainer's model gets smaller as it is pruned, and a checkpoint of it is resumed."""

from __future__ import annotations

from pathlib import Path

import pytest
import test_hf_trainer
import test_lightning
import torch

from platon_prune.integrations.hf_trainer import PlatonCallback
from platon_prune.integrations.lightning_callback import PlatonLightningCallback

pytestmark = test_lightning.pytestmark

SETTINGS = dict(
    granularity="structured", amount=0.4, warmup_steps=3, cooldown_steps=5, window=4, cut_after=1
)


def test_the_model_gets_smaller_and_a_checkpoint_of_it_is_resumed_bit_by_bit(
    tmp_path: Path,
) -> None:
    whole = test_hf_trainer._trainer(
        tmp_path, PlatonCallback(**SETTINGS), save_strategy="steps", save_steps=13
    )
    before = whole.model.num_parameters()
    whole.train()
    assert whole.model.num_parameters() < before
    callback = PlatonCallback(**SETTINGS)
    resumed = test_hf_trainer._trainer(tmp_path, callback)
    callback.install(resumed)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-13"))
    state, expected = resumed.model.state_dict(), whole.model.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], value) for name, value in expected.items())


def test_the_best_model_can_not_be_loaded_into_a_smaller_one(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="load_best_model_at_end must be False with cut_after"):
        test_hf_trainer._trainer(
            tmp_path, PlatonCallback(**SETTINGS), load_best_model_at_end=True,
            save_strategy="steps", save_steps=5, eval_strategy="steps", eval_steps=5,
        )  # fmt: skip


def test_lightning_follows_its_optimizer_and_so_cuts_its_state_along(tmp_path: Path) -> None:
    module = test_lightning.Classifier()
    callback = PlatonLightningCallback(**SETTINGS, example_inputs=torch.ones(2, 12))
    # The module is what is pruned, and its network is what takes such inputs.
    module.forward = module.net.forward  # type: ignore[method-assign]
    test_lightning._trainer(tmp_path, callback).fit(module, test_lightning._loader())
    assert module.net[0].out_features == module.net[3].in_features < 16
