"""A metric of Lightning's validations, and how far it may fall while the trainer prunes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning.pytorch import Trainer

from platon_prune import PlatonScheduler
from platon_prune.integrations.goal_settings import check_metric, is_greater_better, report
from platon_prune.integrations.lightning_averages import averages


class LightningGoal:
    """The metric that a PlatonLightningCallback watches, if it was told one.

    Args:
        metric: The name under which the module logs it in its validation. None for none.
        settings: The callback's other settings.

    Raises:
        ValueError: If one of ``metric`` and ``max_drop`` is given without the other.
    """

    def __init__(self, metric: str | None, settings: Mapping[str, Any]) -> None:
        check_metric(metric, settings)
        self.metric = metric
        self._is_given = "greater_is_better" in settings
        self._rhythm: tuple[Any, Any] | None = None  # the trainer's own, while we ask

    def settings(self) -> dict[str, Any]:
        """What the name of the metric adds to the callback's settings."""
        if self.metric is None or self._is_given:
            return {}
        return {"greater_is_better": is_greater_better(self.metric)}

    def refuse(self, trainer: Trainer) -> None:
        """Raise a ValueError for a trainer that does not validate, or averages the weights."""
        if self.metric is None:
            return
        if not trainer.enable_validation:
            raise ValueError(
                f"the trainer must validate for metric={self.metric!r}, got no validation: give "
                "fit() a val_dataloaders, and the module a validation_step that logs it"
            )
        number = len(trainer.optimizers)
        if number != 1:
            raise ValueError(
                f"the trainer must have one optimizer with max_drop, got {number}: all that they "
                "train goes back together; call scheduler.report in a loop of your own"
            )
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if averages(callback):
                raise ValueError(
                    "the weights that are validated must be those that go back, got "
                    f"{type(callback).__name__}, which validates an average: leave one out"
                )

    def resume(self, trainer: Trainer, scheduler: PlatonScheduler) -> None:
        """Do what a checkpoint was written before: validate it, or end the training.

        Lightning does not come back to the validation of the step that it resumes from.
        """
        goal = scheduler.goal
        if goal is None or self.metric is None:
            return
        goal.label = self.metric
        loop = trainer.fit_loop.epoch_loop
        fetcher: Any = trainer.fit_loop._data_fetcher
        if goal.would_decide and (goal.is_due or loop._should_check_val_fx(fetcher)):
            # As after a batch: the trainer must know which of its loops is running.
            trainer.validating = True
            loop.val_loop.restarting = False
            loop.val_loop.run()
            trainer.training = True
        trainer.should_stop |= goal.is_over

    def ask(self, trainer: Trainer, scheduler: PlatonScheduler) -> None:
        """Let the trainer validate after this batch if the run can't go on without."""
        if scheduler.goal is None or not scheduler.goal.is_due or self._rhythm is not None:
            return
        # It asks for these numbers after each batch, and has no other way of being asked.
        self._rhythm = trainer.val_check_batch, trainer.check_val_every_n_epoch
        trainer.val_check_batch, trainer.check_val_every_n_epoch = 1, None

    def take(self, trainer: Trainer, scheduler: PlatonScheduler) -> None:
        """Report the metric of a validation that is over, and end the training with the run.

        Raises:
            ValueError: If the validation has no such metric.
        """
        if self.metric is None or scheduler.goal is None:
            return
        if self._rhythm is not None:
            trainer.val_check_batch, trainer.check_val_every_n_epoch = self._rhythm
            self._rhythm = None
        metrics = trainer.callback_metrics
        if self.metric not in metrics:
            raise ValueError(
                f"metric must be one that the module logs in its validation, got {self.metric!r} "
                f"and {', '.join(sorted(metrics)) or 'none'} there: log it with self.log"
            )
        if trainer.sanity_checking:
            return  # a few batches, to see that all of it is there
        scheduler.goal.label = self.metric
        # Where it is logged without sync_dist, each process has its own.
        value = trainer.strategy.broadcast(float(metrics[self.metric]))
        report(scheduler, value, trainer.optimizers[0], _rates(trainer))
        trainer.should_stop |= scheduler.goal.is_over


def _rates(trainer: Trainer) -> Any:
    """What sets the learning rates at each step, if it is one thing."""
    configs = trainer.lr_scheduler_configs
    if len(configs) == 1 and (configs[0].interval, configs[0].frequency) == ("step", 1):
        return configs[0].scheduler
    return None
