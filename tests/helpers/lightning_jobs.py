"""What the ranks of a test do with Lightning's Trainer under DDP: train to a goal, resume."""

import logging
import os
import warnings
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from lightning.pytorch import LightningModule, Trainer
    from lightning.pytorch.callbacks import ModelCheckpoint

from platon_prune.integrations.lightning_callback import PlatonLightningCallback

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


class Scripted(LightningModule):
    """Its metric is 1 in the first rank but at the steps that it is told, and lower in others."""

    def __init__(self, values):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 2))
        self.values = values

    def training_step(self, batch, batch_index):
        return nn.functional.cross_entropy(self.net(batch), (batch[:, 0] > 0).long())

    def validation_step(self, batch, batch_index):
        value = self.values.get(self.trainer.global_step, 1.0) - 0.5 * dist.get_rank()
        self.log("accuracy", value, sync_dist=False)

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


def _loader():
    inputs = torch.randn(128, 12, generator=torch.Generator().manual_seed(1))
    return torch.utils.data.DataLoader(inputs, batch_size=8)


def _fit(folder, values, *callbacks, path=None):
    """Thirty steps, ramp 3 to 21, validated every 3 batches."""
    module = Scripted(values)
    pruning = PlatonLightningCallback(
        amount=0.8, metric="accuracy", max_drop=0.1, warmup_steps=3, cooldown_steps=9, window=3,
        schedule="linear",
    )  # fmt: skip
    trainer = Trainer(
        max_steps=30, accelerator="cpu", devices=2, strategy="ddp", logger=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder,
        val_check_interval=3, check_val_every_n_epoch=None, callbacks=[pruning, *callbacks],
        enable_checkpointing=bool(callbacks),
    )  # fmt: skip
    trainer.fit(module, _loader(), _loader(), ckpt_path=path, weights_only=False)
    return {
        "goal": str(pruning.scheduler.goal),
        "last_step": trainer.global_step,
        "weights": {name: each.clone() for name, each in module.state_dict().items()},
    }


def fit_to_a_goal(folder, values):
    """What each rank saw of a run, and of another that resumes in the middle of its cool-down."""
    # As torchrun does, so that Lightning starts no processes of its own.
    launched = dict(TORCHELASTIC_RUN_ID="test", LOCAL_WORLD_SIZE="2", GROUP_RANK="0",
                    MASTER_ADDR="localhost", MASTER_PORT="0")  # fmt: skip
    os.environ.update(launched)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            saver = ModelCheckpoint(folder, every_n_train_steps=8, save_top_k=-1, filename="{step}")
            straight = _fit(folder, values, saver)
            # At an epoch's end: within one, Lightning does not save where the data are.
            resumed = _fit(folder, values, path=Path(folder, "step=16.ckpt"))
    finally:
        for name in launched:
            os.environ.pop(name, None)
    return straight, resumed
