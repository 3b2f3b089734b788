"""What the ranks of a test do: a small model, laid out in some way, trained by given gradients."""

import contextlib
import runpy

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as checkpoint
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, distribute_tensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)

import platon_prune
from platon_prune.tensors.collectives import Processes

STEPS = 24
SETTINGS = dict(amount=0.7, total_steps=STEPS, warmup_steps=3, cooldown_steps=6, window=4)


class Net(nn.Module):
    """Sizes that no number of ranks divides; ``one`` has a single row, so most ranks have none."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(9, 13)
        self.second = nn.Linear(13, 10)
        self.one = nn.Linear(10, 1)

    def forward(self, x):
        return self.one(torch.relu(self.second(torch.relu(self.first(x)))))


def net(kind="random", make=Net):
    torch.manual_seed(0)
    model = make()
    if kind == "tied":
        # Few different values, exact zeros among them: scores with many ties.
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_((parameter * 8).round() / 4)
    return model


# --- layouts ------------------------------------------------------------------------------------


def alone(model):
    return model


def copies(model):
    """The same model in every rank, as under DDP."""
    return model


def fsdp(model):
    for child in (model.first, model.second):
        fully_shard(child)
    return fully_shard(model)


def hsdp(model):
    mesh = init_device_mesh("cpu", (2, dist.get_world_size() // 2), mesh_dim_names=("dp", "fsdp"))
    for child in (model.first, model.second):
        fully_shard(child, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def tp(model, mesh=None):
    mesh = mesh or init_device_mesh("cpu", (dist.get_world_size(),))
    return parallelize_module(
        model, mesh, {"first": ColwiseParallel(), "second": RowwiseParallel()}
    )


def fsdp_tp(model):
    mesh = init_device_mesh("cpu", (2, dist.get_world_size() // 2), mesh_dim_names=("dp", "tp"))
    plan = {"first": ColwiseParallel(), "second": RowwiseParallel()}
    parallelize_module(model, mesh["tp"], plan)
    for child in (model.first, model.second):
        fully_shard(child, mesh=mesh["dp"])
    return fully_shard(model, mesh=mesh["dp"])


def several_meshes(model):
    """One layer over all ranks, one over pairs, one not at all."""
    pairs = init_device_mesh("cpu", (2, dist.get_world_size() // 2), mesh_dim_names=("a", "b"))
    fully_shard(model.first)
    fully_shard(model.second, mesh=pairs["b"])
    return model


def meta_fsdp(model):
    """Sharded before it has values, as one does with what fits no single rank."""
    values = net().state_dict()
    model.to("meta")
    fsdp(model)
    model.to_empty(device="cpu")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            full = values[name.replace("_orig", "")]
            parameter.copy_(distribute_tensor(full, parameter.device_mesh, parameter.placements))
    return model


# --- training -----------------------------------------------------------------------------------


def full(tensor):
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().clone()


def gradient(name, shape, step, kind):
    """A given gradient of the whole tensor, the same whatever the layout."""
    seed = 1000 * step + sum(map(ord, name))
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    if kind == "tied":
        return values.round()
    if kind == "zero":
        return torch.zeros(shape)
    return values * {"random": 1, "denormal": 1e-40, "huge": 1e30}[kind]


def feed(model, step, kind="random"):
    for name, parameter in model.named_parameters():
        values = gradient(name.replace("_orig", ""), parameter.shape, step, kind)
        if isinstance(parameter, DTensor):
            values = distribute_tensor(
                values, parameter.device_mesh, parameter.placements, src_data_rank=None
            )
        parameter.grad = values


class Run:
    """A run whose gradients are given, so that it is the same in every layout, bit by bit."""

    def __init__(self, layout=alone, kind="random", prune_first=True, **settings):
        self.kind = kind
        self.model = self.build(kind)
        if not prune_first:
            self.model = layout(self.model)
        self.scheduler = self.set_up(**settings)
        if prune_first:
            self.model = layout(self.model)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.05, momentum=0.9)

    def build(self, kind):
        return net(kind)

    def set_up(self, **settings):
        return platon_prune.global_unstructured(
            self.model, **dict(warmup_steps=0, cooldown_steps=0) | SETTINGS | settings
        )

    def step(self):
        feed(self.model, self.scheduler.last_step + 1, self.kind)
        self.optimizer.step()
        self.scheduler.step()
        self.optimizer.zero_grad()

    def to(self, until):
        while self.scheduler.last_step < until:
            self.step()
        return self

    def result(self):
        return {
            "masks": {name: full(mask) for name, mask in self.scheduler.masks().items()},
            "weights": {
                name.replace("_orig", ""): full(parameter)
                for name, parameter in self.model.named_parameters()
            },
            "scores": {name: full(self.scheduler.score(name)) for name in self.scheduler.masks()},
            "threshold": self.scheduler.threshold,
            "sparsity": self.scheduler.sparsity(),
        }


def results(layout, kind, at, settings, prune_first=True, runs=Run):
    """What there is at some steps of a run."""
    run = runs(layout, kind, prune_first, **settings)
    return [run.to(step).result() for step in at]


def differences(result, expected):
    """Names of what is not the same in two results, bit by bit."""
    wrong = [key for key in ("threshold", "sparsity") if result[key] != expected[key]]
    for part in ("masks", "weights", "scores"):
        assert result[part].keys() == expected[part].keys()
        wrong += [
            f"{part} of {name}"
            for name, values in expected[part].items()
            if not torch.equal(result[part][name], values)
        ]
    return wrong


# --- what goes wrong in one process ------------------------------------------------------------


def step_with_nan_on(rank, layout, step):
    """A run in which one rank alone has a gradient that is not a number."""
    run = Run(layout).to(step - 1)
    feed(run.model, step)
    if dist.get_rank() == rank:
        local = run.model.first.weight_orig.grad
        local = local.to_local() if isinstance(local, DTensor) else local
        local[0, 0] = torch.nan
    run.scheduler.step()
    skipped = run.scheduler.skipped_steps
    run.optimizer.zero_grad()
    run.to(STEPS)
    return skipped, run.result()


def leave_sums_undone(model, at="first.weight"):
    """As a backward does that does not add up over a mesh what its ranks hold of a gradient."""
    for name, parameter in model.named_parameters():
        if name.replace("_orig", "") == at:
            mesh = parameter.device_mesh
            values = parameter.grad.full_tensor() * (mesh.get_local_rank() == 0)
            parameter.grad = DTensor.from_local(values, mesh, [Partial()], run_check=False)


def step_with_sums_undone(step, rank=-1, what=None, layout=tp):
    """A run whose gradients of one tensor are placed otherwise; at a step, one rank is changed."""
    run = Run(layout)
    for number in range(1, STEPS + 1):
        feed(run.model, number)
        leave_sums_undone(run.model)
        if number == step and dist.get_rank() == rank:
            what(run)
        run.scheduler.step()  # no optimizer: it would add up the gradients itself
    return run.scheduler.skipped_steps, run.result()


def forget_a_gradient(run):
    run.model.first.weight_orig.grad = None


def spoil_an_undone_sum(run):
    run.model.first.weight_orig.grad.to_local()[0, 0] = torch.nan


def spoil_a_gradient(run):
    run.model.one.weight_orig.grad[0, 0] = torch.inf


def collectives_of_steps(layout, undone):
    """Bytes of each reduction over ranks, step by step."""
    run, sizes = Run(layout), []
    reduced = Processes._reduced

    def counting(self, tensor, operation):
        sizes[-1].append(tensor.numel() * tensor.element_size())
        return reduced(self, tensor, operation)

    Processes._reduced = counting
    try:
        for number in range(1, STEPS + 1):
            feed(run.model, number)
            if undone:
                leave_sums_undone(run.model)
            sizes.append([])
            run.scheduler.step()
    finally:
        Processes._reduced = reduced
    return sizes


def set_up_with(settings_by_rank):
    """Set-up with settings of each rank's own; what is left of the model if that is refused."""
    model = net()
    keys = list(model.state_dict())
    try:
        platon_prune.global_unstructured(
            model,
            **dict(warmup_steps=0, cooldown_steps=0) | SETTINGS | settings_by_rank[dist.get_rank()],
        )
    except Exception as error:
        return type(error).__name__, str(error), list(model.state_dict()) == keys
    return None


