"""What is remembered of one tensor between steps: the window so far, and the averages."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from platon_prune.criteria import Criterion
from platon_prune.tensors.blocks import Scratch

_CPU = torch.device("cpu")


class Averages:
    """The sum of the samples since the last window's end, and the criterion's averages.

    Allocated when first needed, so that a model can be set up before it is sharded. Arithmetic is
    in float32 on the weight's device, whatever they are kept in and wherever.

    Args:
        criterion: Says what is remembered.
        dtype: What is remembered is kept in.
        offload: Whether the averages, which only a window's end and a choice need, are kept in
            host memory.
        scratch: Temporaries, shared by all tensors.
    """

    def __init__(
        self, criterion: Criterion, dtype: torch.dtype, offload: bool, scratch: Scratch
    ) -> None:
        self.criterion = criterion
        self.dtype = dtype
        self.offload = offload
        self._scratch = scratch
        self._window: Tensor | None = None
        self._averages: tuple[Tensor, ...] = ()

    def follow(self, weight: Tensor) -> None:
        """Be allocated, and be where the weight is if the model has been moved."""
        if not self.criterion.windowed or weight.is_meta:
            return
        home = _CPU if self.offload else weight.device
        if self._window is None:
            self._window = torch.zeros(weight.shape, dtype=self.dtype, device=weight.device)
            self._averages = tuple(self._zeros(weight, home) for _ in self.criterion.averages)
        if self._window.device != weight.device:
            self._window = self._window.to(weight.device)
            self._averages = tuple(average.to(home) for average in self._averages)

    def replace(self, change: Callable[[Tensor], Tensor]) -> None:
        """Put something else in the place of each tensor, if there are any yet."""
        if self._window is not None:
            self._window = change(self._window)
            self._averages = tuple(change(average) for average in self._averages)

    def forget(self) -> None:
        """Free the memory; nothing is scored any more."""
        self._window, self._averages = None, ()

    def named(self) -> Iterable[tuple[str, Tensor]]:
        """The window and the averages by their names."""
        if self._window is not None:
            yield "window", self._window
        yield from zip(self.criterion.averages, self._averages, strict=bool(self._averages))

    def bytes(self, numel: int) -> dict[str, int]:
        """Memory of each for a number of weights, whether allocated yet or not."""
        names = ("window", *self.criterion.averages) if self.criterion.windowed else ()
        return {name: numel * self.dtype.itemsize for name in names}

    def operands(self, fold: bool) -> tuple[Tensor, ...]:
        """What :meth:`take_in` needs blocks of."""
        if self._window is None:
            return ()
        return (self._window, *self._averages) if fold else (self._window,)

    def take_in(
        self,
        weight: Tensor,
        grad: Tensor | None,
        operands: Sequence[Tensor],
        fold_over: int | None,
        restart: bool,
    ) -> None:
        """Fold the window if it ended, and add a step's sample; all are blocks of one shape."""
        window, *averages = operands
        work = self._in_float32(window, weight, "window")
        if fold_over is not None:
            # A sum that overflowed must not poison the averages for good.
            mean = work.div_(fold_over).nan_to_num_(nan=0.0)
            in_float32 = [
                self._in_float32(average, weight, f"average {i}")
                for i, average in enumerate(averages)
            ]
            self.criterion.update_averages_(mean, in_float32)
            for average, updated in zip(averages, in_float32, strict=True):
                _put_back(average, updated)
        if restart:
            work.zero_()
        if grad is not None:
            product = self._scratch.like(weight, torch.float32)
            work.add_(self.criterion.sample(weight, grad, product))
        _put_back(window, work)

    def score(
        self, weight: Tensor, index: slice | Tensor, out: Tensor, statistics: Tensor | None
    ) -> Tensor:
        """Write to ``out`` the scores at some positions of the flat tensor, where ``weight`` is."""
        averages = []
        for i, average in enumerate(self._averages):
            at = index if isinstance(index, slice) else index.to(average.device)
            averages.append(self._in_float32(average.view(-1)[at], weight, f"average {i}"))
        if statistics is None:
            return self.criterion.score(weight, averages, out)
        return self.criterion.score_with(statistics, weight, averages, out)

    def _in_float32(self, kept: Tensor, weight: Tensor, role: str) -> Tensor:
        """A block on the weight's device in float32: itself, or a copy to be put back."""
        if kept.dtype == torch.float32 and kept.device == weight.device:
            return kept
        return self._scratch.like(weight, torch.float32, role=role).copy_(kept)

    def _zeros(self, weight: Tensor, device: torch.device) -> Tensor:
        # Pinned, so that a GPU reads and writes it at the speed of the bus.
        pinned = device.type == "cpu" and weight.device.type == "cuda"
        return torch.zeros(weight.shape, dtype=self.dtype, device=device, pin_memory=pinned)


def _put_back(kept: Tensor, work: Tensor) -> None:
    if work is not kept:
        kept.copy_(work)
