"""A loop with Accelerate as the page has it, for one process or the ranks of a test."""

import warnings

import torch
from accelerate import Accelerator
from accelerate.utils import GradientAccumulationPlugin
from torch import nn
from trainer_jobs import one_accelerator

import platon_prune
from platon_prune.integrations.accelerate_steps import num_optimizer_steps

EPOCHS = 3


def loader(examples=72):
    data = torch.randn(examples, 12, generator=torch.Generator().manual_seed(1))
    return torch.utils.data.DataLoader(data, batch_size=4)


def count_and_train(accumulated=1, syncs=True, early=True):
    """What was counted, how many steps came, zeros, and warnings; `early` as the page has it."""
    with one_accelerator(), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        plugin = GradientAccumulationPlugin(num_steps=accumulated, sync_with_dataloader=syncs)
        accelerator = Accelerator(cpu=True, gradient_accumulation_plugin=plugin)
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 2))
        optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
        batches = accelerator.prepare(loader())
        steps = num_optimizer_steps(accelerator, batches, EPOCHS)
        if not early:
            net, optimizer = accelerator.prepare(net, optimizer)
        scheduler = platon_prune.global_unstructured(
            net, amount=0.75, total_steps=steps, warmup_steps=3, cooldown_steps=1, window=2
        )
        if early:
            net, optimizer = accelerator.prepare(net, optimizer)
        taken = _train(accelerator, net, optimizer, scheduler, batches)
        net = platon_prune.remove(accelerator.unwrap_model(net))
        zeros = sum(int((net[i].weight == 0).sum()) for i in (0, 2))
        told = [w for w in caught if issubclass(w.category, platon_prune.PruningWarning)]
        weights = [parameter.detach().clone() for parameter in net.parameters()]
        return steps, taken, zeros, [str(each.message) for each in told], weights


def _train(accelerator, net, optimizer, scheduler, batches):
    taken = 0
    for _ in range(EPOCHS):
        for inputs in batches:
            with accelerator.accumulate(net):
                accelerator.backward(net(inputs).square().mean())
                optimizer.step()
                if accelerator.sync_gradients:
                    scheduler.step(skipped=accelerator.optimizer_step_was_skipped)
                    taken += 1
                optimizer.zero_grad()
    return taken
