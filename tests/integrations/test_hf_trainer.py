"""`PlatonCallback`: pruning, checkpoints and resuming through transformers' Trainer."""

import gc
import json
import logging
import shutil
import warnings
import weakref
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_trainer import (
    SELECTED,
    Examples,
    pruning_callback,
    small_bert,
    trainer_arguments,
    zeros_of,
)
from transformers import (
    BertForSequenceClassification,
    EarlyStoppingCallback,
    Trainer,
    TrainerCallback,
)

import platon_prune
from platon_prune import plots
from platon_prune.integrations.hf_checkpoints import STATE_FILE
from platon_prune.integrations.hf_trainer import PlatonCallback


def _trainer(folder, callback, model=None, **changes):
    callbacks = [] if callback is None else [callback]
    model = small_bert() if model is None and "model_init" not in changes else model
    model_init = changes.pop("model_init", None)
    return Trainer(
        model=model,
        model_init=model_init,
        args=trainer_arguments(folder, **changes),
        train_dataset=Examples(),
        eval_dataset=Examples(16),
        callbacks=callbacks,
    )


def _assert_same_weights(one, other):
    for (name, value), (other_name, expected) in zip(
        sorted(one.state_dict().items()), sorted(other.state_dict().items()), strict=True
    ):
        assert name == other_name
        assert torch.equal(value, expected), name


