"""How much is pruned at which step: pure functions of the step number."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral


@dataclass(frozen=True)
class CubicSchedule:
    """The cubic schedule of the paper, in fractions pruned.

    The density (fraction kept) is ``r_0`` up to step ``t_i``, then
    ``r_T + (r_0 − r_T) (1 − (t − t_i) / (T − t_i − t_f))³``, then ``r_T`` for the last ``t_f``
    steps. Amounts here are ``1 − r``.

    Args:
        amount: Fraction pruned in the end, 1 - r_T, in [0, 1].
        total_steps: T, in optimizer steps.
        warmup_steps: t_i; nothing is chosen up to and including this step.
        cooldown_steps: t_f; the amount stays at its final value for that many steps.
        initial_amount: Fraction pruned when the ramp starts, 1 - r_0, in [0, ``amount``].
        window: Steps between two choices of the mask.

    Raises:
        ValueError: If the steps leave no room for the ramp, or a number is out of range.
        TypeError: If a number of steps is not an integer.

    Source:
        Zhang et al., PLATON, ICML 2022 (arXiv:2206.12562), the cubic schedule r(t).
    """

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
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, Integral):
                raise TypeError(
                    f"{name} must be a whole number of optimizer steps, got {value!r}; "
                    "for a share of the run, multiply it by total_steps and round"
                )
            if value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
            object.__setattr__(self, name, int(value))
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

    @property
    def ramp_end(self) -> int:
        """First step with the final amount, T - t_f."""
        return self.total_steps - self.cooldown_steps

    def amount_at(self, step: int) -> float:
        """Fraction pruned by the schedule at ``step`` (counted from 1)."""
        if step <= self.warmup_steps:
            return self.initial_amount
        if step >= self.ramp_end:
            return self.amount
        left = 1 - (step - self.warmup_steps) / (self.ramp_end - self.warmup_steps)
        return self.amount + (self.initial_amount - self.amount) * left**3

    def density_at(self, step: int) -> float:
        """Fraction kept by the schedule at ``step``, the paper's r(t)."""
        return 1 - self.amount_at(step)

    def ends_window(self, step: int) -> bool:
        """Whether the averages take in their window at ``step``."""
        return step % self.window == 0

    def is_choosing_step(self, step: int) -> bool:
        """Whether a mask is chosen at ``step``: after a window, at T - t_f and at T."""
        if not self.warmup_steps < step <= self.total_steps:
            return False
        return self.ends_window(step) or step in (self.ramp_end, self.total_steps)

    @property
    def first_choosing_step(self) -> int:
        """The first step at which a mask is chosen."""
        after_warmup = (self.warmup_steps // self.window + 1) * self.window
        return min(after_warmup, self.ramp_end)

    def require_scores(self) -> None:
        """Raise a ValueError if the final amount is due before a window of gradients has ended."""
        # The first window of length 1 ends before it has seen a gradient.
        if self.first_choosing_step < self.window or self.ramp_end < 2:
            raise ValueError(
                "the first window must end before the first mask is chosen, got a choice at step "
                f"{self.first_choosing_step} with window={self.window}: use a shorter window or "
                "fewer cooldown_steps, or train longer"
            )
