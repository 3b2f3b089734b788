"""What n:m costs and gains: the time of a choice, and 2:4 layers beside dense ones on a GPU."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from platon_prune.choice.granularity import Granularity, Unstructured
from platon_prune.choice.n_of_m import SemiStructured
from platon_prune.choice.scored import Line, ScoredLine, ScoredTensor, ScoredTensors
from platon_prune.commands.benchmarks.figures import Spread
from platon_prune.criteria import Platon
from platon_prune.runtimes.linear_layers import Layer
from platon_prune.runtimes.semi_structured_times import LayerTimes, Measure
from platon_prune.runtimes.two_of_four_kernels import usable_kernels
from platon_prune.tables import table
from platon_prune.tensors.blocks import Scratch
from platon_prune.tensors.collectives import ALONE
from platon_prune.timing import Clock, interleaved

_PATTERNS = ((2, 4), (1, 4), (4, 8), (3, 6))
# Outputs by inputs: of BERT-base, and of Llamas of 1, 8 and 70 B.
LAYERS = (
    (768, 768), (3072, 768), (768, 3072), (2048, 2048), (8192, 2048), (4096, 4096), (14336, 4096),
    (8192, 8192), (28672, 8192),
)  # fmt: skip
NUM_TOKENS = (128, 1024, 8192)


def choice_table(shapes: Sequence[tuple[int, int]], device: str, rounds: int, timed: Clock) -> str:
    """Times of one choice over tensors of these shapes: of half of the weights, or of the groups.

    Args:
        shapes: Outputs by inputs.
        device: Where the scores are.
        rounds: How often each is timed.
        timed: The clock.
    """
    named = choices(shapes, device, _PATTERNS)
    times = interleaved(list(named.values()), rounds, timed)
    spreads = dict(zip(named, map(Spread.of, times), strict=True))
    first = spreads["single weights"].median
    lines = [("one choice", "ms (lowest to highest)", "times as long")]
    lines += [
        (name, f"{s.median:,.0f} ({s.low:,.0f} to {s.high:,.0f})", f"{s.median / first:.2f}")
        for name, s in spreads.items()
    ]
    return table(lines)


def choices(
    shapes: Sequence[tuple[int, int]], device: str, patterns: Sequence[tuple[int, int]]
) -> dict[str, Callable[[], object]]:
    """One choice of single weights and one of each pattern, as the scheduler would have it made.

    Args:
        shapes: Outputs by inputs.
        device: Where the scores are.
        patterns: n and m of each.
    """
    tensors = _scored(shapes, device)
    dims = dict.fromkeys((tensor.name for tensor in tensors), 1)
    named: dict[str, Granularity] = {"single weights": Unstructured()}
    named |= {f"{n}:{m}": SemiStructured(n, m, dims) for n, m in patterns}
    return {name: _choice(granularity, tensors) for name, granularity in named.items()}


def _choice(granularity: Granularity, tensors: ScoredTensors) -> Callable[[], object]:
    line = tensors.line
    if line is not None and granularity.chooses_in_line(line):
        return lambda: granularity.choose_in_line_(line, 0.5)
    return lambda: granularity.choose_(tensors, 0.5, ALONE)


def _scored(shapes: Sequence[tuple[int, int]], device: str) -> ScoredTensors:
    """Random averages of PLATON as a scheduler keeps them: flat, with all tensors in a line."""
    line = Line([outputs * inputs for outputs, inputs in shapes], torch.device(device))
    averages = [torch.rand(line.numel, device=device) for _ in Platon.averages]
    masks = [torch.ones(shape, dtype=torch.bool, device=device) for shape in shapes]
    scratch = Scratch()

    def score(index: slice | Tensor, start: int = 0) -> Tensor:
        shifted = (
            slice(start + index.start, start + index.stop)
            if isinstance(index, slice)
            else start + index
        )
        parts = [average[shifted] for average in averages]
        return Platon().score(parts[0], parts, scratch.like(parts[0], torch.float32))

    def tensors() -> Iterator[ScoredTensor]:
        start = 0
        for i, mask in enumerate(masks):
            of_tensor = functools.partial(score, start=start)
            yield ScoredTensor(of_tensor, mask, start, None, str(i), signed=False)
            start += mask.numel()

    named = {str(i): mask.shape for i, mask in enumerate(masks)}
    return ScoredTensors(tensors, ScoredLine(line, score, line.cut(masks), named, signed=False))


def kernel_table(device: str, timed: Clock, sizes: Sequence[tuple[int, int]] = LAYERS) -> str:
    """Times of linear layers in float16, dense and 2:4 by each kernel; or what is missing for it.

    They are measured as :func:`platon_prune.to_semi_structured` measures them, eager and compiled.

    Args:
        device: Where to run.
        timed: The clock.
        sizes: Outputs by inputs of the layers.
    """
    dtype = torch.float16
    kernels, missing = usable_kernels(torch.device(device), dtype)
    if missing:
        return f"2:4 against dense was not measured: it needs {missing}"
    lines = [("layer", "tokens", "run", "dense ms", *(f"{n} ms" for n in kernels), "dense / 2:4")]
    for outputs, inputs in sizes:
        layer = Layer("", nn.Linear(inputs, outputs, device=device, dtype=dtype))
        with torch.no_grad():
            layer.weight.view(-1, 4)[:, 2:] = 0
            for num_tokens, compiled in itertools.product(NUM_TOKENS, (False, True)):
                times = Measure(lambda device: timed, compiled)(layer, num_tokens, kernels)
                lines.append(_kernel_line(layer, num_tokens, compiled, times, list(kernels)))
    return table(lines)


def _kernel_line(
    layer: Layer, num_tokens: int, compiled: bool, times: LayerTimes, kernels: Sequence[str]
) -> tuple[str, ...]:
    found = [times.kernel_ms.get(name) for name in kernels]
    taken = [each for each in found if each is not None]
    ratio = f"{times.dense_ms / min(taken):.2f}" if times.dense_ms and taken else "-"
    shown = ["-" if each is None else f"{each:.3f}" for each in (times.dense_ms, *found)]
    how = "compiled" if compiled else "eager"
    return ("x".join(map(str, layer.shape)), str(num_tokens), how, *shown, ratio)
