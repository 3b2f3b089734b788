"""How many times as fast as the dense model a smaller one of text is, measured side by side."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from platon_prune.example_inputs import moved_to, text_inputs
from platon_prune.runtimes.measuring import shortest_times
from platon_prune.timing import clock, event_clock

# Sequences in a call, and their tokens: one request, a long one, and many at once.
SIZES = ((1, 32), (1, 128), (32, 32))


def speed_name(batch_size: int, num_tokens: int) -> str:
    """What the speed at a size is called among a cell's metrics."""
    return f"speed_{batch_size}x{num_tokens}"


def wall_speed_name(batch_size: int, num_tokens: int) -> str:
    """The same by wall-clock time, where the other is by processor time."""
    return f"wall_{speed_name(batch_size, num_tokens)}"


@torch.inference_mode()
def speeds(model: nn.Module, dense: nn.Module, device: str) -> dict[str, float]:
    """Times of the dense model over those of another one, at each size that both can take.

    Both take turns on the same inputs, and the shortest of many times counts: what else a machine
    does only adds. On one thread of a CPU a time is that thread's processor time, and once more
    wall-clock time; on a GPU it is what lies between two of its events.

    Args:
        model: The smaller one, of transformers, in evaluation mode.
        dense: What it was made of, likewise.
        device: Where they run: "cpu" or "cuda".

    Returns:
        ``speed_1x32`` and so on, above 1 where the model is faster, and ``wall_speed_1x32``; with
        ``milliseconds_1x32`` of the model and ``dense_milliseconds_1x32``.
    """
    limit = getattr(dense.config, "max_position_embeddings", None) or 10**9
    found: dict[str, float] = {}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # of others the processor time would not be counted
    try:
        for batch_size, num_tokens in SIZES:
            if num_tokens <= limit:
                found |= _at(model.to(device), dense.to(device), batch_size, num_tokens, device)
    finally:
        torch.set_num_threads(threads)
    return found


def _at(
    model: nn.Module, dense: nn.Module, batch_size: int, num_tokens: int, device: str
) -> dict[str, float]:
    inputs: Any = moved_to(text_inputs(dense, batch_size, num_tokens), torch.device(device))
    calls = (lambda: dense(**inputs), lambda: model(**inputs))
    is_cpu = torch.device(device).type == "cpu"
    own = clock(device, processor_time=True) if is_cpu else event_clock(device)
    wall, walls = clock(device), {call: math.inf for call in calls}

    def timed(call: Callable[[], object]) -> float:
        # Both of one call, which is then made half as often.
        times: list[float] = []
        walls[call] = min(walls[call], wall(lambda: times.append(own(call))))
        return times[0]

    before, after = shortest_times(calls, timed)
    size = f"{batch_size}x{num_tokens}"
    found = {
        speed_name(batch_size, num_tokens): before / after,
        f"milliseconds_{size}": after,
        f"dense_milliseconds_{size}": before,
    }
    if is_cpu:
        found[wall_speed_name(batch_size, num_tokens)] = walls[calls[0]] / walls[calls[1]]
    return found
