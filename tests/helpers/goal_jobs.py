"""What the ranks of a test do with ``max_drop``: a run in some layout whose metric is given."""

import n_of_m_jobs
import rank_jobs
import structured_jobs
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as checkpoint
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

# Choices at 4, 8, 12, 16 and 18; what fails at 12 goes back to 8, and at 18 to 4.
VALUES = {12: 0.0, 18: 0.0}


class Goal:
    """Given gradients, so that the run is the same in every layout, and a given metric."""

    inputs = 9

    def __init__(self, layout=rank_jobs.alone, *args, **settings):
        # Shards of sizes that no number of ranks divides can't run under tensor parallelism.
        self.evaluates = layout not in (rank_jobs.tp, rank_jobs.fsdp_tp)
        super().__init__(layout, *args, **settings)

    def set_up(self, **settings):
        return super().set_up(**dict(max_drop=0.1, baseline=1.0) | settings)

    def step(self):
        for module in self.model.modules():
            if hasattr(module, "reshard"):
                module.reshard()  # as a backward would, for gradients that are given
        super().step()
        if self.evaluates:
            with torch.no_grad():
                self.model(
                    torch.zeros(2, self.inputs)
                )  # after it FSDP2 still has parameters gathered
        value = VALUES.get(self.scheduler.last_step, 1.0)
        self.scheduler.report(value, self.optimizer)

    def result(self):
        moments = [
            each["momentum_buffer"] for each in self.optimizer.state_dict()["state"].values()
        ]
        found = super().result()
        found["weights"] |= {f"momentum {i}": rank_jobs.full(m) for i, m in enumerate(moments)}
        return found


class GoalRun(Goal, rank_jobs.Run):
    """By single weights."""


class Groups(Goal, structured_jobs.KnownRun):
    """By whole neurons."""


class GroupsByTime(Groups):
    """By whole neurons that are counted by their time, which is said here."""

    def set_up(self, **settings):
        # Two places of a millisecond each that go to their floors, of a forward of 2.5.
        with structured_jobs.said_times(forward=5 * 10**9 // 2):
            return super().set_up(budget="latency", **settings)


class NOfM(Goal, n_of_m_jobs.Run):
    """By groups of four."""

    inputs = 12


def results(layout, at, runs=GoalRun):
    """What there is at some steps, and what the run says in the end."""
    run = runs(layout)
    return [run.to(step).result() for step in at], str(run.scheduler.goal)


def save(folder, layout, step):
    rank_jobs.save_checkpoint(folder, layout, "random", step, {}, GoalRun)


def resume(folder, layout, at):
    """As docs/metric.md has it: first how many states there are, then all of them."""
    run = GoalRun(layout)
    model, optimizer = get_state_dict(run.model, run.optimizer)
    scheduler = run.scheduler.state_dict()
    checkpoint.load({"scheduler": scheduler}, checkpoint_id=folder)
    scheduler = run.scheduler.room_for(scheduler, run.optimizer)
    state = {"model": model, "optimizer": optimizer, "scheduler": scheduler}
    checkpoint.load(state, checkpoint_id=folder)
    set_state_dict(
        run.model, run.optimizer, model_state_dict=model, optim_state_dict=state["optimizer"]
    )
    run.scheduler.load_state_dict(state["scheduler"])
    return [run.to(step).result() for step in at], str(run.scheduler.goal)


def resume_from_whole(state, layout, at):
    """Each process loads what one that held all of it has saved."""
    weights, moments, scheduler = state
    model = rank_jobs.net()
    model.load_state_dict(weights)  # before masks: under its own names
    run = GoalRun(layout)
    with torch.no_grad():
        for name, parameter in run.model.named_parameters():
            local = getattr(parameter, "_local_tensor", parameter)
            local.copy_(
                _placed(dict(model.named_parameters())[name.replace("_orig", "")], parameter)
            )
    for parameter, moment in zip(run.model.parameters(), moments, strict=True):
        run.optimizer.state[parameter]["momentum_buffer"] = _like(moment, parameter)
    run.scheduler.load_state_dict(scheduler)
    return [run.to(step).result() for step in at], str(run.scheduler.goal)


def _placed(whole, parameter):
    placed = _like(whole, parameter)
    return getattr(placed, "_local_tensor", placed)


def _like(whole, parameter):
    if not hasattr(parameter, "device_mesh"):
        return whole.detach().clone()
    return torch.distributed.tensor.distribute_tensor(
        whole.detach().clone(), parameter.device_mesh, parameter.placements, src_data_rank=None
    )


def whole_state(step):
    """Weights, moments and the scheduler's state of one process that holds all of it."""
    run = GoalRun().to(step)
    weights = run.result()["weights"]
    moments = [each["momentum_buffer"] for each in run.optimizer.state_dict()["state"].values()]
    return (
        {name: each for name, each in weights.items() if not name.startswith("momentum")},
        moments,
        run.scheduler.state_dict(),
    )


def report(by_rank):
    """A report in which each rank gives a value of its own; what the optimizer is, likewise."""
    run = GoalRun(rank_jobs.fsdp).to(3)
    rank_jobs.Run.step(run)
    value, optimizer = by_rank[dist.get_rank()]
    run.scheduler.report(value, run.optimizer if optimizer else None)


def bytes_of_states(layout):
    """Of the states that this process keeps: bytes of their weights, and entries of the model."""
    run = GoalRun(layout).to(9)
    states = run.scheduler.state_dict()["goal"]["states"]
    held = sum(
        (each.to_local() if hasattr(each, "to_local") else each).numel()
        for each in states[0]["weights"].values()
    )
    return len(states), held, sum(each.numel() for each in run.model.parameters())
