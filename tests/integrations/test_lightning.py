"""`PlatonLightningCallback`: pruning, checkpoints and resuming through Lightning's Trainer."""

import logging
import warnings

import pytest
import torch
from torch import nn

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from lightning.pytorch import LightningModule, Trainer
    from lightning.pytorch.callbacks import ModelCheckpoint

import platon_prune
from platon_prune import plots
from platon_prune.integrations import lightning_callback
from platon_prune.integrations.lightning_callback import PlatonLightningCallback

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:lightning", "ignore:.*pin_memory.*")

SELECTED = 12 * 16 + 16 * 2


class Classifier(LightningModule):
    def __init__(self, num_optimizers=1):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 2))
        self.num_optimizers = num_optimizers
        self.automatic_optimization = num_optimizers == 1

    def training_step(self, batch, batch_index):
        inputs, labels = batch
        return nn.functional.cross_entropy(self.net(inputs), labels)

    def configure_optimizers(self):
        optimizers = [
            torch.optim.AdamW(self.parameters(), lr=1e-2) for _ in range(self.num_optimizers)
        ]
        return optimizers[0] if len(optimizers) == 1 else optimizers


def _loader():
    inputs = torch.randn(64, 12, generator=torch.Generator().manual_seed(1))
    return torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(inputs, (inputs[:, 0] > 0).long()), batch_size=8
    )


def _trainer(folder, *callbacks, **changes):
    settings = dict(
        max_steps=20, accelerator="cpu", logger=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=folder, enable_checkpointing=False,
    )  # fmt: skip
    return Trainer(callbacks=list(callbacks), **settings | changes)


def _callback(**changes):
    return PlatonLightningCallback(
        **dict(amount=0.8, warmup_steps=3, cooldown_steps=5, window=4) | changes
    )


def _zeros(module):
    return sum(int((module.net[i].weight == 0).sum()) for i in (0, 3))


def test_it_prunes_to_the_exact_count_logs_and_finalizes(tmp_path):
    callback, module = _callback(), Classifier()
    trainer = _trainer(tmp_path, callback)
    trainer.fit(module, _loader())
    assert _zeros(module) == round(0.8 * SELECTED)
    assert not module.net[0]._forward_pre_hooks
    assert float(trainer.logged_metrics["pruning_amount"]) == pytest.approx(0.8)
    assert float(trainer.logged_metrics["pruning_sparsity"]) == pytest.approx(
        round(0.8 * SELECTED) / SELECTED
    )


def test_what_the_run_did_can_be_seen_after_it(tmp_path):
    callback, module = _callback(mask_history=tmp_path / "masks.bin"), Classifier()
    trainer = _trainer(tmp_path, callback)
    trainer.fit(module, _loader())
    scheduler = callback.scheduler
    assert scheduler.history[-1].sparsity == round(0.8 * SELECTED) / SELECTED
    left = 1 - (8 - 3) / 12
    pruned = sum(int((~mask).sum()) for mask in scheduler.masks(9).values())
    assert pruned == round((0.8 - 0.8 * left**3) * SELECTED)
    plots.regrowth(scheduler, tmp_path / "regrowth.png")
    trainer.save_checkpoint(tmp_path / "finished.ckpt")
    with pytest.warns(platon_prune.PruningWarning, match="held masks of another run until step 20"):
        _trainer(tmp_path, callback).fit(Classifier(), _loader())
    assert callback.scheduler is not scheduler
    assert callback.scheduler.last_step == scheduler.last_step == 20


def test_one_choice_and_no_more_is_made_by_the_schedule_that_is_asked_for(tmp_path):
    callback, module = _callback(schedule="once", warmup_steps=0.3, window=4), Classifier()
    _trainer(tmp_path, callback).fit(module, _loader())
    assert [choice.step for choice in callback.scheduler.history] == [8]
    assert _zeros(module) == round(0.8 * SELECTED)


def test_accumulated_gradients_are_one_step_and_epochs_give_the_steps(tmp_path):
    callback, module = _callback(warmup_steps=0.25, cooldown_steps=0.25, window=2), Classifier()
    # 8 batches, 2 of them a step, 4 epochs: 16 steps.
    trainer = _trainer(tmp_path, callback, max_steps=-1, max_epochs=4, accumulate_grad_batches=2)
    seen = []
    callback.on_train_epoch_end = lambda *_: seen.append(
        (callback.scheduler.last_step, callback.scheduler.schedule.warmup_steps)
    )
    trainer.fit(module, _loader())
    assert seen == [(4, 4), (8, 4), (12, 4), (16, 4)]
    assert _zeros(module) == round(0.8 * SELECTED)


