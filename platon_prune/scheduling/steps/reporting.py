"""`Reporting`: a run with ``max_drop`` is told its metric, and goes back where that fell."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from platon_prune.amounts import is_number
from platon_prune.goals.pursuit import Pursuit, Trained
from platon_prune.goals.states import brought_to, require_whole
from platon_prune.scheduling.modes import in_plain_mode
from platon_prune.scheduling.outcomes import Counters, Outcome
from platon_prune.scheduling.replaced import Modules
from platon_prune.scheduling.steps.cutting import Cutter, Cutting
from platon_prune.scheduling.steps.replays import Replays


class Reporting(Cutting, Replays):
    """The part of :class:`~platon_prune.PlatonScheduler` that a metric steers."""

    threshold: float | None
    _modules: Modules

    @in_plain_mode
    def report(
        self,
        value: float,
        optimizer: torch.optim.Optimizer | None = None,
        lr_scheduler: Any = None,
    ) -> bool:
        """Tell a run with ``max_drop`` the metric of the model as it is now; collective.

        Call it after a step: whenever ``goal.is_due``, and as often as you like on the ramp. Where
        the metric fell too far the run goes back to a state in which it had not: the model, the
        optimizer and this are changed in place, and that amount is held through a cool-down.

        Args:
            value: Of the metric, in its own unit; the same in all processes. A tensor or array of
                one entry will do.
            optimizer: Its state goes back with the weights, its options do not;
                :attr:`optimizer` by default.
            lr_scheduler: One that steps once for each optimizer step: each cool-down then has the
                learning rates that were planned for it.

        Returns:
            Whether the run is over: what is pruned now is the result, and ``goal`` prints it.

        Raises:
            RuntimeError: If there is no ``max_drop`` or no optimizer, the run has ended, or
                something is amiss in another process.
            TypeError: If the value is no number, or the optimizer none.
            ValueError: If processes differ in the value or the step, or the optimizer trains what
                is not in the model.
        """
        goal, trained = self._pursued(value, optimizer, lr_scheduler)
        amount = self._progress.chosen_amount
        back = goal.report(trained, amount, self._agreed(value), self._learnt)
        if back is not None:
            skipped_steps = self.skipped_steps
            learnt, self.schedule = back
            self._progress.schedule = self.schedule
            self._take(self._as_placed_now(learnt))
            # Those were taken, whatever came of them.
            self._counters.skipped_steps = skipped_steps
            self._recording.restart()
        # A run that ends early is as long as it had to be.
        self._progress.is_length_free |= back is not None or goal.is_over
        return goal.is_over

    @in_plain_mode
    def room_for(
        self, state: Mapping[str, Any], optimizer: torch.optim.Optimizer | None = None
    ) -> dict[str, Any]:
        """A state with room for what a run with ``max_drop`` can go back to.

        ``torch.distributed.checkpoint`` reads into what it is given: first into a
        :meth:`state_dict` of this scheduler, which tells how many states there were, then into
        what this returns.

        Args:
            state: What it has read so far.
            optimizer: The optimizer of the model, with a state such as it had when it was saved;
                :attr:`optimizer` by default.

        Returns:
            ``state``, with tensors placed as those of the model and the optimizer are. Without
            ``max_drop``, ``state`` itself.

        Raises:
            RuntimeError: If there is no optimizer, or the run has ended.
            ValueError: If it is not the state of a run with ``max_drop``, or the optimizer trains
                what is not in the model.
        """
        if self.goal is None:
            return dict(state)
        goal, trained = self._pursued(0.0, optimizer, None)
        return dict(state) | {"goal": goal.room_for(state.get("goal"), trained, self._learnt())}

    @property
    def skipped_steps(self) -> int:
        """How many steps had no finite gradients; waits for a device that has not told yet."""
        self._require_closed("skipped_steps")
        self._learn(self._tensors.outcomes())
        return self._counters.skipped_steps

    def _learn(self, outcomes: Sequence[Outcome]) -> None:
        """Count how steps went."""
        for outcome in outcomes:
            self._counters.add(outcome, self.criterion.windowed)
            if not outcome.skipped:
                self._tensors.had_gradients(outcome.without_gradient)

    def _able_cutter(self, repeats: bool = False) -> Cutter:
        # A run that was cut had its result.
        if self.goal is not None and not self.goal.is_over and not repeats:
            raise RuntimeError(
                "a run with max_drop can go back to states of the whole model, got a cut: shrink "
                "at the end, or cut once goal.is_over"
            )
        return super()._able_cutter(repeats)

    def _pursued(self, value: Any, optimizer: Any, lr_scheduler: Any) -> tuple[Pursuit, Trained]:
        """The goal, and what goes back if it is missed; in all processes, or an error in all."""

        def prepare() -> tuple[Pursuit, Trained]:
            _number(value)
            return self._goal_and_trained(optimizer, lr_scheduler)

        # Often one process alone evaluates: the others must not wait for it, nor it for them.
        return self._tensors.processes.all_or_none("report", prepare, lambda _: None)

    def _goal_and_trained(self, optimizer: Any, lr_scheduler: Any) -> tuple[Pursuit, Trained]:
        if self.goal is None:
            raise RuntimeError(
                "max_drop must be given when pruning is set up for report() to matter, got none: "
                "say how far the metric may fall"
            )
        self._tensors.require_running()
        optimizer = self.optimizer if optimizer is None else optimizer
        if optimizer is None:
            raise RuntimeError(
                "report() must be given the optimizer, whose state goes back with the weights, got "
                "none: scheduler.report(value, optimizer)"
            )
        if not all(hasattr(optimizer, each) for each in ("state_dict", "param_groups")):
            raise TypeError(
                "optimizer must be one torch.optim.Optimizer, whose state goes back with the "
                f"weights, got {type(optimizer).__name__}: train with one that has a parameter "
                "group for each setting"
            )
        model = self._modules.model
        if model is None:
            raise RuntimeError(
                "the model must still be the one that was set up for pruning, got a copy of its "
                "scheduler: set the copy up and load the state"
            )
        require_whole(model, optimizer)
        return self.goal, Trained(model, optimizer, lr_scheduler)

    def _agreed(self, value: Any) -> float:
        """The value, which must be the same in all processes, of one step."""
        everyone = self._tensors.processes.gather((_number(value), self.last_step))
        values, steps = zip(*everyone, strict=True)
        if len(set(steps)) > 1:
            raise ValueError(
                "value must be reported at the same step in all processes, got steps "
                f"{min(steps)} to {max(steps)}: call scheduler.step() equally often in each"
            )
        first: float = values[0]
        if any(each != first and not (math.isnan(each) and math.isnan(first)) for each in values):
            raise ValueError(
                "value must be the same in all processes, got "
                f"{', '.join(map(str, dict.fromkeys(values)))}: average the metric over them, or "
                "broadcast that of one"
            )
        return first

    def _check_goal(self, state: Mapping[str, Any]) -> None:
        """Raise a ValueError for a state that could not go on to its goal."""

        def check_scores(step: int, scores: Mapping[str, Any]) -> None:
            # As if it were a state of that step, of which it has what the steps had led to.
            whole = {name: state[name] for name in ("version", "settings", "adopted")}
            whole |= {**scores, "last_step": step, "history": None}
            self._tensors.check_state(whole, self.settings)

        if self.goal is not None:
            self.goal.check_state(state.get("goal"), self._modules.model, check_scores)

    def _as_placed_now(self, learnt: Mapping[str, Any]) -> dict[str, Any]:
        """What is to be taken over, placed as the tensors are; collective if it lies otherwise."""
        tensors = {
            tensor.name: {
                name: brought_to(entry, tensor.parameter) if isinstance(entry, Tensor) else entry
                for name, entry in learnt["tensors"][tensor.name].items()
            }
            for tensor in self._tensors
        }
        return {**learnt, "tensors": tensors}

    def _learnt(self) -> dict[str, Any]:
        """What the steps so far have led to, wherever the run goes from there."""
        self._tensors.locate()
        self._learn(self._tensors.outcomes())
        return {
            "threshold": self.threshold,
            **dataclasses.asdict(self._counters),
            "tensors": {tensor.name: tensor.state_dict() for tensor in self._tensors},
        }

    def _take(self, learnt: Mapping[str, Any]) -> None:
        """Take over what :meth:`_learnt` returned."""
        for tensor in self._tensors:
            tensor.load_state_dict(learnt["tensors"][tensor.name])
        self.threshold = learnt["threshold"]
        names = (field.name for field in dataclasses.fields(Counters))
        self._counters = Counters(**{name: learnt[name] for name in names})


def _number(value: Any) -> float:
    """The value of a metric as a plain number, wherever it is."""
    # Tensors of any device, and arrays.
    if callable(getattr(value, "item", None)) and math.prod(getattr(value, "shape", ())) == 1:
        value = value.item()
    if not is_number(value):
        raise TypeError(f"value must be a number in the metric's unit, got {value!r}")
    return float(value)
