"""What places of a model take in time: each measured as it is, and cut to its floor on a twin."""

from __future__ import annotations

import functools
import os
import statistics
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

from platon_prune.example_inputs import call_model
from platon_prune.groups.coupled import CoupledGroups
from platon_prune.groups.latency import PER_MILLISECOND, LatencyTable, PlaceTime
from platon_prune.shrinking import twin as twins
from platon_prune.shrinking.cut_out import cut_out_, plan_cut
from platon_prune.shrinking.removable import Place, in_whole_steps
from platon_prune.timing import Clock, clock, event_clock, interleaved

_SECONDS = 10.0
_FEWEST_ROUNDS, _MOST_ROUNDS = 5, 31

Call = tuple[tuple[Any, ...], dict[str, Any]]


@torch.no_grad()
def measure_latency(
    model: nn.Module,
    groups: Sequence[CoupledGroups],
    floors: Sequence[int],
    inputs: Any,
    timed: Clock | None = None,
) -> LatencyTable:
    """Measure one forward, and each place at its full width and at its floor.

    Of a place the smallest module is timed that holds all of its tensors, on what it is called
    with in the forward. All of these take turns, the whole forward among them, so that a slow
    moment of the machine hits all, and each finds the caches as another layer left them.

    Args:
        model: With values, in one process; left as it is, and so are the random numbers.
        groups: All places; each can be cut.
        floors: How many groups each place keeps at least.
        inputs: Example inputs.
        timed: How many milliseconds a function takes; by default between two events on a GPU, on
            one thread of a CPU its processor time, and wall-clock time elsewhere.

    Returns:
        Medians, from 5 to 31 times of each; as many as fit in ten seconds.
    """
    device = next((str(parameter.device) for parameter in model.parameters()), "cpu")
    timed = timed or _clock(device)
    with twins.as_if_nothing_was_drawn(model):
        twin = _deployed(model)
        around = [list(_around(place)) for place in groups]
        calls = _calls(twin, {path for paths in around for path in paths}, inputs)
        functions: list[Callable[[], object]] = [functools.partial(call_model, twin, inputs)]
        measured: list[tuple[CoupledGroups, int]] = []
        for place, paths, floor in zip(groups, around, floors, strict=True):
            left = _at_floor(place, floor)
            measured.append((place, left.after))
            if left.after < place.size:
                functions += _whole_and_cut(model, twin, left, paths, calls)
        once = sum(map(timed, functions))
        rounds = min(_MOST_ROUNDS, max(_FEWEST_ROUNDS, int(1000 * _SECONDS / max(once, 1e-3))))
        times = iter([
            round(statistics.median(samples) * PER_MILLISECOND)
            for samples in interleaved(functions, rounds, timed)
        ])  # fmt: skip
    forward = max(1, next(times))  # shares are of it
    rows = []
    for place, count in measured:
        full, narrow = (next(times), next(times)) if count < place.size else (0, 0)
        rows.append(PlaceTime(place.name, place.kind, place.size, count, full, narrow))
    return LatencyTable(forward, tuple(rows))


def _clock(device: str) -> Clock:
    if torch.device(device).type == "cuda":
        return event_clock(device)
    # Of one thread, what other programs take in between is not counted.
    is_one_thread = torch.device(device).type == "cpu" and torch.get_num_threads() == 1
    return clock(device, processor_time=is_one_thread)


def _deployed(model: nn.Module) -> nn.Module:
    """A twin as it is deployed: in evaluation, without keys and values for a next call."""
    twin = twins.twin_of(model)
    for module in twin.modules():
        config: Any = getattr(module, "config", None)
        # Called again and again, a layer would add to the cache that it was given.
        if getattr(config, "use_cache", None):
            config.use_cache = False
    return twin


def _at_floor(place: CoupledGroups, floor: int) -> Place:
    # A layer without any group would be another module; which ones are left takes the same time.
    kept = torch.arange(place.size) < max(1, floor)
    return in_whole_steps(Place(place, kept))


def _around(place: CoupledGroups) -> Iterator[str]:
    """The smallest module that holds all tensors of a place, and all that hold it."""
    holders = [member.name.split(".")[:-1] for member in place.members]
    common = os.path.commonprefix(holders)
    for length in range(len(common), -1, -1):
        yield ".".join(common[:length])


def _calls(twin: nn.Module, paths: set[str], inputs: Any) -> dict[str, list[Call]]:
    """What modules are called with in a forward; those that are not called are not there."""
    found: dict[str, list[Call]] = {}

    def record(path: str, module: nn.Module, args: Any, kwargs: Any) -> None:
        found.setdefault(path, []).append((args, kwargs))

    hooks = [
        twin.get_submodule(path).register_forward_pre_hook(
            functools.partial(record, path), with_kwargs=True
        )
        for path in paths
    ]
    try:
        call_model(twin, inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _whole_and_cut(
    model: nn.Module,
    twin: nn.Module,
    left: Place,
    paths: Sequence[str],
    calls: dict[str, list[Call]],
) -> list[Callable[[], object]]:
    """What runs the smallest module around a place: as it is, and cut to the floor."""
    cut = _deployed(model)
    cut_out_(cut, plan_cut(cut, [left]))
    for path in (path for path in paths if path in calls):
        # Only the module is kept of the cut twin: there is one for each place.
        narrow = functools.partial(_replay, cut.get_submodule(path), calls[path])
        try:
            narrow()
        except Exception:
            # What it is given was made for all groups, as a bias of positions is: look further out.
            if not path:
                raise
            continue
        return [functools.partial(_replay, twin.get_submodule(path), calls[path]), narrow]
    raise AssertionError("the model itself is called")


def _replay(module: nn.Module, calls: Sequence[Call]) -> None:
    for args, kwargs in calls:
        module(*args, **kwargs)
