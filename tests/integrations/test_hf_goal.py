"""`PlatonCallback` with a metric: as sparse as the metric allows, under transformers' Trainer."""

import math

import pytest
import torch
from tiny_trainer import SELECTED, Examples, small_bert, trainer_arguments, zeros_of
from transformers import Trainer

from platon_prune.integrations.hf_trainer import PlatonCallback


def _trainer(folder, values=None, *, model=None, arguments=None, name="accuracy", **settings):
    """A run of 30 steps (ramp 3 to 21, cool-down of 9) whose metric is 1 but where it is told."""
    callback = PlatonCallback(
        **dict(
            amount=0.8, metric="eval_accuracy", max_drop=0.1, warmup_steps=3, cooldown_steps=9,
            window=3, schedule="linear",
        ) | settings
    )  # fmt: skip
    trainer = Trainer(
        model=model or small_bert(dropout=0.0),
        args=trainer_arguments(
            folder,
            **dict(max_steps=30, eval_strategy="steps", eval_steps=3, logging_strategy="no")
            | (arguments or {}),
        ),
        train_dataset=Examples(),
        eval_dataset=Examples(4),
        compute_metrics=lambda _: {name: (values or {}).get(trainer.state.global_step, 1.0)},
        callbacks=[callback],
    )
    return trainer, callback


def _evaluated(trainer):
    return [entry["step"] for entry in trainer.state.log_history if "eval_accuracy" in entry]


@pytest.mark.parametrize("accumulated", [1, 2])
def test_it_ends_with_what_held_finalized_and_says_so(tmp_path, accumulated, caplog):
    # 0.8 * 9 / 18 at step 12 fails; 0.8 * 6 / 18 at step 9 held.
    arguments = {"gradient_accumulation_steps": accumulated}
    trainer, callback = _trainer(tmp_path, {12: 0.5, 21: 0.95}, arguments=arguments)
    trainer.train()
    assert trainer.state.global_step == 12 + 9
    assert zeros_of(trainer.model) == round(0.8 * 6 / 18 * SELECTED)
    said = "26.7 % pruned, accuracy 0.95 (dense 1); 40 % gave 0.5"
    assert str(callback.scheduler.goal) == said
    assert trainer.model.config.platon_prune["result"] == said
    assert trainer.model.config.platon_prune["metric"] == "eval_accuracy"
    back = (
        "accuracy 0.5 at step 12 is worse than max_drop=0.1 allows (dense 1): the run goes back to "
        "26.7 % pruned and holds that until step 21"
    )
    assert [record.message for record in caplog.records][-2:] == [back, f"the run ends: {said}"]


def test_evaluations_that_are_due_are_asked_for(tmp_path):
    trainer, callback = _trainer(tmp_path, arguments={"eval_steps": 7}, warmup_steps=5)
    callback.install(trainer)  # in front of the trainer's own callbacks, as recipes do
    trainer.train()
    assert not trainer.args.eval_on_start
    # Before training, at the last step before the ramp, at the ramp's end and at the run's.
    assert _evaluated(trainer) == [0, 5, 7, 14, 21, 28, 30]
    assert callback.scheduler.goal.is_as_asked
    assert zeros_of(trainer.model) == round(0.8 * SELECTED)


def test_an_evaluation_at_each_epoch_will_do_where_one_is_on_the_ramp(tmp_path):
    trainer, _ = _trainer(tmp_path, {16: 0.5}, arguments={"eval_strategy": "epoch"})
    trainer.train()
    # Epochs of 8 steps; 3 and the end of the cool-down, 16 + 9, were asked for.
    assert sorted(set(_evaluated(trainer))) == [0, 3, 8, 16, 24, 25]
    assert zeros_of(trainer.model) == round(0.8 * 3 / 18 * SELECTED)


def test_the_cooldown_has_the_learning_rates_that_were_planned_for_it(tmp_path):
    trainer, _ = _trainer(tmp_path, {12: 0.5}, arguments={"logging_strategy": "steps",
                                                          "logging_steps": 1})  # fmt: skip
    trainer.train()
    rates = [entry["learning_rate"] for entry in trainer.state.log_history if "loss" in entry]
    planned = [1e-2 * (1 - step / 30) for step in (*range(12), *range(21, 30))]
    assert rates == pytest.approx(planned)


def test_it_resumes_bit_by_bit_where_it_went_back_and_within_the_cooldown(tmp_path):
    values = {12: 0.5, 21: 0.95}
    straight, callback = _trainer(
        tmp_path, values, arguments={"save_strategy": "steps", "save_steps": 3}
    )
    straight.train()
    for stop in (12, 15):
        resumed, again = _trainer(tmp_path, values)
        resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{stop}"))
        assert resumed.state.global_step == 21
        assert str(again.scheduler.goal) == str(callback.scheduler.goal)
        for name, value in straight.model.state_dict().items():
            assert torch.equal(value, resumed.model.state_dict()[name]), name


