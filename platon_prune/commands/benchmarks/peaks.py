"""The peak of memory that pruning takes beyond weights and gradients, in a process of its own."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor

import torch

from platon_prune.commands.benchmarks.contest import Contest
from platon_prune.commands.benchmarks.figures import Figure, Spread
from platon_prune.commands.benchmarks.workload import SHORT, Size, Workload, bert_base
from platon_prune.deploy.peak_memory import resident_bytes


def memory_figures(size: Size, device: str, repeats: int) -> list[Figure]:
    """Most bytes per weight, over steps of each kind, with state in float32 and in bfloat16."""
    name, unit = "peak of extra memory", "bytes a weight"
    exact, textbook, small = (
        _peaks(size, device, repeats, who, dtype)
        for who, dtype in (
            ("ours", torch.float32), ("textbook", torch.float32), ("ours", torch.bfloat16),
        )
    )  # fmt: skip
    return [
        Figure(name, unit, exact, textbook),
        Figure(f"{name}, bfloat16 state", unit, small, textbook),
    ]


def _peaks(
    size: Size, device: str, repeats: int, name: str, state_dtype: torch.dtype
) -> Spread | None:
    peaks = []
    for _ in range(min(repeats, 3)):
        # A process of its own: what an earlier part left to the allocator would not count.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(max_workers=1, mp_context=context) as pool:
            peaks.append(pool.submit(_peak, size, device, name, state_dtype).result())
    measured = [peak for peak in peaks if peak is not None]
    return Spread.of(measured) if measured else None


def _peak(size: Size, device: str, name: str, state_dtype: torch.dtype) -> float | None:
    """The peak in this process; None if the system does not tell (on the CPU only Linux does)."""

    def advance(workload: Workload) -> None:
        contest = Contest(workload, [name], state_dtype)
        for _ in range(SHORT.ramp_end + 1):
            contest.advance(_call)

    advance(Workload(bert_base(1e-4), device))  # loads libraries and starts threads
    workload = Workload(size, device)
    if torch.device(device).type == "cuda":
        # Else the peak of the small workload, or of making this one, would stay the highest.
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        advance(workload)
        return (torch.cuda.max_memory_allocated(device) - before) / workload.num_weights
    resident = resident_bytes("VmRSS")
    # No such record on macOS and Windows.
    if resident is None:
        return None
    advance(workload)
    peak = resident_bytes("VmHWM")
    return None if peak is None else (peak - resident) / workload.num_weights


def _call(function: Callable[[], object]) -> object:
    return function()
