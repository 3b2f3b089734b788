"""Small tensors of a step on a CPU, done together: starting an operation costs most there."""

from __future__ import annotations

import math
import threading
import weakref
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from platon_prune.criteria import Formula
from platon_prune.tensors.interface import FixedList, Operands

# Entries of the largest tensor that counts as small; beyond it, views of blocks pay.
SMALL = 1 << 16
# Entries that are worked on together: their temporaries then stay in the cache.
RUN = 1 << 18


class Run(NamedTuple):
    """Small tensors that are worked on together, with room for temporaries of their shapes.

    Args:
        numbers: Which ones of a list they are.
        weights: They; float32, as everything here but bits and masks.
        bits: The weights' memory as integers.
        masks: Of each.
        windows: Of each; none where the criterion keeps none.
        flat: Room for a sample of each, side by side.
        samples: Views of it in their shapes.
        factors: Room for a mask of each as integers.
    """

    numbers: list[int]
    weights: list[Tensor]
    bits: list[Tensor]
    masks: list[Tensor]
    windows: list[Tensor]
    flat: Tensor
    samples: list[Tensor]
    factors: list[Tensor]

    def take(self, gradients: Sequence[Tensor | None]) -> list[Tensor] | None:
        """Their gradients; None if one is not there, or not as the others are."""
        taken = []
        for i in self.numbers:
            gradient = gradients[i]
            if (
                gradient is None
                or gradient.dtype is not torch.float32
                or not gradient.is_contiguous()
            ):
                return None
            taken.append(gradient)
        return taken

    def zero_pruned_(self) -> None:
        """Set weights to +0 where masks are False, whatever they were."""
        torch._foreach_copy_(self.factors, self.masks)
        # As integers: times 0, a NaN would stay one and a negative number become -0.
        torch._foreach_mul_(self.bits, self.factors)


class Together(threading.local):
    """Runs of the small tensors of lists that never change, and one step of a run.

    One for each thread, since temporaries are shared by all runs.
    """

    def __init__(self) -> None:
        self._plans: weakref.WeakKeyDictionary[FixedList, tuple[list[Run], list[int]]] = (
            weakref.WeakKeyDictionary()
        )
        self._room: tuple[Tensor, Tensor] | None = None
        # Whose gradients the room holds, and of which run.
        self._held: tuple[weakref.ref[FixedList], Run] | None = None

    def plan(self, tensors: Sequence[Operands]) -> tuple[list[Run], list[int]]:
        """The runs of a list, and the numbers of the tensors that are in none."""
        # Of other lists nothing can be kept, and to look for runs takes longer than they save.
        if not isinstance(tensors, FixedList):
            return [], list(range(len(tensors)))
        if tensors not in self._plans:
            # Whatever mode this is in: what is made here is used for the rest of the run.
            with torch.inference_mode(False):
                self._plans[tensors] = self._made(tensors)
        return self._plans[tensors]

    def all_finite(self, run: Run, gradients: FixedList) -> bool:
        """Whether the gradients of a run are all there and finite, as far as one sum can tell."""
        if not self._taken(run, gradients):
            return False
        self._held = weakref.ref(gradients), run
        return math.isfinite(float(run.flat.sum()))

    def add(self, run: Run, gradients: Sequence[Tensor | None], formula: Formula) -> bool:
        """Add samples to the windows of a run, whose gradients are finite; False if it can't."""
        held = self._held
        is_held = held is not None and held[0]() is gradients and held[1] is run
        if not is_held and not self._taken(run, gradients):
            return False
        self._held = None  # overwritten below
        if formula == "squared_gradient":
            run.flat.mul_(run.flat)
        else:
            torch._foreach_mul_(run.samples, run.weights)
            run.flat.abs_() if formula == "abs_product" else run.flat.neg_()
        torch._foreach_add_(run.windows, run.samples)
        return True

    def _taken(self, run: Run, gradients: Sequence[Tensor | None]) -> bool:
        self._held = None
        taken = run.take(gradients)
        if taken is not None:
            torch._foreach_copy_(run.samples, taken)
        return taken is not None

    def _made(self, tensors: Sequence[Operands]) -> tuple[list[Run], list[int]]:
        runs: list[list[int]] = [[]]
        others: list[int] = []
        room = RUN
        for i, each in enumerate(tensors):
            size = each.weight.numel()
            if not _is_small(each):
                others.append(i)
                continue
            if size > room:
                runs.append([])
                room = RUN
            runs[-1].append(i)
            room -= size
        # One tensor alone is not worth it.
        others += [i for run in runs if len(run) == 1 for i in run]
        return [self._run(tensors, run) for run in runs if len(run) > 1], sorted(others)

    def _run(self, tensors: Sequence[Operands], numbers: list[int]) -> Run:
        if self._room is None:
            self._room = torch.empty(RUN), torch.empty(RUN, dtype=torch.int32)
        chosen = [tensors[i] for i in numbers]
        weights = [each.weight for each in chosen]
        flat, factors = (room[: sum(w.numel() for w in weights)] for room in self._room)
        return Run(
            numbers,
            weights,
            [weight.view(torch.int32) for weight in weights],
            [each.mask for each in chosen],
            [each.window for each in chosen if each.window is not None],
            flat,
            _views(flat, weights),
            _views(factors, weights),
        )


def _is_small(each: Operands) -> bool:
    weight, _, window = each
    return (
        type(weight) is Tensor  # not a fake one
        and 0 < weight.numel() <= SMALL
        and weight.device.type == "cpu"
        and weight.dtype == torch.float32
        and weight.is_contiguous()
        and (window is None or window.dtype == torch.float32)
    )


def _views(flat: Tensor, tensors: Sequence[Tensor]) -> list[Tensor]:
    parts = flat.split_with_sizes([tensor.numel() for tensor in tensors])
    return [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]
