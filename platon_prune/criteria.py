"""What a weight's score is made of: samples of a step, averages over windows, and their product.

A criterion works on blocks: matching pieces of a weight, its gradient and its averages. To add
one, derive from :class:`Criterion`, say which averages it keeps, and list it in ``CRITERIA``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import ClassVar

import torch
from torch import Tensor


def weight_times_grad(weight: Tensor, grad: Tensor, out: Tensor) -> Tensor:
    """``weight * grad`` in float32, written to ``out``.

    Both are brought to float32 first: a bfloat16 product keeps 8 bits, too few to rank weights.
    """
    if weight.dtype == grad.dtype == torch.float32:
        return torch.mul(weight, grad, out=out)
    return out.copy_(weight).mul_(grad.to(torch.float32))


class Criterion:
    """Turns weights and gradients into scores; the lowest scores are pruned.

    Attributes:
        name: As given to ``criterion=``.
        averages: Names of the float32 tensors it keeps for each weight tensor.
        windowed: Whether it learns from gradients over windows; if not, ``score`` reads the
            weight as it is at the moment of the choice.
    """

    name: ClassVar[str]
    averages: ClassVar[tuple[str, ...]] = ()
    windowed: ClassVar[bool] = True

    def sample_(self, product: Tensor) -> Tensor:
        """Turn ``weight * grad`` of one step into that step's sample, in place."""
        raise NotImplementedError

    def fold_(self, mean: Tensor, averages: Sequence[Tensor]) -> None:
        """Update ``averages`` in place from the mean sample of a window (overwritten)."""
        raise NotImplementedError

    def score(self, weight: Tensor, averages: Sequence[Tensor], out: Tensor) -> Tensor:
        """Write the scores, float32 and never NaN, to ``out``."""
        raise NotImplementedError


@dataclass(frozen=True)
class Sensitivity(Criterion):
    """Smoothed first-order change of the loss if a weight were zeroed.

    ``Ī ← β₁ Ī + (1 − β₁) I``, with ``I`` the mean of ``|w · ∂L/∂w|`` over the window.

    Source: Zhang et al., ICML 2022, section 3, the smoothed importance (here of a window's mean).
    """

    name: ClassVar[str] = "sensitivity"
    averages: ClassVar[tuple[str, ...]] = ("sensitivity",)
    beta1: float = 0.85

    def sample_(self, product: Tensor) -> Tensor:
        """``|w * dL/dw|``."""
        return product.abs_()

    def fold_(self, mean: Tensor, averages: Sequence[Tensor]) -> None:
        """Exponential moving average with ``beta1``, from zero, without bias correction."""
        averages[0].mul_(self.beta1).add_(mean, alpha=1 - self.beta1)

    def score(self, weight: Tensor, averages: Sequence[Tensor], out: Tensor) -> Tensor:
        """The average itself."""
        return out.copy_(averages[0])


@dataclass(frozen=True)
class Platon(Sensitivity):
    """Upper confidence bound of the sensitivity.

    ``Ū ← β₂ Ū + (1 − β₂) |I − Ī|`` and ``S = Ī · Ū``, with ``I`` the mean over the window and ``Ī``
    already updated.

    Source: Zhang et al., ICML 2022, section 3, the smoothed uncertainty and the bound.
    """

    name: ClassVar[str] = "platon"
    averages: ClassVar[tuple[str, ...]] = ("sensitivity", "uncertainty")
    beta2: float = 0.95

    def fold_(self, mean: Tensor, averages: Sequence[Tensor]) -> None:
        """Both moving averages; the deviation is from the updated sensitivity."""
        sensitivity, uncertainty = averages
        super().fold_(mean, (sensitivity,))
        deviation = mean.sub_(sensitivity).abs_()
        uncertainty.mul_(self.beta2).add_(deviation, alpha=1 - self.beta2)

    def score(self, weight: Tensor, averages: Sequence[Tensor], out: Tensor) -> Tensor:
        """Sensitivity times uncertainty."""
        return torch.mul(averages[0], averages[1], out=out)


