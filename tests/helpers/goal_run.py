"""A tiny run with a goal whose metric is a function that the test writes down."""

import torch
from torch import nn

import platon_prune

TOTAL, WARMUP, COOLDOWN, WINDOW = 60, 10, 20, 5


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 20), nn.BatchNorm1d(20), nn.Tanh(), nn.Linear(20, 10))


def sgd(model):
    return torch.optim.AdamW(model.parameters(), lr=0.01)


def set_up(model, **changes):
    settings = dict(
        amount=0.9, total_steps=TOTAL, warmup_steps=WARMUP, cooldown_steps=COOLDOWN, window=WINDOW,
        max_drop=0.1, schedule="linear",
    )  # fmt: skip
    return platon_prune.global_unstructured(model, **settings | changes)


def linear_amount(step):
    """What the linear ramp prunes at a step."""
    return 0.9 * (step - WARMUP) / (TOTAL - COOLDOWN - WARMUP)


def take_step(model, optimizer, scheduler, lr_scheduler=None):
    """One step on data that is a function of the step's number alone."""
    step = scheduler.last_step
    inputs = torch.randn(16, 6, generator=torch.Generator().manual_seed(step))
    model(inputs).square().mean().backward()
    optimizer.step()
    scheduler.step()
    optimizer.zero_grad()
    if lr_scheduler is not None:
        lr_scheduler.step()


def run(model, optimizer, scheduler, metric, *, every=5, until=TOTAL, lr_scheduler=None):
    """Train, and report ``metric(scheduler)``; returns the steps at which the run was told."""
    told = []
    while scheduler.last_step < until:
        take_step(model, optimizer, scheduler, lr_scheduler)
        if scheduler.goal.is_due or scheduler.last_step % every == 0:
            told.append(scheduler.last_step)
            if scheduler.report(metric(scheduler), optimizer, lr_scheduler):
                break
    return told


def everything(model, optimizer):
    """All that training changes, as one flat list of tensors."""
    states = [each for state in optimizer.state_dict()["state"].values() for each in state.values()]
    return [each.clone() for each in (*model.state_dict().values(), *states)]


def replica(values, by_rank=0.0):
    """A run in one of several processes; its weights, what it says, and when it ended."""
    model = net()
    optimizer, scheduler = sgd(model), set_up(model)
    rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
    metric = lambda scheduler: values.get(scheduler.last_step, 1.0) + rank * by_rank  # noqa: E731
    run(model, optimizer, scheduler, metric)
    weights = [each.numpy().copy() for each in everything(model, optimizer)]
    return weights, str(scheduler.goal), scheduler.last_step