@pytest.mark.parametrize("masking", ["step", "window"])
def test_a_checkpoint_is_an_ordinary_sparse_module(tmp_path, masking):
    whole = Classifier()
    checkpoints = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=8, save_top_k=-1)
    trainer = _trainer(tmp_path, _callback(masking=masking), checkpoints, enable_checkpointing=True)
    trainer.fit(whole, _loader())
    path = tmp_path / "step=8.ckpt"

    sparse = Classifier.load_from_checkpoint(path)
    left = 1 - (8 - 3) / 12
    assert _zeros(sparse) == round((0.8 - 0.8 * left**3) * SELECTED)


@pytest.mark.parametrize("masking", ["step", "window"])
def test_a_resumed_run_is_bit_identical_to_an_uninterrupted_one(tmp_path, masking):
    """Without dropout: Lightning's checkpoints hold no random state."""

    def module():
        classifier = Classifier()
        classifier.net[2].p = 0.0
        return classifier

    whole, resumed = module(), module()
    checkpoints = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=8, save_top_k=-1)
    _trainer(tmp_path, _callback(masking=masking), checkpoints, enable_checkpointing=True).fit(
        whole, _loader()
    )
    _trainer(tmp_path, _callback(masking=masking)).fit(
        resumed, _loader(), ckpt_path=tmp_path / "step=8.ckpt"
    )
    for one, other in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_checkpoint_of_a_dense_run_is_refused(tmp_path):
    checkpoints = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=8, save_top_k=-1)
    _trainer(tmp_path, checkpoints, enable_checkpointing=True).fit(Classifier(), _loader())
    with pytest.raises(ValueError, match="must be of a run with PlatonLightningCallback"):
        _trainer(tmp_path, _callback()).fit(
            Classifier(), _loader(), ckpt_path=tmp_path / "step=8.ckpt"
        )


def test_several_optimizers_are_refused_with_what_to_do(tmp_path):
    with pytest.raises(ValueError, match="must have one optimizer, got 2: drive the scheduler"):
        _trainer(tmp_path, _callback()).fit(Classifier(num_optimizers=2), _loader())


