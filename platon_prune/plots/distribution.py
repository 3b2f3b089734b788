"""The distribution of the scores, with the threshold between what is kept and what is pruned."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from platon_prune.choice.granularity import Unstructured
from platon_prune.plots._style import (
    COLOURS,
    FAINT,
    INK,
    new_figure,
    percent,
    require_matplotlib,
    save,
    title,
)

if TYPE_CHECKING:
    from platon_prune.scheduling.scheduler import PlatonScheduler

_NUM_BINS = 80


def scores(scheduler: PlatonScheduler, path: str | Path) -> None:
    """Draw how many weights have which score now, the pruned and the kept apart.

    Positive scores are drawn by their logarithm; those that are 0 are counted in the title. The
    threshold is that of the last choice, where single weights were compared; between groups, such
    as those of n:m or whole neurons, no score of a weight parts what is kept from what is pruned.
    Collective if the model is sharded.

    Args:
        scheduler: Of a run in progress.
        path: PNG, SVG or PDF to write.

    Raises:
        ValueError: If no weight has a score yet, other than 0.
        RuntimeError: If the masks are fixed, as those of ``adopt_zeros``: there are no scores then.
    """
    require_matplotlib()
    if scheduler.criterion.name == "random":
        raise ValueError(
            'scheduler must have scores to draw, got criterion="random", which scores every weight '
            "0 and leaves the choice to a fixed order: draw a run with another criterion"
        )
    # Two walks over the scores, tensor by tensor: all at once may take 4 bytes a weight.
    low, high, num_zeros, total = _extent(scheduler)
    signed = low < 0
    # Scores of products span many decades; signed ones have no logarithm.
    scale: Callable[[float], float] = float if signed else math.log10
    if not low <= high:
        raise ValueError(
            "scheduler must have scores to draw, got none but 0: train until a window has ended"
        )
    counts = _histograms(scheduler, scale(low), scale(high), signed)
    width = (scale(high) - scale(low)) / _NUM_BINS or 1.0
    lefts = [scale(low) + i * width for i in range(_NUM_BINS)]
    # Bars of equal width on the axis, which is logarithmic for positive scores.
    edges = lefts if signed else [10**left for left in lefts]
    ends = [(left + width) if signed else 10 ** (left + width) for left in lefts]
    figure, axes = new_figure()
    bottom = [0.0] * _NUM_BINS
    for label, colour in (("pruned", "#b8b8b8"), ("kept", COLOURS[0])):
        heights = [100 * count / total for count in counts[label]]
        axes.bar(
            edges, heights, [e - s for s, e in zip(edges, ends, strict=True)], bottom,
            align="edge", color=colour, label=label,
        )  # fmt: skip
        bottom = [base + height for base, height in zip(bottom, heights, strict=True)]
    axes.set_ylim(0, 1.08 * max(bottom))
    if not signed:
        axes.set_xscale("log")
    threshold = scheduler.threshold
    apart = _without_threshold(scheduler)
    if not apart and threshold is not None and (signed or threshold > 0):
        axes.axvline(threshold, color=COLOURS[1], linewidth=1.8, label=f"threshold {threshold:.2g}")
    of = f" {apart}: no common threshold" if apart else ""
    axes.set_xlabel(f"score ({scheduler.criterion.name}){of}")
    axes.set_ylabel("share of all weights (%)")
    axes.grid(axis="x", visible=False)
    title(axes, f"Scores at step {scheduler.last_step}")
    if num_zeros:
        axes.set_title(f"{percent(num_zeros / total)} are 0", loc="right", color=FAINT, fontsize=9)
    figure.legend(loc="outside lower center", ncols=3, frameon=False, labelcolor=INK)
    save(figure, path)


def _without_threshold(scheduler: PlatonScheduler) -> str:
    """Why no single score parts what is kept from what is pruned; empty if one does."""
    granularity = scheduler.granularity
    # Between groups the threshold is of their scores, not of these.
    if not isinstance(granularity, Unstructured):
        return "of single weights, chosen in groups"
    return "chosen in each tensor" if granularity.scope == "layer" else ""


def _of_tensors(scheduler: PlatonScheduler) -> Iterator[tuple[Tensor, Tensor]]:
    """Score and mask of each tensor, whole and flat."""
    for name, mask in scheduler.masks().items():
        yield _whole(scheduler.score(name)), _whole(mask)


def _whole(tensor: Tensor) -> Tensor:
    # Of a sharded model all processes draw the same figure, so each needs all of a tensor.
    whole: Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return whole.flatten()


def _extent(scheduler: PlatonScheduler) -> tuple[float, float, int, int]:
    """The smallest and the largest finite score that is not 0, how many are 0, and of how many."""
    low, high, num_zeros, total = math.inf, -math.inf, 0, 0
    for score, _ in _of_tensors(scheduler):
        shown = score[(score != 0) & score.isfinite()]
        num_zeros += int((score == 0).sum())
        total += score.numel()
        if shown.numel():
            low, high = min(low, float(shown.min())), max(high, float(shown.max()))
    return low, high, num_zeros, total


def _histograms(
    scheduler: PlatonScheduler, low: float, high: float, signed: bool
) -> dict[str, list[float]]:
    counts = {"pruned": torch.zeros(_NUM_BINS), "kept": torch.zeros(_NUM_BINS)}
    for score, mask in _of_tensors(scheduler):
        is_shown = (score != 0) & score.isfinite()
        for label, chosen in (("kept", is_shown & mask), ("pruned", is_shown & ~mask)):
            values = score[chosen] if signed else score[chosen].log10()
            # The ends were found in float64, and a value at one of them may be rounded past it.
            values = values.float().clamp(low, high).cpu()
            counts[label] += torch.histc(values, _NUM_BINS, low, high)
    return {label: count.tolist() for label, count in counts.items()}
