"""What the ranks of a test of structured pruning do."""

from __future__ import annotations

import rank_jobs
import torch
import torch.distributed as dist
from torch import nn

import platon_prune

SETTINGS = dict(amount=0.5, total_steps=12, window=2)


def copies(drift):
    """The masks after given gradients, or the error of copies that have drifted apart."""
    model = rank_jobs.net()
    scheduler = platon_prune.global_structured(
        model, torch.ones(2, 9), **dict(warmup_steps=0, cooldown_steps=0) | SETTINGS
    )
    try:
        for step in range(1, 13):
            with torch.no_grad():
                for name, parameter in model.named_parameters():
                    plain = name.removesuffix("_orig")
                    parameter.grad = rank_jobs.gradient(plain, parameter.shape, step, "random")
                    parameter -= 0.01 * parameter.grad
                    if drift and step == 5 and dist.get_rank() == 1:
                        parameter += 0.1
            scheduler.step()
    except RuntimeError as error:
        return str(error)
    return {name: mask.tolist() for name, mask in scheduler.masks().items()}


def ddp():
    """Masks and weights under DistributedDataParallel, with other data in each rank."""
    model = nn.parallel.DistributedDataParallel(rank_jobs.net())
    scheduler = platon_prune.global_structured(
        model, torch.ones(2, 9), **dict(warmup_steps=0, cooldown_steps=0) | SETTINGS
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    generator = torch.Generator().manual_seed(dist.get_rank())
    for _ in range(12):
        model(torch.randn(4, 9, generator=generator)).square().mean().backward()
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
    masks = {name: mask.tolist() for name, mask in scheduler.masks().items()}
    platon_prune.remove(model.module)
    return masks, {name: value.tolist() for name, value in model.module.state_dict().items()}


def sharded(before):
    """The error for a model that is sharded before it is set up, or after."""
    model = rank_jobs.net()
    try:
        if before:
            rank_jobs.fsdp(model)
        scheduler = platon_prune.global_structured(
            model, torch.ones(2, 9), **dict(warmup_steps=0, cooldown_steps=0) | SETTINGS
        )
        rank_jobs.fsdp(model)
        model(torch.ones(2, 9)).sum().backward()
        scheduler.step()
    except ValueError as error:
        return str(error)
    return "no error"


def cut_under_ddp():
    """Weights after a cut in the middle of a run under DistributedDataParallel, wrapped again."""
    bare = rank_jobs.net()
    model = nn.parallel.DistributedDataParallel(bare)
    scheduler = platon_prune.global_structured(
        model, torch.ones(2, 9), **dict(warmup_steps=0, cooldown_steps=0) | SETTINGS
    )
    optimizer = torch.optim.AdamW(bare.parameters(), lr=0.01)
    generator = torch.Generator().manual_seed(dist.get_rank())
    before = sum(parameter.numel() for parameter in bare.parameters())
    for step in range(12):
        model(torch.randn(4, 9, generator=generator)).square().mean().backward()
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        if step == 7:
            scheduler.cut(optimizer)
            model = nn.parallel.DistributedDataParallel(bare)
    after = sum(parameter.numel() for parameter in bare.parameters())
    platon_prune.remove(bare)
    return after < before, {name: value.tolist() for name, value in bare.state_dict().items()}


def cut_by_itself():
    """The error for a run of several processes that is to cut by itself."""
    try:
        platon_prune.global_structured(rank_jobs.net(), torch.ones(2, 9), cut_after=1, **SETTINGS)
    except ValueError as error:
        return str(error)
    return "no error"
