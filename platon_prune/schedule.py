"""Schedules say how much is pruned at which step: pure functions of the step number.

To add a shape, derive from :class:`RampSchedule`, say how far it is on the ramp, and list it in
``SCHEDULES`` and ``ScheduleName``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Literal, Protocol

from platon_prune.amounts import is_count, steps_of


class Schedule(Protocol):
    """A schedule tells its scheduler the amount at each step, and when a mask is chosen.

    Attributes:
        amount: Fraction pruned in the end.
        initial_amount: Fraction pruned when the ramp starts.
        total_steps: T, in optimizer steps; 0 if there is no end.
        warmup_steps: t_i.
        window: Steps from one window's end to the next.
    """

    @property
    def amount(self) -> float: ...  # noqa: D102
    @property
    def initial_amount(self) -> float: ...  # noqa: D102
    @property
    def total_steps(self) -> int: ...  # noqa: D102
    @property
    def warmup_steps(self) -> int: ...  # noqa: D102
    @property
    def window(self) -> int: ...  # noqa: D102

    @property
    def ramp_end(self) -> int:
        """The first step with the final amount."""

    @property
    def first_choosing_step(self) -> int | None:
        """The first step at which a mask is chosen; None if none ever is."""

    @property
    def last_choosing_step(self) -> int:
        """The last step at which a mask is chosen; after it no samples are taken."""

    @property
    def settings(self) -> dict[str, Any]:
        """What decides the amounts, as plain numbers and strings, for states and comparison."""

    def amount_at(self, step: int) -> float:
        """Fraction pruned by the schedule at ``step`` (counted from 1)."""

    def ends_window(self, step: int) -> bool:
        """Whether a window ends at ``step``, so that the averages are updated from its mean."""

    def is_choosing_step(self, step: int) -> bool:
        """Whether a mask is chosen at ``step``."""

    def starting_at(self, sparsity: float) -> Schedule:
        """The schedule of a model that has this sparsity already."""

    def lasting(
        self, total_steps: int, warmup_steps: int | float, cooldown_steps: int | float
    ) -> Schedule:
        """The same schedule over a run of another length."""

    def require_scores(self) -> None:
        """Raise a ValueError if a choice is due before a window of gradients has ended."""


@dataclass(frozen=True)
class RampSchedule:
    """A ramp leads from the initial amount, at step ``t_i``, to the final one, at ``T − t_f``.

    What the amount is between the two, each shape says in :meth:`on_ramp`. Masks are chosen at each
    window's end after the warm-up, at ``T − t_f`` and at ``T``.

    Args:
        amount: Fraction pruned in the end, 1 - r_T, in [0, 1].
        total_steps: T, in optimizer steps.
        warmup_steps: t_i; nothing is chosen up to and including this step.
        cooldown_steps: t_f; the amount stays at its final value for that many steps.
        initial_amount: Fraction pruned when the ramp starts, 1 - r_0, in [0, ``amount``].
        window: Steps between two choices of the mask.

    Attributes:
        name: As given to ``schedule=``.
        has_ramp: Whether the initial amount matters; if not, it can't be set.

    Raises:
        ValueError: If the steps leave no room for the ramp, or a number is out of range.
        TypeError: If a number of steps is not an integer.
    """

    name: ClassVar[str]
    has_ramp: ClassVar[bool] = True
    amount: float
    total_steps: int
    warmup_steps: int = 0
    cooldown_steps: int = 0
    initial_amount: float = 0.0
    window: int = 10

    def __post_init__(self) -> None:
        for name, least in (
            ("total_steps", 1),
            ("warmup_steps", 0),
            ("cooldown_steps", 0),
            ("window", 1),
        ):
            # A plain int, so that a state can be loaded with weights_only.
            object.__setattr__(self, name, _whole(name, getattr(self, name), least))
        if self.warmup_steps + self.cooldown_steps >= self.total_steps:
            raise ValueError(
                "warmup_steps + cooldown_steps must be less than total_steps, got "
                f"{self.warmup_steps} + {self.cooldown_steps} >= {self.total_steps}: "
                "shorten them or train longer"
            )
        for name in ("amount", "initial_amount"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {getattr(self, name)}")
        if self.initial_amount > self.amount:
            raise ValueError(
                "initial_amount must not exceed amount, got "
                f"{self.initial_amount} > {self.amount}: the schedule only prunes further"
            )

    def on_ramp(self, share: float) -> float:
        """The amount on the ramp.

        Args:
            share: Which share of the ramp is over, in (0, 1).

        Returns:
            A fraction from ``initial_amount`` to ``amount`` that never falls.
        """
        raise NotImplementedError

    def amount_at(self, step: int) -> float:
        """Fraction pruned by the schedule at ``step`` (counted from 1)."""
        # The end first, so that it holds exactly, whatever a formula rounds to.
        if step >= self.ramp_end:
            return self.amount
        if step <= self.warmup_steps:
            return self.initial_amount
        return self.on_ramp((step - self.warmup_steps) / (self.ramp_end - self.warmup_steps))

    @property
    def ramp_end(self) -> int:
        """The first step with the final amount, T - t_f."""
        return self.total_steps - self.cooldown_steps

    @property
    def first_choosing_step(self) -> int | None:
        """The first step at which a mask is chosen."""
        # At the warm-up's last step nothing is chosen, even where a window ends there.
        after_warmup = (self.warmup_steps // self.window + 1) * self.window
        return min(after_warmup, self.ramp_end)

    @property
    def last_choosing_step(self) -> int:
        """The last step at which a mask is chosen, T."""
        return self.total_steps

    def ends_window(self, step: int) -> bool:
        """Whether a window ends at ``step``, so that the averages are updated from its mean."""
        return step % self.window == 0

    def is_choosing_step(self, step: int) -> bool:
        """Whether a mask is chosen at ``step``: after a window, at T - t_f and at T."""
        if not self.warmup_steps < step <= self.total_steps:
            return False
        # T − t_f and T may lie within a window: else the run would end before its final amount.
        return self.ends_window(step) or step in (self.ramp_end, self.total_steps)

    def starting_at(self, sparsity: float) -> RampSchedule:
        """The schedule of a model that has this sparsity already.

        Raises:
            ValueError: If that is more than the final amount.
        """
        if sparsity > self.amount:
            raise ValueError(
                f"amount must be at least the sparsity that the model has, got {self.amount:.6g} < "
                f"{sparsity:.6g}: the schedule only prunes further"
            )
        return replace(self, initial_amount=sparsity)

    def lasting(
        self, total_steps: int, warmup_steps: int | float, cooldown_steps: int | float
    ) -> RampSchedule:
        """The same shape over a run of another length.

        Args:
            total_steps: T, in optimizer steps.
            warmup_steps: A count of steps, or a fraction of the run in [0, 1).
            cooldown_steps: Likewise.
        """
        total = _whole("total_steps", total_steps, 1)
        return replace(
            self,
            total_steps=total,
            warmup_steps=steps_of("warmup_steps", warmup_steps, total),
            cooldown_steps=steps_of("cooldown_steps", cooldown_steps, total),
        )

    def require_scores(self) -> None:
        """Raise a ValueError if a choice is due before a window of gradients has ended."""
        first = self.first_choosing_step
        # The first window of length 1 ends before it has seen a gradient.
        if first is not None and (first < self.window or self.ramp_end < 2):
            raise ValueError(
                "the first window must end before the first mask is chosen, got a choice at step "
                f"{first} with window={self.window}: use a shorter window or fewer cooldown_steps, "
                "or train longer"
            )

    @property
    def settings(self) -> dict[str, Any]:
        """All fields, and the name of any but the cubic schedule."""
        # States from before there were others have no name, and must still load.
        name = {} if self.name == CubicSchedule.name else {"schedule": self.name}
        return {field.name: getattr(self, field.name) for field in fields(self)} | name


@dataclass(frozen=True)
class CubicSchedule(RampSchedule):
    """The cubic schedule of the paper, in fractions pruned: fast at first, slow at the end.

    The density (fraction kept) is ``r_0`` up to step ``t_i``, then
    ``r_T + (r_0 − r_T) (1 − (t − t_i) / (T − t_i − t_f))³``, then ``r_T`` for the last ``t_f``
    steps. Amounts here are ``1 − r``. Its arguments are those of :class:`RampSchedule`.

    Source:
        Zhang et al., PLATON, ICML 2022 (arXiv:2206.12562), the cubic schedule r(t).
    """

    name: ClassVar[str] = "cubic"

    def on_ramp(self, share: float) -> float:
        """The cubic formula."""
        return self.amount + (self.initial_amount - self.amount) * (1 - share) ** 3


@dataclass(frozen=True)
class LinearSchedule(RampSchedule):
    """The amount grows by the same at every step of the ramp.

    The density is ``r_0 + (r_T − r_0) s``, with ``s = (t − t_i) / (T − t_i − t_f)``.
    """

    name: ClassVar[str] = "linear"

    def on_ramp(self, share: float) -> float:
        """The straight line."""
        return self.initial_amount + (self.amount - self.initial_amount) * share


@dataclass(frozen=True)
class ExponentialSchedule(RampSchedule):
    """The same share of what is left goes at every step of the ramp: the density decays.

    The density is ``r_0 (r_T / r_0)^s``, with ``s = (t − t_i) / (T − t_i − t_f)``. Compared with
    the cubic schedule it takes less at first and more at the end.

    Raises:
        ValueError: If the final amount is 1, which no decay reaches.

    Source:
        The "exponential" sparsity schedule of NNCF (Kozlov et al., Neural Network Compression
        Framework for fast model inference, 2020, arXiv:2002.08679), here over steps.
    """

    name: ClassVar[str] = "exponential"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.amount == 1:
            raise ValueError(
                'amount must be below 1 for schedule="exponential", got 1: a density that decays '
                "by equal factors never is 0, so use another schedule"
            )

    def on_ramp(self, share: float) -> float:
        """The decay."""
        # In densities, of which each step keeps the same share.
        density = 1 - self.initial_amount
        return 1 - density * math.pow((1 - self.amount) / density, share)


@dataclass(frozen=True)
class OnceSchedule(RampSchedule):
    """One choice of the final amount, at the first window's end at or after ``t_i``; then none.

    The choice is at ``T − t_f`` if no window ends between ``t_i`` and that. After it windows stop:
    no samples are taken, no gradients are needed, and the masks stay as they are.
    """

    name: ClassVar[str] = "once"
    has_ramp: ClassVar[bool] = False

    @property
    def ramp_end(self) -> int:
        """The step of the choice."""
        num_windows = max(1, -(-self.warmup_steps // self.window))  # rounded up
        return min(num_windows * self.window, self.total_steps - self.cooldown_steps)

    @property
    def first_choosing_step(self) -> int:
        """The step of the choice."""
        return self.ramp_end

    @property
    def last_choosing_step(self) -> int:
        """The step of the choice."""
        return self.ramp_end

    def is_choosing_step(self, step: int) -> bool:
        """Whether ``step`` is that of the choice."""
        return step == self.ramp_end

    def on_ramp(self, share: float) -> float:
        """What is there before the choice."""
        return self.initial_amount


ScheduleName = Literal["cubic", "linear", "exponential", "once"]
SCHEDULES: dict[str, type[RampSchedule]] = {
    each.name: each for each in (CubicSchedule, LinearSchedule, ExponentialSchedule, OnceSchedule)
}


def find_schedule(schedule: str | type[RampSchedule]) -> type[RampSchedule]:
    """Look a shape up by name.

    Raises:
        ValueError: If the name is unknown.
        TypeError: If an instance is given instead of a class.
    """
    if isinstance(schedule, type) and issubclass(schedule, RampSchedule):
        return schedule
    if isinstance(schedule, RampSchedule):
        raise TypeError(
            "schedule must be a name or a class derived from RampSchedule, got an instance of "
            f"{type(schedule).__name__}: pass the class, whose amounts and steps are the other "
            "arguments"
        )
    if not isinstance(schedule, str) or schedule not in SCHEDULES:
        raise ValueError(f"schedule must be one of {', '.join(SCHEDULES)}; got {schedule!r}")
    return SCHEDULES[schedule]


def _whole(name: str, value: Any, least: int) -> int:
    if not is_count(value):
        raise TypeError(
            f"{name} must be a whole number of optimizer steps, got {value!r}; "
            "for a share of the run, multiply it by total_steps and round"
        )
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")
    return int(value)
