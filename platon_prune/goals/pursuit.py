"""`Pursuit`: the goal of a run, the states that it can go back to, and what came of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

from torch import nn

from platon_prune.goals.course import Course, Decision, KeptState, start_of
from platon_prune.goals.goal import Goal
from platon_prune.goals.held import HeldSchedule, planned
from platon_prune.goals.states import (
    check,
    follows_steps,
    on_host,
    put_back_,
    taken,
    to_cooldown_,
)
from platon_prune.schedule import Schedule
from platon_prune.warning import PruningWarning


class Position(Protocol):
    """How far a run is: the schedule that it follows now, and the last step that was taken."""

    schedule: Schedule
    step: int


class Trained(NamedTuple):
    """What goes back together.

    Args:
        model: The pruned model.
        optimizer: Its optimizer.
        lr_scheduler: What sets its learning rates at each step, if anything.
    """

    model: nn.Module
    optimizer: Any
    lr_scheduler: Any = None


class Pursuit:
    """How a run with ``max_drop`` goes: as sparse as the metric allows. Prints as a sentence.

    It is ``scheduler.goal``. Each state that it can go back to is a copy in host memory of the
    trained weights, the optimizer's state, the masks and the scores; of a sharded model each
    process has its own shards. There are never more than cool-downs fit into what is left of the
    run: three with the lengths by default.

    Args:
        goal: How far the metric may fall.
        position: How far the run is; it is read, never written.

    Attributes:
        label: What the metric is called in sentences; yours to set.
    """

    def __init__(self, goal: Goal, position: Position) -> None:
        self.goal = goal
        self._position = position
        self.label = "metric"
        self._course = Course(goal.baseline)
        self._states: list[dict[str, Any]] = []
        self._rates: dict[str, Any] | None = None  # with which a cool-down begins

    @property
    def is_due(self) -> bool:
        """Whether the metric is needed now: before the ramp, at its end, or after a cool-down."""
        return self._course.is_due(planned(self._position.schedule), self._position.step)

    @property
    def would_decide(self) -> bool:
        """Whether the metric of this step, which was not reported yet, has a say in the run."""
        return self._course.would_decide(planned(self._position.schedule), self._position.step)

    @property
    def is_over(self) -> bool:
        """Whether the run has its result: further steps change no mask."""
        return self._course.result is not None

    @property
    def is_held(self) -> bool:
        """Whether the model that the run ended with is as good as it had to be."""
        return self._course.result is not None and self._course.result.held

    @property
    def is_as_asked(self) -> bool:
        """Whether the run ended with the amount that it was set up for."""
        return self.is_held and self._course.held_since is None

    @property
    def baseline(self) -> float | None:
        """The dense model's value; None until it was measured."""
        return self._course.baseline

    @property
    def value(self) -> float | None:
        """That of the model that the run ended with; None before."""
        return None if self._course.result is None else self._course.result.value

    @property
    def held_since(self) -> int | None:
        """The step at which the run last went back, and since which it holds; None before."""
        return self._course.held_since

    @property
    def kept(self) -> list[KeptState]:
        """The states that the run can go back to: step, amount, value, and whether it held."""
        return list(self._course.kept)

    # --- the scheduler's calls --------------------------------------------------------------

    def require_begun(self, step: int) -> None:
        """Raise a RuntimeError before a first choice that has nothing to be compared with.

        Args:
            step: The one that is about to be taken.
        """
        schedule = self._position.schedule
        if not self._course.has_begun and step == schedule.first_choosing_step:
            raise RuntimeError(
                "the dense model's metric must be reported before the first choice, got none until "
                f"step {step}: call scheduler.report(value, optimizer) whenever "
                f"scheduler.goal.is_due, as it is from step {start_of(schedule)} on"
            )

    def report(
        self,
        trained: Trained,
        amount: float,
        value: float,
        scores: Callable[[], Mapping[str, Any]],
    ) -> tuple[Mapping[str, Any], HeldSchedule] | None:
        """Take a value of the metric.

        Args:
            trained: What goes back together.
            amount: What the last choice pruned.
            value: Of the metric.
            scores: Returns what the scheduler knows.

        Returns:
            Where the run goes back: what the scheduler knew, and its schedule from here on.
        """
        plan, step = planned(self._position.schedule), self._position.step
        is_first, last_report = not self._course.has_begun, self._course.last_report
        decision = self._course.report(self.goal, plan, step, amount, value)
        if decision.keeps:
            self._keep(decision, taken(trained.model, trained.optimizer, scores()))
        if is_first and self._course.has_begun and not self._course.kept[-1].held:
            self._warn_of_weak_start(step, value)
        first = plan.first_choosing_step or 0
        if last_report < first < step == plan.ramp_end and self._course.failures:
            self._warn_of_no_value_on_ramp(first, step)
        if decision.returns_to is None:
            self._forget_states()
            return None
        state = self._states[decision.returns_to]
        put_back_(trained.model, trained.optimizer, state)
        if follows_steps(trained.lr_scheduler) and not self.is_over:
            left = max(0, plan.ramp_end - step)
            self._rates = to_cooldown_(trained.lr_scheduler, trained.optimizer, left, self._rates)
        held = self._held(plan)
        assert held is not None
        self._forget_states()
        return state["scores"], held

    def _keep(self, decision: Decision, state: dict[str, Any]) -> None:
        states = self._states[:-1] if decision.replaces else self._states
        self._states = [*states, state][decision.drops :]

    def _forget_states(self) -> None:
        """Free what nothing goes back to any more, once the run has its result."""
        if self.is_over:
            self._states, self._rates = [], None

    def _held(self, plan: Schedule) -> HeldSchedule | None:
        course = self._course
        if course.held_since is None:
            return None
        assert course.held_amount is not None and course.held_until is not None
        return HeldSchedule(plan, course.held_amount, course.held_since, course.held_until)

    def _warn_of_weak_start(self, step: int, value: float) -> None:
        PruningWarning.warn(
            f"the dense model gave {value:.4g} at step {step}, further from "
            f"baseline={self.goal.baseline:.4g} than max_drop={self.goal.max_drop:.4g} allows: "
            "train it longer before the ramp (warmup_steps), or leave baseline out"
        )

    def _warn_of_no_value_on_ramp(self, first: int, end: int) -> None:
        PruningWarning.warn(
            f"the metric must be reported on the ramp, at steps from {first} to {end - 1}, got its "
            f"first value at its end, step {end}: that was not good enough, and all that the run "
            "can go back to is the model before the ramp; evaluate more often"
        )

    def warn_of_no_result(self) -> None:
        """Say that a run ends whose result was never reported, if so."""
        if self._course.has_begun and self.is_due:
            PruningWarning.warn(
                f"the metric at step {self._position.step} must be reported for max_drop to hold, "
                "got none: call scheduler.report(value, optimizer) before the masks are removed"
            )

    # --- saving -----------------------------------------------------------------------------

    @property
    def settings(self) -> dict[str, Any]:
        """What decides, as plain numbers."""
        return self.goal.settings

    def state_dict(self) -> dict[str, Any]:
        """How far the run came, and all that it can go back to."""
        # Tuples are whole to torch.distributed.checkpoint, which would take dicts apart and could
        # then load only what a run that has just begun has as well.
        so_far: dict[str, Any] = {"course": (self._course.state(),), "rates": (self._rates,)}
        # The states are never changed in place, so that they need no copies.
        return so_far | ({"states": list(self._states)} if self._states else {})

    def room_for(self, state: Any, trained: Trained, scores: Mapping[str, Any]) -> dict[str, Any]:
        """A state with room for all that another one holds, whose values are to be read into it.

        Args:
            state: A :meth:`state_dict`, with or without its states.
            trained: What goes back together, as it is now.
            scores: What the scheduler knows now.

        Raises:
            ValueError: If it is no such state.
        """
        course = _course_of(state)
        states = [taken(trained.model, trained.optimizer, scores) for _ in range(course.num_states)]
        so_far = {"course": state["course"], "rates": state["rates"]}
        return so_far | ({"states": states} if states else {})

    def check_state(
        self, state: Any, model: nn.Module | None, check_scores: Callable[[int, Any], None]
    ) -> None:
        """Raise a ValueError unless it is a :meth:`state_dict` for the model.

        Args:
            state: What is to be loaded.
            model: The pruned model, if it is known.
            check_scores: Raises unless what the scheduler knew at a step is of its kind.
        """
        course, states = _course_of(state), state.get("states") or ()
        if len(states) != course.num_states:
            raise ValueError(
                f"goal in the state must hold {course.num_states} states, got {len(states)}: load "
                "what scheduler.state_dict() returned, whole; torch.distributed.checkpoint reads "
                "them into scheduler.room_for(state, optimizer)"
            )
        for kept, each in zip(course.kept, states, strict=False):
            if model is not None:
                check(each, model)
            check_scores(kept.step, each["scores"])

    def load_state_dict(self, state: Mapping[str, Any]) -> Schedule:
        """Take over a state that :meth:`check_state` passed.

        Args:
            state: What :meth:`state_dict` returned.

        Returns:
            The schedule that the run goes on with.
        """
        plan = planned(self._position.schedule)
        self._course, (self._rates,) = _course_of(state), state["rates"]
        # It may have been read onto the device of the model, which has no room for them.
        self._states = [on_host(each, copies=False) for each in state.get("states") or ()]
        return self._held(plan) or plan

    # --- sentences --------------------------------------------------------------------------

    def why_back(self, value: float) -> str:
        """Why the run has gone back, to what, and for how long.

        Args:
            value: Of the metric, after which it did.
        """
        course = self._course
        assert course.held_amount is not None
        return (
            f"{self.label} {value:.4g} at step {course.held_since} is worse than "
            f"max_drop={self.goal.max_drop:.4g} allows (dense {course.baseline:.4g}): the run goes "
            f"back to {_shown(course.held_amount)} pruned and holds that until step "
            f"{course.held_until}"
        )

    def __str__(self) -> str:
        course = self._course
        if course.result is None:
            last = f", {_shown(course.kept[-1].amount)} held" if course.kept else ""
            return f"no result yet at step {self._position.step}{last}"
        amount, value, held = course.result
        said = f"{_shown(amount)} pruned, {self.label} {value:.4g} (dense {course.baseline:.4g})"
        if not held:
            said += f", which is worse than max_drop={self.goal.max_drop:.4g} allows"
        if course.failed is not None:
            after = " after its cool-down" if course.failed.is_cooled else ""
            said += f"; {_shown(course.failed.amount)} gave {course.failed.value:.4g}{after}"
        return said

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self}>"


def _course_of(state: Any) -> Course:
    """How far the run of a state came.

    Raises:
        ValueError: If it does not say.
    """
    parts = state if isinstance(state, Mapping) else {}
    course, rates = (parts.get(name) for name in ("course", "rates"))
    is_whole = all(isinstance(each, (list, tuple)) and len(each) == 1 for each in (course, rates))
    return Course.of_state(course[0] if is_whole and course else None)


def _shown(amount: float) -> str:
    return f"{100 * amount:.3g} %"
