"""What averages in host memory cost on a GPU: bytes over the bus, and the time that they add."""

from __future__ import annotations

import copy

from platon_prune.commands.benchmarks.contest import Contest
from platon_prune.commands.benchmarks.figures import Figure, Spread
from platon_prune.commands.benchmarks.workload import KINDS, SHORT, Size, Workload, kind_of
from platon_prune.scheduling.bus import MOVED
from platon_prune.timing import Clock


def offload_figures(size: Size, device: str, repeats: int, timed: Clock) -> list[Figure]:
    """Steps of each kind with averages on the host and on the device, in turn; and what moved.

    Args:
        size: The model.
        device: Where its weights are; on a CPU nothing moves.
        repeats: Runs.
        timed: The clock.

    Returns:
        For each kind of step its time by both, and the bytes for each weight that went either way.
    """
    workloads = [Workload(size, device) for _ in range(2)]
    times: list[dict[str, list[float]]] = [{}, {}]
    moved: dict[str, tuple[int, int]] = {}
    for _ in range(repeats):
        for workload in workloads:
            workload.renew()
        contests = [
            Contest(workload, ["ours"], offload_averages=offloads)
            for workload, offloads in zip(workloads, (True, False), strict=True)
        ]
        for step in range(1, SHORT.total_steps):
            kind, before = kind_of(SHORT, step), copy.copy(MOVED)
            for contest, found in zip(contests, times, strict=True):
                sample = contest.advance(timed)["ours"]
                if step > SHORT.window:  # the first window makes buffers
                    found.setdefault(kind, []).append(sample)
            to_device = MOVED.to_device - before.to_device
            moved[kind] = (to_device, MOVED.to_host - before.to_host)
        for contest in contests:
            contest.close()
    return _figures(times, moved, workloads[0].num_weights)


def _figures(
    times: list[dict[str, list[float]]], moved: dict[str, tuple[int, int]], num_weights: int
) -> list[Figure]:
    figures = []
    for kind in KINDS:
        offloaded, kept = (Spread.of(each[kind]) for each in times)
        figures.append(Figure(f"offloaded, {kind} / on the device", "ms", offloaded, kept))
        for way, count in zip(("to the device", "to the host"), moved[kind], strict=True):
            each = count / num_weights
            name = f"offloaded, {kind}: {way}"
            figures.append(Figure(name, "bytes a weight", Spread(each, each, each), None))
    return figures
