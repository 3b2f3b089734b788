"""Times of a linear layer, dense and with its 2:4 weight in each kernel's form."""

from __future__ import annotations

import types
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from platon_prune.runtimes.linear_layers import Layer
from platon_prune.runtimes.measuring import shortest_times
from platon_prune.runtimes.two_of_four_kernels import Convert
from platon_prune.timing import Clock

# Calls between two moments at which the clock waits for the device. Within a model the host runs
# ahead of it, too: a layer takes as long as the slower of the two.
IN_A_ROW = 10


@dataclass(frozen=True)
class Run:
    """Calls of a layer in a row: what a clock is given.

    Args:
        kernel: "dense", or the name of a kernel.
        forward: The layer's.
        inputs: Of each call.
    """

    kernel: str
    forward: Callable[[Tensor], Tensor]
    inputs: Tensor

    def __call__(self) -> None:
        """Call it."""
        for _ in range(IN_A_ROW):
            self.forward(self.inputs)


@dataclass(frozen=True)
class LayerTimes:
    """What was measured of a layer.

    Args:
        dense_ms: Milliseconds of a call as it is.
        kernel_ms: By kernel; those that do not take its shape are left out.
        refused: By kernel what torch said of the shape.
        converted: By kernel the weight in its form, where it was made just now.
    """

    dense_ms: float | None
    kernel_ms: Mapping[str, float]
    refused: Mapping[str, str]
    converted: Mapping[str, Tensor] = field(default_factory=dict)


class Measure:
    """Times layers; alike ones are measured once.

    Args:
        clock_of: Returns the clock of a device: a model may lie on several.
        compiled: Whether the layers will be run by ``torch.compile``, and are timed so.
    """

    def __init__(self, clock_of: Callable[[torch.device], Clock], compiled: bool) -> None:
        self._clock_of = clock_of
        self._compiled = compiled
        self._seen: dict[Hashable, LayerTimes] = {}

    def __call__(self, layer: Layer, num_tokens: int, kernels: Mapping[str, Convert]) -> LayerTimes:
        """The times of a layer that sees so many rows, by these kernels."""
        weight, has_bias = layer.weight, layer.module.bias is not None
        key = (layer.shape, layer.transposed, has_bias, weight.dtype, weight.device, num_tokens)
        if key in self._seen:
            return self._seen[key]
        times = self._measure(layer, num_tokens, kernels)
        # Without the weights, which are those of this layer alone.
        self._seen[key] = LayerTimes(times.dense_ms, times.kernel_ms, times.refused)
        return times

    def _measure(self, layer: Layer, num_tokens: int, kernels: Mapping[str, Convert]) -> LayerTimes:
        converted, refused = convert_by(kernels, layer)
        device, dtype = layer.weight.device, layer.weight.dtype
        # A generator of its own: the user's random numbers stay what they were.
        generator = torch.Generator(device).manual_seed(0)
        shape = (num_tokens, layer.shape[1])
        inputs = torch.randn(shape, generator=generator, device=device).to(dtype)
        # The bare forwards: hooks would count for all of them.
        forwards: dict[str, Any] = {"dense": layer.module.forward}
        forwards |= {name: as_linear(layer, each).forward for name, each in converted.items()}
        if self._compiled:
            forwards = {name: _compiled(forward) for name, forward in forwards.items()}
        # A kernel that takes the weight may still refuse so many tokens.
        for name in list(converted):
            outputs, refusal = _tried(forwards[name], inputs)
            if outputs is None:
                refused[name] = refusal
                del forwards[name], converted[name]
        if not converted:
            return LayerTimes(None, {}, refused)
        runs = [Run(name, forward, inputs) for name, forward in forwards.items()]
        times = shortest_times(runs, self._clock_of(device))
        dense_ms, *others = (each / IN_A_ROW for each in times)
        return LayerTimes(dense_ms, dict(zip(converted, others, strict=True)), refused, converted)


def convert_by(
    kernels: Mapping[str, Convert], layer: Layer
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """A layer's weight in each kernel's form, and what torch said where it makes none."""
    weight = layer.weight.detach().contiguous()
    converted: dict[str, Tensor] = {}
    refused: dict[str, str] = {}
    for name, convert in kernels.items():
        made, refusal = _tried(convert, weight)
        if made is None:
            refused[name] = refusal
        else:
            converted[name] = made
    return converted, refused


def _tried(function: Callable[[Tensor], Tensor], given: Tensor) -> tuple[Tensor | None, str]:
    """What a function makes of a tensor; None, and what torch says, where it refuses."""
    try:
        return function(given), ""
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        return None, f"refused by torch: {error}"


def as_linear(layer: Layer, weight: Tensor) -> nn.Linear:
    """A linear layer with another weight and this one's bias; no dense weight is allocated."""
    outputs, inputs = layer.shape
    linear = nn.Linear(inputs, outputs, device="meta")
    # torch has no gradients for these weights.
    linear.weight = nn.Parameter(weight, requires_grad=False)
    linear.bias = layer.module.bias  # type: ignore[assignment]
    return linear


def _compiled(forward: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """A forward as ``torch.compile`` makes it, for one size."""

    def call(inputs: Tensor) -> Tensor:
        return forward(inputs)

    # With code of its own: torch compiles one piece of code a few times, and then runs it eagerly
    # without a word.
    code = call.__code__.replace()
    own = types.FunctionType(code, call.__globals__, "call", None, call.__closure__)
    function: Callable[[Tensor], Tensor] = torch.compile(own, dynamic=False)
    return function
