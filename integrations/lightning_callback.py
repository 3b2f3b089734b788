"""`PlatonLightningCallback`: pruning for Lightning's `Trainer`, with checkpoints and resuming."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.utils import prune

from platon_prune import PlatonScheduler, PruningWarning, apply_masks
from platon_prune.integrations.needs import told

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
    from lightning.pytorch.utilities import rank_zero_info
except ModuleNotFoundError as missing:
    raise told(missing, "PlatonLightningCallback", "lightning") from missing

from platon_prune.integrations.granularities import check_granularity, put_masks_on
from platon_prune.integrations.lightning_averages import (
    come_after_averages,
    mask_averages,
    num_training_steps,
    restore_zeros,
)
from platon_prune.integrations.lightning_goal import LightningGoal
from platon_prune.integrations.run_lengths import fit_schedule, shown
from platon_prune.integrations.shortfall import shortfall


class PlatonLightningCallback(Callback):
    """Prunes a LightningModule while it is trained, and finalizes it at the end.

    Masks are put on in ``setup``, before the strategy wraps the module or a checkpoint is loaded;
    the schedule starts with the trainer's number of optimizer steps. Checkpoints hold the module's
    own keys, so ``load_from_checkpoint`` returns an ordinary sparse module, and this callback's
    state, so ``fit(ckpt_path=...)`` goes on with the same scores and masks. (Lightning itself saves
    neither random numbers nor, within an epoch, the position in the data.)

    ``EMAWeightAveraging`` and ``StochasticWeightAveraging`` may be listed before or after it: their
    averages are masked after every step, so what is validated, saved and left in the end is sparse.

    Args:
        amount: Fraction pruned in the end, in [0, 1), or a count of weights; of n:m, where all is
            the default, the share of groups.
        granularity: "unstructured", "semi_structured" for n:m, or "structured" for heads, neurons
            and channels.
        warmup_steps: Steps before pruning starts: a count, or a fraction of the run in [0, 1); a
            tenth unless given.
        cooldown_steps: Steps at the end with the final amount: a count, or a fraction of the run;
            about a third (0.3) unless given.
        total_steps: How often the optimizer of what is pruned will step; unless given, as often as
            the trainer has it, or once a batch where there are several optimizers.
        finalize: Whether masks are removed when training ends (their zeros stay).
        metric: With ``max_drop``, the metric that the module logs in its validation and that may
            fall so far below the dense model's; ``amount`` is then the most that is pruned.
            Smaller is better for names that end in "loss" or "perplexity", unless
            ``greater_is_better=`` says otherwise.
        settings: As in :func:`platon_prune.global_unstructured`, ``semi_structured`` and so on.

    Attributes:
        scheduler: That of the run; None before it begins. Once it is finalized, what the run did
            can still be read: ``scheduler.history``, figures of it, ``masks(step)`` with
            ``mask_history``.

    Raises:
        ValueError: If none of several optimizers trains all that is pruned and no other does, the
            trainer takes too few steps for the schedule (``fast_dev_run`` passes, with a note), or
            a setting is out of range.
    """

    def __init__(
        self,
        amount: float | int | None = None,
        *,
        granularity: str = "unstructured",
        warmup_steps: int | float = 0.1,
        cooldown_steps: int | float = 0.3,
        total_steps: int | None = None,
        finalize: bool = True,
        metric: str | None = None,
        **settings: Any,
    ) -> None:
        self.amount = check_granularity(granularity, amount, settings)
        self.granularity = granularity
        self.warmup_steps = warmup_steps
        self.cooldown_steps = cooldown_steps
        self.total_steps = total_steps
        self.finalize = finalize
        self.settings = settings
        self._goal = LightningGoal(metric, settings)
        self.scheduler: PlatonScheduler | None = None
        self._model: LightningModule | None = None  # until it is finalized here
        self._saved: dict[str, Any] | None = None
        self._handle: torch.utils.hooks.RemovableHandle | None = None
        self._sparsity = 0.0
        self._last_masks: dict[str, torch.Tensor] = {}  # from the end of training to that of fit

    def __repr__(self) -> str:
        return f"{type(self).__name__}(amount={self.amount}, {shown(self.scheduler)})"

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Put the masks on; anew if an earlier fit ended in the middle."""
        if stage != "fit":
            return
        self._saved = None
        # Of a fit that an exception ended, or that left them on, the masks are still there.
        if self.scheduler is not None and self.scheduler.last_step and self.has_masks:
            self._let_go(finalize=True)
        if not self.has_masks:
            self.scheduler = None
            settings = self.settings | self._goal.settings()
            self.scheduler = put_masks_on(pl_module, self.granularity, self.amount, settings)
            self._model = pl_module
        come_after_averages(self, trainer, pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the schedule, or go on with that of the checkpoint, and follow the optimizer."""
        assert self.scheduler is not None
        self._goal.refuse(trainer)
        optimizer = self._optimizer_of_pruned(trainer, pl_module)
        self._start(trainer, pl_module)
        # The state that Lightning loaded must be of the step at which it goes on; where there are
        # several optimizers, the trainer counts the steps of all of them.
        is_alone = len(trainer.optimizers) == 1
        if self._saved is not None and (
            not is_alone or self._saved["last_step"] == trainer.global_step
        ):
            self.scheduler.load_state_dict(self._saved)
            self._saved = None
        elif trainer.global_step:
            raise ValueError(
                f"the checkpoint of step {trainer.global_step} must be of a run with "
                "PlatonLightningCallback, got one without: load its weights and start a new run"
            )
        self._handle = self.scheduler.step_with(optimizer)
        if self.scheduler.last_step:
            self._goal.resume(trainer, self.scheduler)

    def _start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Fit the schedule to the trainer's steps."""
        assert self.scheduler is not None
        total = self._num_steps(trainer, pl_module)
        try:
            fit_schedule(
                self.scheduler, total, self.warmup_steps, self.cooldown_steps,
                set_by="max_steps, or by max_epochs and the data", resumes=trainer.global_step > 0,
            )  # fmt: skip
        except ValueError as error:
            if not _is_tried_out(trainer):
                raise
            # It is asked whether everything runs: scores are updated, and no choice is reached.
            self.scheduler.allow_other_length()
            rank_zero_info(f"PlatonLightningCallback prunes nothing in fast_dev_run: {error}")

    def _num_steps(self, trainer: Trainer, pl_module: LightningModule) -> int:
        """How often the optimizer of what is pruned will step."""
        if self.total_steps is not None:
            return self.total_steps
        total = num_training_steps(trainer, pl_module)
        if total in (float("inf"), -1):
            raise ValueError(
                f"the trainer must know its number of steps when training begins, got {total}: set "
                "max_steps or max_epochs"
            )
        # max_steps is of all optimizers together, the number of batches of each.
        if trainer.max_steps > 0:
            total = min(total, -(-trainer.max_steps // len(trainer.optimizers)))
        return int(total)

    def _optimizer_of_pruned(
        self, trainer: Trainer, pl_module: LightningModule
    ) -> torch.optim.Optimizer:
        """The optimizer that trains all that is pruned.

        Raises:
            ValueError: If none of several does so alone.
        """
        assert self.scheduler is not None
        if len(trainer.optimizers) == 1:
            return trainer.optimizers[0]
        parameters = dict(pl_module.named_parameters())
        pruned = {id(parameters[f"{name}_orig"]) for name in self.scheduler.masks()}
        trained = [
            pruned & {id(each) for group in optimizer.param_groups for each in group["params"]}
            for optimizer in trainer.optimizers
        ]
        owners = [i for i, those in enumerate(trained) if those]
        if len(owners) != 1 or trained[owners[0]] != pruned:
            raise ValueError(
                f"the trainer must have one optimizer, got {len(trainer.optimizers)}: drive the "
                "scheduler of platon_prune.global_unstructured from your own training step, or "
                "prune what one of them trains alone, with include=[...]"
            )
        return trainer.optimizers[owners[0]]

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Count steps that a gradient scaler skipped, and log."""
        assert self.scheduler is not None
        # The optimizer's hook does not run where a scaler skipped the step; Lightning counts it.
        # Of several optimizers it counts all steps together, which tells nothing of one.
        is_alone = len(trainer.optimizers) == 1
        while is_alone and self.scheduler.last_step < trainer.global_step:
            self.scheduler.step(skipped=True)
        if self.scheduler.last_step >= self.scheduler.schedule.total_steps:
            # Where the trainer goes on, for statistics of batch norms, it knows that it does.
            self.scheduler.allow_other_length()
        mask_averages(trainer, self.scheduler)
        self._goal.ask(trainer, self.scheduler)
        # Counting zeros waits for the device, and only a choice changes how many there are.
        if self.scheduler.schedule.is_choosing_step(self.scheduler.last_step):
            self._sparsity = self.scheduler.sparsity()
        pl_module.log("pruning_amount", self.scheduler.amount)
        pl_module.log("pruning_sparsity", self._sparsity, prog_bar=True)
        if self.scheduler.threshold is not None:
            pl_module.log("pruning_threshold", self.scheduler.threshold)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go back where the metric fell too far; a checkpoint of this validation comes after."""
        # Also asked outside of a fit, where nothing is pruned.
        if self.scheduler is not None and (self._handle is not None or trainer.sanity_checking):
            self._goal.take(trainer, self.scheduler)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Mask averages that are updated once an epoch."""
        assert self.scheduler is not None
        mask_averages(trainer, self.scheduler)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Finalize, unless the masks are to stay."""
        assert self.scheduler is not None
        schedule = self.scheduler.schedule
        if self.scheduler.last_step < schedule.ramp_end and not _is_tried_out(trainer):
            sparsity, target = self.scheduler.sparsity(), self.scheduler.target_sparsity
            PruningWarning.warn(
                shortfall(sparsity, target, "training ended before the schedule did")
            )
        # Where masks stay, they say themselves what is zero.
        self._last_masks = self.scheduler.masks() if self.finalize else {}
        self._let_go(self.finalize)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Zero again what other callbacks have filled in at the end of training."""
        if self.has_masks:
            apply_masks(pl_module)
        masks, self._last_masks = self._last_masks, {}
        restore_zeros(pl_module, masks)

    @property
    def has_masks(self) -> bool:
        """Whether the module carries masks: they are gone once it is finalized."""
        return self._model is not None and prune.is_pruned(self._model)

    def _let_go(self, finalize: bool) -> None:
        """Stop following the optimizer, and make the module an ordinary one again."""
        assert self.scheduler is not None
        if self._handle is not None:
            self._handle.remove()
            self._handle = None
        self.scheduler.allow_other_length()  # what is to be said of it has been said
        if finalize:
            self.scheduler.remove()
            self._model = None

    def state_dict(self) -> dict[str, Any]:
        """The scheduler's state, which Lightning keeps in its checkpoints."""
        if self.scheduler is None or not self.has_masks:
            return {}
        return self.scheduler.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the state until the schedule starts."""
        self._saved = state_dict or None


def _is_tried_out(trainer: Trainer) -> bool:
    # Set by the trainer's debugging flags, not declared on its class.
    return bool(getattr(trainer, "fast_dev_run", False))
