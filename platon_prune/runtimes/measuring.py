"""What forms that are measured layer by layer share: tokens, rounds, and when one pays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from platon_prune.runtimes.linear_layers import Layer, count_tokens
from platon_prune.timing import Clock, interleaved

DEFAULT_NUM_TOKENS = 128
# A layer is converted if it then takes at most this share of its dense time: less may be noise.
WORTHWHILE = 0.9
_FEWEST_ROUNDS, _MOST_ROUNDS = 31, 301
# Small layers are timed for at least so long, lest one busy moment fill all of it.
_SHORTEST_MS = 200.0


def shortest_times(functions: Sequence[Callable[[], object]], timed: Clock) -> list[float]:
    """The shortest of many times of each function, which take turns.

    Args:
        functions: What to time.
        timed: The clock.

    Returns:
        A time for each, in what the clock counts.
    """
    first = sum(timed(function) for function in functions)
    rounds = min(_MOST_ROUNDS, max(_FEWEST_ROUNDS, round(_SHORTEST_MS / max(first, 1e-3))))
    # The shortest, as timeit advises: a busy machine only ever adds, and on one that was, two
    # threads waited in more than three calls of four, so that every median said the same.
    return [min(times) for times in interleaved(functions, rounds, timed)]


def tokens_of(
    model: nn.Module, example_inputs: Any, num_tokens: int | None, layers: Sequence[Layer]
) -> dict[nn.Module, int]:
    """The rows that each layer sees in a call: as counted, as told, or 128."""
    if example_inputs is not None:
        return count_tokens(model, example_inputs, layers)
    # Where nothing is known, every layer counts as seeing the same number of rows.
    return dict.fromkeys((layer.module for layer in layers), num_tokens or DEFAULT_NUM_TOKENS)


def check_tokens(model: nn.Module, example_inputs: Any, num_tokens: int | None) -> None:
    """Raise an error unless what is known of the tokens can be used.

    Raises:
        TypeError: If ``num_tokens`` is not a whole number.
        ValueError: If it is less than 1 or given beside ``example_inputs``, or the model is in
            training mode and these would run it.
    """
    if num_tokens is not None:
        if isinstance(num_tokens, bool) or not isinstance(num_tokens, int):
            raise TypeError(f"num_tokens must be a whole number, got {num_tokens!r}")
        if num_tokens < 1:
            raise ValueError(f"num_tokens must be at least 1, got {num_tokens}")
        if example_inputs is not None:
            raise ValueError(
                "num_tokens must be left out where example_inputs are given, got both: drop one"
            )
    if example_inputs is not None and model.training:
        raise ValueError(
            "model must be in evaluation mode to run example_inputs, got one in training mode: "
            "call model.eval() first"
        )
