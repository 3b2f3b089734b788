"""`PlatonLightningCallback` with a metric: as sparse as the metric allows, under Lightning."""

import logging
import warnings

import pytest
import torch
from torch import nn

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from lightning.pytorch import LightningModule, Trainer
    from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint

from platon_prune.integrations.lightning_callback import PlatonLightningCallback

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:lightning", "ignore:.*pin_memory.*")

SELECTED = 12 * 16 + 16 * 2


class Scripted(LightningModule):
    """Its metric is 1 but at the steps that it is told."""

    def __init__(self, values=None):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 2))
        self.values, self.seen, self.rates = values or {}, [], []

    def training_step(self, batch, batch_index):
        self.rates.append(self.trainer.optimizers[0].param_groups[0]["lr"])
        return nn.functional.cross_entropy(self.net(batch), (batch[:, 0] > 0).long())

    def validation_step(self, batch, batch_index):
        if not self.trainer.sanity_checking:
            self.seen.append(self.trainer.global_step)
        self.log("accuracy", self.values.get(self.trainer.global_step, 1.0))

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-2)
        rates = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / 30)
        return [optimizer], [{"scheduler": rates, "interval": "step"}]


def _loader():
    inputs = torch.randn(64, 12, generator=torch.Generator().manual_seed(1))
    return torch.utils.data.DataLoader(inputs, batch_size=8)


def _fit(folder, module, *callbacks, validates=True, path=None, trainer=None, **settings):
    """Thirty steps, ramp 3 to 21, validated every 4 batches of the 8 of an epoch."""
    callback = PlatonLightningCallback(
        **dict(
            amount=0.8, metric="accuracy", max_drop=0.1, warmup_steps=3, cooldown_steps=9,
            window=3, schedule="linear",
        ) | settings
    )  # fmt: skip
    made = Trainer(
        callbacks=[callback, *callbacks],
        **dict(
            max_steps=30, accelerator="cpu", logger=False, enable_progress_bar=False,
            enable_model_summary=False, default_root_dir=folder, val_check_interval=4,
            enable_checkpointing=bool(callbacks),
        ) | (trainer or {}),
    )  # fmt: skip
    # Plain tensors and numbers, but Lightning's own entries are of other kinds.
    made.fit(module, _loader(), _loader() if validates else None, ckpt_path=path,
             weights_only=False)  # fmt: skip
    return callback


def _zeros(module):
    return sum(int((module.net[i].weight == 0).sum()) for i in (0, 2))


def test_it_asks_for_what_is_due_goes_back_and_ends_with_what_held(tmp_path, caplog):
    module = Scripted({12: 0.5})
    callback = _fit(tmp_path, module)
    # 8 batches each: before the ramp at 3; every 4th; and the end of the cool-down, 12 + 9.
    assert sorted(set(module.seen)) == [3, 4, 8, 12, 16, 20, 21]
    said = "13.3 % pruned, accuracy 1 (dense 1); 40 % gave 0.5"
    assert str(callback.scheduler.goal) == said
    back = (
        "accuracy 0.5 at step 12 is worse than max_drop=0.1 allows (dense 1): the run goes back to "
        "13.3 % pruned and holds that until step 21"
    )
    assert [each for each in caplog.messages if " run " in each] == [back, f"the run ends: {said}"]
    assert _zeros(module) == round(0.8 * 3 / 18 * SELECTED)
    # The cool-down from 12 on has the rates that were planned from 21 on.
    planned = [1e-2 * (1 - step / 30) for step in (*range(12), *range(21, 30))]
    assert module.rates == pytest.approx(planned)


def test_a_metric_that_holds_gives_the_amount_that_was_asked_for(tmp_path):
    module = Scripted()
    callback = _fit(tmp_path, module)
    assert module.seen[-1] == 30 and callback.scheduler.goal.is_as_asked
    assert _zeros(module) == round(0.8 * SELECTED)


@pytest.mark.parametrize("saved", ["before its validation", "after its validation"])
def test_it_resumes_bit_by_bit_at_any_moment(tmp_path, saved):
    # Epochs of 8 batches. Back at 8 to 4, and again where that cool-down ends, 17, to 3.
    values = {8: 0.5, 17: 0.5}
    before = saved.startswith("before")
    saver = ModelCheckpoint(
        tmp_path, save_top_k=-1, filename="{step}",
        every_n_train_steps=1 if before else None, every_n_epochs=None if before else 1,
        save_on_train_epoch_end=False,
    )  # fmt: skip
    straight = Scripted(values)
    callback = _fit(tmp_path, straight, saver, window=2)
    said = "0 % pruned, accuracy 1 (dense 1); 4.44 % gave 0.5 after its cool-down"
    assert str(callback.scheduler.goal) == said
    assert straight.seen[-1] == 17 + 9
    # At an epoch's end, within one Lightning does not save where the data are; and at the end.
    for stop in (8, 24, 26):
        resumed = Scripted(values)
        again = _fit(tmp_path, resumed, path=tmp_path / f"step={stop}.ckpt", window=2)
        assert len(resumed.rates) == 26 - stop
        assert str(again.scheduler.goal) == str(callback.scheduler.goal)
        for name, value in straight.state_dict().items():
            assert torch.equal(value, resumed.state_dict()[name]), (stop, name)


@pytest.mark.parametrize(
    ("metric", "given", "expected"),
    [
        ("accuracy", {}, True),
        ("val_loss", {}, False),
        ("val_loss", {"greater_is_better": True}, True),
    ],
)
def test_what_is_better_is_the_users_word_then_the_names(metric, given, expected):
    callback = PlatonLightningCallback(amount=0.8, metric=metric, max_drop=0.1, **given)
    settings = callback.settings | callback._goal.settings()
    assert settings["greater_is_better"] is expected


def test_a_metric_that_the_module_does_not_log_is_refused_before_the_first_step(tmp_path):
    module = Scripted()
    with pytest.raises(ValueError, match="got 'f1' and accuracy there"):
        _fit(tmp_path, module, metric="f1")
    assert module.rates == []


def test_a_trainer_that_does_not_validate_or_averages_is_refused(tmp_path):
    with pytest.raises(ValueError, match="got no validation"):
        _fit(tmp_path, Scripted(), validates=False)
    with pytest.raises(ValueError, match="got EMAWeightAveraging, which validates an average"):
        _fit(tmp_path, Scripted(), EMAWeightAveraging(decay=0.9),
             trainer={"enable_checkpointing": False})  # fmt: skip
    with pytest.raises(ValueError, match="metric must be given for max_drop"):
        PlatonLightningCallback(amount=0.8, max_drop=0.1)
