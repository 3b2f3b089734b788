"""Criteria make scores: from the samples of a step, averages over windows, and the weights.

A criterion works on blocks: matching pieces of a weight, its gradient and its averages. To add
one, derive from :class:`Criterion`, say which averages it keeps, and list it in ``CRITERIA`` and
``CriterionName``. Its settings are the fields of its dataclass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from platon_prune.amounts import fraction

Formula = Literal["abs_product", "negative_product", "squared_gradient"]


def weight_times_grad(weight: Tensor, grad: Tensor, out: Tensor) -> Tensor:
    """``weight * grad`` in float32, written to ``out``.

    Both are brought to float32 first: a bfloat16 product keeps 8 bits, too few to rank weights.
    """
    # One operation where both are float32 already, as nearly always.
    if weight.dtype == grad.dtype == torch.float32:
        return torch.mul(weight, grad, out=out)
    return out.copy_(weight).mul_(grad.to(torch.float32))


# Attributes, the methods that they speak of, and what holds of any such methods.
_SAFE: tuple[tuple[str, frozenset[str], Any], ...] = (
    ("formula", frozenset({"sample", "sample_"}), None),
    ("reads_weight", frozenset({"score", "score_with"}), True),
    ("signed", frozenset({"sample", "sample_", "update_averages_", "score", "score_with"}), True),
)


class Criterion:
    """Turns weights and gradients into scores; the lowest scores are pruned.

    A step's samples are added up over a window, and :meth:`update_averages_` is given their mean
    when it ends. The least that a windowed criterion defines is :meth:`sample_`, or
    :meth:`sample` if it needs the gradient itself; :meth:`update_averages_`; and :meth:`score`,
    or :meth:`score_with` if it looks at a whole tensor.

    Attributes:
        name: As given to ``criterion=``.
        averages: Names of the float32 tensors it keeps for each weight tensor.
        windowed: Whether it learns from gradients over windows; if not, ``score`` reads the
            weight as it is at the moment of the choice.
        num_statistics: How many numbers about a whole tensor :meth:`score_with` needs.
        formula: What a step adds to the window, where one kernel does it for all tensors:
            "abs_product", ``|w g|``; "negative_product", ``−w g``; "squared_gradient", ``g²``. None
            where :meth:`sample` says it, tensor by tensor.
        reads_weight: Whether ``score`` reads the weight; it is handed something else if not.
        signed: Whether a score can be negative, or -0.
    """

    name: ClassVar[str]
    averages: ClassVar[tuple[str, ...]] = ()
    windowed: ClassVar[bool] = True
    num_statistics: ClassVar[int] = 0
    formula: ClassVar[Formula | None] = None
    reads_weight: ClassVar[bool] = True
    signed: ClassVar[bool] = True

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        # What a base class says of its own methods need not be true of those that replace them.
        for attribute, methods, safe in _SAFE:
            if attribute not in vars(cls) and not methods.isdisjoint(vars(cls)):
                setattr(cls, attribute, safe)
        # The old name would never be called, and the averages would stay zero without a word.
        if "fold_" in vars(cls):
            raise TypeError(
                f"{cls.__name__} must define update_averages_, got fold_, its name before: rename "
                "the method"
            )

    @property
    def settings(self) -> dict[str, Any]:
        """The fields of its dataclass, which states are compared by; else its attributes."""
        if not is_dataclass(self):
            return dict(vars(self))
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def sample(self, weight: Tensor, grad: Tensor, out: Tensor) -> Tensor:
        """Write the samples of one step to ``out``, in float32.

        Args:
            weight: A block of the weight, after the optimizer's step.
            grad: The gradient that made that step.
            out: Float32, of their shape; what it holds is of no meaning.

        Returns:
            ``out``.
        """
        return self.sample_(weight_times_grad(weight, grad, out))

    def sample_(self, product: Tensor) -> Tensor:
        """Turn ``weight * grad`` of one step into that step's sample, in place."""
        raise NotImplementedError

    def update_averages_(self, mean: Tensor, averages: Sequence[Tensor]) -> None:
        """Update ``averages`` in place from the mean sample of a window (overwritten)."""
        raise NotImplementedError

    def weight_of_window(self, left: float) -> float:
        """How much a window counts: what its mean is multiplied by before the averages get it.

        Args:
            left: Which share of the run was left when the window began, in (0, 1].
        """
        return 1.0

    def statistics(self, weight: Tensor) -> Tensor:
        """Numbers about a block of a tensor that, added up, say something about all of it.

        They are added up once a choice, over all blocks and all processes, each entry once.

        Args:
            weight: A one-dimensional block.

        Returns:
            ``num_statistics`` numbers, float64, on the weight's device.
        """
        raise NotImplementedError

    def score(self, weight: Tensor, averages: Sequence[Tensor], out: Tensor) -> Tensor:
        """Write the scores, float32 and never NaN, to ``out``."""
        raise NotImplementedError

    def score_with(
        self, statistics: Tensor, weight: Tensor, averages: Sequence[Tensor], out: Tensor
    ) -> Tensor:
        """Write the scores to ``out``, as :meth:`score` does, knowing about the whole tensor.

        Args:
            statistics: The sum of :meth:`statistics`: float64, on the CPU.
            weight: A block of the weight.
            averages: Matching blocks of the averages.
            out: Float32, of their shape.
        """
        return self.score(weight, averages, out)


