"""What the ranks of a test of structured pruning do."""

from __future__ import annotations

import contextlib

import rank_jobs
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as checkpoint
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Shard, distribute_tensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)

import platon_prune
from platon_prune.groups.latency import LatencyTable, PlaceTime
from platon_prune.masks.routers import pruned_experts
from platon_prune.pruning import structured

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


class Run(rank_jobs.Run):
    """As in `rank_jobs`, by whole neurons, of which no number of ranks has equal shares."""

    def set_up(self, **settings):
        return platon_prune.global_structured(
            self.model,
            torch.ones(2, 9),
            **dict(warmup_steps=0, cooldown_steps=0) | rank_jobs.SETTINGS | settings,
        )


class Known(rank_jobs.Net):
    """Layers that are known by their names, so that nothing has to be traced."""

    def __init__(self):
        nn.Module.__init__(self)
        self.first = _Block(9, 13)
        self.second = _Block(9, 11)
        self.one = nn.Linear(9, 1)

    def forward(self, x):
        return self.one(self.second(self.first(x)))


class _Block(nn.Module):
    def __init__(self, size, width):
        super().__init__()
        self.fc1 = nn.Linear(size, width)
        self.fc2 = nn.Linear(width, size)

    def forward(self, x):
        return x + self.fc2(torch.relu(self.fc1(x)))


class KnownRun(Run):
    def build(self, kind):
        return rank_jobs.net(kind, Known)


