"""`PlatonScheduler`: the one stateful object. Its `step` is the algorithm, top to bottom."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from platon_prune.choice.granularity import Granularity, Unstructured
from platon_prune.criteria import Criterion
from platon_prune.goals.goal import Goal
from platon_prune.goals.pursuit import Pursuit
from platon_prune.history.changes import Change
from platon_prune.history.history import History
from platon_prune.masks.targets import Target
from platon_prune.schedule import Schedule
from platon_prune.scheduling.averages import Storage
from platon_prune.scheduling.gradients import Following, as_skipped
from platon_prune.scheduling.modes import in_plain_mode
from platon_prune.scheduling.notices import Notices
from platon_prune.scheduling.outcomes import Counters
from platon_prune.scheduling.progress import Progress
from platon_prune.scheduling.recording import Recording
from platon_prune.scheduling.replaced import Modules
from platon_prune.scheduling.selected import SelectedTensors
from platon_prune.scheduling.states import STATE_VERSION
from platon_prune.scheduling.steps.cutting import Cuts, Cutter, Weak
from platon_prune.scheduling.steps.reporting import Reporting
from platon_prune.tensors import capture
from platon_prune.tensors.collectives import Processes


class PlatonScheduler(Reporting):
    """Scores the weights of a model at every step and chooses the masks by its schedule.

    Made by :func:`platon_prune.global_unstructured` and its like. With the window length ``ΔT``,
    the step number ``t`` and ``I = |w · ∂L/∂w|``: at ``t`` divisible by ``ΔT`` the averages are
    updated from the window's mean of ``I``, and a new window begins with this step; otherwise this
    step joins the window. After the warm-up, at each window's end and when the ramp and the run
    end, the granularity chooses anew what is pruned. By default those are the weights with the
    smallest scores over all tensors together, exactly ``round(amount * N)`` of them.

    Where a process group is initialised, its processes choose together, each over what it holds of
    the model: what is said to be collective must be called in all of them.

    Args:
        targets: The tensors to prune; masks are put on them.
        schedule: The amount at each step.
        criterion: How scores are made.
        masking: "step" re-applies the masks at every step; "window" lets pruned weights train
            until the next choice, except in the final phase.
        storage: How the window and the averages are kept.
        processes: Those that choose together.
        granularity: Which weights live or die together; each by itself by default.
        history: Whether to record what each choice did.
        adopts_zeros: Whether :meth:`adopt_zeros` will be called, which gives the initial amount.
        model: The model that holds them, if that is known: a module of it that is replaced during
            the run is noticed.
        capturable: Whether :meth:`step` can be captured in a CUDA graph.
        goal: How far a metric may fall; the model must be known then.

    Attributes:
        goal: What became of that, if there is a goal: see :meth:`report`.
        history: What each choice did, as :class:`~platon_prune.History`; empty if that is not
            recorded.
        last_step: How often :meth:`step` was called.
        threshold: The largest score that the last choice pruned, of what the granularity compares
            (single weights, or groups); None if it pruned nothing.

    Source:
        Zhang et al., PLATON, ICML 2022 (arXiv:2206.12562), algorithm 1.
    """

    def __init__(
        self,
        targets: Sequence[Target],
        schedule: Schedule,
        criterion: Criterion,
        masking: str = "step",
        storage: Storage | None = None,
        processes: Processes | None = None,
        granularity: Granularity | None = None,
        history: bool = True,
        adopts_zeros: bool = False,
        model: nn.Module | Iterable[tuple[nn.Module, str]] | None = None,
        capturable: bool = False,
        goal: Goal | None = None,
    ) -> None:
        self.schedule = schedule
        self.criterion = criterion
        self.masking = masking
        self.granularity = granularity or Unstructured()
        self.capturable = capturable
        self._open = None
        self.last_step = 0
        self.threshold: float | None = None
        self._counters = Counters()
        of = self.granularity
        self._notices = Notices(of.may_empty, of.may_be_gone, of.without_gradient)
        self._following = Following()
        self._storage = storage or Storage()
        self._tensors = SelectedTensors(
            targets, criterion, masking, self._storage, processes or Processes(), self.granularity
        )
        self._progress = Progress(schedule)
        self.goal = None if goal is None else Pursuit(goal, self._progress)
        for tensor in self._tensors:
            tensor.warn_when_removed(self._progress.warn_of_early_end)
        self._modules = Modules(model)
        self._recording = Recording(self._tensors)
        sizes = [(tensor.name, tensor.whole_numel) for tensor in self._tensors]
        self.history = History(sizes)
        self._cuts = Cuts(sizes)
        self._cutter: Cutter | None = None
        self._optimizer = Weak()
        self._records_history = history
        self.adopts_zeros = adopts_zeros
        self._adopted: float | None = None  # the sparsity that the model had

    def require_agreement(self) -> None:
        """Raise a ValueError in all processes if they differ in a setting or the model."""
        self._tensors.require_agreement(self.settings)

    @in_plain_mode
    def adopt_zeros(self) -> dict[str, int]:
        """Start from the zeros of the model as masks; before the first step, collective.

        Returns:
            How many zeros each tensor has.

        Raises:
            ValueError: If there are none, more than the final amount, or not the same ones in
                processes that hold the same weights.
            RuntimeError: If the run has ended, or something is amiss in another process.
        """
        zeros = self._tensors.adopt_zeros()
        self._adopted = sum(zeros.values()) / self._tensors.num_weights
        self._start_at(self._adopted)
        return zeros

    def _start_at(self, adopted: float) -> None:
        self.schedule = self._progress.schedule = self.schedule.starting_at(adopted)
        self._progress.adopted = adopted

    # --- one step ---------------------------------------------------------------------------

    @in_plain_mode
    def step(self, skipped: bool | Tensor = False) -> None:
        """Learn from the gradients of an optimizer step, and prune by the schedule; collective.

        Call it after ``optimizer.step()`` and before ``optimizer.zero_grad()``. A step whose
        gradients are not finite, in any process, counts as skipped. After the schedule's last
        choice, mostly at ``total_steps``, only the masks are re-applied.

        On an accelerator an ordinary step waits for nothing: whether its gradients were finite is
        known there at once, and here at the window's end or when somebody asks for it.

        Within ``torch.cuda.graph`` a step of a capturable scheduler is recorded and not taken: see
        :meth:`before_replay`.

        Args:
            skipped: Whether the optimizer did not step (a GradScaler found infinities): the
                schedule advances, and nothing is added to the scores. It may be a bool tensor
                without dimensions on the device, which is not waited for.

        Raises:
            RuntimeError: If no pruned tensor has a gradient (unless the criterion needs none), a
                tensor is not pruned any more, an optimizer is followed (:meth:`step_with`) that
                calls this by itself, something is amiss in another process, or a step that can't
                be is captured.
            TypeError: If ``skipped`` is neither True nor False nor such a tensor.
        """
        self._require_optimizer()
        if not self.last_step:
            self.granularity.require_ready()
        skipped = as_skipped(skipped, unread=self.capturable)
        if skipped is not True:
            self._following.refuse_other_calls()
        if self.capturable or capture.is_capturing():
            self._step_capturable(skipped)
            return
        t = self.last_step + 1
        if self.goal is not None:
            self.goal.require_begun(t)
        learns = t <= self.schedule.last_choosing_step
        chooses = self.schedule.is_choosing_step(t)
        ends_window = learns and self.schedule.ends_window(t)
        if ends_window or chooses or self._tensors.must_read_outcomes:
            self._learn(self._tensors.outcomes())
        # g, the gradient that made the weight w what it is now.
        gradients = self._tensors.gradients_of_step(
            t, lambda: self.settings, read=learns and skipped is not True, skipped=skipped,
            window=self.schedule.window, is_ordinary=not (ends_window or chooses),
        )  # fmt: skip
        if self._tensors.is_broken:  # all of them raise soon; until then nothing takes several
            ends_window = chooses = False
        self._recording.begin(self.last_step)
        # Ī ← β₁ Ī + (1 − β₁) I and Ū ← β₂ Ū + (1 − β₂) |I − Ī|, with I the window's mean.
        without_gradient: list[str] = []
        if ends_window and self.criterion.windowed:
            num_samples = self._counters.end_window(is_first=t <= self.schedule.window)
            left = self._progress.left_before(t)
            without_gradient = self._tensors.end_window_(num_samples, left)
        # M keeps the largest S = Ī · Ū, as many as the schedule's r(t) says.
        has_scores = self._counters.has_scores or not self.criterion.windowed
        changed = self._choose(t) if chooses and has_scores else []
        # The next window's sum of |w · g| begins with this step's. Then w ← w · M.
        always = self.masking == "step" or not learns or t > self.schedule.ramp_end
        outcome = self._tensors.accumulate_(gradients, masking=always or chooses)
        self.last_step = self._progress.step = t
        if outcome is not None and learns:
            self._learn([outcome])
        self._end_step(t, learns, chooses, without_gradient, changed)

    def _end_step(
        self,
        t: int,
        learns: bool,
        chooses: bool,
        without_gradient: Sequence[str],
        changed: Sequence[Change],
    ) -> None:
        """Share and record the masks, once all of a step is done, and say what went wrong in it."""
        has_scores = self._counters.has_scores or not self.criterion.windowed
        if chooses or not learns:
            self._tensors.share_masks()
        # After the step: a full disk may stop the one, and a warning may be an error.
        if chooses and has_scores:
            self._recording.add(t)
        self._recording.warn()
        self._notices.of_no_gradient(without_gradient)
        skipped_steps = 0 if has_scores or not chooses else self._counters.skipped_steps
        self._notices.of_choice(t, changed, skipped_steps)
        # Where nothing is chosen any more, as seldom as where it is: it walks the whole model.
        if chooses or (not learns and t % self.schedule.window == 0):
            self._modules.warn_of_replaced(tensor.target for tensor in self._tensors)
        self._progress.warn_of_late_step()
        if chooses and has_scores:
            self._cut_if_due()

    def _choose(self, t: int) -> list[Change]:
        """Write the masks; what changed in each tensor."""
        amount = self.schedule.amount_at(t)
        self.threshold, changed = self._tensors.choose(amount, tells=self._records_history)
        if self._records_history:
            whole = self._cuts.of_whole(changed)
            self.history.record(t, amount, self.threshold, whole)
        return changed

    def reschedule(
        self, *, total_steps: int, warmup_steps: int | float = 0, cooldown_steps: int | float = 0
    ) -> None:
        """Set the lengths anew before the first step, for who learns them only when a run begins.

        Args:
            total_steps: As for :func:`platon_prune.global_unstructured`.
            warmup_steps: Likewise, or a fraction of the run in [0, 1).
            cooldown_steps: Likewise, or a fraction.

        Raises:
            ValueError: If the steps leave no room for the ramp or for a window before it.
            RuntimeError: If a step has been taken.
        """
        if self.last_step:
            raise RuntimeError(
                f"the schedule must be set before the first step, got {self.last_step} steps: set "
                "pruning up again for another run"
            )
        schedule = self.schedule.lasting(total_steps, warmup_steps, cooldown_steps)
        if self.criterion.windowed:
            schedule.require_scores()
        self.schedule = self._progress.schedule = schedule
        self._tensors.unsettle()

    def step_with(self, optimizer: torch.optim.Optimizer) -> RemovableHandle:
        """Call :meth:`step` by itself after every step of ``optimizer``.

        Args:
            optimizer: The optimizer of the pruned model. A step that a GradScaler skips never
                reaches it, and counts in the schedule only if you call ``step(skipped=True)``.

        Returns:
            A handle whose ``remove()`` ends it.

        Raises:
            TypeError: If it is no optimizer, or only wraps one.
            ValueError: If the optimizer is known to train other weights than those it shows, or
                another one is followed already.
        """
        handle = self._following.begin(optimizer, self.step)
        self.optimizer = optimizer
        return handle

    def record_masks(self, path: str | os.PathLike[str]) -> None:
        """Append the masks of every choice from here on to a file, for :meth:`masks`; collective.

        A run that is resumed goes on with its file, and drops what was recorded after the step that
        it resumes from. A run that begins moves a file that another has filled to ``path + ".old"``
        (``".old2"``, ... if that is taken) and warns. Of several processes the first one writes.

        Args:
            path: The file, which may exist if it is of this model.

        Raises:
            ValueError: If it is another model's or no such file, or the model is sharded.
            OSError: If no file can be written there.
            RuntimeError: If the run has ended, or something is amiss in another process.
        """
        self._recording.start(path)

    # --- the end ----------------------------------------------------------------------------

    def allow_other_length(self) -> None:
        """Let the run be shorter or longer than its schedule, without the warning of it.

        That the final amount was not reached when the masks are removed, and that steps go on
        after ``total_steps``, is warned about once unless this is called before.
        """
        self._progress.is_length_free = True

    def remove(self) -> None:
        """Finalize every tensor: its zeros stay, its mask and hook go. Ends the scheduler.

        Its :attr:`history` and what it recorded for :meth:`masks` can be read as before. The rest
        is freed; after :func:`platon_prune.remove`, only once what needs the masks is asked for.

        Raises:
            RuntimeError: If a tensor has been finalized already.
        """
        self._tensors.require_masks()
        if self.goal is not None:
            self.goal.warn_of_no_result()
        self._tensors.detach()

    # --- saving -----------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on bit by bit: plain dicts of tensors, numbers and strings.

        Loadable with ``torch.load(..., weights_only=True)``. Its tensors are copies; DTensors where
        the weights are, which ``torch.distributed.checkpoint`` saves and loads on any number of
        processes.

        Raises:
            RuntimeError: If the run has ended, or between :meth:`before_replay` and
                :meth:`after_replay`.
        """
        self._require_closed("state_dict()")
        return {
            "version": STATE_VERSION,
            "settings": self.settings,
            "capturable": self.capturable,
            "last_step": self.last_step,
            "adopted": self._adopted,
            "history": self.history.state() if self._records_history else None,
            **self._learnt(),
            **self._cuts_state(),
            **self.granularity.state_dict(),
            **({} if self.goal is None else {"goal": self.goal.state_dict()}),
        }

    @in_plain_mode
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a saved state. Load the model first, then the optimizer, then this.

        Args:
            state: What :meth:`state_dict` returned, of a model sharded alike, otherwise or not at
                all (collective then).

        Raises:
            ValueError: If it is of another version, model or configuration; names the difference.
                Nothing is changed then.
            RuntimeError: If the run has ended.
        """
        # All of it is checked before anything is changed.
        self._tensors.check_state(self._cuts.without_history(state), self.settings)
        self._check_goal(state)
        self.granularity.load_state_dict(state)
        # Of steps that are given up, also one whose replay went wrong.
        self._tensors.forget_outcomes()
        self._open = None
        self._adopted = state["adopted"]
        if self._adopted is not None:
            self._start_at(self._adopted)
        if self.goal is not None:
            self.schedule = self._progress.schedule = self.goal.load_state_dict(state["goal"])
            self._progress.is_length_free |= self.goal.is_over
        self._take(state)
        self.last_step = self._progress.step = state["last_step"]
        self.history.load_state((state["history"] if self._records_history else None) or [])
        self._load_cuts_state(state)
        self._recording.restart()