class Adversaries(LightningModule):
    """Two networks, each with an optimizer of its own, as a GAN has them."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.generator = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 12))
        self.critic = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 1))
        self.automatic_optimization = False

    def training_step(self, batch, batch_index):
        real, fake = batch[0], self.generator(batch[0])
        losses = [
            -self.critic(fake).mean(),
            (self.critic(fake.detach()) - real[:, :1]).abs().mean(),
        ]
        for optimizer, loss in zip(self.optimizers(), losses, strict=True):
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()

    def configure_optimizers(self):
        return [torch.optim.AdamW(each.parameters(), lr=1e-3) for each in self.children()]


@pytest.mark.parametrize(
    ("length", "steps"), [(dict(max_steps=40), 20), (dict(max_steps=-1, max_epochs=3), 24)]
)
def test_what_one_of_several_optimizers_trains_is_pruned_by_its_own_steps(tmp_path, length, steps):
    module, callback = Adversaries(), _callback(include="generator")
    _trainer(tmp_path, callback, **length).fit(module, _loader())
    assert callback.scheduler.last_step == callback.scheduler.schedule.total_steps == steps
    zeros = sum(int((each == 0).sum()) for each in module.generator.parameters())
    assert zeros == round(0.8 * (12 * 16 * 2 + 28))
    assert all((module.critic[i].weight != 0).all() for i in (0, 2))


def test_a_run_of_several_optimizers_is_resumed_where_it_was(tmp_path):
    whole, resumed = Adversaries(), Adversaries()
    checkpoints = ModelCheckpoint(
        tmp_path, filename="{step}", every_n_train_steps=16, save_top_k=-1
    )
    length = dict(max_steps=40, enable_checkpointing=True)
    _trainer(tmp_path, _callback(include="generator"), checkpoints, **length).fit(whole, _loader())
    _trainer(tmp_path, _callback(include="generator"), max_steps=40).fit(
        resumed, _loader(), ckpt_path=tmp_path / "step=16.ckpt"
    )
    for one, other in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)


def test_how_often_the_optimizer_steps_can_be_told(tmp_path):
    callback = _callback(include="generator", total_steps=12)
    _trainer(tmp_path, callback, max_steps=24).fit(Adversaries(), _loader())
    assert callback.scheduler.last_step == callback.scheduler.schedule.total_steps == 12


def test_what_is_trained_by_two_optimizers_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"one of them trains alone, with include=\[...\]"):
        _trainer(tmp_path, _callback()).fit(Adversaries(), _loader())


def test_a_run_that_is_too_short_leads_to_the_trainers_own_settings(tmp_path):
    callback = PlatonLightningCallback(amount=0.8)
    with pytest.raises(
        ValueError, match=r"the trainer's steps, got 3 \(set by max_steps, .*the first window must"
    ):
        _trainer(tmp_path, callback, max_steps=3).fit(Classifier(), _loader())


@pytest.mark.case
def test_fast_dev_run_passes_with_a_note_and_prunes_nothing(tmp_path, monkeypatch):
    notes = []
    monkeypatch.setattr(lightning_callback, "rank_zero_info", notes.append)
    callback, module = PlatonLightningCallback(amount=0.8), Classifier()
    _trainer(tmp_path, callback, fast_dev_run=True).fit(module, _loader())
    assert len(notes) == 1 and "prunes nothing in fast_dev_run: the schedule must fit" in notes[0]
    assert callback.scheduler.last_step == 1
    assert _zeros(module) == 0 and not module.net[0]._forward_pre_hooks


def test_fast_dev_run_of_enough_batches_prunes_as_any_run(tmp_path):
    callback = _callback(warmup_steps=2, cooldown_steps=2, window=2)
    module = Classifier()
    _trainer(tmp_path, callback, fast_dev_run=8).fit(module, _loader())
    assert _zeros(module) == round(0.8 * SELECTED)


def test_masks_stay_where_they_are_not_to_be_finalized(tmp_path):
    callback, module = _callback(finalize=False), Classifier()
    _trainer(tmp_path, callback).fit(module, _loader())
    assert callback.has_masks and platon_prune.summary(module).total.sparsity == pytest.approx(
        0.8, 0.01
    )
    first = callback.scheduler
    _trainer(tmp_path, callback).fit(module, _loader())  # prunes anew
    assert callback.scheduler is not first and callback.scheduler.last_step == 20
    platon_prune.remove(module)
    assert callback.state_dict() == {} and not callback.has_masks
    assert _zeros(module) == round(0.8 * SELECTED)
    _trainer(tmp_path, callback).fit(module, _loader())


def test_a_callback_shows_the_run(tmp_path):
    callback = _callback()
    assert repr(callback) == "PlatonLightningCallback(amount=0.8, before training)"
    _trainer(tmp_path, callback).fit(Classifier(), _loader())
    assert "amount=0.8, PlatonScheduler(step 20 of 20, amount 0.8 of 0.8, sparsity" in repr(
        callback
    )


def test_a_run_without_an_end_is_refused(tmp_path):
    with pytest.raises(ValueError, match="must know its number of steps"):
        _trainer(tmp_path, _callback(), max_steps=-1, max_epochs=-1).fit(Classifier(), _loader())


def test_a_run_that_ends_early_is_warned_about(tmp_path):
    callback = _callback()

    def stop(trainer, *_):
        trainer.should_stop = trainer.global_step >= 6

    callback.on_before_zero_grad = stop
    with pytest.warns(platon_prune.PruningWarning, match="training ended before") as caught:
        _trainer(tmp_path, callback, min_steps=1).fit(Classifier(), _loader())
    assert __file__ in {each.filename for each in caught}  # not the trainer's


def test_a_state_that_was_loaded_for_testing_is_not_taken_for_a_later_run(tmp_path):
    callback, module = _callback(), Classifier()
    checkpoints = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=8, save_top_k=-1)
    _trainer(tmp_path, callback, checkpoints, enable_checkpointing=True).fit(module, _loader())
    module.test_step = lambda batch: None
    _trainer(tmp_path, callback).test(
        module, _loader(), ckpt_path=tmp_path / "step=16.ckpt", verbose=False
    )
    seen = []
    callback.on_before_optimizer_step = lambda *_: seen.append(callback.scheduler.last_step)
    _trainer(tmp_path, callback).fit(Classifier(), _loader())
    assert seen == list(range(20))


def test_a_run_that_failed_does_not_spoil_the_next(tmp_path):
    callback = _callback()

    class Failing(Classifier):
        def training_step(self, batch, batch_index):
            if batch_index == 6:
                raise RuntimeError("out of luck")
            return super().training_step(batch, batch_index)

    with pytest.raises(RuntimeError, match="out of luck"):
        _trainer(tmp_path, callback).fit(Failing(), _loader())
    module = Classifier()
    _trainer(tmp_path, callback).fit(module, _loader())
    assert _zeros(module) == round(0.8 * SELECTED)


def test_checkpoints_of_modules_with_shared_weights_load(tmp_path):
    class Shared(Classifier):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(
                nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 12), nn.Linear(12, 2)
            )
            self.net[2].weight = self.net[0].weight

    checkpoints = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=8, save_top_k=-1)
    _trainer(tmp_path, _callback(), checkpoints, enable_checkpointing=True).fit(Shared(), _loader())
    sparse = Shared.load_from_checkpoint(tmp_path / "step=8.ckpt")
    assert (sparse.net[2].weight == 0).any()