@dataclass(frozen=True)
class Movement(Criterion):
    """How far training moves weights away from zero: the sum of ``−w · ∂L/∂w``.

    Source: Sanh et al., Movement Pruning, NeurIPS 2020, the accumulated score (of window means).
    """

    name: ClassVar[str] = "movement"
    averages: ClassVar[tuple[str, ...]] = ("movement",)

    def sample_(self, product: Tensor) -> Tensor:
        """``-w * dL/dw``."""
        return product.neg_()

    def fold_(self, mean: Tensor, averages: Sequence[Tensor]) -> None:
        """Add the window's mean to the sum."""
        averages[0].add_(mean)

    def score(self, weight: Tensor, averages: Sequence[Tensor], out: Tensor) -> Tensor:
        """The sum itself; an overflow of both signs (NaN) counts as no movement."""
        return torch.nan_to_num(averages[0], nan=0.0, out=out)


@dataclass(frozen=True)
class Magnitude(Criterion):
    """Absolute value of the weight after the optimizer step.

    Source: Zhu and Gupta, To prune, or not to prune, ICLR workshop 2018.
    """

    name: ClassVar[str] = "magnitude"
    windowed: ClassVar[bool] = False

    def score(self, weight: Tensor, averages: Sequence[Tensor], out: Tensor) -> Tensor:
        """``|w|``; a weight that is NaN is kept, so that the model's failure stays visible."""
        return out.copy_(weight).abs_().nan_to_num_(nan=torch.inf, posinf=torch.inf)


@dataclass(frozen=True)
class Random(Criterion):
    """All scores equal: the fixed pseudo-random order of ties decides, and masks are nested."""

    name: ClassVar[str] = "random"
    windowed: ClassVar[bool] = False

    def score(self, weight: Tensor, averages: Sequence[Tensor], out: Tensor) -> Tensor:
        """Zero for every weight."""
        return out.zero_()


class Unscored(Criterion):
    """Of masks that are never chosen: nothing is remembered, and there are no scores."""

    name: ClassVar[str] = "none"
    windowed: ClassVar[bool] = False

    def score(self, weight: Tensor, averages: Sequence[Tensor], out: Tensor) -> Tensor:
        """Raise a RuntimeError."""
        raise RuntimeError(
            "scores must be kept to be read, got fixed masks, which need none: set pruning up with "
            "global_unstructured for a criterion"
        )


CRITERIA: dict[str, Callable[[float, float], Criterion]] = {
    "platon": lambda beta1, beta2: Platon(beta1, beta2),
    "sensitivity": lambda beta1, beta2: Sensitivity(beta1),
    "magnitude": lambda beta1, beta2: Magnitude(),
    "movement": lambda beta1, beta2: Movement(),
    "random": lambda beta1, beta2: Random(),
}


def make_criterion(criterion: str | Criterion, beta1: float, beta2: float) -> Criterion:
    """Look a criterion up by name.

    Raises:
        ValueError: If the name is unknown, or a beta is outside [0, 1).
        TypeError: If a beta is not a number, or a class is given instead of an instance.
    """
    for name, beta in (("beta1", beta1), ("beta2", beta2)):
        if isinstance(beta, bool) or not isinstance(beta, Real):
            raise TypeError(f"{name} must be a number in [0, 1), got {beta!r}")
        if not 0 <= beta < 1:
            raise ValueError(
                f"{name} must be in [0, 1), got {beta}: it is the share of the old average "
                "that a new window keeps"
            )
    if isinstance(criterion, Criterion):
        return criterion
    if isinstance(criterion, type) and issubclass(criterion, Criterion):
        raise TypeError(
            "criterion must be a name or an instance of a criterion, got the class "
            f"{criterion.__name__}: pass {criterion.__name__}(), with its settings if it has any"
        )
    if not isinstance(criterion, str) or criterion not in CRITERIA:
        raise ValueError(f"criterion must be one of {', '.join(CRITERIA)}; got {criterion!r}")
    return CRITERIA[criterion](float(beta1), float(beta2))