@dataclass(frozen=True)
class Sensitivity(Criterion):
    """Smoothed first-order change of the loss if a weight were zeroed.

    ``Ī ← β₁ Ī + (1 − β₁) I``, with ``I`` the mean of ``|w · ∂L/∂w|`` over the window.

    Source: Zhang et al., ICML 2022, section 3, the smoothed importance (here of a window's mean).
    """

    name: ClassVar[str] = "sensitivity"
    averages: ClassVar[tuple[str, ...]] = ("sensitivity",)
    formula: ClassVar[Formula | None] = "abs_product"
    reads_weight: ClassVar[bool] = False
    signed: ClassVar[bool] = False
    beta1: float = 0.85

    def sample_(self, product: Tensor) -> Tensor:
        """``|w * dL/dw|``."""
        return product.abs_()

    def update_averages_(self, mean: Tensor, averages: Sequence[Tensor]) -> None:
        """Exponential moving average with ``beta1``, from zero, without bias correction."""
        # In place and without bias correction, as the reference does: ranks need no scale.
        averages[0].mul_(self.beta1).add_(mean, alpha=1 - self.beta1)

    def score(self, weight: Tensor, averages: Sequence[Tensor], out: Tensor) -> Tensor:
        """The score is the average itself."""
        return out.copy_(averages[0])


@dataclass(frozen=True)
class Platon(Sensitivity):
    """Upper confidence bound of the sensitivity.

    ``Ū ← β₂ Ū + (1 − β₂) |I − Ī|`` and ``S = Ī · Ū``, with ``I`` the mean over the window and ``Ī``
    already updated. With a ``beta1`` of 0 it would be 0 for every weight, so that is refused.

    In nine settings of noise on one task, and in four on SST-2, its accuracy was level with that of
    :class:`Sensitivity`, which keeps four bytes less a weight: the page "The study".

    Source: Zhang et al., ICML 2022, section 3, the smoothed uncertainty and the bound.
    """

    name: ClassVar[str] = "platon"
    averages: ClassVar[tuple[str, ...]] = ("sensitivity", "uncertainty")
    reads_weight: ClassVar[bool] = False
    signed: ClassVar[bool] = False
    beta2: float = 0.95

    def __post_init__(self) -> None:
        if self.beta1 == 0:
            raise ValueError(
                "beta1 must be above 0 for PLATON's scores, got 0: the average is each window's "
                "mean then, so that all deviations from it, and all scores, are 0; use one such as "
                '0.85, or criterion="sensitivity"'
            )

    def update_averages_(self, mean: Tensor, averages: Sequence[Tensor]) -> None:
        """Both moving averages; the deviation is from the updated sensitivity."""
        sensitivity, uncertainty = averages
        super().update_averages_(mean, (sensitivity,))
        # The mean is given to be overwritten: no temporary of the size of a block.
        deviation = mean.sub_(sensitivity).abs_()
        uncertainty.mul_(self.beta2).add_(deviation, alpha=1 - self.beta2)

    def score(self, weight: Tensor, averages: Sequence[Tensor], out: Tensor) -> Tensor:
        """Sensitivity times uncertainty."""
        return torch.mul(averages[0], averages[1], out=out)


