"""``platon-prune bench``: times and memory of PLATON beside a textbook implementation."""

from __future__ import annotations

import argparse
import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from platon_prune.commands.benchmarks.figures import (
    Figure,
    Spread,
    add_measuring_arguments,
    print_table,
    require_repeats,
    write_json,
)
from platon_prune.schedule import CubicSchedule

if TYPE_CHECKING:
    from torch import Tensor, nn

    from platon_prune.scheduling.scheduler import PlatonScheduler
    from platon_prune.timing import Clock

HELP = "Measure speed and memory on the shapes of BERT-base against a textbook implementation."

# The paper's schedule for SQuAD, over which the times of single steps are averaged.
SQUAD = CubicSchedule(
    amount=0.9, total_steps=55_000, warmup_steps=5_400, cooldown_steps=27_000, window=10
)
# One that has a step of each kind early. Its first window touches new memory and is not counted,
# and its last step is not taken: a choice between two windows, which SQUAD does not have.
SHORT = CubicSchedule(amount=0.9, total_steps=45, warmup_steps=20, cooldown_steps=5, window=10)
_LINEARS_PER_LAYER = 6  # query, key, value, output, and two of the feed-forward block
KINDS = ("ordinary step", "window's end", "choosing step", "final-phase step")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add_measuring_arguments(parser, repeats=3, what="runs of each part")
    parser.add_argument(
        "--scale",
        type=float,
        default=1.0,
        help="fraction of BERT-base's layers, for a quick try; below one layer it gets narrower",
    )
    parser.add_argument(
        "--device", help="cpu or cuda (default: cpu, and cuda too where there is one)"
    )
    parser.add_argument(
        "--processor-time",
        action="store_true",
        help="on a busy machine: run on one CPU thread and count its processor time",
    )
    parser.add_argument(
        "--semi-structured",
        action="store_true",
        help="n:m instead: the time of a choice, and 2:4 layers beside dense ones on a GPU",
    )


def run(arguments: argparse.Namespace) -> int:
    """Measure, print the tables, write the file."""
    import torch

    from platon_prune.timing import clock

    require_repeats(arguments)
    if not 0 < arguments.scale <= 1:
        raise ValueError(f"--scale must be in (0, 1], got {arguments.scale}: 1 is BERT-base")
    if arguments.processor_time:
        if arguments.device != "cpu":
            raise ValueError("--processor-time needs --device cpu: it does not see a GPU's work")
        torch.set_num_threads(1)
    has_cuda = torch.cuda.is_available()
    if (arguments.device or "cpu").startswith("cuda") and not has_cuda:
        raise ValueError(f"--device must be there, got {arguments.device}: use --device cpu")
    names = [arguments.device] if arguments.device else ["cpu", "cuda"] if has_cuda else ["cpu"]
    if arguments.semi_structured:
        return _semi_structured(arguments, names)
    reports = {}
    for name in names:
        timed = clock(name, arguments.processor_time)
        figures = measure(arguments.scale, name, arguments.repeats, timed)
        print_table(tensor_sizes(arguments.scale), name, figures)
        reports[name] = [figure._asdict() for figure in figures]
    write_json(arguments, reports)
    return 0


