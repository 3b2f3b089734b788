"""`Reporting`: a run with ``max_drop`` is told its metric, and goes back where that fell."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from platon_prune.amounts import is_number
from platon_prune.goals.pursuit import Pursuit, Trained
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
            value: Of the metric, in its own unit; the same in all processes.
            optimizer: Its state goes back with the weights, its options do not;
                :attr:`optimizer` by default.
            lr_scheduler: One that steps once for each optimizer step: each cool-down then has the
                learning rates that were planned for it.

        Returns:
            Whether the run is over: what is pruned now is the result, and ``goal`` prints it.

        Raises:
            RuntimeError: If there is no ``max_drop`` or no optimizer, or the run has ended.
            TypeError: If the value is no number.
            ValueError: If processes differ in it, or a tensor is sharded.
        """
        goal, trained = self._pursued(optimizer, lr_scheduler)
        amount = self._progress.chosen_amount
        back = goal.report(trained, amount, self._agreed(value), self._learnt)
        if back is not None:
            skipped_steps = self.skipped_steps
            learnt, self.schedule = back
            self._progress.schedule = self.schedule
            self._take(learnt)
            # Those were taken, whatever came of them.
            self._counters.skipped_steps = skipped_steps
            self._recording.restart()
        # A run that ends early is as long as it had to be.
        self._progress.is_length_free |= back is not None or goal.is_over
        return goal.is_over

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

    def _able_cutter(self) -> Cutter:
        if self.goal is not None and not self.goal.is_over:
            raise RuntimeError(
                "a run with max_drop can go back to states of the whole model, got a cut: shrink "
                "at the end, or cut once goal.is_over"
            )
        return super()._able_cutter()

    def _pursued(self, optimizer: Any, lr_scheduler: Any) -> tuple[Pursuit, Trained]:
        """The goal, and what goes back if it is missed."""
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
        model = self._modules.model
        if model is None:
            raise RuntimeError(
                "the model must still be the one that was set up for pruning, got a copy of its "
                "scheduler: set the copy up and load the state"
            )
        return self.goal, Trained(model, optimizer, lr_scheduler)

    def _agreed(self, value: Any) -> float:
        """The value, which must be the same in all processes."""
        if isinstance(value, torch.Tensor) and value.numel() == 1:
            value = value.item()
        if not is_number(value):
            raise TypeError(f"value must be a number in the metric's unit, got {value!r}")
        everyone = self._tensors.processes.gather(float(value))
        if any(each != everyone[0] and not math.isnan(each) for each in everyone):
            raise ValueError(
                f"value must be the same in all processes, got {min(everyone)} to {max(everyone)}: "
                "average the metric over them, or broadcast that of one"
            )
        return everyone[0]

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