@dataclass(frozen=True)
class Movement(Criterion):
    """How far training moves weights away from zero: the sum of ``−α w · ∂L/∂w``.

    ``α`` is the share of the run that was left when the window began, as the paper's code learns
    scores at a rate that falls to zero. In the plain sum late windows, when weights hardly move any
    more, can outweigh all before them: what is needed goes, the loss rises, the next one is worse.
    On a pretrained encoder, in 1,085 steps, it ended at chance all the same, as the rules of its
    paper did: the page "The study" has it.

    Args:
        fades: Whether α falls so; if not it is 1, and every window counts alike.

    Source: Sanh et al., Movement Pruning, NeurIPS 2020, the accumulated score (of window means).
    """

    name: ClassVar[str] = "movement"
    averages: ClassVar[tuple[str, ...]] = ("movement",)
    formula: ClassVar[Formula | None] = "negative_product"
    reads_weight: ClassVar[bool] = False
    fades: bool = True

    def sample_(self, product: Tensor) -> Tensor:
        """``-w * dL/dw``."""
        return product.neg_()

    def weight_of_window(self, left: float) -> float:
        """The share of the run that was left when the window began."""
        return left if self.fades else 1.0

    def update_averages_(self, mean: Tensor, averages: Sequence[Tensor]) -> None:
        """Add the window's mean to the sum, which stays finite."""
        averages[0].add_(mean).nan_to_num_()

    def score(self, weight: Tensor, averages: Sequence[Tensor], out: Tensor) -> Tensor:
        """The sum itself; an overflow of both signs (NaN) counts as no movement."""
        # A NaN would rank nowhere, and the choice counts on an order of all scores.
        return torch.nan_to_num(averages[0], nan=0.0, out=out)


@dataclass(frozen=True)
class Magnitude(Criterion):
    """Absolute value of the weight after the optimizer step.

    Source: Zhu and Gupta, To prune, or not to prune, ICLR workshop 2018.
    """

    name: ClassVar[str] = "magnitude"
    windowed: ClassVar[bool] = False
    signed: ClassVar[bool] = False

    def score(self, weight: Tensor, averages: Sequence[Tensor], out: Tensor) -> Tensor:
        """``|w|``; a weight that is NaN is kept, so that the model's failure stays visible."""
        # Infinity, so that it is kept and counts as the largest.
        return out.copy_(weight).abs_().nan_to_num_(nan=torch.inf, posinf=torch.inf)


@dataclass(frozen=True)
class Random(Criterion):
    """All scores equal: the fixed pseudo-random order of ties decides, and masks are nested."""

    name: ClassVar[str] = "random"
    windowed: ClassVar[bool] = False
    reads_weight: ClassVar[bool] = False
    signed: ClassVar[bool] = False

    def score(self, weight: Tensor, averages: Sequence[Tensor], out: Tensor) -> Tensor:
        """Zero for every weight."""
        return out.zero_()


