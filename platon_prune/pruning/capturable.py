"""What must hold so that a step can be captured in a CUDA graph, as far as set-up can tell."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from platon_prune.criteria import Criterion
from platon_prune.masks.targets import Target
from platon_prune.tensors.collectives import Processes
from platon_prune.tensors.shards import is_sharded, registered


def require_capturable(
    targets: Sequence[Target], criterion: Criterion, processes: Processes
) -> None:
    """Raise unless a step over some tensors can be recorded once and replayed.

    Args:
        targets: What is to be pruned.
        criterion: How it is scored.
        processes: Those that choose together.

    Raises:
        ValueError: If there are several processes, which vote at each step; a tensor is sharded; or
            the criterion's ``sample`` reads values.
    """
    if processes.size > 1:
        raise ValueError(
            f"capturable=True must be of one process, got {processes.size}, which wait for one "
            "another at each step: leave it out, or give each process a process_group of its own"
        )
    for target in targets:
        if is_sharded(registered(*target.sites[0])):
            raise ValueError(
                "capturable=True must be of tensors that one process has whole, got "
                f"{target.name}, which is sharded: leave it out"
            )
    if criterion.windowed and criterion.formula is None:
        _require_unread(criterion)


def _require_unread(criterion: Criterion) -> None:
    # Here, since most never need it, and importing it takes as long as all of ours.
    from torch._subclasses.fake_tensor import (
        DataDependentOutputException,
        DynamicOutputShapeException,
        FakeTensorMode,
    )

    try:
        # A criterion may hold tensors of its own.
        with FakeTensorMode(allow_non_fake_inputs=True):
            weight, grad, out = (torch.empty(4, 4) for _ in range(3))
            criterion.sample(nn.Parameter(weight).detach(), grad, out)
    # The second one by a size: how many entries a mask of bools picks is read as well.
    except (DataDependentOutputException, DynamicOutputShapeException) as error:
        raise ValueError(
            "criterion must compute its samples without reading a value (.item(), bool()) for "
            f"capturable=True, got {type(criterion).__name__}: leave capturable out, or decide "
            "with torch.where"
        ) from error
    except Exception:
        return  # what fake tensors can't do may be captured all the same, and a step tells
