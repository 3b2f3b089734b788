"""`Replays`: the steps of a scheduler whose ordinary step can be captured in a CUDA graph.

A replay runs no Python. So what Python decides comes before it, a window's end, and after it, the
count and the choice; in between, the same launches whatever the step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from platon_prune.history.changes import Change
from platon_prune.scheduling.gradients import StepGradients
from platon_prune.scheduling.modes import in_plain_mode
from platon_prune.scheduling.outcomes import Counters, Outcome
from platon_prune.scheduling.progress import Progress
from platon_prune.scheduling.readings import Readings
from platon_prune.tensors import capture


class _Open(NamedTuple):
    """A step that has begun: its number, what it does, and which tensors had no gradient before."""

    t: int
    learns: bool
    chooses: bool
    masks: bool
    without_gradient: Sequence[str]


class Replays(Readings):
    """The part of :class:`~platon_prune.PlatonScheduler` for graphs.

    Attributes:
        capturable: Whether a step can be captured.
    """

    capturable: bool
    _open: _Open | None
    _counters: Counters
    _progress: Progress

    @in_plain_mode
    def before_replay(self) -> None:
        """End the window that is due, before a CUDA graph with a captured step is replayed.

        Waits for the device at a window's end alone. See :meth:`after_replay`.

        Raises:
            RuntimeError: If the scheduler is not capturable, no step was captured, a weight, mask
                or gradient is not where it was then, or :meth:`after_replay` is missing.
        """
        self._require_capturable("before_replay")
        self._require_closed("before_replay()")
        self._tensors.require_capture()
        self._open = self._begin(self.last_step + 1)

    @in_plain_mode
    def after_replay(self) -> None:
        """Count the step that was replayed, and choose the masks if the schedule says so.

        Example:
            >>> with torch.cuda.graph(graph):
            ...     loss = model(inputs).sum()
            ...     loss.backward()
            ...     optimizer.step()
            ...     scheduler.step()
            >>> for batch in loader:
            ...     inputs.copy_(batch)
            ...     scheduler.before_replay()
            ...     graph.replay()
            ...     scheduler.after_replay()

        Raises:
            RuntimeError: If :meth:`before_replay` was not called.
        """
        self._require_capturable("after_replay")
        begun, self._open = self._open, None
        if begun is None:
            raise RuntimeError(
                "scheduler.before_replay() must come before each replay, got none before this "
                "after_replay(): call before_replay(), graph.replay(), after_replay() at each step"
            )
        self._tensors.note_replay()
        self._finish(begun)

    # --- a step -------------------------------------------------------------------------------

    def _step_capturable(self, skipped: bool | Tensor) -> None:
        """Take a step as a replay would, or record it."""
        self._require_closed("step()")
        if capture.is_capturing():
            self._require_capturable("step")
            if skipped is True:
                raise RuntimeError(
                    "skipped must be known on the device alone while a step is captured, got True: "
                    "pass a bool tensor that the optimizer's step leaves there, such as its "
                    "found_inf != 0, or nothing"
                )
            self._tensors.capture_(skipped)
            return
        t = self.last_step + 1
        learns = t <= self.schedule.last_choosing_step
        # Before anything is changed: they may be missing.
        gradients = self._tensors.unread_gradients(required=learns and skipped is not True)
        begun = self._begin(t)
        if skipped is True or gradients is None:
            outcome = self._tensors.skip_(masking=begun.masks)
            if learns:
                self._learn([outcome])
        else:
            self._tensors.record_(gradients, skipped)
        self._finish(begun)

    def _begin(self, t: int) -> _Open:
        """End the window if it is due, and tell the device what the step does."""
        learns = t <= self.schedule.last_choosing_step
        chooses = self.schedule.is_choosing_step(t)
        ends_window = learns and self.schedule.ends_window(t)
        stops = self._tensors.was_learning and not learns
        if ends_window or chooses or stops or self._tensors.must_read_outcomes:
            self._learn(self._tensors.outcomes())
        self._recording.begin(self.last_step)
        without_gradient: list[str] = []
        if ends_window and self.criterion.windowed:
            num_samples = self._counters.end_window(is_first=t <= self.schedule.window)
            left = self._progress.left_before(t)
            without_gradient = self._tensors.end_window_(num_samples, left)
        always = self.masking == "step" or not learns or t > self.schedule.ramp_end
        # A choice comes after the launches, and zeroes by the new masks alone: what comes back must
        # keep what the optimizer made of it.
        masks = always and not chooses
        self._tensors.tell(learns=learns, masks=masks)
        return _Open(t, learns, chooses, masks, without_gradient)

    def _finish(self, begun: _Open) -> None:
        """Count the step, and choose."""
        t, learns, chooses, _, without_gradient = begun
        changed: list[Change] = []
        if chooses:
            if self._counters.has_scores or not self.criterion.windowed:
                changed = self._choose(t)
            self._tensors.accumulate_(StepGradients(None), masking=True)
        self.last_step = self._progress.step = t
        self._end_step(t, learns, chooses, without_gradient, changed)

    # --- what the scheduler does --------------------------------------------------------------

    def _learn(self, outcomes: Sequence[Outcome]) -> None:
        raise NotImplementedError

    def _choose(self, t: int) -> list[Change]:
        raise NotImplementedError

    def _end_step(
        self,
        t: int,
        learns: bool,
        chooses: bool,
        without_gradient: Sequence[str],
        changed: Sequence[Change],
    ) -> None:
        raise NotImplementedError

    # --- what is refused ----------------------------------------------------------------------

    def _require_capturable(self, call: str) -> None:
        if not self.capturable:
            raise RuntimeError(
                f"a step must be capturable for scheduler.{call}() in or around a CUDA graph, got "
                "a scheduler that was set up without: set pruning up with capturable=True"
            )

    def _require_closed(self, call: str) -> None:
        if self._open is not None:
            raise RuntimeError(
                f"scheduler.after_replay() must come before {call}, got none since before_replay() "
                f"of step {self._open.t}: call both around each replay"
            )