@dataclass(frozen=True)
class Fisher(Sensitivity):
    """Second-order change of the loss if a weight were zeroed: ``w² E[g²] / 2``.

    Optimal brain damage with the diagonal of the empirical Fisher information for the Hessian.
    ``E[g²]`` is a moving average with ``beta1``, as the sensitivity's: of the mean over each window
    of the squared gradient of a batch. ``w`` is the weight at the moment of the choice.

    Source: LeCun et al., Optimal Brain Damage, NeurIPS 1990, the saliency; for the Hessian, the
    empirical Fisher information as in Theis et al., 2018 (arXiv:1801.05787).
    """

    name: ClassVar[str] = "fisher"
    averages: ClassVar[tuple[str, ...]] = ("fisher",)
    formula: ClassVar[Formula | None] = "squared_gradient"
    reads_weight: ClassVar[bool] = True
    signed: ClassVar[bool] = False

    def sample(self, weight: Tensor, grad: Tensor, out: Tensor) -> Tensor:
        """``g²``."""
        return out.copy_(grad).square_()

    def score(self, weight: Tensor, averages: Sequence[Tensor], out: Tensor) -> Tensor:
        """``w² E[g²] / 2``; a weight that is NaN is kept."""
        out.copy_(weight).square_().mul_(averages[0]).mul_(0.5)
        return out.nan_to_num_(nan=torch.inf, posinf=torch.inf)


@dataclass(frozen=True)
class ScaledMagnitude(Magnitude):
    """Absolute value of the weight over the Euclidean norm of its tensor.

    Tensors of small weights are not emptied for those of large ones. The norm is that of the finite
    entries at the moment of the choice.
    """

    name: ClassVar[str] = "scaled_magnitude"
    num_statistics: ClassVar[int] = 1

    def statistics(self, weight: Tensor) -> Tensor:
        """The sum of squares."""
        # In float64: a float32 sum of millions of squares loses the small ones.
        finite = torch.nan_to_num(weight.double(), nan=0.0, posinf=0.0, neginf=0.0)
        return finite.square_().sum().view(1)

    def score_with(
        self, statistics: Tensor, weight: Tensor, averages: Sequence[Tensor], out: Tensor
    ) -> Tensor:
        """``|w| / ‖W‖``; of a tensor of zeros, 0."""
        # In float32, so that how processes share the sum, whose last bits vary, does not show.
        norm = float(statistics.sqrt().float())
        return self.score(weight, averages, out).div_(norm or 1.0)


CriterionName = Literal[
    "platon", "sensitivity", "magnitude", "movement", "random", "fisher", "scaled_magnitude"
]
CRITERIA: dict[str, type[Criterion]] = {
    each.name: each
    for each in (Platon, Sensitivity, Magnitude, Movement, Random, Fisher, ScaledMagnitude)
}


def make_criterion(criterion: str | Criterion, beta1: float, beta2: float) -> Criterion:
    """Look a criterion up by name.

    Raises:
        ValueError: If the name is unknown, or a beta is outside [0, 1).
        TypeError: If a beta is not a number, or a class is given instead of an instance.
    """
    meaning = "the share of the old average that a new window keeps"
    betas = {
        name: fraction(name, beta, kind="a number", meaning=meaning)
        for name, beta in (("beta1", beta1), ("beta2", beta2))
    }
    if isinstance(criterion, Criterion):
        return criterion
    # Without this the class would fail much later, at its first method.
    if isinstance(criterion, type) and issubclass(criterion, Criterion):
        raise TypeError(
            "criterion must be a name or an instance of a criterion, got the class "
            f"{criterion.__name__}: pass {criterion.__name__}(), with its settings if it has any"
        )
    if not isinstance(criterion, str) or criterion not in CRITERIA:
        raise ValueError(f"criterion must be one of {', '.join(CRITERIA)}; got {criterion!r}")
    cls = CRITERIA[criterion]
    # The betas are arguments of every door; a criterion takes those that it declares.
    declared: list[str] = [field.name for field in fields(cls)] if is_dataclass(cls) else []
    return cls(**{name: beta for name, beta in betas.items() if name in declared})
