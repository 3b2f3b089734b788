"""The gradients that an optimizer has just stepped with: are they finite, and when it steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle


def all_finite(gradients: Sequence[Tensor | None]) -> bool:
    """Whether every entry is finite, at the price of one sum over each gradient.

    A sum is finite only if all its terms are; it may also overflow, so only then each is looked at.
    """
    present = [gradient for gradient in gradients if gradient is not None]
    # Wait for each device once, not for each tensor.
    sums: dict[torch.device, list[Tensor]] = {}
    for gradient in present:
        sums.setdefault(gradient.device, []).append(gradient.sum(dtype=torch.float32))
    if all(math.isfinite(float(torch.stack(parts).sum())) for parts in sums.values()):
        return True
    return all(bool(gradient.isfinite().all()) for gradient in present)


def after_each_step(
    optimizer: torch.optim.Optimizer, step: Callable[[bool], None]
) -> RemovableHandle:
    """Call ``step(skipped)`` after every step of an optimizer whose gradients can be read then.

    Raises:
        ValueError: If the optimizer is known to train other weights than those it shows.
    """
    if type(optimizer).__module__.split(".")[0] == "schedulefree":
        raise ValueError(
            f"optimizer must leave gradients and weights as they are, got "
            f"{type(optimizer).__name__}, which evaluates other weights than it trains: use a "
            "torch optimizer with a learning-rate schedule"
        )

    def after_step(stepped: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        if getattr(stepped, "grad_scale", None) is not None:
            raise RuntimeError(
                "gradients must be unscaled when scores are updated, got an optimizer that "
                "unscales inside its step (fused): call scaler.unscale_(optimizer) before "
                "scaler.step(optimizer)"
            )
        found_inf = getattr(stepped, "found_inf", None)
        step(found_inf is not None and bool(found_inf))

    return optimizer.register_step_post_hook(after_step)
