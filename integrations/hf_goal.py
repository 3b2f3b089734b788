"""A metric of transformers' trainer, and how far it may fall while the trainer prunes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import nn
from transformers import TrainingArguments
from transformers.trainer_callback import TrainerControl, TrainerState

from platon_prune import PlatonScheduler
from platon_prune.integrations.goal_settings import check_metric, is_greater_better, report
from platon_prune.integrations.hf_models import of_first


class TrainerGoal:
    """The metric that a PlatonCallback watches, if it was told one.

    Args:
        metric: Its name in the trainer's evaluations; "eval_" may be left out. None for none.
        settings: The callback's other settings.

    Raises:
        ValueError: If one of ``metric`` and ``max_drop`` is given without the other.
    """

    def __init__(self, metric: str | None, settings: Mapping[str, Any]) -> None:
        check_metric(metric, settings)
        is_short = metric is not None and not metric.startswith("eval_")
        self.metric = f"eval_{metric}" if is_short else metric
        self._settings = settings
        self._is_checked = False  # whether an evaluation was seen to have the metric
        self._names: list[str] = []  # those of the evaluations so far
        self._evaluates_on_start: bool | None = None  # as the user had it
        self._idle: _IdleStep | None = None

    def __bool__(self) -> bool:
        return self.metric is not None

    def settings(self, args: TrainingArguments) -> dict[str, Any]:
        """What the trainer's arguments add to the callback's settings."""
        if self.metric is None or "greater_is_better" in self._settings:
            return {}
        asked = args.metric_for_best_model
        is_its_own = asked is None or self.metric in (asked, f"eval_{asked}")
        given = args.greater_is_better if is_its_own else None
        better = is_greater_better(self.metric) if given is None else given
        if asked is not None and better and not is_greater_better(self.metric):
            # The arguments say so by themselves of every name that does not end in "loss".
            raise ValueError(
                f"greater_is_better must be given to PlatonCallback for metric={self.metric!r}, "
                "got True from the trainer's arguments, which fill it in by the name of "
                f"metric_for_best_model={asked!r}: say greater_is_better=False here or there, or "
                "True here if larger is better"
            )
        return {"greater_is_better": better}

    def refuse(self, args: TrainingArguments) -> None:
        """Raise a ValueError for what the metric could not be watched or gone back with."""
        if self.metric is None:
            return
        if args.load_best_model_at_end:
            raise ValueError(
                "load_best_model_at_end must be False with max_drop, got True: the run itself ends "
                "with the sparsest model whose metric held, which another would replace"
            )
        if args.eval_strategy == "no":
            raise ValueError(
                f"eval_strategy must be 'steps' or 'epoch' with metric={self.metric!r}, got 'no': "
                "at each evaluation on the ramp the run finds out whether it may prune further"
            )

    def begin(
        self, args: TrainingArguments, state: TrainerState, scheduler: PlatonScheduler
    ) -> None:
        """Refuse a run without an evaluation on its ramp, and ask for one before its first step."""
        if self.metric is None:
            return
        assert scheduler.goal is not None
        scheduler.goal.label = self.metric.removeprefix("eval_")
        is_by_steps = args.eval_strategy == "steps"
        every = state.eval_steps if is_by_steps else None
        if every is None:
            every = max(1, state.max_steps // max(1, state.num_train_epochs))
        first, end = scheduler.schedule.first_choosing_step or 0, scheduler.schedule.ramp_end
        # An evaluation at the ramp's end is asked for anyway, and finds only the dense model to go
        # back to.
        last = max(first, end - 1)
        delay = args.eval_delay or 0  # in what the strategy counts
        start = max(first, math.ceil(delay if is_by_steps else delay * every))
        # The first evaluation at or after the first choice.
        if -(-start // every) * every > last:
            delayed = f" from eval_delay={delay:g} on: lower that or" if delay else ": lower"
            raise ValueError(
                f"the run must be evaluated on its ramp, at a step from {first} to {last}, "
                f"got an evaluation every {every} steps{delayed} eval_steps, or train longer"
            )
        self._is_checked = bool(state.global_step)  # a run that is resumed has been asked
        # Only an evaluation tells which metrics there are, and it should fail before the training.
        if not self._is_checked:
            self._evaluates_on_start, args.eval_on_start = args.eval_on_start, True

    def begin_step(
        self,
        args: TrainingArguments,
        scheduler: PlatonScheduler,
        optimizer: Any,
        model: nn.Module,
    ) -> None:
        """Refuse to train for a metric that no evaluation has; let a run that is over stay so.

        The trainer can't be stopped before a step: one that resumes from its last checkpoint takes
        it, and it changes nothing of the model.

        Raises:
            ValueError: If no evaluation has the metric.
        """
        if self._evaluates_on_start is not None:
            args.eval_on_start, self._evaluates_on_start = self._evaluates_on_start, None
        if self.metric is not None and not self._is_checked:
            there = ", ".join(name for name in self._names if name.startswith("eval_"))
            raise ValueError(
                f"metric must be one of the trainer's, got {self.metric!r} and {there or 'none'} "
                "in its evaluation: return it from compute_metrics, or name one of these"
            )
        if scheduler.goal is not None and scheduler.goal.is_over:
            self._idle = _IdleStep(optimizer, model)

    def was_idle(self) -> bool:
        """Whether the optimizer was kept from its step; lets it go again."""
        idle, self._idle = self._idle, None
        if idle is not None:
            idle.end()
        return idle is not None

    def ask(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        scheduler: PlatonScheduler,
    ) -> None:
        """Ask for an evaluation where the run can't go on without, or a checkpoint would not."""
        goal = scheduler.goal
        if goal is None:
            return
        # That of an epoch comes after its last step's checkpoint, and not when that is resumed.
        is_late = args.eval_strategy == "epoch" and float(state.epoch or 0).is_integer()
        is_saved = args.save_strategy == "steps" and state.global_step % state.save_steps == 0
        control.should_evaluate |= goal.is_due or (is_late and is_saved and goal.would_decide)
        control.should_training_stop |= goal.is_over

    def description(self, scheduler: PlatonScheduler) -> dict[str, Any]:
        """The metric and what came of it, for the model's config and its card."""
        goal = scheduler.goal
        if goal is None:
            return {}
        since = {} if goal.held_since is None else {"held_since": goal.held_since}
        return {"metric": self.metric} | since | ({"result": str(goal)} if goal.is_over else {})

    def take(
        self,
        args: TrainingArguments,
        control: TrainerControl,
        scheduler: PlatonScheduler,
        told: Mapping[str, Any],
    ) -> bool:
        """Report the metric, if an evaluation has it, and end the training with the run.

        Args:
            args: The trainer's arguments.
            control: Of the trainer.
            scheduler: That of the run.
            told: What the trainer tells its callbacks of an evaluation: the metrics, the optimizer
                and the lr_scheduler among it.

        Returns:
            Whether it was there.
        """
        metrics = told.get("metrics") or {}
        self._names += [name for name in metrics if name not in self._names]
        if self.metric is None or self.metric not in metrics or scheduler.goal is None:
            return False
        self._is_checked = True
        # Gathered by the trainer; where a user's function rounds otherwise, the first one decides.
        value = of_first(float(metrics[self.metric]), args)
        report(scheduler, value, told["optimizer"], told["lr_scheduler"])
        control.should_training_stop |= scheduler.goal.is_over
        return True


class _IdleStep:
    """A step in which a trainer runs the model and changes nothing of it.

    Args:
        optimizer: Whose ``step`` does nothing meanwhile.
        model: Whose buffers, such as averages of batch norms, are what they were in the end.
    """

    def __init__(self, optimizer: Any, model: nn.Module) -> None:
        self._optimizer = optimizer
        self._own_step = vars(optimizer).get("step")
        self._buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
        optimizer.step = lambda *_, **__: None

    def end(self) -> None:
        """Give the optimizer its step back."""
        if self._own_step is None:
            del self._optimizer.step
        else:
            self._optimizer.step = self._own_step
        for buffer, before in self._buffers:
            buffer.copy_(before)
