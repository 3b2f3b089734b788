"""The gradients that an optimizer has just stepped with: are they finite, and when it steps.

A scheduler steps after its optimizer: called by hand, or by itself while it is :class:`Following`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

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
    # NaN and infinities survive any sum, so a finite one clears all gradients at once.
    if all(math.isfinite(float(torch.stack(parts).sum())) for parts in sums.values()):
        return True
    return all(bool(gradient.isfinite().all()) for gradient in present)


def as_skipped(skipped: object, unread: bool = False) -> bool | Tensor:
    """Whether a step was skipped, as a scheduler is told.

    Args:
        skipped: True, False, or a numpy or torch scalar of truth.
        unread: Whether no tensor may be read, wherever it is: a replay would not read it again.

    Returns:
        The same as a bool; a tensor of one entry where reading it would wait for its device.

    Raises:
        TypeError: If it is anything else, such as the loss that other schedulers take.
    """
    if isinstance(skipped, bool):
        return skipped
    # A tensor on a device is passed on: reading it here would wait for all of the step.
    if isinstance(skipped, Tensor) and skipped.dtype == torch.bool and not skipped.shape:
        return bool(skipped) if skipped.device.type == "cpu" and not unread else skipped.view(1)
    if str(getattr(skipped, "dtype", "")) in ("bool", "torch.bool") and not skipped.shape:  # type: ignore[attr-defined]
        return bool(skipped)
    raise TypeError(
        "skipped must be True or False, whether the optimizer did not step, got a "
        f"{type(skipped).__name__}: call step() without arguments, also where another scheduler "
        "takes the loss"
    )


class StepGradients(NamedTuple):
    """The gradients of one step.

    Args:
        each: Of each tensor; None instead of the list if the step is known to be skipped.
        flag: Not 0 on the device if one of them is not finite; None if all are known to be finite.
    """

    each: list[Tensor | None] | None
    flag: Tensor | None = None


class Following:
    """The optimizer, if any, whose steps call a scheduler's step."""

    def __init__(self) -> None:
        self._handle: RemovableHandle | None = None
        self._is_calling = False

    def __deepcopy__(self, memo: Any) -> Following:
        return Following()  # a copy follows nothing

    def begin(
        self, optimizer: torch.optim.Optimizer, step: Callable[[bool | Tensor], None]
    ) -> RemovableHandle:
        """Call ``step(skipped)`` after every step of an optimizer.

        Returns:
            A handle whose ``remove()`` ends it.

        Raises:
            TypeError: If it is no optimizer.
            ValueError: If it is known to train other weights than it shows, or another one is
                followed already.
        """
        if self._is_on():
            raise ValueError(
                "scheduler must follow one optimizer, got a second: each of its steps would count "
                "twice; call remove() on the first handle"
            )

        def call(skipped: bool | Tensor) -> None:
            self._is_calling = True
            try:
                step(skipped)
            finally:
                self._is_calling = False

        self._handle = _after_each_step(optimizer, call)
        return self._handle

    def refuse_other_calls(self) -> None:
        """Raise a RuntimeError if the scheduler steps, but is not called by what it follows."""
        if self._is_on() and not self._is_calling:
            raise RuntimeError(
                "each step must be counted once, got scheduler.step() while it follows the "
                "optimizer (step_with), which calls it: leave this call out, or call remove() on "
                "the handle of step_with"
            )

    def _is_on(self) -> bool:
        # The user's handle may have been removed without a word to us; its optimizer may be gone.
        hooks = None if self._handle is None else self._handle.hooks_dict_ref()
        return hooks is not None and self._handle is not None and self._handle.id in hooks


def _after_each_step(
    optimizer: torch.optim.Optimizer, step: Callable[[bool | Tensor], None]
) -> RemovableHandle:
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(
            f"optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}: pass the "
            "one that steps the pruned model"
        )
    # A wrapper that derives from Optimizer without calling its __init__ never runs the hooks.
    if not hasattr(optimizer, "_optimizer_step_post_hooks"):
        raise TypeError(
            "optimizer must tell when it has stepped, got "
            f"{type(optimizer).__name__}: pass the one that it wraps (optimizer.optimizer)"
        )
    if type(optimizer).__module__.split(".")[0] == "schedulefree":
        raise ValueError(
            f"optimizer must leave gradients and weights as they are, got "
            f"{type(optimizer).__name__}, which evaluates other weights than it trains: use a "
            "torch optimizer with a learning-rate schedule"
        )

    def after_step(stepped: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        # GradScaler hands its scale to fused optimizers, which leave the gradients scaled.
        if getattr(stepped, "grad_scale", None) is not None:
            raise RuntimeError(
                "gradients must be unscaled when scores are updated, got an optimizer that "
                "unscales inside its step (fused): call scaler.unscale_(optimizer) before "
                "scaler.step(optimizer)"
            )
        found_inf = getattr(stepped, "found_inf", None)
        step(False if found_inf is None else found_inf.ne(0).reshape(()))

    return optimizer.register_step_post_hook(after_step)