def test_it_resumes_bit_by_bit_where_an_epoch_ends_whose_evaluation_went_back(tmp_path):
    # Epochs of 8 steps: what fails at 16 goes back to 8, and the cool-down ends at 25.
    values, models = {16: 0.5}, [small_bert(dropout=0.0) for _ in range(2)]
    for module in (each for model in models for each in model.modules()):
        # The trainer does not repeat that evaluation, which draws a random number.
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    arguments = {"eval_strategy": "epoch", "save_strategy": "steps", "save_steps": 8}
    straight, callback = _trainer(tmp_path, values, model=models[0], arguments=arguments)
    straight.train()
    resumed, again = _trainer(tmp_path, values, model=models[1], arguments=arguments)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-16"))
    assert resumed.state.global_step == straight.state.global_step == 16 + 9
    assert str(again.scheduler.goal) == str(callback.scheduler.goal)
    for name, value in straight.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name


def test_resuming_after_the_result_trains_nothing_further(tmp_path):
    values, saving = {12: 0.5, 21: 0.95}, {"save_strategy": "steps", "save_steps": 3}
    straight, callback = _trainer(tmp_path, values, arguments=saving)
    straight.train()
    assert straight.state.global_step == 21 and callback.scheduler.goal.is_over
    resumed, again = _trainer(tmp_path, values, arguments={"weight_decay": 0.1})
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-21"))
    assert str(again.scheduler.goal) == str(callback.scheduler.goal)
    now = resumed.model.state_dict()
    for name, value in straight.model.state_dict().items():
        assert torch.equal(value, now[name]), name
    # Another run of the same trainer is trained.
    resumed.train()
    assert resumed.state.global_step == 21


@pytest.mark.parametrize(
    ("settings", "arguments", "expected"),
    [
        ({}, {}, True),
        ({"metric": "eval_loss"}, {}, False),
        ({"metric": "perplexity"}, {}, False),
        ({}, {"metric_for_best_model": "accuracy", "greater_is_better": False}, False),
        ({"metric": "loss"}, {"metric_for_best_model": "accuracy", "greater_is_better": True},
         False),
        ({"greater_is_better": True, "metric": "loss"}, {}, True),
        ({"metric": "perplexity"},
         {"metric_for_best_model": "perplexity", "greater_is_better": False}, False),
        ({"metric": "perplexity", "greater_is_better": True},
         {"metric_for_best_model": "perplexity"}, True),
    ],
)  # fmt: skip
def test_what_is_better_is_the_users_word_then_the_trainers_then_the_names(
    tmp_path, settings, arguments, expected
):
    _, callback = _trainer(tmp_path, arguments=arguments, **settings)
    assert callback.scheduler.goal.goal.greater_is_better is expected


def test_a_loss_may_rise_by_max_drop(tmp_path):
    trainer, callback = _trainer(tmp_path, metric="loss", max_drop=math.log(2))
    trainer.train()
    assert callback.scheduler.goal.baseline > 0
    assert str(callback.scheduler.goal).startswith("80 % pruned, loss ")


def test_a_metric_that_no_evaluation_has_is_refused_before_the_first_step(tmp_path):
    trainer, callback = _trainer(tmp_path, name="f1")
    before = small_bert(dropout=0.0).state_dict()
    with pytest.raises(ValueError, match=r"got 'eval_accuracy' and eval_loss, .*eval_f1"):
        trainer.train()
    assert callback.scheduler.last_step == 0
    now = trainer.model.state_dict()
    assert all(torch.equal(value, now[name]) for name, value in before.items())


@pytest.mark.parametrize(
    ("settings", "arguments", "says"),
    [
        ({"max_drop": -0.1}, {}, "max_drop must be at least 0"),
        ({"max_drop": None}, {}, "max_drop must be given for metric='eval_accuracy'"),
        ({"metric": None}, {}, "metric must be given for max_drop=0.1"),
        ({}, {"eval_strategy": "no"}, "eval_strategy must be 'steps' or 'epoch'"),
        ({}, {"load_best_model_at_end": True, "save_strategy": "steps", "save_steps": 3},
         "load_best_model_at_end must be False"),
        # The arguments make True of every name that does not end in "loss".
        ({"metric": "perplexity"}, {"metric_for_best_model": "perplexity"},
         "greater_is_better must be given to PlatonCallback for metric='eval_perplexity'"),
    ],
)  # fmt: skip
def test_what_can_not_work_is_refused_when_the_trainer_is_made(tmp_path, settings, arguments, says):
    with pytest.raises(ValueError, match=says):
        _trainer(tmp_path, arguments=arguments, **settings)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"eval_steps": 25}, "an evaluation every 25 steps: lower eval_steps"),
        # Its only evaluation on the ramp is the last, where all that is left is the dense model.
        ({"eval_steps": 21}, "an evaluation every 21 steps: lower eval_steps"),
        ({"eval_delay": 19}, "an evaluation every 3 steps from eval_delay=19 on: lower that or"),
        (
            {"eval_strategy": "epoch", "eval_delay": 3},
            "an evaluation every 7 steps from eval_delay=3",
        ),
    ],
)
def test_a_ramp_without_an_evaluation_is_refused_before_training(tmp_path, arguments, says):
    trainer, _ = _trainer(tmp_path, arguments=arguments)
    with pytest.raises(ValueError, match=f"at a step from 6 to 20, got {says}"):
        trainer.train()


def test_an_evaluation_after_a_delay_will_do_where_it_is_on_the_ramp(tmp_path):
    trainer, callback = _trainer(tmp_path, {18: 0.95, 21: 0.5}, arguments={"eval_delay": 17})
    trainer.train()
    assert _evaluated(trainer)[:4] == [0, 3, 18, 21]
    assert zeros_of(trainer.model) == round(0.8 * 15 / 18 * SELECTED)
