"""Scores of all tensors in a line: of a slab, or at positions of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from platon_prune.choice.scored import Line, gather
from platon_prune.criteria import Criterion
from platon_prune.scheduling.averages import Averages
from platon_prune.tensors.blocks import Scratch


def line_scores(
    criterion: Criterion,
    line: Line,
    weights: Sequence[Tensor],
    averages: Averages | None,
    scratch: Scratch,
) -> Callable[[slice | Tensor], Tensor]:
    """The function that returns the scores at a slab, or at some positions, of a line.

    Args:
        criterion: Makes the scores; not one that looks at whole tensors.
        line: The tensors.
        weights: They, contiguous; only looked at if the criterion reads them.
        averages: What is remembered of them; None if the criterion keeps nothing.
        scratch: Temporaries.

    Returns:
        Takes a slab, or int64 positions, whose scores may come in ascending order of these. What it
        returns is float32 and valid until the next call.
    """
    pieces = line.cut(weights) if criterion.reads_weight else None

    def score(index: slice | Tensor) -> Tensor:
        # As `pick` wants them, and as memory does where it is large; a sample has no order.
        if isinstance(index, Tensor) and (pieces is not None or len(line.slabs) > 1):
            index = index.sort().values
        size = index.stop - index.start if isinstance(index, slice) else index.numel()
        out = scratch.flat(size, torch.float32, line.device, "score")
        weight = out  # which a criterion that reads no weight does not look at
        if pieces is not None:
            flat = scratch.flat(size, torch.float32, line.device, "weights")
            weight = (
                gather(pieces[index.start // line.slab_size], flat)
                if isinstance(index, slice)
                else line.pick(weights, index, flat)
            )
        return criterion.score(weight, [] if averages is None else averages.at(index), out)

    return score
