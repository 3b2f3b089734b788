"""`PlatonCallback`: pruning for transformers' `Trainer`, checkpoints and resuming included."""

from __future__ import annotations

import os
import uuid
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch.distributed as dist
from torch import nn
from torch.nn.utils import prune

import platon_prune
from platon_prune import PlatonScheduler
from platon_prune.integrations.needs import told

try:
    from transformers import Trainer, TrainerCallback, TrainingArguments
    from transformers.trainer_callback import ExportableState, TrainerControl, TrainerState
    from transformers.trainer_utils import rotate_checkpoints
except ModuleNotFoundError as missing:
    raise told(missing, "PlatonCallback", "transformers") from missing

from platon_prune.integrations import hf_cutting
from platon_prune.integrations.granularities import check_granularity, put_masks_on
from platon_prune.integrations.hf_checkpoints import (
    folder_written_last,
    save_shards,
    save_whole,
    saved_states,
    state_to_resume,
)
from platon_prune.integrations.hf_following import follow
from platon_prune.integrations.hf_goal import TrainerGoal
from platon_prune.integrations.hf_limits import refuse_flattened, refuse_unsupported
from platon_prune.integrations.hf_models import (
    bare,
    describe_in_config,
    is_distributed,
    is_sharded,
    of_first,
)
from platon_prune.integrations.hf_progress import log_measured, show_sparsity
from platon_prune.integrations.hf_seals import break_seal, seal
from platon_prune.integrations.run_lengths import fit_schedule, shown
from platon_prune.integrations.shortfall import warn_of_shortfall

# Which callback prunes a model: a trainer that restores callbacks replaces them by new ones.
_CALLBACKS: WeakKeyDictionary[nn.Module, PlatonCallback] = WeakKeyDictionary()


