"""Linear layers of BERT-base's sizes, dense and with each sparse product, on the CPU."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn

from platon_prune.commands.benchmarks.figures import Spread
from platon_prune.runtimes.linear_layers import Layer
from platon_prune.runtimes.sparse_inference import layer_times
from platon_prune.tables import table
from platon_prune.timing import Clock

# Outputs by inputs: attention, and both sides of the feed-forward network.
SHAPES = ((768, 768), (3072, 768), (768, 3072))
DENSITIES = (0.05, 0.1, 0.2, 0.3)
NUM_TOKENS = (128, 32, 8)
_FORMS = ("dense_ms", "torch_ms", "llvm_ms")


class LayerFigure(NamedTuple):
    """One layer, at one density and one number of tokens.

    Args:
        shape: Outputs by inputs.
        density: Share of the entries that are not zero, scattered at random.
        num_tokens: In a call.
        milliseconds: Of a call: for each form the shortest of many, over the repeats.
        times_as_fast: As dense, of each sparse form that could be measured.
    """

    shape: tuple[int, int]
    density: float
    num_tokens: int
    milliseconds: dict[str, Spread]
    times_as_fast: dict[str, Spread]


def layer_figures(
    repeats: int,
    timed: Clock,
    shapes: Sequence[tuple[int, int]] = SHAPES,
    densities: Sequence[float] = DENSITIES,
    num_tokens: Sequence[int] = NUM_TOKENS,
) -> list[LayerFigure]:
    """Time each layer as :func:`platon_prune.to_sparse_inference` does, so many times.

    Args:
        repeats: Passes over all layers, so that those of one layer are minutes apart.
        timed: The clock.
        shapes: Outputs by inputs.
        densities: Shares of the entries that are not zero.
        num_tokens: In a call.
    """
    cases = list(itertools.product(densities, shapes, num_tokens))
    found: dict[tuple[float, tuple[int, int], int], list[dict[str, float]]]
    found = {case: [] for case in cases}
    for _ in range(repeats):
        for case in cases:
            density, shape, tokens = case
            found[case].append(layer_times(_layer(shape, density), tokens, timed))
    return [_figure(*case, times) for case, times in found.items()]


def layer_table(figures: Sequence[LayerFigure]) -> str:
    """The figures as a table, with the time of the dense layer over each sparse one."""
    lines = [("layer", "density", "tokens", "dense ms", "torch ms", "llvm ms", "dense / torch",
              "dense / llvm")]  # fmt: skip
    for each in figures:
        shown = [f"{ms.low:.3f}" if (ms := each.milliseconds.get(form)) else "-" for form in _FORMS]
        ratios = [_ratio(each.times_as_fast.get(form)) for form in _FORMS[1:]]
        shape = "x".join(map(str, each.shape))
        lines.append((shape, f"{each.density:.0%}", str(each.num_tokens), *shown, *ratios))  # type: ignore[arg-type]
    return table(lines)


def _ratio(spread: Spread | None) -> str:
    if spread is None:
        return "-"
    return f"{spread.median:.1f} ({spread.low:.1f}-{spread.high:.1f})"


def _layer(shape: tuple[int, int], density: float) -> Layer:
    outputs, inputs = shape
    linear = nn.Linear(inputs, outputs)
    # The same zeros in every pass.
    drawn = torch.rand(outputs, inputs, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        linear.weight.masked_fill_(drawn >= density, 0)
    return Layer("", linear)


def _figure(
    density: float, shape: tuple[int, int], num_tokens: int, times: Sequence[dict[str, float]]
) -> LayerFigure:
    forms = list(times[0])
    milliseconds = {form: Spread.of([each[form] for each in times]) for form in forms}
    # Of times that took turns, before their median: a slow moment slowed both.
    ratios = {
        form: Spread.of([each["dense_ms"] / each[form] for each in times]) for form in forms[1:]
    }
    return LayerFigure(shape, density, num_tokens, milliseconds, ratios)
