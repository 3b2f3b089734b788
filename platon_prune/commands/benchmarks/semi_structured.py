"""What n:m costs and gains: the time of a choice, and 2:4 layers beside dense ones on a GPU."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from platon_prune.choice.granularity import Granularity, Unstructured
from platon_prune.choice.n_of_m import SemiStructured
from platon_prune.choice.scored import Line, ScoredLine, ScoredTensor, ScoredTensors
from platon_prune.commands.benchmarks.figures import Spread
from platon_prune.criteria import Platon
from platon_prune.runtimes.semi_structured_inference import try_conversion
from platon_prune.tables import table
from platon_prune.tensors.blocks import Scratch
from platon_prune.tensors.collectives import ALONE
from platon_prune.timing import Clock, interleaved

_PATTERNS = ((2, 4), (1, 4), (4, 8), (3, 6))
_LAYERS = ((768, 768), (3072, 768), (768, 3072))  # outputs by inputs, of BERT-base
_NUM_TOKENS = (128, 1024, 8192)


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


def kernel_table(device: str, rounds: int, timed: Clock) -> str:
    """Times of BERT-base's linear layers, dense and 2:4, in float16; or what is missing for it.

    Args:
        device: Where to run.
        rounds: How often each is timed.
        timed: The clock.
    """
    missing = try_conversion(torch.device(device), torch.float16)
    if missing:
        return f"2:4 against dense was not measured: it needs {missing}"
    lines = [("layer", "tokens", "dense ms", "2:4 ms", "dense / 2:4")]
    for outputs, inputs in _LAYERS:
        weight = torch.randn(outputs, inputs, device=device, dtype=torch.float16)
        weight.view(-1, 4)[:, 2:] = 0
        sparse = torch.sparse.to_sparse_semi_structured(weight)
        for num_tokens in _NUM_TOKENS:
            x = torch.randn(num_tokens, inputs, device=device, dtype=torch.float16)
            times = interleaved([_product(x, weight), _product(x, sparse)], rounds, timed)
            dense, two_of_four = map(Spread.of, times)
            lines.append(
                (
                    f"{outputs}x{inputs}",
                    str(num_tokens),
                    f"{dense.median:.3f}",
                    f"{two_of_four.median:.3f}",
                    f"{dense.median / two_of_four.median:.2f}",
                )
            )
    return table(lines)


def _product(x: Tensor, weight: Tensor) -> Callable[[], object]:
    return lambda: nn.functional.linear(x, weight)