class PlatonCallback(TrainerCallback, ExportableState):
    """Prunes the trainer's model while it is fine-tuned, and finalizes it at the end.

    ``Trainer(..., callbacks=[PlatonCallback(amount=0.9)])`` is all it takes. The masks are put on
    when the trainer is made, before anything wraps the model or loads a checkpoint; the schedule
    starts when training begins, with the trainer's number of steps. Every ``checkpoint-N`` can be
    resumed bit by bit, and is an ordinary sparse model for ``from_pretrained``.
    ``PlatonCallback(...).install(trainer)`` does the same and also reaches what a callback alone
    can't: reporters such as TensorBoard, the progress bar, the model card.

    Args:
        amount: Fraction pruned in the end, in [0, 1), or a count of weights; of n:m, where all is
            the default, the share of groups.
        granularity: "unstructured", "semi_structured" for n:m, or "structured" for heads, neurons
            and channels.
        warmup_steps: Steps before pruning starts: a count, or a fraction of the run in [0, 1); a
            tenth unless given.
        cooldown_steps: Steps at the end with the final amount: a count, or a fraction of the run;
            about a third (0.3) unless given.
        finalize: Whether masks are removed when training ends (their zeros stay).
        metric: With ``max_drop``, the metric of the trainer's evaluations that may fall so far
            below the dense model's, such as "eval_accuracy"; ``amount`` is then the most that is
            pruned. Smaller is better if ``greater_is_better=`` says so, else the trainer, else the
            name: those that end in "loss" or "perplexity".
        settings: As in :func:`platon_prune.global_unstructured`, ``semi_structured`` and so on.

    Attributes:
        scheduler: That of the run; None before the trainer is made. Once it is finalized, what the
            run did can still be read: ``scheduler.history``, figures of it, ``masks(step)`` with
            ``mask_history``.
        history: A dict with ``step``, ``amount``, ``sparsity`` and ``threshold`` for each log of
            the trainer; what each choice did is in ``scheduler.history``.

    Raises:
        ValueError: If the trainer uses something that hides or changes gradients (DeepSpeed, FSDP1,
            layer-wise optimizers), does not evaluate the metric, or a setting is out of range; when
            the trainer is made, or before its first step.
    """

    def __init__(
        self,
        amount: float | int | None = None,
        *,
        granularity: str = "unstructured",
        warmup_steps: int | float = 0.1,
        cooldown_steps: int | float = 0.3,
        finalize: bool = True,
        metric: str | None = None,
        **settings: Any,
    ) -> None:
        self.amount = check_granularity(granularity, amount, settings)
        self.granularity = granularity
        self.warmup_steps = warmup_steps
        self.cooldown_steps = cooldown_steps
        self.finalize = finalize
        self.settings = settings
        self._goal = TrainerGoal(metric, settings)
        self.scheduler: PlatonScheduler | None = None
        self.history: list[dict[str, Any]] = []
        self._model: nn.Module | None = None  # until it is finalized here
        self._trainer: Trainer | None = None
        self.resume_from: str | None = None
        self._running: tuple[TrainingArguments, TrainerState] | None = None
        self._run_id = uuid.uuid4().hex  # that of the process that writes counts
        self._described: dict[str, Any] = {}
        self._put_off: tuple[Path, int | None] | None = None  # checkpoint, save_total_limit

    def __repr__(self) -> str:
        return f"{type(self).__name__}(amount={self.amount}, {shown(self.scheduler)})"

    def install(self, trainer: Trainer) -> PlatonCallback:
        """Join a trainer in front of its reporters, so that they log the pruning too.

        Args:
            trainer: A trainer that has been made, with this callback among its own or not.

        Returns:
            This callback.
        """
        handler = trainer.callback_handler
        if self not in handler.callbacks:
            handler.callbacks.append(self)
            self.on_init_end(trainer.args, trainer.state, trainer.control, model=trainer.model)
        handler.callbacks.remove(self)
        handler.callbacks.insert(0, self)
        if self._trainer is not trainer:
            self._trainer = trainer
            follow(trainer, lambda: _callback_of(trainer))
        return self

    # --- the trainer's events ---------------------------------------------------------------

    def on_init_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Put the masks on the bare model."""
        refuse_unsupported(args)
        hf_cutting.refuse_cutting_with(args, self.settings)
        self._goal.refuse(args)
        model = bare(kwargs["model"])
        other = _CALLBACKS.get(model)
        if other not in (None, self) and other.has_masks:
            raise ValueError(
                "a model must be pruned by one PlatonCallback, got a second: name all that is to "
                "be pruned in the include of one"
            )
        self._set_up(model, args)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start the schedule, or go on with that of the checkpoint."""
        self._rotate_again(args)  # where a save has failed in an earlier run
        model = bare(kwargs["model"])
        refuse_flattened(model)
        replaced = _CALLBACKS.get(model)
        if replaced not in (None, self) and replaced.has_masks and self._model is None:
            # The trainer restored callbacks from the checkpoint: it made this object in place of
            # the user's, and tells neither of the other. The user reads scheduler and history from
            # the one, the trainer's events reach the other, so the two must share all they hold,
            # later assignments too; a copy of the attributes would go its own way.
            self.__dict__ = replaced.__dict__
            if self._trainer is not None:
                self.install(self._trainer)
        if self._model is not model or self.scheduler is None or self.scheduler.last_step:
            # A second run, a retry with a smaller batch, or a model that the trainer made anew.
            self._set_up(model, args)
        assert self.scheduler is not None
        self.history = []
        self._running = args, state
        self._start(state)
        self._goal.begin(args, state, self.scheduler)
        self._describe()
        if state.global_step:
            self._resume(args, state, kwargs.get("optimizer"))

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Refuse to train for a metric that no evaluation has, and train nothing after the end."""
        assert self.scheduler is not None and self._model is not None
        self._goal.begin_step(args, self.scheduler, kwargs["optimizer"], self._model)

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Update scores and masks: after the optimizer's step, before the gradients are zeroed."""
        assert self.scheduler is not None
        hf_cutting.note_optimizer(self.scheduler, kwargs.get("optimizer"))
        skipped = bool(getattr(kwargs.get("optimizer"), "step_was_skipped", False))
        self.scheduler.step(skipped=self._goal.was_idle() or skipped)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Ask for an evaluation that is due; bring the config up to date before a checkpoint."""
        assert self.scheduler is not None
        self._goal.ask(args, state, control, self.scheduler)
        if control.should_save:
            self._describe()

    on_epoch_end = on_step_end

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Go back where the metric fell too far; a checkpoint of this step comes after that."""
        if self.scheduler is None or self._running is None:
            return  # an evaluation before or after the training
        if self._goal.take(args, control, self.scheduler, kwargs):
            self._describe()

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Complete the new checkpoint, then rotate older ones away.

        Only here all files of the trainer are written, and all processes take part; until then
        :meth:`state` has put the rotation off.
        """
        limit = self._put_off[1] if self._put_off else args.save_total_limit
        folder = of_first(self._put_off[0] if self._put_off else None, args)
        self._rotate_again(args)
        if folder is None:
            return
        assert self.scheduler is not None
        if self._is_sharded():
            save_shards(self._run_id, self.scheduler, folder)
        if is_distributed(args):
            dist.barrier()  # each process writes its random numbers
        if args.should_save:
            seal(self._run_id, self.scheduler.last_step, folder)
            rotate_checkpoints(
                output_dir=str(folder.parent),
                save_total_limit=limit,
                best_model_checkpoint=state.best_model_checkpoint,
                use_mtime=True,
            )

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Add the target, the measured sparsity and the threshold to the training logs."""
        if self._model is None or logs is None or not logs.keys() & {"loss", "train_loss"}:
            return
        measured = self._measure()
        self.history.append({"step": state.global_step, **measured})
        log_measured(measured, logs, state)
        show_sparsity(self._trainer, measured["sparsity"])

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Finalize, and write settings and measured sparsity into the model's config."""
        assert self.scheduler is not None and self._model is not None
        self._running = None
        self._follow_best_model(args, state)
        why = "training ended, or the best model was saved, before the schedule did"
        warn_of_shortfall(self.scheduler, why)
        self._describe()
        if self.finalize:
            self.scheduler.remove()
            _CALLBACKS.pop(self._model, None)
            self._model = None

    def state(self) -> dict[str, Any]:
        """Write the scheduler beside a checkpoint; the trainer asks for this as it saves one.

        It does after the weights are written and before older checkpoints are rotated away, in the
        process that writes. :meth:`on_save` rotates, once the new checkpoint is complete, and
        writes the state of a sharded model.
        """
        folder = self._checkpoint_folder()
        if folder is not None:
            assert self.scheduler is not None and self._running is not None
            args = self._running[0]
            limit = args.save_total_limit if self._put_off is None else self._put_off[1]
            args.save_total_limit, self._put_off = None, (folder, limit)
            break_seal(folder)
            if not self._is_sharded():
                save_whole(self._run_id, self.scheduler, folder)
        return {
            "args": {"amount": self.amount, "granularity": self.granularity},
            "attributes": {"checkpoint": {"run": self._run_id, "folder": str(folder or "")}},
        }

    def description(self) -> dict[str, Any]:
        """Settings and sparsity, for ``config.json`` and the model card; collective if sharded."""
        if not self.has_masks:
            return self._described  # at the end of the run
        assert self.scheduler is not None
        return {
            "method": "PLATON",
            "version": platon_prune.__version__,
            "sparsity": self._measure()["sparsity"],
            **self.scheduler.settings,
            **self._goal.description(self.scheduler),
        }

    def description_for_card(self) -> dict[str, Any]:
        """The same in one process alone, which can't measure a sharded model."""
        return self._described if self._is_sharded() else self.description()

    @property
    def has_masks(self) -> bool:
        """Whether the model carries masks: they are gone once it is finalized, here or by hand."""
        return self._model is not None and prune.is_pruned(self._model)

    # --- setting up -------------------------------------------------------------------------

    def _describe(self) -> None:
        self._described = self.description()
        describe_in_config(self._model, self._described)

    def _is_sharded(self) -> bool:
        return self._model is not None and is_sharded(self._model)

    def _set_up(self, model: nn.Module, args: TrainingArguments) -> None:
        if self.scheduler is not None and self.has_masks:
            self.scheduler.allow_other_length()  # what failed is begun anew
            self.scheduler.remove()
        self.scheduler = self._model = None
        settings = self.settings | self._goal.settings(args)
        self.scheduler = put_masks_on(model, self.granularity, self.amount, settings)
        self._model = model
        _CALLBACKS[model] = self

    def _start(self, state: TrainerState) -> None:
        assert self.scheduler is not None
        if state.max_steps <= 0:
            raise ValueError(
                "the trainer must know its number of steps when training begins, got "
                f"max_steps={state.max_steps}: set max_steps or num_train_epochs in its arguments"
            )
        fit_schedule(
            self.scheduler, state.max_steps, self.warmup_steps, self.cooldown_steps,
            set_by="max_steps, or by num_train_epochs and the data", resumes=state.global_step > 0,
        )  # fmt: skip

    def _measure(self) -> dict[str, Any]:
        assert self.scheduler is not None
        return {
            "amount": self.scheduler.amount,
            "sparsity": self.scheduler.sparsity(),
            "threshold": self.scheduler.threshold,
        }

    # --- checkpoints ------------------------------------------------------------------------

    def _checkpoint_folder(self) -> Path | None:
        """The folder that the trainer is writing a checkpoint into right now, if it is."""
        if self._running is None or self.scheduler is None:
            return None
        args, state = self._running
        if args.save_only_model or state.global_step != self.scheduler.last_step:
            return None
        return folder_written_last(args.output_dir or ".", state.global_step)

    def _rotate_again(self, args: TrainingArguments) -> None:
        """Give the trainer back how many checkpoints it keeps."""
        if self._put_off is not None:
            args.save_total_limit, self._put_off = self._put_off[1], None

    def _resume(self, args: TrainingArguments, state: TrainerState, optimizer: Any) -> None:
        """Load the scheduler's file from the checkpoint that the trainer has just loaded."""
        assert self.scheduler is not None and self._model is not None
        own = os.path.join(args.output_dir or ".", f"checkpoint-{state.global_step}")
        folders = [self.resume_from, args.resume_from_checkpoint, own]
        state_to_resume(state, folders).load_into(self.scheduler, self._model, optimizer)

    def _follow_best_model(self, args: TrainingArguments, state: TrainerState) -> None:
        """Take the masks of the best checkpoint, whose weights the trainer has loaded."""
        assert self.scheduler is not None and self._model is not None
        if args.load_best_model_at_end and state.best_model_checkpoint is not None:
            saved = saved_states(state.best_model_checkpoint)
            if saved:
                saved[0].load_into(self.scheduler, self._model)


def _callback_of(trainer: Trainer) -> PlatonCallback:
    callbacks = trainer.callback_handler.callbacks
    return next(each for each in callbacks if isinstance(each, PlatonCallback))
