"""Lightning's averaging callbacks beside ours, in any order: what comes out is sparse."""

from __future__ import annotations

import logging
import warnings

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from lightning.pytorch import Callback, LightningModule, Trainer
    from lightning.pytorch.callbacks import (
        EMAWeightAveraging,
        ModelCheckpoint,
        StochasticWeightAveraging,
    )

import platon_prune
from platon_prune.integrations.lightning_callback import PlatonLightningCallback

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:lightning", "ignore:.*pin_memory.*")

PRUNED = (12 * 16 + 16 * 2) * 3 // 4
LAYERS = (0, 3)
STEPS = 8  # of an epoch


class Classifier(LightningModule):
    """A batch norm between the layers: its buffers stand among those of the masks."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(12, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 2))
        self.validated: list[int] = []

    def training_step(self, batch, batch_index):
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch, batch_index):
        self.validated.append(_zeros(self))

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


def _zeros(module) -> int:
    return sum(int((module.net[i].weight == 0).sum()) for i in LAYERS)


def _loader() -> torch.utils.data.DataLoader:
    inputs = torch.randn(64, 12, generator=torch.Generator().manual_seed(1))
    data = torch.utils.data.TensorDataset(inputs, (inputs[:, 0] > 0).long())
    return torch.utils.data.DataLoader(data, batch_size=64 // STEPS)


def _fit(folder, module, *callbacks, validates=False, path=None, **settings):
    trainer = Trainer(
        callbacks=list(callbacks), accelerator="cpu", logger=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=folder,
        **dict(max_epochs=4, enable_checkpointing=False, num_sanity_val_steps=0) | settings,
    )  # fmt: skip
    trainer.fit(module, _loader(), _loader() if validates else None, ckpt_path=path)
    return trainer


def _pruning() -> PlatonLightningCallback:
    return PlatonLightningCallback(amount=0.75, warmup_steps=4, cooldown_steps=8, window=4)


AVERAGES = {
    "ema": lambda: EMAWeightAveraging(decay=0.8),
    "ema of parameters alone": lambda: EMAWeightAveraging(decay=0.8, use_buffers=False),
    "ema from an epoch on": lambda: EMAWeightAveraging(decay=0.8, update_starting_at_epoch=1),
    "swa": lambda: StochasticWeightAveraging(swa_lrs=1e-2, swa_epoch_start=2),
}
listed = pytest.mark.parametrize("order", ["before", "after"])


def _in_order(order: str, average: Callback, *others: Callback) -> list[Callback]:
    pruning = _pruning()
    return [*others, average, pruning] if order == "before" else [*others, pruning, average]


@pytest.mark.case
@pytest.mark.parametrize("kind", AVERAGES)
def test_in_any_order_the_average_has_exactly_the_zeros_that_were_asked_for(tmp_path, kind):
    modules = {"before": Classifier(), "after": Classifier()}
    for order, module in modules.items():
        _fit(tmp_path, module, *_in_order(order, AVERAGES[kind]()))
        assert _zeros(module) == PRUNED
        assert type(module.net[0]) is nn.Linear  # finalized
    # The statistics as well: Lightning pairs buffers by their order, masks among them.
    states = [module.state_dict().values() for module in modules.values()]
    assert all(map(torch.equal, *states))


@listed
def test_it_is_the_average_that_comes_out_and_not_the_last_step(tmp_path, order):
    module, average = Classifier(), EMAWeightAveraging(decay=0.8)
    _fit(tmp_path, module, *_in_order(order, average))
    for name, averaged in average._average_model.module.named_parameters():
        assert torch.equal(averaged, module.get_parameter(name.replace("_orig", "")))


@listed
def test_what_is_validated_and_saved_is_the_sparse_average(tmp_path, order):
    module = Classifier()
    saving = ModelCheckpoint(tmp_path, save_top_k=-1, every_n_epochs=1)
    callbacks = _in_order(order, EMAWeightAveraging(decay=0.8), saving)
    _fit(tmp_path, module, *callbacks, validates=True, enable_checkpointing=True)
    assert module.validated[-1] == PRUNED
    state = torch.load(saving.best_model_path, weights_only=True)["state_dict"]
    assert sum(int((state[f"net.{i}.weight"] == 0).sum()) for i in LAYERS) == PRUNED


def test_a_resumed_run_with_averages_is_bit_identical_to_an_uninterrupted_one(tmp_path):
    whole, resumed = Classifier(), Classifier()
    saving = ModelCheckpoint(tmp_path, save_top_k=-1, filename="{epoch}")
    callbacks = _in_order("before", EMAWeightAveraging(decay=0.8), saving)
    _fit(tmp_path, whole, *callbacks, enable_checkpointing=True)
    path = tmp_path / "epoch=1.ckpt"
    _fit(tmp_path, resumed, *_in_order("before", EMAWeightAveraging(decay=0.8)), path=path)
    for one, other in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)


@listed
def test_an_epoch_for_batch_norms_is_no_part_of_the_schedule(tmp_path, order):
    pruning = _pruning()
    average = AVERAGES["swa"]()
    callbacks = [average, pruning] if order == "before" else [pruning, average]
    _fit(tmp_path, Classifier(), *callbacks)
    assert pruning.scheduler.schedule.total_steps == 4 * STEPS


class _OwnAverage(Callback):
    """A user's own: it averages whatever `of` gives, and copies the average back in the end."""

    def __init__(self, of=lambda module: module) -> None:
        self.of = of

    def on_train_start(self, trainer, pl_module):
        self.average = AveragedModel(self.of(pl_module))

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.average.update_parameters(self.of(pl_module))

    def on_train_end(self, trainer, pl_module):
        kept, new = self.of(pl_module).parameters(), self.average.module.parameters()
        for parameter, averaged in zip(kept, new, strict=True):
            parameter.detach().copy_(averaged)


@pytest.mark.parametrize("of", [lambda m: m, lambda m: m.net], ids=["all of it", "a part"])
@pytest.mark.filterwarnings("ignore:.*were filled in by another:platon_prune.PruningWarning")
@listed
def test_with_an_average_of_the_users_own_callback_the_model_ends_sparse(tmp_path, of, order):
    module = Classifier()
    _fit(tmp_path, module, *_in_order(order, _OwnAverage(of)))
    assert _zeros(module) == PRUNED


class _Filling(Callback):
    def on_train_end(self, trainer, pl_module):
        nn.init.ones_(pl_module.net[0].weight)


def test_what_is_filled_in_after_the_end_is_zeroed_again_and_told(tmp_path):
    module = Classifier()
    with pytest.warns(platon_prune.PruningWarning, match="weights were filled in by another call"):
        _fit(tmp_path, module, _pruning(), _Filling())
    assert _zeros(module) == PRUNED


class _Teacher(Callback):
    """Keeps a dense copy of the model, which is nobody's to prune."""

    def setup(self, trainer, pl_module, stage):
        self.teacher = Classifier()


def test_a_dense_teacher_that_a_callback_keeps_stays_dense(tmp_path):
    teacher = _Teacher()
    _fit(tmp_path, Classifier(), _pruning(), teacher)
    assert _zeros(teacher.teacher) == 0