def change_one_rank(layout, what, step, rank, runs=Run):
    """A run in which something of one rank is changed by hand before a choosing step."""
    run = runs(layout).to(step - 1)
    if dist.get_rank() == rank:
        what(run)
    run.step()


def flip_a_mask_bit(run):
    mask = run.model.second.weight_mask
    mask = mask.to_local() if isinstance(mask, DTensor) else mask
    mask.view(-1)[3] ^= True


def change_a_score(run):
    run.scheduler._tensors[1].remembered["sensitivity"][5] *= 1.0001


def finalize(run):
    run.scheduler.remove()


def lose_the_gradients(run):
    run.optimizer.register_step_post_hook(lambda *_: run.optimizer.zero_grad())


def take_a_step_more(run):
    run.scheduler.last_step += 1


# --- checkpoints --------------------------------------------------------------------------------


def save_checkpoint(folder, layout, kind, step, settings, runs=Run):
    """Train up to a step and save all with torch's distributed checkpoints."""
    write_checkpoint(runs(layout, kind, **settings).to(step), folder)


def write_checkpoint(run, folder):
    model, optimizer = get_state_dict(run.model, run.optimizer)
    state = {"model": model, "optimizer": optimizer, "scheduler": run.scheduler.state_dict()}
    checkpoint.save(state, checkpoint_id=folder)


def resume_checkpoint(folder, layout, kind, at, settings, runs=Run):
    """Load into a new run, in whatever layout, and go on; results at some steps."""
    run = runs(layout, kind, **settings)
    model, optimizer = get_state_dict(run.model, run.optimizer)
    state = {"model": model, "optimizer": optimizer, "scheduler": run.scheduler.state_dict()}
    checkpoint.load(state, checkpoint_id=folder)
    set_state_dict(
        run.model,
        run.optimizer,
        model_state_dict=state["model"],
        optim_state_dict=state["optimizer"],
    )
    run.scheduler.load_state_dict(state["scheduler"])
    return [run.to(step).result() for step in at]


# --- what the pages show -------------------------------------------------------------------------


def example(script, folder):
    """The weights with which ``train()`` of an example ends in this rank."""
    with contextlib.chdir(folder):
        model = runpy.run_path(script)["train"]()
    return {name: weight.tolist() for name, weight in model.state_dict().items()}
