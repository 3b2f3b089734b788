"""PLATON beside other ways to write it down, step by step on one workload."""

from __future__ import annotations

import copy
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

import platon_prune
from platon_prune.commands.benchmarks.figures import Figure, Spread
from platon_prune.commands.benchmarks.textbook import Textbook
from platon_prune.commands.benchmarks.workload import (
    KINDS,
    SHORT,
    Size,
    Workload,
    average,
    kind_of,
)
from platon_prune.compat import Pruner
from platon_prune.timing import Clock

if TYPE_CHECKING:
    from platon_prune.scheduling.scheduler import PlatonScheduler

T = TypeVar("T")
NAMES = ("ours", "textbook", "compat")


class Contest:
    """The library, the textbook and ``compat.Pruner``, or some of them, on one workload.

    Args:
        workload: The weights and gradients; each contestant has weights of its own.
        names: Who takes part, of ``NAMES``.
        state_dtype: What the library keeps its window and averages in.
        offload_averages: Whether it keeps the averages in host memory.
    """

    def __init__(
        self,
        workload: Workload,
        names: Sequence[str] = NAMES[:2],
        state_dtype: torch.dtype = torch.float32,
        offload_averages: bool = False,
    ) -> None:
        self.workload = workload
        self.parameters = workload.parameters
        self.step = 0
        self.textbook: Textbook | None = None
        self.scheduler: PlatonScheduler | None = None
        self.compat: nn.Module | None = None
        self._steps: dict[str, Callable[[list[Tensor]], object]] = {}
        if "compat" in names:  # before the masks are on the modules that it copies
            self.compat = nn.ModuleList(copy.deepcopy(workload.modules))
            self._steps["compat"] = _Compat(self.compat)
        if "textbook" in names:
            weights = [parameter.detach() for parameter in self.parameters]
            # Each prunes weights of its own; alone, it may have those of the modules.
            if "ours" in names:
                weights = [weight.clone() for weight in weights]
            self.textbook = Textbook(weights, SHORT)
            self._steps["textbook"] = self.textbook.step
        if "ours" in names:
            self.scheduler = platon_prune.global_unstructured(
                workload.pairs,
                amount=SHORT.amount,
                total_steps=SHORT.total_steps,
                warmup_steps=SHORT.warmup_steps,
                cooldown_steps=SHORT.cooldown_steps,
                window=SHORT.window,
                state_dtype=state_dtype,
                offload_averages=offload_averages,
            )
            self._steps["ours"] = self._step_of_ours

    def _step_of_ours(self, _: object) -> None:
        assert self.scheduler is not None
        self.scheduler.step()

    def advance(self, measure: Callable[[Callable[[], object]], T]) -> dict[str, T]:
        """One step of each; returns what ``measure`` says of it, by name."""
        self.step += 1
        gradients = self.workload.gradients(self.step)
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient
        return {
            name: measure(lambda step=self._steps[name]: step(gradients))  # type: ignore[misc]
            for name in NAMES
            if name in self._steps
        }

    def close(self) -> None:
        """Take the masks off, so that the workload can be used again."""
        if self.scheduler is not None:
            self.scheduler.allow_other_length()
            self.scheduler.remove()


class _Compat:
    """``compat.Pruner`` with the settings that give it the short schedule."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.step = 0
        # There the phases are multiples of one length, and "threshold" is a density.
        settings = Namespace(
            initial_threshold=1.0,
            final_threshold=1 - SHORT.amount,
            warmup_steps=SHORT.cooldown_steps,
            initial_warmup=SHORT.warmup_steps // SHORT.cooldown_steps,
            final_warmup=1,
            beta1=0.85,
            beta2=0.95,
            deltaT=SHORT.window,
        )
        self.pruner = Pruner(model, settings, SHORT.total_steps, non_mask_name=(), use_no_mask=True)

    def __call__(self, gradients: list[Tensor]) -> None:
        self.step += 1
        for parameter, gradient in zip(self.model.parameters(), gradients, strict=True):
            parameter.grad = gradient
        self.pruner.update_and_pruning(self.model, self.step)


class StepTimes(NamedTuple):
    """Times of steps.

    Args:
        by_name: Of each contestant the times by the kind of step, in milliseconds.
        copies: Of the plain copy.
        to_copy: Of each contestant, ordinary steps over the copy that was timed beside.
    """

    by_name: Mapping[str, Mapping[str, Spread]]
    copies: Spread
    to_copy: Mapping[str, Spread]

    def kinds(self, other: str = "textbook", prefix: str = "", ours: str = "ours") -> list[Figure]:
        """A figure for each kind of step and one for the average over SQuAD's schedule."""
        mine, others = self.by_name[ours], self.by_name[other]
        return [
            *(Figure(prefix + kind, "ms", mine[kind], others[kind]) for kind in KINDS),
            Figure(f"{prefix}average over SQuAD's schedule", "ms", average(mine), average(others)),
        ]

    def figures(self) -> list[Figure]:
        """All of them."""
        return [
            *self.kinds(),
            Figure("plain copy of 16 bytes a weight", "ms", self.copies, None),
            Figure(
                "ordinary step / plain copy", "", self.to_copy["ours"], self.to_copy["textbook"]
            ),
            *self.kinds(prefix="compat.Pruner, ", ours="compat"),
        ]


def step_times(size: Size, device: str, repeats: int, timed: Clock) -> StepTimes:
    """Let all contestants and a plain copy take turns, over ``repeats`` runs."""
    workload = Workload(size, device)
    source = torch.ones(2 * workload.num_weights, device=device)
    # Written before it is timed: a page of memory is only there once something is in it.
    target = torch.ones_like(source)
    times: dict[str, dict[str, list[float]]] = {name: {} for name in NAMES}
    to_copy: dict[str, list[float]] = {name: [] for name in NAMES}
    copies: list[float] = []
    for _ in range(repeats):
        workload.renew()  # scores of zeros tie, which no other run begins with
        contest = Contest(workload, NAMES)
        for step in range(1, SHORT.total_steps):
            samples = contest.advance(timed)
            if step <= SHORT.window:
                continue
            # Beside each step, so that a slow moment of the machine slows both.
            copies.append(timed(lambda: target.copy_(source)))
            kind = kind_of(SHORT, step)
            for name, sample in samples.items():
                times[name].setdefault(kind, []).append(sample)
                if kind == "ordinary step":
                    to_copy[name].append(sample / copies[-1])
        contest.close()
    return StepTimes(
        {
            name: {kind: Spread.of(samples) for kind, samples in by_kind.items()}
            for name, by_kind in times.items()
        },
        Spread.of(copies),
        {name: Spread.of(ratios) for name, ratios in to_copy.items()},
    )