def fsdp_tp(model):
    """Blocks cut by columns and by rows over half of the ranks, and sharded over the others."""
    mesh = init_device_mesh("cpu", (2, dist.get_world_size() // 2), mesh_dim_names=("dp", "tp"))
    for block in (model.first, model.second):
        parallelize_module(block, mesh["tp"], {"fc1": ColwiseParallel(), "fc2": RowwiseParallel()})
        fully_shard(block, mesh=mesh["dp"])
    return fully_shard(model, mesh=mesh["dp"])


def set_up_after_sharding(settings):
    """The error for a model that was sharded before, which has to be traced or to run."""
    make = Known if settings else rank_jobs.Net
    model = rank_jobs.fsdp(rank_jobs.net(make=make))
    keys = list(model.state_dict())
    try:
        platon_prune.global_structured(model, torch.ones(2, 9), **SETTINGS, **settings)
    except ValueError as error:
        assert list(model.state_dict()) == keys
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


def _refused(call, *arguments):
    try:
        call(*arguments)
    except ValueError as error:
        return str(error)
    return "no error"


def shrunk(layout):
    """Outputs of a model that was pruned, gathered and shrunk, and the counts of its layers."""
    run = KnownRun(layout).to(rank_jobs.STEPS)
    refused = [] if layout is rank_jobs.alone else [_refused(run.scheduler.cut)]
    run.scheduler.remove()
    if layout is not rank_jobs.alone:
        refused.append(_refused(platon_prune.shrink, run.model))
    left = [(row.name, row.kept) for row in platon_prune.structure(run.model)]
    whole = rank_jobs.net(make=Known)
    if layout is not rank_jobs.alone:
        options = StateDictOptions(full_state_dict=True)
        whole.load_state_dict(get_model_state_dict(run.model, options=options))
        platon_prune.shrink(whole, example_inputs=torch.ones(2, 9))
    else:
        whole = run.model
        platon_prune.shrink(whole)
    counts = [(row.name, row.kept) for row in platon_prune.structure(whole)]
    assert counts == left
    return refused, counts, whole(torch.ones(2, 9)).tolist()


class CutRun(KnownRun):
    """A run that is cut twice, alone by one call, in shards as the page says."""

    def __init__(self, layout=rank_jobs.alone, **settings):
        self.settings = settings
        super().__init__(layout, **settings)
        self.optimizer = self.optimizer_of(self.model)

    def steps_of_page(self, code, layout):
        """The page's function, with what makes this run's model and optimizer."""

        def set_up():
            new = type(self)(**self.settings)
            return new.model, new.scheduler

        namespace = {"set_up": set_up, "shard": layout, "optimizer_of": self.optimizer_of}
        exec(code, namespace)
        return namespace["cut_sharded"]

    def optimizer_of(self, model):
        return torch.optim.AdamW(model.parameters(), lr=0.01)

    def cut(self, code, layout):
        if code is None:
            self.scheduler.cut(self.optimizer)
            return
        parts = self.model, self.optimizer, self.scheduler
        cut_sharded = self.steps_of_page(code, layout)
        self.model, self.optimizer, self.scheduler = cut_sharded(*parts)


def cut_while_sharded(code, layout, settings, folder=None):
    """What there is right after each of two cuts and in the end, and the sizes of parameters.

    Args:
        code: Of the page, that cuts a sharded model; None to cut a whole one by one call.
        layout: How the model is laid out.
        settings: Of pruning.
        folder: Where a checkpoint is written after the cuts, from which the run then goes on.
    """
    run, found = CutRun(layout, **settings), []
    for step in (6, 10):
        run.to(step).cut(code, layout)
        found.append(run.result())
    if folder is not None:
        rank_jobs.write_checkpoint(run, folder)
        run = _resumed(folder, layout, settings, {"cuts": run.scheduler.state_dict().get("cuts")})
    found.append(run.to(rank_jobs.STEPS).result())
    return found, [sum(w.numel() for w in each["weights"].values()) for each in found]


def _resumed(folder, layout, settings, cuts):
    run = CutRun(**settings)
    run.scheduler.cut_like(cuts, run.optimizer)
    run.model = layout(run.model)
    run.optimizer = run.optimizer_of(run.model)
    model, optimizer = get_state_dict(run.model, run.optimizer)
    state = {"model": model, "optimizer": optimizer, "scheduler": run.scheduler.state_dict()}
    checkpoint.load(state, checkpoint_id=folder)
    set_state_dict(
        run.model, run.optimizer, model_state_dict=model, optim_state_dict=state["optimizer"]
    )
    run.scheduler.load_state_dict(state["scheduler"])
    return run


def cut_like_of_shards():
    """The error for a sharded model that is to be made as small as a checkpoint's."""
    run = KnownRun().to(10)
    run.scheduler.cut(run.optimizer)
    state = run.scheduler.state_dict()
    return _refused(KnownRun(rank_jobs.fsdp).scheduler.cut_like, state)


def out_of_a_sharded_router(pruned):
    """Which experts a router passes over, whose mask is sharded by rows or by columns."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    found = []
    for dim in (0, 1):
        router = nn.Linear(3, len(pruned))
        mask = torch.tensor(pruned).logical_not()[:, None].expand(-1, 3).contiguous()
        mask[0, 1:] = False  # of the first a single entry is left, which one process has
        mask = distribute_tensor(mask, mesh, [Shard(dim)], src_data_rank=None)
        router.register_buffer("weight_mask", mask)
        found.append(pruned_experts(router).tolist())
    return found


@contextlib.contextmanager
def said_times(forward=10**10, in_each_rank_its_own=False):
    """Have set-up by time measure what is said here."""

    def measure(model, groups, floors, inputs):
        full = 10**9 * (2 + (dist.get_rank() if in_each_rank_its_own else 0))
        rows = [
            PlaceTime(place.name, place.kind, place.size, floor, full, 10**9)
            for place, floor in zip(groups, floors, strict=True)
        ]
        return LatencyTable(forward, tuple(rows))

    found = structured.measure_latency
    structured.measure_latency = measure
    try:
        yield
    finally:
        structured.measure_latency = found


def times():
    """What each rank goes by, of which each would have measured times of its own."""
    with said_times(in_each_rank_its_own=True):
        scheduler = platon_prune.global_structured(
            rank_jobs.net(), torch.ones(2, 9), **SETTINGS | dict(amount=0.1), budget="latency"
        )
    return scheduler.granularity.latency


def times_of_other_settings(settings_by_rank):
    """Set-up by time with settings of each rank's own; none may wait for another for ever."""
    model = rank_jobs.net()
    keys = list(model.state_dict())
    try:
        platon_prune.global_structured(
            model, torch.ones(2, 9), **SETTINGS | settings_by_rank[dist.get_rank()]
        )
    except Exception as error:
        return type(error).__name__, str(error), list(model.state_dict()) == keys
    return None
