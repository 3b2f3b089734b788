"""`Recorded`: a step whose launches are the same at every step, so that a graph can replay it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from platon_prune.scheduling.gradients import StepGradients
from platon_prune.scheduling.outcomes import Outcome
from platon_prune.scheduling.steps.learning import Learning
from platon_prune.scheduling.steps.told import NUM_SPARE, Told
from platon_prune.tensors.backends import FixedList, is_fake
from platon_prune.tensors.capture import Capture


class Recorded(Learning):
    """The part of :class:`~platon_prune.scheduling.selected.SelectedTensors` for such steps.

    Whether to learn and to zero is told on the device before, and how it went is counted there.
    """

    _told: Told

    def tell(self, *, learns: bool, masks: bool) -> None:
        """Tell the next step whether to learn, and whether to zero what is pruned."""
        self._told.tell(self._store.devices[0], len(self._tensors), learns=learns, masks=masks)

    @property
    def must_read_outcomes(self) -> bool:
        """See :meth:`Learning.must_read_outcomes`."""
        return super().must_read_outcomes or self._told.is_full

    def outcomes(self) -> Sequence[Outcome]:
        """See :meth:`Learning.outcomes`.

        Raises:
            RuntimeError: If there were more replays than were announced, or fewer.
        """
        return [*super().outcomes(), *self._told.read()]

    def forget_outcomes(self) -> None:
        """See :meth:`Learning.forget_outcomes`."""
        super().forget_outcomes()
        self._told.forget()

    @property
    def was_learning(self) -> bool:
        """Whether the last step was told to learn."""
        return self._told.learns

    def unread_gradients(self, *, required: bool = True) -> FixedList[Tensor | None] | None:
        """The gradients of a step, of which no value is read.

        Args:
            required: Whether there must be one; else None is returned where none is.

        Raises:
            RuntimeError: If no tensor has a gradient, a tensor is not pruned any more, or the
                tensors are not all of one process and one device.
            ValueError: If the granularity can't choose over a tensor as it is sharded.
        """
        self._find()
        gradients = self._store.gradients()
        gradients.unread = True
        if self.criterion.windowed and all(gradient is None for gradient in gradients):
            if not required:
                return None
            self._refuse_no_gradient()
        return gradients

    def _find(self) -> None:
        if not self._store.is_seated():
            self.require_masks()
            self._follow()
        if not self._is_checked:
            self._require_shards()
        got = None
        if self.processes.size > 1:
            got = f"{self.processes.size} processes, which have to wait for one another"
        elif not self._store.is_whole:
            got = "a model that is sharded over processes"
        elif len(self._store.devices) > 1:
            got = f"tensors on {', '.join(map(str, self._store.devices))}"
        if got is not None:
            raise RuntimeError(
                f"capturable=True must be of one process that has all of the model on one device, "
                f"got {got}: set pruning up without capturable=True"
            )

    def record_(
        self,
        gradients: FixedList[Tensor | None],
        skipped: bool | Tensor,
        capture: Capture | None = None,
    ) -> None:
        """Add a step's samples to the windows and zero, as the device is told, and count it there.

        Args:
            gradients: Of each tensor.
            skipped: False, or one entry on the device.
            capture: Of the graph that is being recorded, if so.
        """
        gradients.capture = capture
        flag = self._told.flag()
        if isinstance(skipped, Tensor):
            # Filled and not added: the flag is counted, and is 0 or 1.
            flag.masked_fill_(skipped.to(flag.device, non_blocking=True), 1)
        self._store.flag_non_finite_(gradients, flag)
        self._store.accumulate_(gradients, flag, self._told.masks)
        without = frozenset([i for i, each in enumerate(gradients) if each is None])
        self._told.count_(without, capture)
        if capture is None:
            self._told.add()
        else:
            self._told.captures.append((capture, without))

    def skip_(self, *, masking: bool) -> Outcome:
        """Take a step of which Python knows that nothing is to be learnt; how it went."""
        outcome = self.accumulate_(StepGradients(None), masking=masking)
        assert outcome is not None
        return outcome

    # --- graphs -------------------------------------------------------------------------------

    def capture_(self, skipped: bool | Tensor) -> None:
        """Record a step; it is not taken.

        Raises:
            RuntimeError: If no step was taken with the tensors where they are, or since several
                graphs were recorded.
        """
        if not self._store.is_seated() or not self._told.is_ready(self._store.devices[0]):
            raise RuntimeError(
                "a step must have been taken, with the model where it is, before one is captured, "
                "got none: take warm-up steps as torch.cuda.graph asks for, each with "
                "scheduler.step()"
            )
        if not self._told.has_room:
            raise RuntimeError(
                f"at most {NUM_SPARE} graphs can be captured without a step in between, got one "
                "more: take a step, with a graph or without, and capture the next ones then"
            )
        gradients = self.unread_gradients()
        assert gradients is not None
        capture = self._told.new_capture()
        capture.addresses = [_address(each.grad) for each in self._store.parameters]
        # Held with the graph: a replay writes weights, masks and windows whatever ended meanwhile.
        capture.touched = self._store.operands
        self.record_(gradients, skipped, capture)

    def require_capture(self) -> None:
        """Raise a RuntimeError unless a graph can be replayed: what it touches is where it was."""
        captures = [capture for capture, _ in self._told.captures]
        if not captures:
            raise RuntimeError(
                "a step must be captured before it is replayed, got no scheduler.step() within "
                "torch.cuda.graph: capture forward, backward, optimizer.step() and "
                "scheduler.step() in one graph"
            )
        is_seated = self._store.is_seated()
        if not is_seated:
            self.require_masks()
        touched = self._store.operands
        captures = [capture for capture in captures if is_seated and capture.touched == touched]
        if not captures:
            raise RuntimeError(
                "weights and masks must stay where they were when the step was captured, got "
                "others, or moved ones: capture the step anew after the model has been moved or "
                "loaded with assign=True"
            )
        parameters = self._store.parameters
        if not any(_are_where(parameters, capture.addresses) for capture in captures):
            self._refuse_moved(parameters, captures[-1].addresses)

    def _refuse_moved(self, parameters: Sequence[Tensor], addresses: Sequence[int]) -> None:
        for tensor, parameter, before in zip(self._tensors, parameters, addresses, strict=True):
            if before and not _is_where(parameter.grad, before):
                got = "none" if parameter.grad is None else "one at another address"
                raise RuntimeError(
                    f"the gradient of {tensor.name} must stay where it was when the step was "
                    f"captured, got {got}: call optimizer.zero_grad() before the capture, or "
                    "within it before backward(), and between replays only with "
                    "set_to_none=False; or capture anew"
                )

    def note_replay(self) -> None:
        """Note that a graph was replayed."""
        self._told.add()


def _address(gradient: Tensor | None) -> int:
    """Where a gradient is; 0 if there is none, or none that stays: a fake or a sparse one."""
    is_there = gradient is not None and not is_fake(gradient) and gradient.layout == torch.strided
    return gradient.data_ptr() if gradient is not None and is_there else 0


def _is_where(gradient: Tensor | None, address: int) -> bool:
    return gradient is not None and gradient.data_ptr() == address


def _are_where(parameters: Sequence[Tensor], addresses: Sequence[int]) -> bool:
    """Whether gradients are where a graph writes them; what it has no gradient of may have one."""
    # Hundreds of them at each replay, so as little as can be is done for each.
    for parameter, before in zip(parameters, addresses, strict=True):
        if before and ((gradient := parameter.grad) is None or gradient.data_ptr() != before):
            return False
    return True
