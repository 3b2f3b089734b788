"""Real training under `fully_shard`: what it may be combined with, and what is left at the end."""

import copy
import functools
import warnings

import pytest
import rank_jobs
import ranks
import torch
import torch.distributed as dist
from rank_jobs import SETTINGS, STEPS, full
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.utils import prune

import platon_prune

INPUTS = torch.randn(6, 9, generator=torch.Generator().manual_seed(7))


def _batch(step, rank, size):
    """This rank's share of the same twelve examples."""
    generator = torch.Generator().manual_seed(step)
    return torch.randn(12, 9, generator=generator).chunk(size)[rank]


def _train(model, optimizer, scheduler, rank=0, size=1, num_parts=1, until=STEPS):
    while scheduler.last_step < until:
        parts = _batch(scheduler.last_step, rank, size).chunk(num_parts)
        for i, part in enumerate(parts):
            if hasattr(model, "set_requires_gradient_sync"):
                model.set_requires_gradient_sync(i == num_parts - 1)
            (model(part).square().mean() / num_parts).backward()
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()


def _sharded_run(num_parts=1, masking="step", compiled=None, **options):
    model = rank_jobs.net()
    scheduler = platon_prune.global_unstructured(
        model, masking=masking, **dict(warmup_steps=0, cooldown_steps=0) | SETTINGS
    )
    for child in (model.first, model.second):
        fully_shard(child, **options)
        if compiled == "layers":
            child.compile(backend="aot_eager", fullgraph=True)
    fully_shard(model, **options)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    trained = torch.compile(model, backend="aot_eager") if compiled == "whole" else model
    _train(trained, optimizer, scheduler, dist.get_rank(), dist.get_world_size(), num_parts)
    return model, scheduler


def _summary_of_run(options, **settings):
    model, scheduler = _sharded_run(**options(), **settings)
    masks = {name: full(mask) for name, mask in scheduler.masks().items()}
    zeros = {n: full(p) == 0 for n, p in model.named_parameters() if n.endswith("_orig")}
    return masks, zeros, scheduler.sparsity(), scheduler.skipped_steps


def _nothing():
    return {}


def _mixed():
    return {"mp_policy": MixedPrecisionPolicy(torch.bfloat16, torch.float32)}


def _offloaded():
    return {"offload_policy": CPUOffloadPolicy(pin_memory=False)}


def _resharding():
    return {"reshard_after_forward": False}


@pytest.mark.parametrize(
    ("options", "settings"),
    [
        (_nothing, {}),
        (_nothing, dict(num_parts=3)),
        (_nothing, dict(compiled="layers")),
        (_nothing, dict(compiled="whole")),
        (_nothing, dict(masking="window")),
        (_mixed, {}),
        (_offloaded, {}),
        (_resharding, {}),
    ],
    ids=[
        "plain",
        "accumulation",
        "compiled layers",
        "compiled",
        "window",
        "mixed precision",
        "offload",
        "no reshard",
    ],
)
def test_sharded_training_prunes_exactly_in_every_rank_as_one_process_does(options, settings):
    (masks, zeros, sparsity, skipped), other = ranks.run(2, _run_with, options, settings)
    total = sum(mask.numel() for mask in masks.values())
    assert sum(int((~mask).sum()) for mask in masks.values()) == round(0.7 * total)
    assert sparsity == round(0.7 * total) / total and skipped == 0
    for name, mask in masks.items():
        assert torch.equal(zeros[f"{name}_orig"], ~mask)
        assert torch.equal(mask, other[0][name])
    expected = _masks_of_one_process(settings.get("masking", "step"))
    # Gradients are averaged in another order: a few scores next to the threshold may change. Most
    # of those of float32 stay with gradients from forwards in bfloat16.
    same = sum(int((mask == expected[name]).sum()) for name, mask in masks.items())
    assert same >= (0.9 if options is _mixed else 0.99) * total


def _masks_of_one_process(masking):
    model = rank_jobs.net()
    scheduler = platon_prune.global_unstructured(
        model, masking=masking, **dict(warmup_steps=0, cooldown_steps=0) | SETTINGS
    )
    _train(model, torch.optim.AdamW(model.parameters(), lr=0.01), scheduler)
    return scheduler.masks()


def _run_with(options, settings):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _summary_of_run(options, **settings)


# --- evaluation, summary, finalizing ------------------------------------------------------------


def _evaluate_and_finalize(masking, how):
    run = rank_jobs.Run(rank_jobs.fsdp, masking=masking).to(18)
    run.model.eval()
    outputs = [run.model(INPUTS).detach()]
    counts = [[row.kept for row in platon_prune.summary(run.model)]]
    sparsities = [run.scheduler.sparsity()]
    run.model.train()
    run.to(STEPS)
    run.model.eval()
    outputs.append(run.model(INPUTS).detach())
    if how == "scheduler":
        run.scheduler.remove()
    elif how == "model":
        platon_prune.remove(run.model)
    else:
        for name in ("first", "second", "one"):
            prune.remove(getattr(run.model, name), "weight")
    outputs.append(run.model(INPUTS).detach())
    counts.append([row.kept for row in platon_prune.summary(run.model, include="weight")])
    keys = list(run.model.state_dict())
    # An ordinary sharded model: it trains on.
    run.model.train()
    run.model(INPUTS).sum().backward()
    assert all(isinstance(p.grad, DTensor) for p in run.model.parameters())
    run.optimizer.step()
    run.model(INPUTS)
    return outputs, counts, sparsities, keys


