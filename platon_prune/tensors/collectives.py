"""The processes that prune one model together, behind one small interface."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


class Processes:
    """The processes that choose together; without a process group, this one alone.

    Looked up at each use, so it does not matter whether pruning is set up before or after
    ``torch.distributed.init_process_group``.

    Args:
        group: The process group; None for all processes.
        alone: Whether this process works by itself though there are others.
    """

    def __init__(self, group: dist.ProcessGroup | None = None, *, alone: bool = False) -> None:
        self._group = group
        self._alone = alone

    def __deepcopy__(self, memo: Any) -> Processes:
        return self  # a group can't be copied, and a copy belongs to the same processes

    @property
    def size(self) -> int:
        """The number of processes that choose together, at least 1."""
        # Asked anew each time: the user may start or end the process group after set-up.
        if not self._is_parallel():
            return 1
        size = dist.get_world_size(self._group)
        if size < 1:
            raise ValueError(
                "process_group must have this process among its own, got one without: call "
                "global_unstructured with the group that this process prunes in"
            )
        return size

    @property
    def rank(self) -> int:
        """The number of this process among them, from 0."""
        return dist.get_rank(self._group) if self._is_parallel() else 0

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all processes of an int64 tensor of one shape everywhere."""
        return self._reduced(tensor, dist.ReduceOp.SUM)

    def total(self, tensor: Tensor) -> Tensor:
        """The sum over all processes of a float64 tensor, added in an order that is not known.

        It may be rounded otherwise in another process, which :meth:`sum` never is.
        """
        return self._reduced(tensor, dist.ReduceOp.SUM)

    def largest(self, tensor: Tensor) -> Tensor:
        """The largest over all processes of each entry of a float64 tensor."""
        return self._reduced(tensor, dist.ReduceOp.MAX)

    def maximum(self, values: Sequence[int]) -> list[int]:
        """The largest over all processes of each of some numbers."""
        if self.size == 1:
            return list(values)
        # Through a tensor: all_reduce takes nothing else, and pickling costs several round trips.
        maxima = self._reduced(torch.tensor(values, dtype=torch.int64), dist.ReduceOp.MAX)
        return [int(value) for value in maxima.tolist()]

    def maximum_(self, tensor: Tensor) -> None:
        """Replace an int64 tensor where they exchange by the maxima over all processes.

        On a device it is launched there, and not waited for.
        """
        dist.all_reduce(tensor, dist.ReduceOp.MAX, group=self._group)

    def on_device(self) -> torch.device | None:
        """The accelerator on which several of them exchange tensors; None if they do on hosts."""
        if self.size == 1:
            return None
        device = self._device()
        return None if device.type == "cpu" else device

    def gather(self, value: T) -> list[T]:
        """What each process passed, in the order of their ranks; any object that can be pickled."""
        if self.size == 1:
            return [value]
        gathered: list[Any] = [None] * self.size
        dist.all_gather_object(gathered, value, group=self._group)
        return gathered

    def all_or_none(self, what: str, make: Callable[[], T], undo: Callable[[T], None]) -> T:
        """Make something everywhere, or raise everywhere if it fails anywhere.

        Args:
            what: Name of the call, for the message.
            make: Makes it in this process.
            undo: Takes it back, where it was made and another process failed.

        Raises:
            RuntimeError: If it failed in another process; its own error where it failed.
        """
        made: list[T] = []
        error: Exception | None = None
        try:
            made.append(make())
        except Exception as raised:
            error = raised
        # Whatever happened here, all get to this line: who raised before it would be waited for.
        messages = self.gather(None if error is None else f"{type(error).__name__}: {error}")
        if error is None:
            failed = [f"process {rank}: {text}" for rank, text in enumerate(messages) if text]
            if not failed:
                return made[0]
            # Undone before anything is raised: all processes are left as they were.
            undo(made[0])
            error = RuntimeError(f"{what} must succeed in every process, but failed in {failed[0]}")
        raise error

    def _reduced(self, tensor: Tensor, operation: Any) -> Tensor:
        if self.size == 1:
            return tensor
        # A copy, since all_reduce writes into what it is given, which belongs to the caller.
        reduced = tensor.to(self._device(), copy=True)
        dist.all_reduce(reduced, operation, group=self._group)
        return reduced.to(tensor.device)

    def _device(self) -> torch.device:
        """Where the group exchanges tensors: the same in all its processes, whatever they hold."""
        # Such as "cpu:gloo,cuda:nccl". An accelerator first: it need not be waited for then.
        config = str(dist.get_backend_config(self._group))
        kinds = [entry.split(":")[0] for entry in config.split(",")]
        # A build for CUDA names that device without a driver too; only one that is there will do.
        device = torch.accelerator.current_accelerator(check_available=True)
        if device is not None and device.type in kinds:
            return torch.device(device.type, torch.accelerator.current_device_index())
        return torch.device("cpu")

    def _is_parallel(self) -> bool:
        return not self._alone and dist.is_available() and dist.is_initialized()


def sent(numbers: Sequence[int], device: torch.device) -> Tensor:
    """int64 numbers on a device, which is not waited for."""
    host = torch.tensor(numbers, dtype=torch.int64)
    if device.type == "cpu":
        return host
    # From other memory the copy would wait.
    return host.pin_memory().to(device, non_blocking=True)


ALONE = Processes(alone=True)
