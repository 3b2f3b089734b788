"""What the ranks of a test do with n:m: as in `rank_jobs`, with inputs that groups of 4 divide."""

import rank_jobs
import torch
from torch import nn
from torch.distributed.fsdp import fully_shard

import platon_prune

SETTINGS = {name: value for name, value in rank_jobs.SETTINGS.items() if name != "amount"}


class Net(rank_jobs.Net):
    def __init__(self):
        nn.Module.__init__(self)
        self.first = nn.Linear(12, 16)
        self.second = nn.Linear(16, 8)
        self.one = nn.Linear(8, 1)


class Run(rank_jobs.Run):
    def build(self, kind):
        return rank_jobs.net(kind, Net)

    def set_up(self, **settings):
        return platon_prune.semi_structured(
            self.model, **dict(warmup_steps=0, cooldown_steps=0) | SETTINGS | settings
        )


class Transposed(nn.Module):
    """Like a layer of GPT-2, (in, out): sharding the first dimension may cut groups."""

    def __init__(self, inputs):
        super().__init__()
        from transformers.pytorch_utils import Conv1D

        self.layer = Conv1D(5, inputs)

    def forward(self, x):
        return self.layer(x)


def train_transposed(inputs, layout=fully_shard, prune_first=True):
    """Prune a Conv1D; its mask at the end, as one tensor."""
    torch.manual_seed(0)
    model = Transposed(inputs)
    if not prune_first:
        layout(model)
    scheduler = platon_prune.semi_structured(
        model, total_steps=4, window=2, warmup_steps=0, cooldown_steps=0
    )
    if prune_first:
        layout(model)
    for step in range(1, 5):
        rank_jobs.feed(model, step)
        scheduler.step()
    return rank_jobs.full(scheduler.masks()["layer.weight"])