@pytest.mark.parametrize("how", ["scheduler", "model", "torch"])
@pytest.mark.parametrize("masking", ["step", "window"])
def test_a_sharded_model_evaluates_and_finalizes_as_one_process_does(masking, how):
    run = rank_jobs.Run(masking=masking).to(18)
    expected = [copy.deepcopy(run.model).eval()(INPUTS).detach()]
    counts = [[row.kept for row in platon_prune.summary(run.model)]]
    sparsity = run.scheduler.sparsity()
    run.to(STEPS)
    run.scheduler.remove()
    expected += [run.model.eval()(INPUTS).detach()] * 2
    counts.append([row.kept for row in platon_prune.summary(run.model, include="weight")])
    for outputs, found, sparsities, keys in ranks.run(2, _evaluate_and_finalize, masking, how):
        for one, other in zip(outputs, expected, strict=True):
            torch.testing.assert_close(one, other)
        assert found == counts and sparsities == [sparsity]
        assert keys == list(run.model.state_dict())


def _shard_after_some_steps(layout):
    run = rank_jobs.Run().to(9)
    run.model = layout(run.model)
    run.optimizer = torch.optim.SGD(run.model.parameters(), lr=0.05)
    return run.to(STEPS).result()


@pytest.mark.parametrize("layout", ["fsdp", "tp"])
def test_a_model_may_be_sharded_in_the_middle_of_a_run(layout):
    run = rank_jobs.Run().to(9)
    run.optimizer = torch.optim.SGD(run.model.parameters(), lr=0.05)
    expected = run.to(STEPS).result()
    for result in ranks.run(2, _shard_after_some_steps, getattr(rank_jobs, layout)):
        assert not rank_jobs.differences(result, expected)


def _prune_what_has_been_used(kept_whole):
    """Pruned after a forward and a backward, which may leave the gathered weights in place."""
    model = rank_jobs.net()
    for module in (model.first, model.second, model):
        fully_shard(module, reshard_after_forward=not kept_whole)
    model(INPUTS)
    scheduler = platon_prune.global_unstructured(
        model, **dict(warmup_steps=0, cooldown_steps=0) | SETTINGS
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    _train(model, optimizer, scheduler, dist.get_rank(), dist.get_world_size())
    return {name: full(mask) for name, mask in scheduler.masks().items()}, scheduler.sparsity()


@pytest.mark.parametrize("kept_whole", [False, True])
def test_a_sharded_model_may_be_pruned_after_it_was_used(kept_whole):
    expected = _masks_of_one_process("step")
    for masks, sparsity in ranks.run(2, _prune_what_has_been_used, kept_whole):
        total = sum(mask.numel() for mask in masks.values())
        assert sparsity == round(0.7 * total) / total
        same = sum(int((mask == expected[name]).sum()) for name, mask in masks.items())
        assert same >= 0.99 * total


def _shard_again():
    """Tensor parallelism from the start, FSDP on top of it after five steps."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    run = rank_jobs.Run(functools.partial(rank_jobs.tp, mesh=mesh["tp"])).to(5)
    for child in (run.model.first, run.model.second):
        fully_shard(child, mesh=mesh["dp"])
    run.optimizer = torch.optim.SGD(run.model.parameters(), lr=0.05)
    run.to(6)


def test_a_tensor_that_is_placed_anew_in_the_middle_of_a_run_is_refused():
    for kind, message in ranks.errors_of(4, _shard_again):
        assert kind == "RuntimeError" and "first.weight must stay sharded as it was" in message


def _shared_layers():
    torch.manual_seed(0)
    layer = nn.Linear(6, 6)
    model = nn.Sequential(nn.Linear(6, 6), layer, nn.ReLU(), layer)
    scheduler = platon_prune.global_unstructured(
        model, **dict(warmup_steps=0, cooldown_steps=0) | SETTINGS
    )
    fully_shard(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for _ in range(STEPS):
        model(torch.ones(2, 6)).square().sum().backward()
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
    names, sparsity = list(scheduler.masks()), scheduler.sparsity()
    scheduler.remove()
    model(torch.ones(2, 6))
    return names, sparsity, model[1] is model[3], list(model.state_dict())


def test_a_layer_that_is_used_twice_is_counted_once_and_stays_shared():
    for names, sparsity, is_shared, keys in ranks.run(2, _shared_layers):
        assert names == ["0.weight", "1.weight"] and is_shared
        assert sparsity == round(0.7 * 72) / 72
        assert keys == ["0.weight", "0.bias", "1.weight", "1.bias", "3.weight", "3.bias"]
