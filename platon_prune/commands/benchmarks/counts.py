"""How much a step asks of its device: launches and host waits, or what stands for them on a CPU."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from platon_prune.commands.benchmarks.contest import Contest
from platon_prune.commands.benchmarks.figures import Figure, Spread
from platon_prune.commands.benchmarks.workload import KINDS, SHORT, Size, Workload, kind_of
from platon_prune.tensors.backends import backend_for

# What the host calls to wait for a device; torch.cuda.synchronize, which is ours, waits otherwise.
_WAITS = frozenset(
    f"{api}{what}Synchronize" for api in ("cuda", "hip") for what in ("Stream", "Event")
)
_READ = "aten::_local_scalar_dense"


class Counts(NamedTuple):
    """What a call asked of its device.

    Args:
        launches: Kernels and copies on a GPU; dispatched torch operations, views too, on a CPU.
        waits: How often the host waited; on a CPU, how often it read a value of a tensor.
    """

    launches: int
    waits: int


class DispatchCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the operations that torch dispatches while it is entered, by name."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count one and carry it out."""
        self.names[func.name()] += 1
        return func(*args, **(kwargs or {}))

    @property
    def counts(self) -> Counts:
        """So far."""
        return Counts(self.names.total(), int(self.names[_READ]))


def count(function: Callable[[], object], device: str) -> Counts:
    """Call a function, and count what it asks of a device."""
    if torch.device(device).type != "cuda":
        with DispatchCounter() as counter:
            function()
        counts: Counts = counter.counts
        return counts
    from torch.profiler import ProfilerActivity, profile

    # What is still under way must not count.
    torch.cuda.synchronize(device)
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiled:
        function()
        torch.cuda.synchronize(device)
    events: list[Any] = list(profiled.events() or ())
    on_device = [each for each in events if each.device_type.name == "CUDA"]
    return Counts(len(on_device), sum(each.name in _WAITS for each in events))


class Asked(NamedTuple):
    """What steps asked of a device, and who carried them out.

    Args:
        figures: Two for each kind of step, and the number of tensors on the plain path.
        backend: The name of what carries steps out there.
    """

    figures: list[Figure]
    backend: str


def step_counts(size: Size, device: str) -> Asked:
    """Count one step of each kind, of the library and of the textbook."""
    workload = Workload(size, device)
    contest = Contest(workload)
    counted: dict[str, dict[str, Counts]] = {}
    backend, num_plain = backend_for(torch.device(device)), 0
    while len(counted) < len(KINDS):
        kind = kind_of(SHORT, contest.step + 1)
        # The first window makes buffers and compiles kernels, which later ones don't.
        if contest.step < SHORT.window or kind in counted:
            contest.advance(lambda function: function())
            continue
        counted[kind] = contest.advance(lambda function: count(function, device))
        # A backend knows that of its last call, so it is asked right after it.
        if kind == "ordinary step":
            num_plain = getattr(backend, "num_plain", len(workload.parameters))
    contest.close()
    on_gpu = torch.device(device).type == "cuda"
    words = ("launches", "host waits") if on_gpu else ("dispatched operations", "values read")
    figures = []
    for kind in KINDS:
        of_kind = [counted[kind][name] for name in ("ours", "textbook")]
        for i, word in enumerate(words):
            figures.append(Figure(f"{kind}: {word}", "", *(_exactly(each[i]) for each in of_kind)))
    figures.append(Figure("tensors on the plain path", "", _exactly(num_plain), None))
    return Asked(figures, backend.name)


def _exactly(number: int) -> Spread:
    return Spread(number, number, number)
