"""Callbacks prune n:m as they prune single weights: to the end, and resumed from a checkpoint."""

import pytest
import test_hf_trainer
import test_lightning
import torch
from transformers import BertForSequenceClassification, TrainerCallback

import platon_prune
from platon_prune.integrations.hf_trainer import PlatonCallback
from platon_prune.integrations.lightning_callback import PlatonLightningCallback

SETTINGS = dict(granularity="semi_structured", warmup_steps=3, cooldown_steps=5, window=4)
pytestmark = test_lightning.pytestmark


def test_the_trainer_prunes_2_of_4_and_the_saved_model_holds_it(tmp_path):
    trainer = test_hf_trainer._trainer(tmp_path, PlatonCallback(**SETTINGS))
    trainer.train()
    trainer.save_model(str(tmp_path / "pruned"))
    reloaded = BertForSequenceClassification.from_pretrained(tmp_path / "pruned")
    assert platon_prune.check_semi_structured(reloaded).holds
    described = reloaded.config.platon_prune
    assert (described["granularity"], described["n"], described["m"]) == ("semi_structured", 2, 4)
    assert described["sparsity"] == pytest.approx(0.5, abs=0.01)


def test_the_trainer_prunes_by_the_schedule_that_is_asked_for_and_the_config_names_it(tmp_path):
    callback = PlatonCallback(**SETTINGS, schedule="once")
    trainer = test_hf_trainer._trainer(tmp_path, callback)
    trainer.train()
    assert [choice.step for choice in callback.scheduler.history] == [4]
    assert trainer.model.config.platon_prune["schedule"] == "once"


@pytest.mark.parametrize("restored", [False, True])
def test_the_trainer_resumes_n_of_m_bit_by_bit(tmp_path, restored):
    settings = SETTINGS | dict(n=1, m=4, amount=0.75)
    whole = test_hf_trainer._trainer(
        tmp_path, PlatonCallback(**settings), save_strategy="steps", save_steps=10
    )
    whole.train()
    resumed = test_hf_trainer._trainer(
        tmp_path, PlatonCallback(**settings), restore_callback_states_from_checkpoint=restored
    )
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-10"))
    test_hf_trainer._assert_same_weights(resumed.model, whole.model)
    other = test_hf_trainer._trainer(tmp_path, PlatonCallback(**settings | dict(n=2)))
    with pytest.raises(ValueError, match="n is 2 here and 1 in the state"):
        other.train(resume_from_checkpoint=str(tmp_path / "checkpoint-10"))


def test_training_that_ends_before_the_schedule_is_warned_of_in_fractions_of_zeros(tmp_path):
    trainer = test_hf_trainer._trainer(tmp_path, PlatonCallback(**SETTINGS))

    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step == 5

    trainer.add_callback(Stop())
    with pytest.warns(platon_prune.PruningWarning, match=r"sparse, less than the 50\.0% asked"):
        trainer.train()


def test_lightning_prunes_2_of_4(tmp_path):
    module = test_lightning.Classifier()
    callback = PlatonLightningCallback(**SETTINGS)
    test_lightning._trainer(tmp_path, callback).fit(module, test_lightning._loader())
    assert platon_prune.check_semi_structured(module).holds
    assert callback.scheduler.history[-1].sparsity == 0.5


def test_the_trainer_prunes_heads_and_neurons(tmp_path):
    callback = PlatonCallback(
        **SETTINGS | dict(granularity="structured", amount=0.4, normalizer="cost")
    )
    trainer = test_hf_trainer._trainer(tmp_path, callback)
    trainer.train()
    trainer.save_model(str(tmp_path / "pruned"))
    reloaded = BertForSequenceClassification.from_pretrained(tmp_path / "pruned")
    rows = list(platon_prune.structure(reloaded))
    assert {row.kind for row in rows} == {"heads", "neurons"}
    assert sum(row.kept < row.size for row in rows) and all(row.kept for row in rows)
    assert reloaded.config.platon_prune["granularity"] == "structured"
    assert reloaded.config.platon_prune["normalizer"] == "cost"


def test_lightning_prunes_whole_neurons(tmp_path):
    class Traced(test_lightning.Classifier):
        def forward(self, inputs):
            return self.net(inputs)

    module = Traced()
    callback = PlatonLightningCallback(
        **SETTINGS | dict(granularity="structured", amount=0.5, example_inputs=torch.zeros(1, 12))
    )
    test_lightning._trainer(tmp_path, callback).fit(module, test_lightning._loader())
    into, out_of = module.net[0], module.net[3]
    gone = (into.weight == 0).all(1)
    # A neuron is a row of 12 weights, its bias, and a column of 2: all 16 weigh the same.
    assert int(gone.sum()) == 8
    assert not into.bias[gone].any() and not out_of.weight[:, gone].any()
    assert callback.scheduler.history[-1].sparsity == pytest.approx(0.5, abs=1 / 16)


@pytest.mark.parametrize("callback", [PlatonCallback, PlatonLightningCallback])
def test_an_unknown_granularity_or_a_missing_amount_is_refused_at_once(callback):
    with pytest.raises(ValueError, match="granularity must be one of unstructured, semi_structur"):
        callback(granularity="blocks")
    with pytest.raises(TypeError, match="amount must be given for unstructured pruning"):
        callback()
    with pytest.raises(TypeError, match="amount must be given for structured pruning"):
        callback(granularity="structured", budget="latency")
    assert callback(granularity="structured", budget="latency", speedup=1.5).amount is None
    assert callback(granularity="semi_structured", amount=torch.tensor(0.5).item()).amount == 0.5
