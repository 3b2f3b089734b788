"""The masks of a scheduler's choices: of the last one, and of those that were written to a file."""

from __future__ import annotations

import os

from torch import Tensor

from platon_prune.history.mask_history import MaskHistory
from platon_prune.history.mask_recorder import MaskRecorder, checked_step, require_writable
from platon_prune.scheduling.selected import SelectedTensors
from platon_prune.tensors.shards import is_sharded
from platon_prune.warning import PruningWarning


class Recording:
    """The file of masks of one scheduler, if it has one.

    Args:
        tensors: Its tensors; the first of their processes writes.
    """

    def __init__(self, tensors: SelectedTensors) -> None:
        self._tensors = tensors
        self._recorder: MaskRecorder | None = None

    @property
    def is_on(self) -> bool:
        """Whether masks are recorded."""
        return self._recorder is not None

    def start(self, path: str | os.PathLike[str]) -> None:
        """Record every choice from here on; see :class:`~platon_prune.PlatonScheduler`.

        Collective.

        Raises:
            ValueError: If the file is of another model or another kind, or the model is sharded.
            OSError: If this process writes the file and can't, there.
            RuntimeError: If the run has ended, or something is amiss in another process.
        """
        processes = self._tensors.processes

        def read() -> MaskHistory:
            self._require_whole()
            # The others never write, and may not even have the folder.
            if processes.rank == 0:
                require_writable(path)
            return MaskHistory(path, self._tensors.shapes())

        history = processes.all_or_none("record_masks", read, lambda _: None)
        self._recorder = MaskRecorder(history, processes)

    def begin(self, step: int) -> None:
        """Write the masks of the step that a run begins or goes on from, once; collective."""
        if self._recorder is not None and not self._recorder.has_begun:
            self._require_whole()
            self._recorder.begin(step, self._tensors.masks())

    def add(self, step: int) -> None:
        """Write the masks of a choice; collective."""
        if self._recorder is not None:
            self._recorder.add(step, self._tensors.masks())

    def restart(self) -> None:
        """The run goes on from another state."""
        if self._recorder is not None:
            self._recorder.restart()

    def warn(self) -> None:
        """Say once, when a step is done, what became of the masks that another run recorded."""
        note = None if self._recorder is None else self._recorder.note
        if self._recorder is not None and note is not None:
            # First, so that a warning that is an error is not raised again at each step.
            self._recorder.note = None
            PruningWarning.warn(note)

    def masks(self, step: int | None, last_step: int) -> dict[str, Tensor]:
        """The masks of a step, of the last by default: copies, or as they were recorded.

        Raises:
            ValueError: If the step was not taken, or its masks are gone and were not recorded.
            TypeError: If it is no whole number.
        """
        step = last_step if step is None else checked_step(step, last_step)
        # The last masks are there even if none are recorded; others only in a file.
        if step == last_step and self._tensors.noticed_end() is None:
            return {tensor.name: tensor.copy_of_mask() for tensor in self._tensors}
        if self._recorder is None:
            raise ValueError(
                f"masks of step {step} must have been recorded to be read, got none: call "
                "record_masks(path) before the first step"
            )
        masks = self._recorder.masks(step)
        return {tensor.name: masks[tensor.name].to(tensor.device) for tensor in self._tensors}

    def _require_whole(self) -> None:
        """Raise an error if masks can't be recorded: the run has ended, or a tensor is sharded."""
        self._tensors.require_running()
        for tensor in self._tensors:
            # The file has whole masks, and no process has those of a sharded tensor.
            if is_sharded(tensor.parameter):
                raise ValueError(
                    f"record_masks must find whole tensors in each process, got {tensor.name} "
                    "sharded: save scheduler.masks() with torch.distributed.checkpoint instead"
                )