def test_the_callback_alone_prunes_to_the_exact_count_and_finalizes(tmp_path):
    callback = pruning_callback()
    trainer = _trainer(tmp_path, callback)
    assert callback.scheduler is not None, "set up when the trainer is made"
    trainer.train()
    model = trainer.model
    assert zeros_of(model) == round(0.8 * SELECTED)
    assert not any(m._forward_pre_hooks for m in model.modules())
    assert type(model.bert.encoder.layer[0].intermediate.dense) is torch.nn.Linear
    trainer.save_model(str(tmp_path / "final"))
    reloaded, info = BertForSequenceClassification.from_pretrained(
        tmp_path / "final", output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"]
    _assert_same_weights(reloaded, model)
    assert reloaded.config.platon_prune["sparsity"] == pytest.approx(
        round(0.8 * SELECTED) / SELECTED
    )
    assert reloaded.config.platon_prune["criterion"] == "platon"
    assert reloaded.config.platon_prune["total_steps"] == 20


def test_steps_come_from_the_trainer_and_fractions_are_of_the_run(tmp_path):
    seen = []

    class Spy(PlatonCallback):
        def on_step_end(self, args, state, control, **kwargs):
            seen.append((self.scheduler.schedule, self.scheduler.last_step))

    spy = Spy(0.5, warmup_steps=0.25, cooldown_steps=0.5, window=2)
    # 64 examples in batches of 8, two epochs: 16 steps.
    _trainer(tmp_path, spy, max_steps=-1, num_train_epochs=2).train()
    schedule, last_step = seen[-1]
    assert last_step == 16
    assert (schedule.total_steps, schedule.warmup_steps, schedule.cooldown_steps) == (16, 4, 8)


def test_accumulated_gradients_are_one_step(tmp_path):
    callback = pruning_callback(warmup_steps=0, cooldown_steps=1, window=2)
    trainer = _trainer(
        tmp_path, callback, max_steps=6, per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
    )  # fmt: skip
    trainer.train()
    assert zeros_of(trainer.model) == round(0.8 * SELECTED)


def test_logs_hold_target_measured_sparsity_and_threshold(tmp_path):
    callback = pruning_callback()
    trainer = _trainer(tmp_path, callback)
    trainer.train()
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert [entry["step"] for entry in logged] == [5, 10, 15, 20]
    last = logged[-1]
    assert last["pruning_amount"] == 0.8
    assert last["pruning_sparsity"] == pytest.approx(0.8, abs=1 / SELECTED)
    assert last["pruning_threshold"] > 0
    # At 5 the last choice was that of step 4, one step into a ramp of 12.
    assert logged[0]["pruning_sparsity"] == pytest.approx(
        round(0.8 * (1 - (11 / 12) ** 3) * SELECTED) / SELECTED
    )
    assert [entry["step"] for entry in callback.history] == [5, 10, 15, 20, 20]


def test_installed_it_reaches_tensorboard_the_progress_bar_and_the_model_card(tmp_path, capsys):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trainer = _trainer(
        tmp_path, None, report_to=["tensorboard"], disable_tqdm=False
    )  # fmt: skip
    pruning_callback().install(trainer)
    trainer.train()
    folder = next(path.parent for path in tmp_path.rglob("events.out.tfevents.*"))
    events = EventAccumulator(str(folder))
    events.Reload()
    sparsities = events.Scalars("train/pruning_sparsity")
    assert [event.step for event in sparsities] == [5, 10, 15, 20, 20]
    assert sparsities[-1].value == pytest.approx(0.8, abs=1e-3)
    assert "train/pruning_threshold" in events.Tags()["scalars"]
    assert "sparsity=80.0%" in capsys.readouterr().err
    assert zeros_of(trainer.model) == round(0.8 * SELECTED)
    trainer.create_model_card(model_name="tiny")
    card = (tmp_path / "README.md").read_text()
    assert "## Pruning" in card
    assert "| criterion | platon |" in card
    assert "| sparsity | 0.8" in card


def test_installing_a_callback_that_the_trainer_has_does_not_prune_twice(tmp_path):
    callback = pruning_callback()
    trainer = _trainer(tmp_path, callback)
    assert callback.install(trainer) is callback
    assert trainer.callback_handler.callbacks[0] is callback
    assert trainer.callback_handler.callbacks.count(callback) == 1
    trainer.train()
    assert zeros_of(trainer.model) == round(0.8 * SELECTED)


# --- checkpoints --------------------------------------------------------------------------------


@pytest.mark.parametrize("masking", ["step", "window"])
@pytest.mark.parametrize("stop", [3, 10, 17])  # warm-up, within a window of the ramp, final phase
def test_a_resumed_run_is_bit_identical_to_an_uninterrupted_one(tmp_path, masking, stop):
    whole = _trainer(
        tmp_path / "whole",
        pruning_callback(masking=masking),
        save_strategy="steps",
        save_steps=stop,
    )
    whole.train()
    resumed = _trainer(tmp_path / "whole", pruning_callback(masking=masking))
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{stop}"))
    _assert_same_weights(resumed.model, whole.model)
    assert zeros_of(resumed.model) == round(0.8 * SELECTED)


def test_a_moved_checkpoint_resumes_when_the_callback_is_installed(tmp_path):
    whole = _trainer(tmp_path / "whole", pruning_callback(), save_strategy="steps", save_steps=10)
    whole.train()
    shutil.move(tmp_path / "whole", tmp_path / "moved")
    resumed = _trainer(tmp_path / "other", None)
    pruning_callback().install(resumed)
    resumed.train(resume_from_checkpoint=str(tmp_path / "moved" / "checkpoint-10"))
    _assert_same_weights(resumed.model, whole.model)


def test_every_checkpoint_is_an_ordinary_sparse_model(tmp_path):
    trainer = _trainer(tmp_path, pruning_callback(), save_strategy="steps", save_steps=6)
    trainer.train()
    for step, choice in ((6, 4), (12, 12), (18, 16)):
        folder = tmp_path / f"checkpoint-{step}"
        assert (folder / STATE_FILE).is_file()
        keys = set(load_file(folder / "model.safetensors"))
        assert not any(key.endswith(("_orig", "_mask")) for key in keys)
        model, info = BertForSequenceClassification.from_pretrained(
            folder, output_loading_info=True
        )
        assert not info["missing_keys"] and not info["unexpected_keys"]
        left = max(0.0, 1 - (choice - 3) / 12)
        assert zeros_of(model) == round((0.8 - 0.8 * left**3) * SELECTED), step


def test_the_pruners_file_is_complete_before_older_checkpoints_go(tmp_path, monkeypatch):
    import transformers.trainer as module

    seen = []
    rotate = module.rotate_checkpoints

    def spy(*args, **kwargs):
        newest = max(tmp_path.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
        saved = torch.load(newest / STATE_FILE, weights_only=True)
        seen.append((newest.name, saved["scheduler"]["last_step"]))
        return rotate(*args, **kwargs)

    monkeypatch.setattr(module, "rotate_checkpoints", spy)
    trainer = _trainer(
        tmp_path, pruning_callback(), save_strategy="steps", save_steps=5, save_total_limit=1
    )
    trainer.train()
    assert seen == [(f"checkpoint-{step}", step) for step in (5, 10, 15, 20)]
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-20"]


def test_the_best_model_is_loaded_at_the_end_where_it_is_not_the_last(tmp_path):
    steps = iter([0.9, 0.5, 0.7, 0.6])  # losses of the evaluations: the second is the best

    trainer = _trainer(
        tmp_path, pruning_callback(cooldown_steps=12, warmup_steps=1), save_strategy="steps",
        save_steps=5, eval_strategy="steps", eval_steps=5, load_best_model_at_end=True,
        metric_for_best_model="made_up", greater_is_better=False,
    )  # fmt: skip
    trainer.compute_metrics = lambda _: {"made_up": next(steps)}
    trainer.train()
    best = BertForSequenceClassification.from_pretrained(tmp_path / "checkpoint-10")
    assert trainer.state.best_model_checkpoint.endswith("checkpoint-10")
    _assert_same_weights(trainer.model, best)
    assert zeros_of(trainer.model) == round(0.8 * SELECTED)  # the ramp ended at step 8
    assert not any(m._forward_pre_hooks for m in trainer.model.modules())


def test_a_best_model_from_before_the_end_of_the_ramp_is_warned_about(tmp_path):
    steps = iter([0.1, 0.5, 0.7, 0.6])
    trainer = _trainer(
        tmp_path, pruning_callback(), save_strategy="steps", save_steps=5, eval_strategy="steps",
        eval_steps=5, load_best_model_at_end=True, metric_for_best_model="made_up",
        greater_is_better=False,
    )  # fmt: skip
    trainer.compute_metrics = lambda _: {"made_up": next(steps)}
    with pytest.warns(platon_prune.PruningWarning, match="less than the 80.0% asked for"):
        trainer.train()


def test_a_run_that_is_stopped_early_is_warned_about(tmp_path):
    trainer = _trainer(
        tmp_path, pruning_callback(), eval_strategy="steps", eval_steps=2, save_strategy="steps",
        save_steps=2, load_best_model_at_end=True, metric_for_best_model="worse",
        greater_is_better=False,
    )  # fmt: skip
    losses = iter(range(100))
    trainer.compute_metrics = lambda _: {"worse": float(next(losses))}
    trainer.add_callback(EarlyStoppingCallback(early_stopping_patience=1))
    with pytest.warns(platon_prune.PruningWarning, match="before the schedule did") as caught:
        trainer.train()
    assert trainer.state.global_step == 4
    assert {each.filename for each in caught} == {__file__}  # not the trainer's


def test_a_run_that_ends_early_and_keeps_its_masks_says_so_once(tmp_path):
    trainer = _trainer(tmp_path, pruning_callback(finalize=False))

    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step == 4

    trainer.add_callback(Stop())
    with pytest.warns(platon_prune.PruningWarning, match="before the schedule did"):
        trainer.train()
    platon_prune.remove(trainer.model)


def test_a_run_that_is_too_short_leads_to_the_trainers_own_settings(tmp_path):
    trainer = _trainer(tmp_path, PlatonCallback(amount=0.8), max_steps=3)
    with pytest.raises(
        ValueError, match=r"the trainer's steps, got 3 \(set by max_steps, .*the first window must"
    ):
        trainer.train()


def test_a_callback_shows_the_run(tmp_path):
    callback = pruning_callback()
    trainer = _trainer(tmp_path, callback)
    assert repr(callback) == "PlatonCallback(amount=0.8, before training)"
    trainer.train()
    assert "amount=0.8, PlatonScheduler(step 20 of 20, amount 0.8 of 0.8, sparsity" in repr(
        callback
    )


def test_a_second_run_prunes_again(tmp_path):
    callback = pruning_callback()
    trainer = _trainer(tmp_path, callback)
    trainer.train()
    trainer.train()
    assert zeros_of(trainer.model) == round(0.8 * SELECTED)
    assert type(trainer.model.bert.encoder.layer[0].intermediate.dense) is torch.nn.Linear
    assert callback.scheduler.last_step == 20


def test_what_the_run_did_can_be_seen_after_it(tmp_path):
    callback = pruning_callback(mask_history=tmp_path / "masks.bin")
    trainer = _trainer(tmp_path, callback)
    trainer.train()
    scheduler = callback.scheduler
    assert [choice.step for choice in scheduler.history] == [4, 8, 12, 15, 16, 20]
    assert scheduler.history[-1].sparsity == round(0.8 * SELECTED) / SELECTED
    left = 1 - (8 - 3) / 12
    pruned = sum(int((~mask).sum()) for mask in scheduler.masks(9).values())
    assert pruned == round((0.8 - 0.8 * left**3) * SELECTED)
    weights = dict(trainer.model.named_parameters())
    for name, mask in scheduler.masks(20).items():
        assert not weights[name][~mask].any(), name
    for draw in (plots.schedule, plots.layers, plots.regrowth):
        draw(scheduler, tmp_path / "figure.png")
        assert (tmp_path / "figure.png").stat().st_size > 10_000
    assert callback.description()["sparsity"] == scheduler.history[-1].sparsity


def test_a_finished_run_keeps_no_model_alive(tmp_path):
    callback = pruning_callback()
    trainer = _trainer(tmp_path, callback, model=Bare())
    trainer.train()
    gone = [weakref.ref(trainer.model), weakref.ref(trainer.model.weight)]
    del trainer
    gc.collect()
    assert [each() for each in gone] == [None, None]
    assert callback.scheduler.history[-1].step == 20


def test_masks_may_be_left_on(tmp_path):
    callback = pruning_callback(finalize=False)
    trainer = _trainer(tmp_path, callback)
    trainer.train()
    assert callback.scheduler.sparsity() == pytest.approx(0.8, abs=1 / SELECTED)
    callback.scheduler.remove()
    assert zeros_of(trainer.model) == round(0.8 * SELECTED)


def test_a_model_that_is_finalized_by_hand_is_pruned_again_by_the_same_or_another_callback(
    tmp_path,
):
    callback = pruning_callback(finalize=False)
    trainer = _trainer(tmp_path, callback)
    trainer.train()
    described = callback.description()
    platon_prune.remove(trainer.model)
    assert callback.description() == described
    assert described["sparsity"] == pytest.approx(0.8, abs=1 / SELECTED)
    trainer.train()
    assert callback.scheduler.sparsity() == pytest.approx(0.8, abs=1 / SELECTED)
    platon_prune.remove(trainer.model)
    _trainer(tmp_path, pruning_callback(), model=trainer.model).train()
    assert zeros_of(trainer.model) == round(0.8 * SELECTED)


def test_a_retry_with_a_smaller_batch_starts_afresh(tmp_path, monkeypatch):
    callback = pruning_callback()
    trainer = _trainer(tmp_path, callback, auto_find_batch_size=True)
    training_step, sizes = trainer.training_step, []

    def out_of_memory_at_first(model, inputs, *args, **kwargs):
        sizes.append(len(inputs["input_ids"]))
        if sizes.count(8) == 6 and sizes[-1] == 8:
            raise RuntimeError("CUDA out of memory. Tried to allocate")
        return training_step(model, inputs, *args, **kwargs)

    monkeypatch.setattr(trainer, "training_step", out_of_memory_at_first)
    trainer.train()
    assert sizes.count(8) == 6 and 7 in sizes
    assert zeros_of(trainer.model) == round(0.8 * SELECTED)


def test_a_model_made_anew_for_each_run_is_pruned(tmp_path):
    callback = pruning_callback()
    trainer = _trainer(tmp_path, callback, model_init=lambda: small_bert())
    for _ in range(2):  # as hyperparameter search does
        trainer.train()
        assert zeros_of(trainer.model) == round(0.8 * SELECTED)


def test_restoring_callback_states_from_the_checkpoint_resumes_too(tmp_path):
    whole = _trainer(tmp_path, pruning_callback(), save_strategy="steps", save_steps=10)
    whole.train()
    resumed = _trainer(tmp_path, pruning_callback(), restore_callback_states_from_checkpoint=True)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-10"))
    _assert_same_weights(resumed.model, whole.model)


def test_a_callback_that_the_trainer_made_anew_and_the_users_own_hold_the_same(tmp_path):
    _trainer(tmp_path, pruning_callback(), save_strategy="steps", save_steps=10).train()
    own = pruning_callback()
    resumed = _trainer(tmp_path, own, restore_callback_states_from_checkpoint=True)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-10"))
    anew = next(c for c in resumed.callback_handler.callbacks if isinstance(c, PlatonCallback))
    assert anew is not own
    assert own.scheduler is anew.scheduler and own.scheduler.last_step == 20
    assert own.history is anew.history and own.history[-1]["step"] == 20
    assert not own.has_masks and not anew.has_masks


def test_the_trainers_compiled_model_is_pruned(tmp_path):
    callback = pruning_callback()
    trainer = _trainer(
        tmp_path, callback, model=small_bert(dropout=0.0), torch_compile=True,
        torch_compile_backend="eager",
    )  # fmt: skip
    trainer.train()
    assert zeros_of(trainer.model) == round(0.8 * SELECTED)


def test_restored_callback_states_keep_what_was_installed(tmp_path):
    whole = _trainer(tmp_path / "whole", pruning_callback(), save_strategy="steps", save_steps=10)
    whole.train()
    shutil.move(tmp_path / "whole", tmp_path / "moved")
    resumed = _trainer(tmp_path / "other", None, restore_callback_states_from_checkpoint=True)
    callback = pruning_callback().install(resumed)
    resumed.train(resume_from_checkpoint=str(tmp_path / "moved" / "checkpoint-10"))
    _assert_same_weights(resumed.model, whole.model)
    assert isinstance(resumed.callback_handler.callbacks[0], PlatonCallback)
    assert [entry["step"] for entry in callback.history] == [15, 20, 20]
    resumed.create_model_card(model_name="tiny")
    assert (tmp_path / "other" / "README.md").read_text().count("## Pruning") == 1


def test_installing_twice_is_installing_once(tmp_path):
    trainer = _trainer(tmp_path, None)
    callback = pruning_callback().install(trainer)
    callback.install(trainer)
    trainer.train()
    trainer.create_model_card(model_name="tiny")
    assert (tmp_path / "README.md").read_text().count("## Pruning") == 1


class Plain(torch.nn.Module):
    """A model that transformers does not know how to save."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed = torch.nn.Embedding(40, 16)
        self.hidden = torch.nn.Linear(16, 16)
        self.out = torch.nn.Linear(16, 2)

    def forward(self, input_ids, labels=None):
        logits = self.out(self.hidden(self.embed(input_ids)).relu().mean(1))
        return {"loss": torch.nn.functional.cross_entropy(logits, labels), "logits": logits}


class Bare(torch.nn.Linear):
    """A model that is itself the layer that is pruned."""

    def __init__(self):
        super().__init__(8, 2)

    def forward(self, input_ids, labels=None):
        logits = super().forward(input_ids / 40)
        return {"loss": torch.nn.functional.cross_entropy(logits, labels), "logits": logits}


def test_a_plain_module_has_ordinary_checkpoints_and_resumes_in_one_process(tmp_path):
    callback = pruning_callback()
    trainer = _trainer(tmp_path, callback, model=Plain(), save_strategy="steps", save_steps=10)
    trainer.train()
    final = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    keys = set(load_file(tmp_path / "checkpoint-10" / "model.safetensors"))
    assert keys == set(final)
    trainer.model._keys_to_ignore_on_save = None
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-10"))
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(value, final[name]), name


def test_the_best_models_masks_are_its_own_where_they_are_left_on(tmp_path):
    steps = iter([0.9, 0.1, 0.7, 0.6])
    callback = pruning_callback(finalize=False)
    trainer = _trainer(
        tmp_path, callback, save_strategy="steps", save_steps=5, eval_strategy="steps",
        eval_steps=5, load_best_model_at_end=True, metric_for_best_model="made_up",
        greater_is_better=False,
    )  # fmt: skip
    trainer.compute_metrics = lambda _: {"made_up": next(steps)}
    with pytest.warns(platon_prune.PruningWarning, match="less than the 80.0% asked for"):
        trainer.train()
    assert callback.scheduler.last_step == 10
    left = 1 - (8 - 3) / 12  # the last choice before step 10
    pruned = sum(int((~mask).sum()) for mask in callback.scheduler.masks().values())
    assert pruned == round((0.8 - 0.8 * left**3) * SELECTED)


def test_each_checkpoints_config_is_of_its_own_run_and_step(tmp_path):
    trainer = _trainer(tmp_path, pruning_callback(), save_strategy="steps", save_steps=10)
    trainer.train()
    trainer.callback_handler.callbacks = [
        callback
        for callback in trainer.callback_handler.callbacks
        if not isinstance(callback, PlatonCallback)
    ]
    trainer.add_callback(pruning_callback(amount=0.3))
    trainer.train()
    config = json.loads((tmp_path / "checkpoint-10" / "config.json").read_text())
    assert config["platon_prune"]["amount"] == 0.3
    assert 0 < config["platon_prune"]["sparsity"] < 0.3


def test_numpy_numbers_train_save_and_resume(tmp_path):
    import numpy as np

    changes = dict(amount=np.float32(0.5), warmup_steps=np.int64(3), beta1=np.float64(0.8))
    whole = _trainer(tmp_path, pruning_callback(**changes), save_strategy="steps", save_steps=10)
    whole.train()
    resumed = _trainer(tmp_path, pruning_callback(**changes))
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-10"))
    _assert_same_weights(resumed.model, whole.model)


# --- errors -------------------------------------------------------------------------------------


def test_a_checkpoint_of_a_dense_run_is_refused(tmp_path):
    _trainer(tmp_path, None, save_strategy="steps", save_steps=10).train()
    trainer = _trainer(tmp_path, pruning_callback())
    with pytest.raises(ValueError, match="step 10 must be of a run with PlatonCallback"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-10"))


def test_resuming_with_another_number_of_steps_is_refused(tmp_path):
    _trainer(tmp_path, pruning_callback(), save_strategy="steps", save_steps=10).train()
    trainer = _trainer(tmp_path, pruning_callback(), max_steps=30)
    with pytest.raises(ValueError, match="total_steps is 30 here and 20 in the state"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-10"))


def test_a_checkpoint_without_the_pruners_file_is_refused(tmp_path):
    _trainer(tmp_path, pruning_callback(), save_strategy="steps", save_steps=10).train()
    (tmp_path / "checkpoint-10" / STATE_FILE).unlink()
    trainer = _trainer(tmp_path, pruning_callback())
    with pytest.raises(ValueError, match=f"must hold {STATE_FILE}"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-10"))


def test_the_file_of_another_run_in_its_place_is_refused(tmp_path):
    for name in ("one", "two"):
        _trainer(tmp_path / name, pruning_callback(), save_strategy="steps", save_steps=10).train()
    state = Path("checkpoint-10", STATE_FILE)
    shutil.copy(tmp_path / "one" / state, tmp_path / "two" / state)
    trainer = _trainer(tmp_path / "two", pruning_callback())
    with pytest.raises(ValueError, match="found none of this run"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "two" / "checkpoint-10"))


def test_a_second_callback_on_a_model_is_refused(tmp_path):
    model = small_bert()
    trainer = _trainer(tmp_path, pruning_callback(include=["attention"]), model=model)
    with pytest.raises(ValueError, match="one PlatonCallback, got a second"):
        pruning_callback(include=["intermediate"]).install(trainer)


def test_a_checkpoint_that_was_saved_to_be_used_only_says_so(tmp_path):
    _trainer(
        tmp_path, pruning_callback(), save_strategy="steps", save_steps=10, save_only_model=True
    ).train()
    trainer = _trainer(tmp_path, pruning_callback())
    with pytest.raises(
        ValueError, match="written with save_only_model, or cut off, can't be resumed"
    ):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-10"))


def test_a_model_without_prunable_weights_is_refused_when_the_trainer_is_made(tmp_path):
    with pytest.raises(ValueError, match="model must have weights to prune"):
        _trainer(tmp_path, pruning_callback(), model=torch.nn.Sequential(torch.nn.Embedding(4, 4)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(optim="galore_adamw_layerwise"), "galore_adamw_layerwise.*during the backward"),
        (dict(optim="adalomo"), "adalomo.*keeps no gradients"),
        (dict(optim="schedule_free_adamw"), "schedule_free_adamw.*other weights than it trains"),
    ],
)
def test_optimizers_that_hide_gradients_are_refused_by_name(tmp_path, changes, message):
    arguments = trainer_arguments(tmp_path)
    arguments.optim = changes["optim"]
    with pytest.raises(ValueError, match=message):
        pruning_callback().on_init_end(arguments, None, None, model=small_bert())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(deepspeed={"zero_optimization": {"stage": 2}}), "got DeepSpeed.*or FSDP2"),
        (dict(fsdp=True, fsdp_config={"version": 1}), "got fsdp of version 1.*use DDP.*or FSDP2"),
        (dict(fsdp=True, fsdp_config={"xla": True}), "got fsdp with xla.*use DDP"),
    ],
)
def test_engines_that_flatten_gradients_are_refused_by_name(tmp_path, changes, message):
    arguments = trainer_arguments(tmp_path)
    for name, value in changes.items():
        setattr(arguments, name, value)
    with pytest.raises(ValueError, match=message):
        pruning_callback().on_init_end(arguments, None, None, model=small_bert())


def test_fused_optimizers_with_scaled_gradients_are_refused(tmp_path):
    arguments = trainer_arguments(tmp_path, max_grad_norm=0.0, optim="adamw_torch_fused")
    arguments.fp16 = True
    with pytest.raises(ValueError, match="adamw_torch_fused.*set max_grad_norm"):
        pruning_callback().on_init_end(arguments, None, None, model=small_bert())


def test_a_trainer_that_does_not_know_its_steps_is_refused(tmp_path):
    callback = pruning_callback()
    trainer = _trainer(tmp_path, callback)
    trainer.state.max_steps = 0
    with pytest.raises(ValueError, match="must know its number of steps.*max_steps=0"):
        callback.on_train_begin(trainer.args, trainer.state, None, model=trainer.model)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (dict(warmup_steps=1.5), ValueError, r"warmup_steps must be in \[0, 1\).*got 1.5"),
        (dict(warmup_steps="100"), TypeError, "warmup_steps must be a count.*'100'"),
        (dict(warmup_steps=15), ValueError, r"15 \+ 5 >= 20"),
    ],
)
def test_impossible_lengths_are_refused_when_training_begins(tmp_path, changes, error, message):
    trainer = _trainer(tmp_path, pruning_callback(**changes))
    with pytest.raises(error, match=message):
        trainer.train()


def test_the_state_in_the_checkpoint_is_json_and_no_weights(tmp_path):
    _trainer(tmp_path, pruning_callback(), save_strategy="steps", save_steps=10).train()
    state = json.loads((tmp_path / "checkpoint-10" / "trainer_state.json").read_text())
    exported = state["stateful_callbacks"]["PlatonCallback"]
    assert exported["args"]["amount"] == 0.8
    assert (tmp_path / "checkpoint-10" / "trainer_state.json").stat().st_size < 10_000


logging.getLogger("transformers").setLevel(logging.ERROR)
warnings.filterwarnings("ignore", message=".*pin_memory.*")
