"""`Learning`: what a step does to all tensors of a scheduler, from gradients to zeroed weights."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from types import NoneType
from typing import Any, NoReturn

from torch import Tensor

from platon_prune.choice.granularity import Granularity
from platon_prune.criteria import Criterion
from platon_prune.scheduling import agreement
from platon_prune.scheduling.gradients import StepGradients
from platon_prune.scheduling.outcomes import Outcome, Outcomes
from platon_prune.scheduling.steps.device_votes import DeviceVotes
from platon_prune.scheduling.store import Store
from platon_prune.scheduling.tracked import TrackedTensor
from platon_prune.tensors.collectives import Processes
from platon_prune.tensors.shards import is_sharded

Settings = Mapping[str, Any]


class Learning(Sequence[TrackedTensor]):
    """The part of :class:`~platon_prune.scheduling.selected.SelectedTensors` that a step calls."""

    criterion: Criterion
    granularity: Granularity
    processes: Processes
    _tensors: list[TrackedTensor]
    _store: Store
    _outcomes: Outcomes
    _votes: DeviceVotes
    _before: list[Tensor]
    _is_settled: bool
    _is_checked: bool

    def require_masks(self) -> None:
        """Raise a RuntimeError unless all tensors are still those that were set up."""
        raise NotImplementedError

    def settle(self, settings: Settings) -> None:
        """Learn which shard each process holds; collective."""
        raise NotImplementedError

    def _follow(self) -> None:
        raise NotImplementedError

    def gradients_of_step(
        self,
        step: int,
        settings: Callable[[], Settings],
        *,
        read: bool,
        skipped: bool | Tensor,
        window: int = 1,
        is_ordinary: bool = False,
    ) -> StepGradients:
        """The gradients that all processes agree to learn from.

        Whether they are finite stays on an accelerator where this process is alone, or where the
        processes exchange on it.

        Args:
            step: Number of the step that this process is about to take.
            settings: Returns its settings.
            read: Whether there are gradients to look at.
            skipped: Whether the optimizer did not step; one entry on a device if only that knows.
            window: Steps of a window.
            is_ordinary: Whether neither a window ends nor masks are chosen.

        Raises:
            RuntimeError: If no tensor has a gradient, a tensor is not pruned any more, or
                something is amiss in another process.
            ValueError: If the granularity can't choose over a tensor as it is sharded.
        """
        error, found, moved = None, StepGradients(None), False
        try:
            if not self._store.is_seated():
                self.require_masks()
                self._follow()
            moved = not self._is_settled
            if not self._is_checked:
                self._require_shards()
            if read:
                found = self._flagged_gradients(skipped)
        except Exception as raised:
            error = raised
        # Alone on an accelerator nobody has to be asked, and the flag is read with others later.
        if error is None and self._may_wait(found.flag):
            return found
        if self._votes_on_device():
            decision, found = self._votes.agree(
                self.processes, step, found, error=error, settle=moved, reads=not is_ordinary,
                window=window,
            )  # fmt: skip
        else:
            decision, found = agreement.agree(
                self.processes, step, found, error=error, settle=moved
            )
        if decision.settle:
            self.settle(settings())
        if decision.redistribute and found.each is not None:
            return StepGradients(
                agreement.redistribute_gradients(self.processes, step, self._tensors, found.each)
            )
        return found

    def _may_wait(self, flag: Tensor | None) -> bool:
        """Whether what a flag says may be left on its device until it is needed."""
        is_alone = self.processes.size == 1 and self._store.is_whole
        return is_alone and flag is not None and flag.device.type != "cpu"

    def _votes_on_device(self) -> bool:
        """Whether processes vote on a device, and read the votes of a window together."""
        # By the group alone and what all know: who votes otherwise would leave the others waiting.
        return self.processes.on_device() is not None and not self._votes.is_apart

    @property
    def is_broken(self) -> bool:
        """Whether processes are known to differ, and will raise at a vote that all of them read."""
        return self._votes.is_broken

    def _require_shards(self) -> None:
        for tensor in self._tensors:
            assert tensor.shard is not None
            self.granularity.require_shard(tensor.name, tensor.shard)
        self._is_checked = True

    def _flagged_gradients(self, skipped: bool | Tensor) -> StepGradients:
        """The gradient of each tensor, and a flag on the device that says if one is not finite."""
        gradients = self._store.gradients()
        if self.criterion.windowed and all(gradient is None for gradient in gradients):
            # Of a skipped step nothing is learnt, so no gradient need be there.
            if bool(skipped):
                return StepGradients(None)
            self._refuse_no_gradient()
        # Those that lie elsewhere are looked at once all processes have voted to redistribute them.
        here: Sequence[Tensor | None] = gradients
        if not set(map(type, gradients)) <= {Tensor, NoneType}:
            here = [None if is_sharded(gradient) else gradient for gradient in gradients]
        flag = self._outcomes.flag(self._store.devices[0])
        if isinstance(skipped, Tensor):
            # What a GradScaler found stays on the device, as what is found here does.
            flag.add_(skipped.to(flag, non_blocking=True))
        self._store.flag_non_finite_(here, flag)
        return StepGradients(gradients, flag)

    def _refuse_no_gradient(self) -> NoReturn:
        raise RuntimeError(
            f"{self._tensors[0].name} and all other pruned tensors have no gradient: call "
            "scheduler.step() after loss.backward() and before optimizer.zero_grad(), or "
            "pass skipped=True if the optimizer did not step"
        )

    def accumulate_(self, gradients: StepGradients, *, masking: bool) -> Outcome | None:
        """Add a step's samples to the windows, then zero what the masks prune.

        Returns:
            How the step went; None if only the device knows: see :meth:`outcomes`.
        """
        before, self._before = self._before, []
        self._store.accumulate_(gradients.each, gradients.flag, masking and not before)
        for tensor, mask in zip(self._tensors, before, strict=False):
            tensor.put_back(mask)
        if before:
            self._store.accumulate_(None, None, masking)
        if gradients.each is None:
            return Outcome(True, frozenset())
        # Known without the device, so it is noted at once even if the flag is not read.
        without = frozenset([i for i, each in enumerate(gradients.each) if each is None])
        if gradients.flag is None:
            return Outcome(False, without)
        self._outcomes.add(without)
        return None

    @property
    def must_read_outcomes(self) -> bool:
        """Whether they have to be read before the next step."""
        return self._outcomes.is_full

    def had_gradients(self, without: Collection[int]) -> None:
        """Note that all tensors but some had a gradient in a step that counts."""
        for i, tensor in enumerate(self._tensors):
            tensor.had_gradient = tensor.had_gradient or i not in without

    def outcomes(self) -> Sequence[Outcome]:
        """How the steps that only the device knew of went; waits for it if there are any."""
        return self._outcomes.read()

    def forget_outcomes(self) -> None:
        """Give up the steps of which only the device knows."""
        self._outcomes.read()

    def end_window_(self, num_samples: int, left: float) -> list[str]:
        """Update the averages from the mean of so many samples, and restart the windows.

        Args:
            num_samples: How many were added up.
            left: Which share of the run was left when the window began, in (0, 1].

        Returns:
            Names of the tensors that had no gradient in it, if it had samples.
        """
        weight = self.criterion.weight_of_window(left)
        # One division for both, and no other rounding where every window counts alike.
        self._store.end_window_(num_samples / weight if weight else 0)
        without = [tensor.name for tensor in self if not tensor.had_gradient] if num_samples else []
        for tensor in self._tensors:
            tensor.had_gradient = False
        return without
