"""What a trainer has made of the model that it was given."""

from __future__ import annotations

import torch.distributed as dist
from torch import nn


def bare(model: nn.Module) -> nn.Module:
    """The model under torch.compile's and a parallel wrapper."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and isinstance(
            model, (nn.DataParallel, nn.parallel.DistributedDataParallel)
        ):
            inner = model.module
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def is_sharded(model: nn.Module) -> bool:
    """Whether processes hold parts of the model's parameters."""
    from torch.distributed.tensor import DTensor

    return dist.is_initialized() and any(isinstance(p, DTensor) for p in model.parameters())
