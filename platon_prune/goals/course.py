"""`Course`: which way a run goes at each value of its metric; plain numbers, no tensors."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from platon_prune.goals.goal import Goal
from platon_prune.schedule import Schedule


class KeptState(NamedTuple):
    """A state of the run that it can go back to.

    Args:
        step: When it was kept.
        amount: What was pruned, by the last choice.
        value: Of the metric.
        held: Whether that was good enough; the state before the ramp is kept in any case.
    """

    step: int
    amount: float
    value: float
    held: bool


class Failure(NamedTuple):
    """A value that was not good enough.

    Args:
        amount: What was pruned.
        value: Of the metric.
        is_cooled: Whether it is that of the end of a cool-down.
    """

    amount: float
    value: float
    is_cooled: bool


class Result(NamedTuple):
    """What a run ended with.

    Args:
        amount: What is pruned.
        value: Of the metric.
        held: Whether that is good enough.
    """

    amount: float
    value: float
    held: bool


class Decision(NamedTuple):
    """What a run has to do, after a value was reported.

    Args:
        keeps: Whether it keeps the state that it is in.
        replaces: Whether that takes the place of the state kept last.
        drops: How many of the states kept first it lets go then.
        returns_to: The number of the kept state that it goes back to; None for none.
    """

    keeps: bool = False
    replaces: bool = False
    drops: int = 0
    returns_to: int | None = None


@dataclass
class Course:
    """How far a run with a goal came.

    Args:
        baseline: The dense model's value; None until it is known.
        kept: The states that it can go back to, by ascending amounts.
        failures: How many evaluations in a row were not good enough, on the ramp.
        tried: How many of the kept states, from the last on, went through a cool-down.
        held_since: The step at which the run last went back; None before.
        held_amount: What it holds since then.
        held_until: The last step of that cool-down.
        last_report: The step of the last value; -1 before.
        failed: Of the smallest amount that was not good enough, what it gave.
        result: What the run ended with; None before.
    """

    baseline: float | None = None
    kept: list[KeptState] = field(default_factory=list)
    failures: int = 0
    tried: int = 0
    held_since: int | None = None
    held_amount: float | None = None
    held_until: int | None = None
    last_report: int = -1
    failed: Failure | None = None
    result: Result | None = None

    @property
    def has_begun(self) -> bool:
        """Whether the state before the ramp is known."""
        return bool(self.kept)

    @property
    def num_states(self) -> int:
        """How many states there are to go back to; none once there is a result."""
        return 0 if self.result is not None else len(self.kept)

    def is_due(self, plan: Schedule, step: int) -> bool:
        """Whether the run can't go on without the metric at ``step``.

        Args:
            plan: The schedule that the run began with.
            step: The last step that was taken.
        """
        if self.result is not None or step <= self.last_report:
            return False
        if not self.has_begun:
            return step >= start_of(plan)
        is_ramp_end = self.held_since is None and step == plan.ramp_end
        return is_ramp_end or step >= self._end(plan)

    def would_decide(self, plan: Schedule, step: int) -> bool:
        """Whether a value at ``step`` has a say in where the run goes.

        Args:
            plan: The schedule that the run began with.
            step: The last step that was taken.
        """
        if self.result is not None or step <= self.last_report or step < start_of(plan):
            return False
        if not self.has_begun or step >= self._end(plan):
            return True
        first = plan.first_choosing_step or 0
        # Within a cool-down a value decides nothing, nor does one before anything is pruned.
        return self.held_since is None and first <= step <= plan.ramp_end

    def report(
        self, goal: Goal, plan: Schedule, step: int, amount: float, value: float
    ) -> Decision:
        """Take a value of the metric.

        Args:
            goal: What must hold.
            plan: The schedule that the run began with.
            step: The last step that was taken.
            amount: What the last choice pruned.
            value: Of the metric at that step.

        Raises:
            ValueError: If the baseline is not finite.
        """
        if not self.would_decide(plan, step):
            return Decision()
        if not self.has_begun:
            return self._begin(goal, plan, step, amount, value)
        assert self.baseline is not None
        holds = goal.holds(value, self.baseline)
        if step >= self._end(plan):
            return self._end_cooldown(plan, step, amount, value, holds)
        self.last_report = step
        if holds:
            # What failed before at less than this was noise.
            self.failures, self.failed = 0, None
            return self._keep(plan, KeptState(step, amount, value, True))
        self.failures += 1
        self._fail(Failure(amount, value, False))
        return self._go_back(plan, step) if self.failures >= goal.patience else Decision()

    def _end(self, plan: Schedule) -> int:
        return plan.total_steps if self.held_until is None else self.held_until

    def _begin(
        self, goal: Goal, plan: Schedule, step: int, amount: float, value: float
    ) -> Decision:
        baseline = value if self.baseline is None else self.baseline
        if not math.isfinite(baseline):
            raise ValueError(
                f"the dense model's value must be finite, got {baseline} at step {step}: train it "
                "otherwise, or give baseline="
            )
        self.baseline, self.last_report = baseline, step
        return self._keep(plan, KeptState(step, amount, value, goal.holds(value, baseline)))

    def _keep(self, plan: Schedule, state: KeptState) -> Decision:
        # Of one amount the later state is the better trained one.
        replaces = bool(self.kept) and self.kept[-1].amount == state.amount
        kept = [*(self.kept[:-1] if replaces else self.kept), state]
        # Each attempt takes a whole cool-down, so no more states than that can ever be needed.
        cooldown = plan.total_steps - plan.ramp_end
        room = max(1, (plan.total_steps - state.step) // cooldown) if cooldown else 1
        drops = max(0, len(kept) - room)
        self.kept = kept[drops:]
        return Decision(keeps=True, replaces=replaces, drops=drops)

    def _end_cooldown(
        self, plan: Schedule, step: int, amount: float, value: float, holds: bool
    ) -> Decision:
        self.last_report = step
        if holds:
            self.result = Result(amount, value, True)
            return Decision()
        self._fail(Failure(amount, value, True))
        return self._go_back(plan, step)

    def _fail(self, failure: Failure) -> None:
        if self.failed is None or failure.amount <= self.failed.amount:
            self.failed = failure

    def _go_back(self, plan: Schedule, step: int) -> Decision:
        index = len(self.kept) - 1 - self.tried
        cooldown = plan.total_steps - plan.ramp_end
        if index >= 0 and cooldown and step + cooldown <= plan.total_steps:
            self.tried += 1
            self._hold(self.kept[index].amount, step, step + cooldown)
            return Decision(returns_to=index)
        # No steps are left for another cool-down: the most that held, as it was then.
        last = self.kept[-1]
        self._hold(last.amount, step, step)
        self.result = Result(last.amount, last.value, last.held)
        return Decision(returns_to=len(self.kept) - 1)

    def _hold(self, amount: float, since: int, until: int) -> None:
        self.held_amount, self.held_since, self.held_until = amount, since, until

    # --- saving -----------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Plain numbers, lists and dicts."""
        values = {each.name: getattr(self, each.name) for each in dataclasses.fields(self)}
        pairs = {name: _plain(values[name]) for name in ("failed", "result")}
        return values | pairs | {"kept": [_plain(each) for each in self.kept]}

    @classmethod
    def of_state(cls, state: Any) -> Course:
        """The course that :meth:`state` returned.

        Raises:
            ValueError: If it is not one.
        """
        try:
            # Each by its own names: one that is missing or too many is a TypeError.
            values = dict(state)
            made = cls(**values)
            made.kept = [KeptState(**each) for each in values["kept"]]
            made.failed = None if made.failed is None else Failure(**values["failed"])
            made.result = None if made.result is None else Result(**values["result"])
            made._require_numbers()
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                "goal in the state must be what scheduler.state_dict() returned, got "
                f"{' '.join(str(state).split())[:80]}: load that, whole"
            ) from error
        return made

    def _require_numbers(self) -> None:
        """Raise a TypeError unless all that is there are numbers."""
        one = (self.failures, self.tried, self.last_report)
        maybe = (self.baseline, self.held_since, self.held_amount, self.held_until)
        inner = [each for row in (*self.kept, self.failed or (), self.result or ()) for each in row]
        for value in (*one, *inner, *(each for each in maybe if each is not None)):
            if not isinstance(value, (int, float)):
                raise TypeError(f"must be a number, got {value!r}")


def start_of(plan: Schedule) -> int:
    """The last step before the ramp, at which the dense model is measured."""
    first = plan.first_choosing_step
    assert first is not None
    return min(plan.warmup_steps, first - 1)


def _plain(value: Any) -> Mapping[str, Any] | None:
    return None if value is None else value._asdict()
