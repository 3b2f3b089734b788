"""An ordinary step and a choice beside what torch offers, and what options of a choice cost."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

import platon_prune
from platon_prune.choice.scored import Line, ScoredLine
from platon_prune.choice.selection import prune_smallest_of_line_
from platon_prune.commands.benchmarks.figures import Figure, Spread
from platon_prune.commands.benchmarks.semi_structured import choices
from platon_prune.commands.benchmarks.workload import Size, Workload
from platon_prune.timing import Clock, interleaved

# More choices than are taken, so that no other kind of step comes between them.
_LONG = 10_000


def figures(size: Size, device: str, repeats: int, timed: Clock) -> list[Figure]:
    """All of them on one device."""
    return [
        *ordinary_figures(size, device, repeats, timed),
        *selection_figures(size, device, repeats, timed),
        history_figure(size, device, repeats, timed),
        pattern_figure(size, device, repeats, timed),
    ]


def ordinary_figures(size: Size, device: str, repeats: int, timed: Clock) -> list[Figure]:
    """An ordinary step beside a step of torch's fused AdamW over the same parameters."""
    workload = Workload(size, device)
    parameters = workload.parameters
    for parameter, gradient in zip(parameters, workload.gradients(0), strict=True):
        parameter.grad = gradient
    # Of the same parameters: masks are put on modules and leave their parameters what they are.
    optimizer = torch.optim.AdamW(parameters, lr=1e-5, fused=True)
    scheduler = platon_prune.global_unstructured(
        workload.pairs, amount=0.9, total_steps=_LONG, warmup_steps=_LONG // 2, window=_LONG // 10
    )
    steps = [scheduler.step, optimizer.step]
    found = [Figure("ordinary step / fused AdamW", "ms", *_spreads(steps, 10 * repeats, timed))]
    if torch.device(device).type == "cuda":
        # How long the host is kept from going on, whatever the device still has to do.
        found.append(
            Figure(
                "host alone: ordinary step / fused AdamW",
                "ms",
                *_spreads(steps, 10 * repeats, _host_clock(device)),
            )
        )
    return found


def _host_clock(device: str) -> Clock:
    def timed(function: Callable[[], object]) -> float:
        torch.cuda.synchronize(device)
        start = time.perf_counter()
        function()
        return 1000 * (time.perf_counter() - start)

    return timed


def selection_figures(size: Size, device: str, repeats: int, timed: Clock) -> list[Figure]:
    """Choosing masks by given scores, against what torch finds in scores that are joined.

    That is the threshold by ``kthvalue``, and the largest scores, in no order, by ``topk``.
    """
    joined = torch.randn(sum(size.tensor_sizes), device=device).square_()
    line = Line(size.tensor_sizes, joined.device)
    masks = [torch.ones(n, dtype=torch.bool, device=device) for n in size.tensor_sizes]
    shapes = {str(i): mask.shape for i, mask in enumerate(masks)}
    scored = ScoredLine(line, joined.__getitem__, line.cut(masks), shapes, signed=False)
    times: list[list[float]] = [[], [], []]
    # Another amount each time: with the same one, masks would be found as they are.
    for i in range(repeats + 1):
        count = round((0.5 + 0.4 * i / repeats) * joined.numel())
        for samples, choose in zip(times, _selections(scored, joined, count), strict=True):
            samples.append(timed(choose))
    ours, kthvalue, topk = (Spread.of(samples[1:]) for samples in times)  # the first touch memory
    return [
        Figure("exact selection / kthvalue", "ms", ours, kthvalue),
        Figure("exact selection / topk", "ms", ours, topk),
    ]


def _selections(line: ScoredLine, joined: Tensor, count: int) -> list[Callable[[], object]]:
    return [
        lambda: prune_smallest_of_line_(line, count),
        lambda: torch.kthvalue(joined, count),
        lambda: torch.topk(joined, joined.numel() - count, sorted=False),
    ]


def history_figure(size: Size, device: str, repeats: int, timed: Clock) -> Figure:
    """A choosing step with the history, beside one without."""
    steps = []
    # Two workloads: a model can have one scheduler.
    for history in (True, False):
        workload = Workload(size, device)
        for parameter, gradient in zip(workload.parameters, workload.gradients(0), strict=True):
            parameter.grad = gradient
        scheduler = platon_prune.global_unstructured(
            workload.pairs, amount=0.9, total_steps=_LONG, warmup_steps=1, window=1, history=history
        )
        scheduler.step()  # of the warm-up
        steps.append(scheduler.step)
    return Figure("choosing step / without history", "ms", *_spreads(steps, 3 * repeats, timed))


def pattern_figure(size: Size, device: str, repeats: int, timed: Clock) -> Figure:
    """A choice of 2:4 beside one of single weights, over the weights without the biases."""
    # Groups of four must fit into the rows of narrow models too.
    shapes = [(outputs, max(8, inputs // 4 * 4)) for inputs, outputs in size.shapes]
    calls = choices(shapes, device, [(2, 4)])
    return Figure(
        "choice of 2:4 / of single weights",
        "ms",
        *_spreads([calls["2:4"], calls["single weights"]], 3 * repeats, timed),
    )


def _spreads(functions: Sequence[Callable[[], object]], rounds: int, timed: Clock) -> list[Spread]:
    return [Spread.of(times) for times in interleaved(functions, rounds, timed)]
