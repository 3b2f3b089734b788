"""What ranks do in tests of votes that stay on a device: gloo on the CPU, presented as a device."""

import contextlib
import os
from unittest import mock

import rank_jobs as jobs
import torch
import torch.distributed as dist
from torch.overrides import TorchFunctionMode

from platon_prune.tensors.backends import VARIABLE
from platon_prune.tensors.collectives import Processes

READS = {"tolist", "item", "__bool__", "__int__", "__float__", "nonzero", "cpu", "numpy"}


class Reads(TorchFunctionMode):
    """Counts what would wait for a device."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if getattr(function, "__name__", "") in READS:
            self.names.append(function.__name__)
        return function(*args, **(kwargs or {}))


@contextlib.contextmanager
def on_device():
    """The CPU as a device on which the group exchanges; foreach reads no value in a step."""
    home = lambda self: torch.device("cpu") if self.size > 1 else None  # noqa: E731
    with (
        mock.patch.object(Processes, "on_device", home),
        mock.patch.dict(os.environ, {VARIABLE: "foreach"}),
    ):
        yield


def masks_on(device):
    """What a run of this process leaves."""
    model = jobs.net().to(device)
    scheduler = jobs.platon_prune.global_unstructured(model, **jobs.SETTINGS)
    for step in range(1, jobs.STEPS + 1):
        for name, parameter in model.named_parameters():
            gradient = jobs.gradient(name.replace("_orig", ""), parameter.shape, step, "random")
            parameter.grad = gradient.to(device)
            parameter.data.add_(parameter.grad, alpha=-0.05)
        scheduler.step()
    return scheduler.masks()


def results(layout, kind, at, settings):
    with on_device():
        return jobs.results(layout, kind, at, settings)


def reads_of_each_step(layout):
    """By step, what was read in it; and whether it was to end a window or to choose."""
    found = []
    with on_device():
        run = jobs.Run(layout)
        for step in range(1, jobs.STEPS + 1):
            jobs.feed(run.model, step)
            run.optimizer.step()
            schedule = run.scheduler.schedule
            is_ordinary = not (schedule.ends_window(step) or schedule.is_choosing_step(step))
            with Reads() as reads:
                run.scheduler.step()
            run.optimizer.zero_grad()
            found.append((step, is_ordinary, reads.names))
    return found


def reads_of_choices(num_layers):
    """How many waits each choice of a run takes, with as many tensors."""
    counts = []
    with on_device():
        torch.manual_seed(0)
        model = torch.nn.Sequential(*[torch.nn.Linear(8, 8, bias=False) for _ in range(num_layers)])
        scheduler = jobs.platon_prune.global_unstructured(model, **jobs.SETTINGS)
        choose = scheduler._tensors.choose

        def counted(*args, **kwargs):
            with Reads() as reads:
                result = choose(*args, **kwargs)
            counts.append(len(reads.names))
            return result

        scheduler._tensors.choose = counted
        for step in range(1, jobs.STEPS + 1):
            jobs.feed(model, step)
            scheduler.step()
    return counts


def step_with_nan_on(rank, layout, step):
    with on_device():
        return jobs.step_with_nan_on(rank, layout, step)


def trouble(layout, kind, rank, at):
    """Steps until an error; in one rank something is amiss at a step.

    Returns:
        Of this rank the step at which it was told, and the error; None if it never was.
    """
    with on_device():
        run = jobs.Run(layout)
        saved = None
        for step in range(1, jobs.STEPS + 7):
            jobs.feed(run.model, step)
            if step == at - 2:
                saved = run.scheduler.state_dict()
            is_amiss = dist.get_rank() == rank and step == at
            if is_amiss and kind == "no gradient":
                run.optimizer.zero_grad()
            elif is_amiss and kind == "another step":
                run.scheduler.load_state_dict(saved)
            elif is_amiss and kind == "finalized":
                run.scheduler.remove()
            elif is_amiss and kind == "skipped":
                run.scheduler.step(skipped=True)
                continue
            try:
                run.scheduler.step()
            except (RuntimeError, ValueError) as error:
                return step, type(error).__name__, str(error)
        return run.scheduler.skipped_steps, None, None
