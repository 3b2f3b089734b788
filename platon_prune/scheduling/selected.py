"""All tensors under one scheduler, over all processes: what they must agree on before a step."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import prune

from platon_prune.choice.granularity import Granularity
from platon_prune.criteria import Criterion
from platon_prune.history.changes import Change, bits_before, changes
from platon_prune.history.mask_history import MaskHistory
from platon_prune.history.mask_recorder import MaskRecorder, checked_step, require_place
from platon_prune.masks.targets import Target
from platon_prune.scheduling import agreement
from platon_prune.scheduling.gradients import all_finite
from platon_prune.scheduling.states import check_state
from platon_prune.scheduling.tracked import Storage, TrackedTensor
from platon_prune.tensors.blocks import Scratch
from platon_prune.tensors.collectives import Processes
from platon_prune.tensors.shards import is_sharded
from platon_prune.warning import PruningWarning

Settings = Mapping[str, Any]


class SelectedTensors(Sequence[TrackedTensor]):
    """The tensors of one scheduler, in the order of the model; masks are put on all of them.

    Args:
        targets: The tensors to prune.
        criterion: What is remembered of them.
        masking: "step" or "window".
        storage: How it is kept.
        processes: Those that prune together.
        granularity: Says what each of them has to hold of a tensor.
    """

    def __init__(
        self,
        targets: Sequence[Target],
        criterion: Criterion,
        masking: str,
        storage: Storage,
        processes: Processes,
        granularity: Granularity,
    ) -> None:
        self.criterion = criterion
        self.granularity = granularity
        self.processes = processes
        self.num_weights = 0  # in all processes, each counted once
        self._is_settled = False  # whether processes know who holds what
        self._tensors: list[TrackedTensor] = []
        self._recorder: MaskRecorder | None = None
        self._ended: TrackedTensor | None = None  # the first whose mask is known to be gone
        scratch = Scratch()
        try:
            with torch.inference_mode(False):
                for target in targets:
                    offset = self.num_weights
                    tensor = TrackedTensor(
                        target,
                        criterion,
                        masking,
                        storage,
                        offset,
                        scratch,
                        puts_back=granularity.puts_back,
                    )
                    self._tensors.append(tensor)
                    self.num_weights += tensor.whole_numel
        except BaseException:
            self.detach()  # all or nothing
            raise

    def __len__(self) -> int:
        return len(self._tensors)

    def __getitem__(self, index: Any) -> Any:
        return self._tensors[index]

    def __iter__(self) -> Iterator[TrackedTensor]:
        return iter(self._tensors)

    def named(self, name: str) -> TrackedTensor:
        """The tensor that had this name before pruning.

        Raises:
            KeyError: If there is none.
        """
        for tensor in self._tensors:
            if tensor.name == name:
                return tensor
        raise KeyError(
            f"name must be that of a pruned tensor before pruning, got {name!r}; there are: "
            + ", ".join(tensor.name for tensor in self._tensors)
        )

    # --- agreement of processes ---------------------------------------------------------------

    def require_agreement(self, settings: Settings) -> None:
        """Raise a ValueError everywhere if processes differ in a setting or the model."""
        agreement.require_same_settings(self.processes, settings, self._tensors)

    def unsettle(self) -> None:
        """Make processes compare their settings again at the next step."""
        self._is_settled = False

    def place(self) -> bool:
        """Follow the tensors where they were sharded or moved; whether processes must settle."""
        self.require_running()
        moved = [tensor.place() for tensor in self._tensors]
        self._is_settled = self._is_settled and not any(moved)
        return not self._is_settled

    def settle(self, settings: Settings) -> None:
        """Find out which process holds what; collective."""
        self.require_agreement(settings)
        agreement.settle(self.processes, self._tensors)
        self._is_settled = True

    def agreed_gradients(
        self, step: int, settings: Settings, *, read: bool
    ) -> list[Tensor | None] | None:
        """The gradient of each tensor; None instead of the list if any process has to skip.

        Args:
            step: Number of the step that this process is about to take.
            settings: Its settings.
            read: Whether there are gradients to look at.

        Raises:
            RuntimeError: If no tensor has a gradient, a tensor is not pruned any more, or
                something is amiss in another process.
            ValueError: If the granularity can't choose over a tensor as it is sharded.
        """
        error, gradients, moved = None, None, False
        try:
            self.require_masks()
            moved = self.place()
            if moved:
                self._require_parts()
            if read:
                gradients = self._finite_gradients()
        except Exception as raised:
            error = raised
        outcome = agreement.vote(
            self.processes, step, error=error, gradients=gradients, settle=moved
        )
        if outcome.settle:
            self.settle(settings)
        if gradients is None or outcome.skip:
            return None
        if outcome.bring:
            return agreement.bring_gradients(self.processes, step, self._tensors, gradients)
        return gradients

    def _require_parts(self) -> None:
        for tensor in self._tensors:
            assert tensor.part is not None
            self.granularity.require_part(tensor.name, tensor.part)

    def _finite_gradients(self) -> list[Tensor | None] | None:
        """The gradient of each tensor; None instead of the list if one of them is not finite."""
        gradients = [tensor.gradient for tensor in self._tensors]
        if self.criterion.windowed and all(gradient is None for gradient in gradients):
            raise RuntimeError(
                f"{self._tensors[0].name} and all other pruned tensors have no gradient: call "
                "scheduler.step() after loss.backward() and before optimizer.zero_grad(), or "
                "pass skipped=True if the optimizer did not step"
            )
        # Those that lie elsewhere are looked at once all processes have voted to bring them.
        here = [gradient for gradient in gradients if not is_sharded(gradient)]
        return gradients if all_finite(here) else None

    def take_in(
        self,
        gradients: Sequence[Tensor | None] | None,
        fold_over: int | None,
        restart: bool,
        apply_masks: bool,
    ) -> list[str]:
        """Update every tensor, as :meth:`TrackedTensor.take_in` does one.

        Returns:
            Names of those that had no gradient in the whole window that was folded.
        """
        every = [None] * len(self) if gradients is None else gradients
        return [
            tensor.name
            for tensor, gradient in zip(self._tensors, every, strict=True)
            if tensor.take_in(gradient, fold_over, restart, apply_masks)
        ]

    # --- masks --------------------------------------------------------------------------------

    def choose(self, amount: float, *, tells: bool) -> tuple[float | None, list[Change]]:
        """Let the granularity write the masks; collective.

        Args:
            amount: What is due by the schedule.
            tells: Whether to count what left and came back.

        Returns:
            The threshold, and how each tensor changed.
        """
        scored = [
            tensor.scored(whole)
            for tensor, whole in zip(self, self.statistics(self._tensors), strict=True)
        ]
        puts_back = self.granularity.puts_back
        masks = [tensor.mask.clone() for tensor in scored] if puts_back else []
        bits = bits_before(scored) if tells else None
        threshold = self.granularity.choose_(scored, amount, self.processes)
        for tensor, mask in zip(self._tensors, masks, strict=False):
            tensor.put_back(mask)
        return threshold, changes(scored, bits, self.processes)

    def statistics(self, tensors: Sequence[TrackedTensor]) -> list[Tensor | None]:
        """What the criterion knows of each whole tensor; collective, if it asks for that at all."""
        if not self.criterion.num_statistics:
            return [None] * len(tensors)
        everyone = self.processes.gather([tensor.statistics().tolist() for tensor in tensors])
        # Added up in one order everywhere: an all-reduce may round otherwise in another process.
        return [
            torch.tensor([sum(values) for values in zip(*shares, strict=True)], dtype=torch.float64)
            for shares in zip(*everyone, strict=True)
        ]

    def score(self, name: str, settings: Settings) -> Tensor:
        """The scores of a tensor; collective if the criterion looks at whole tensors."""
        moved, tensor = self.place(), self.named(name)
        if self.criterion.num_statistics and moved:
            self.settle(settings)  # else a replica would be counted more than once
        return tensor.score(*self.statistics([tensor]))

    def apply_masks(self) -> None:
        """Zero what the masks prune."""
        for tensor in self._tensors:
            tensor.apply_mask()

    def adopt_zeros(self) -> dict[str, int]:
        """Prune what is zero; how many entries of each tensor that are. Collective.

        Raises:
            ValueError: If there are none, or not the same in processes that hold the same part.
        """
        counts = agreement.zeros(self.processes, self._tensors, self.require_running)
        if not any(counts):
            raise ValueError(
                f"model must have zeros that can be adopted, got none in {self.num_weights} "
                f"weights of {len(self)} tensors: load the pruned weights first, and name the "
                "tensors with include=[...]"
            )
        self.apply_masks()  # a negative zero is none
        return {tensor.name: count for tensor, count in zip(self, counts, strict=True)}

    def require_masks(self) -> None:
        """Raise a RuntimeError unless all tensors are still those that were set up."""
        ended = self._noticed_end()
        for tensor in self._tensors if ended is None else [ended]:
            tensor.require_mask()

    def require_running(self) -> None:
        """Raise a RuntimeError that says what can still be read if the run has ended."""
        ended = self._noticed_end()
        if ended is not None:
            raise RuntimeError(
                f"{ended.name} must carry its mask for this, but was finalized: of a run that has "
                "ended, its schedule, its history and the masks that it recorded can be read"
            )

    def _noticed_end(self) -> TrackedTensor | None:
        """A tensor whose mask is gone, if any: then the run has ended, and nothing is kept of it.

        Masks are often finalized through the model, of which the scheduler is not told.
        """
        if self._ended is None:
            self._ended = next((tensor for tensor in self if tensor.is_finalized), None)
            for tensor in self if self._ended is not None else ():
                tensor.forget()
        return self._ended

    def detach(self) -> None:
        """Finalize every tensor, and free what was remembered of it."""
        for tensor in self._tensors:
            for module, name in tensor.target.sites:
                prune.remove(module, name)  # type: ignore[no-untyped-call]
            tensor.forget()

    def sparsity(self, settings: Settings) -> float:
        """Measured fraction of zeros; collective if the model is sharded."""
        moved, sharded = self.place(), any(is_sharded(t.parameter) for t in self._tensors)
        if moved and sharded:
            self.settle(settings)
        kept = torch.tensor(sum(tensor.count_kept(own=sharded) for tensor in self._tensors))
        return 1 - int(self.processes.sum(kept) if sharded else kept) / self.num_weights

    def check_state(self, state: Any, settings: Settings) -> None:
        """Raise an error unless a saved state fits the tensors, as `states.check_state` tells."""
        self.require_masks()
        self.place()
        check_state(state, settings, self._shapes(), self._tensors[0].expected_entries())

    # --- masks in a file ------------------------------------------------------------------------

    def record_masks(self, path: str | os.PathLike[str]) -> None:
        """Append the masks of every choice to a file; see :class:`~platon_prune.PlatonScheduler`.

        Collective.

        Raises:
            ValueError: If the file is of another model or another kind, or the model is sharded.
            OSError: If this process writes the file and can't, there.
            RuntimeError: If the run has ended, or something is amiss in another process.
        """

        def read() -> MaskHistory:
            self.require_running()
            self._require_whole()
            if self.processes.rank == 0:
                require_place(path)
            return MaskHistory(path, self._shapes())

        history = self.processes.all_or_none("record_masks", read, lambda _: None)
        self._recorder = MaskRecorder(history, self.processes)

    def begin_recording(self, step: int) -> None:
        """Write the masks of the step that a run begins or goes on from, once; collective."""
        if self._recorder is not None and not self._recorder.has_begun:
            self._require_whole()
            self._recorder.begin(step, self._masks())

    def record(self, step: int) -> None:
        """Write the masks of a choice; collective."""
        if self._recorder is not None:
            self._recorder.add(step, self._masks())

    def restart_recording(self) -> None:
        """The run goes on from another state."""
        if self._recorder is not None:
            self._recorder.restart()

    def warn_of_other_masks(self) -> None:
        """Say once, when a step is done, what became of the masks that another run recorded."""
        note = None if self._recorder is None else self._recorder.note
        if self._recorder is not None and note is not None:
            self._recorder.note = None
            PruningWarning.warn(note)

    def masks(self, step: int | None, last_step: int) -> dict[str, Tensor]:
        """The masks of a step, of the last by default: copies, or as they were recorded.

        Raises:
            ValueError: If the step was not taken, or its masks are gone and were not recorded.
            TypeError: If it is no whole number.
        """
        step = last_step if step is None else checked_step(step, last_step)
        if step == last_step and self._noticed_end() is None:
            return {tensor.name: tensor.copy_of_mask() for tensor in self._tensors}
        if self._recorder is None:
            raise ValueError(
                f"masks of step {step} must have been recorded to be read, got none: call "
                "record_masks(path) before the first step"
            )
        masks = self._recorder.masks(step)
        return {tensor.name: masks[tensor.name].to(tensor.device) for tensor in self._tensors}

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        return {tensor.name: tuple(tensor.parameter.shape) for tensor in self._tensors}

    def _masks(self) -> dict[str, Tensor]:
        return {tensor.name: tensor.mask for tensor in self._tensors}

    def _require_whole(self) -> None:
        for tensor in self._tensors:
            if is_sharded(tensor.parameter):
                raise ValueError(
                    f"record_masks must find whole tensors in each process, got {tensor.name} "
                    "sharded: save scheduler.masks() with torch.distributed.checkpoint instead"
                )
