"""Clocks, and times that are fair on a machine whose speed changes."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch

Clock = Callable[[Callable[[], object]], float]


def clock(device: str, processor_time: bool = False) -> Clock:
    """A function that says how many milliseconds another one takes, its kernels included.

    Args:
        device: Where the work is done.
        processor_time: Whether to count this thread's processor time instead of wall-clock time.
    """
    # Processor time does not count what other programs take, nor a GPU's work.
    now = time.thread_time if processor_time else time.perf_counter

    # A GPU works on after the call returns: both ends of a time wait for it.
    def wait() -> None:
        kind = torch.device(device).type
        if kind == "cuda":
            torch.cuda.synchronize(device)
        elif kind not in ("cpu", "meta"):
            torch.accelerator.synchronize(device)

    def timed(function: Callable[[], object]) -> float:
        wait()
        start = now()
        function()
        wait()
        return 1000 * (now() - start)

    return timed


def process_clock() -> Clock:
    """A function that says how many milliseconds of processor time another one takes.

    Those of all threads of this process count, also of threads that a runtime has of its own. What
    other programs take does not, so that figures of a busy machine can be compared.
    """

    def timed(function: Callable[[], object]) -> float:
        start = time.process_time()
        function()
        return 1000 * (time.process_time() - start)

    return timed


def event_clock(device: str) -> Clock:
    """The same, on a CUDA device between two of its events, without the host's way there and back.

    Args:
        device: Where the work is done; elsewhere than on CUDA it is wall-clock time.
    """
    if torch.device(device).type != "cuda":
        return clock(device)

    def timed(function: Callable[[], object]) -> float:
        # On the stream that the function works on: what it began earlier ends before the first.
        stream = torch.cuda.current_stream(device)
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        start.record(stream)
        function()
        end.record(stream)
        end.synchronize()
        return float(start.elapsed_time(end))

    return timed


def interleaved(
    functions: Sequence[Callable[[], object]], rounds: int, timed: Clock
) -> list[list[float]]:
    """Times of several functions that take turns, so that a slow moment of the machine hits all.

    Args:
        functions: What to time; every other round calls them in reverse order.
        rounds: Times to take of each, after a first call that is not counted.
        timed: The clock.

    Returns:
        For each function its ``rounds`` times, in what ``timed`` counts.
    """
    times: list[list[float]] = [[] for _ in functions]
    order = list(range(len(functions)))
    for i in order:
        timed(functions[i])
    for _ in range(rounds):
        for i in order:
            times[i].append(timed(functions[i]))
        # In turn first and last, so that a drift of the clock or a warm cache favours none.
        order.reverse()
    return times