def _semi_structured(arguments: argparse.Namespace, names: list[str]) -> int:
    from platon_prune.commands.benchmarks.semi_structured import choice_table, kernel_table
    from platon_prune.timing import clock

    if arguments.json:
        raise ValueError("--json must be left out with --semi-structured: its tables are printed")
    shapes = [
        (outputs, max(24, inputs // 24 * 24))  # all patterns divide it
        for inputs, outputs in encoder_shapes(arguments.scale)
    ]
    for name in names:
        timed = clock(name, arguments.processor_time)
        num_weights = sum(outputs * inputs for outputs, inputs in shapes)
        print(f"\n{name}: {num_weights:,} weights; half of them pruned, or of groups constrained\n")
        print(choice_table(shapes, name, arguments.repeats, timed))
        print("\n" + kernel_table(name, 20 * arguments.repeats, timed))
    return 0


def measure(scale: float, device: str, repeats: int, timed: Clock) -> list[Figure]:
    """All figures on one device."""
    times, copies, to_copy = _step_times(scale, device, repeats, timed)
    ours, textbook = (
        {kind: Spread.of(samples) for kind, samples in by_kind.items()} for by_kind in times
    )
    return [
        *(Figure(kind, "ms", ours[kind], textbook[kind]) for kind in KINDS),
        Figure("average over SQuAD's schedule", "ms", average(ours), average(textbook)),
        Figure("plain copy of 16 bytes a weight", "ms", Spread.of(copies), None),
        Figure("ordinary step / plain copy", "", Spread.of(to_copy[0]), Spread.of(to_copy[1])),
        _selection_figure(scale, device, repeats, timed),
        _memory_figure(scale, device, repeats),
    ]


# --- steps --------------------------------------------------------------------------------------


def kind_of(schedule: CubicSchedule, step: int) -> str:
    """Which of ``KINDS`` a step is."""
    if not schedule.ends_window(step):
        return "final-phase step" if step > schedule.ramp_end else "ordinary step"
    return "choosing step" if step > schedule.warmup_steps else "window's end"


def average(times: dict[str, Spread]) -> Spread:
    """Time of a step of SQuAD's schedule, from how often each kind of step occurs in it."""
    counts = Counter(kind_of(SQUAD, step) for step in range(1, SQUAD.total_steps + 1))
    return Spread(
        *(
            sum(counts[kind] * times[kind][i] for kind in KINDS) / SQUAD.total_steps
            for i in range(3)
        )
    )


def encoder_shapes(scale: float) -> list[tuple[int, int]]:
    """Inputs and outputs of the linear layers of BERT-base's encoder, or of a fraction of it."""
    num_layers = max(1, round(12 * scale))
    hidden = max(8, round(768 * math.sqrt(min(1, 12 * scale))))
    attention, up, down = (hidden, hidden), (hidden, 4 * hidden), (4 * hidden, hidden)
    return [attention, attention, attention, attention, up, down] * num_layers


def tensor_sizes(scale: float) -> list[int]:
    """Entries of each weight and bias."""
    return [
        size for inputs, outputs in encoder_shapes(scale) for size in (inputs * outputs, outputs)
    ]


class Workload:
    """Linear layers in the shapes of an encoder, with random gradients.

    Args:
        scale: 1 for BERT-base's 12 layers, a smaller fraction for fewer or narrower ones.
        device: Where the tensors are.
    """

    def __init__(self, scale: float, device: str) -> None:
        import torch
        from torch import nn

        self.modules = [nn.Linear(*shape, device=device) for shape in encoder_shapes(scale)]
        self._gradients = [torch.randn_like(parameter) for parameter in self.parameters]

    @property
    def pairs(self) -> list[tuple[nn.Module, str]]:
        """What to prune, biases included."""
        return [(module, name) for module in self.modules for name in ("weight", "bias")]

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The parameters, in the order of ``pairs`` while they are not pruned."""
        return [parameter for module in self.modules for parameter in module.parameters()]

    @property
    def num_weights(self) -> int:
        """How many entries are selected."""
        return sum(gradient.numel() for gradient in self._gradients)

    def gradients(self, step: int) -> list[Tensor]:
        """The gradients of a step: each layer gets those of another one at the next step."""
        first = step * 2 * _LINEARS_PER_LAYER % len(self._gradients)
        return self._gradients[first:] + self._gradients[:first]


class Contest:
    """PLATON, the textbook or both on one workload, step by step."""

    def __init__(self, workload: Workload, ours: bool = True, textbook: bool = True) -> None:
        from platon_prune import global_unstructured
        from platon_prune.commands.benchmarks.textbook import Textbook

        self.workload = workload
        self.parameters = workload.parameters
        self.step = 0
        weights = [parameter.detach() for parameter in self.parameters]
        self.textbook: Textbook | None = None
        if textbook:
            own = [weight.clone() for weight in weights] if ours else weights
            self.textbook = Textbook(own, SHORT)
        self.scheduler: PlatonScheduler | None = None
        if ours:
            self.scheduler = global_unstructured(
                workload.pairs,
                amount=SHORT.amount,
                total_steps=SHORT.total_steps,
                warmup_steps=SHORT.warmup_steps,
                cooldown_steps=SHORT.cooldown_steps,
                window=SHORT.window,
            )

    def advance(self, timed: Clock) -> tuple[float, float]:
        """One step of each; returns what ``timed`` says of ours and of the textbook's."""
        self.step += 1
        gradients = self.workload.gradients(self.step)
        times = [0.0, 0.0]
        if self.scheduler is not None:
            for parameter, gradient in zip(self.parameters, gradients, strict=True):
                parameter.grad = gradient
            times[0] = timed(self.scheduler.step)
        if self.textbook is not None:
            textbook = self.textbook
            times[1] = timed(lambda: textbook.step(gradients))
        return times[0], times[1]

    def close(self) -> None:
        """Take the masks off, so that the workload can be used again."""
        if self.scheduler is not None:
            self.scheduler.remove()


_TimesByKind = dict[str, list[float]]


def _step_times(
    scale: float, device: str, repeats: int, timed: Clock
) -> tuple[tuple[_TimesByKind, _TimesByKind], list[float], tuple[list[float], list[float]]]:
    """Times by kind of ours and the textbook's; of the plain copy; ordinary steps over copies."""
    import torch

    workload = Workload(scale, device)
    source = torch.ones(2 * workload.num_weights, device=device)
    target = torch.ones_like(source)
    times: tuple[_TimesByKind, _TimesByKind] = ({}, {})
    copies: list[float] = []
    to_copy: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeats):
        contest = Contest(workload)
        for step in range(1, SHORT.total_steps):
            both = contest.advance(timed)
            if step <= SHORT.window:
                continue
            copy = timed(lambda: target.copy_(source))
            copies.append(copy)
            kind = kind_of(SHORT, step)
            for samples, ratios, sample in zip(times, to_copy, both, strict=True):
                samples.setdefault(kind, []).append(sample)
                if kind == "ordinary step":
                    ratios.append(sample / copy)
        contest.close()
    return times, copies, to_copy


# --- selection ----------------------------------------------------------------------------------


def _selection_figure(scale: float, device: str, repeats: int, timed: Clock) -> Figure:
    """Choosing masks by given scores, against only the threshold by kthvalue of joined ones."""
    import torch

    from platon_prune.choice.scored import ScoredTensor
    from platon_prune.choice.selection import prune_smallest_

    sizes = tensor_sizes(scale)
    joined = torch.randn(sum(sizes), device=device).square_()
    tensors, offset = [], 0
    for scores in torch.split(joined, sizes):
        mask = torch.ones(scores.numel(), dtype=torch.bool, device=device)
        tensors.append(ScoredTensor(scores.__getitem__, mask, offset))
        offset += scores.numel()
    ours, textbook = [], []
    for i in range(repeats + 1):
        count = round((0.5 + 0.4 * i / repeats) * offset)
        ours.append(timed(lambda count=count: prune_smallest_(tensors, count)))  # type: ignore[misc]
        textbook.append(timed(lambda count=count: torch.kthvalue(joined, count)))  # type: ignore[misc]
    # The first of each touches new memory.
    return Figure("exact selection / kthvalue", "ms", Spread.of(ours[1:]), Spread.of(textbook[1:]))


# --- memory -------------------------------------------------------------------------------------


def _memory_figure(scale: float, device: str, repeats: int) -> Figure:
    """Most bytes per weight beyond weights and gradients, over steps of each kind."""
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor

    spreads: list[Spread | None] = []
    for ours in (True, False):
        peaks = []
        for _ in range(min(repeats, 3)):
            # A process of its own: what an earlier part left to the allocator would not count.
            context = multiprocessing.get_context("spawn")
            with ProcessPoolExecutor(max_workers=1, mp_context=context) as pool:
                peaks.append(pool.submit(_peak_memory, scale, device, ours).result())
        measured = [peak for peak in peaks if peak is not None]
        spreads.append(Spread.of(measured) if measured else None)
    return Figure("peak of extra memory", "bytes a weight", *spreads)


def _peak_memory(scale: float, device: str, ours: bool) -> float | None:
    """The peak in this process; None if the system does not tell (on the CPU only Linux does)."""
    import torch

    def advance(workload: Workload) -> None:
        contest = Contest(workload, ours=ours, textbook=not ours)
        for _ in range(SHORT.ramp_end + 1):
            contest.advance(_untimed)

    advance(Workload(1e-4, device))  # loads libraries and starts threads
    workload = Workload(scale, device)
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        advance(workload)
        return (torch.cuda.max_memory_allocated(device) - before) / workload.num_weights
    resident = _resident_bytes("VmRSS")
    if resident is None:
        return None
    advance(workload)
    peak = _resident_bytes("VmHWM")
    return None if peak is None else (peak - resident) / workload.num_weights


def _untimed(function: Callable[[], object]) -> float:
    function()
    return 0.0


def _resident_bytes(entry: str) -> int | None:
    """This process's memory now (VmRSS) or at its highest (VmHWM), from the kernel's records."""
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    lines = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
    return 1024 * int(lines[entry].split()[0]) if entry in lines else None


# --- the table ----------------------------------------------------------------------------------
