"""A step by torch's multi-tensor operations, slice by slice."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from platon_prune.criteria import Formula
from platon_prune.tensors.interface import BackendName, Operands
from platon_prune.tensors.plain_backend import NOTHING, PLAIN, guard_of, raise_flag_

# Entries of a temporary. A GPU wants few launches, and a CPU what stays in its cache.
CPU_SLICE = 1 << 20
GPU_SLICE = 1 << 24

# Matching pieces of weights, gradients and windows; all contiguous.
_Piece = tuple[Tensor, Tensor, Tensor]


class ForeachBackend:
    """Does what :class:`~platon_prune.tensors.interface.Backend` says, many tensors in one call.

    A slice of many tensors takes at most four multi-tensor operations and four over flat memory;
    zeroing takes one operation a tensor, for want of a multi-tensor one.

    Attributes:
        num_plain: How many tensors of the last call were not contiguous, and took the plain path.
    """

    name: BackendName = "foreach"

    def __init__(self) -> None:
        self.num_plain = 0
        self._flat = _FlatScratch()

    def __reduce__(self) -> str:
        return "FOREACH"  # a copy of a scheduler goes on with the one that is there

    def flag_non_finite_(self, gradients: Sequence[Tensor | None], flag: Tensor) -> None:
        """See :meth:`Backend.flag_non_finite_`."""
        by_dtype: dict[torch.dtype, list[Tensor]] = {}
        for gradient in gradients:
            # The largest of nothing is an error.
            if gradient is not None and gradient.numel():
                by_dtype.setdefault(gradient.dtype, []).append(gradient)
        for alike in by_dtype.values():
            raise_flag_(torch._foreach_norm(alike, float("inf")), flag)

    def accumulate_(
        self,
        tensors: Sequence[Operands],
        gradients: Sequence[Tensor | None] | None,
        formula: Formula,
        flag: Tensor | None,
        masking: bool | Tensor,
    ) -> None:
        """See :meth:`Backend.accumulate_`."""
        guard = None if flag is None else guard_of(flag)
        # A graph that is recorded has temporaries of its own: ours may be given up for larger ones.
        flat = _FlatScratch() if isinstance(masking, Tensor) else self._flat
        groups: dict[tuple[torch.dtype, ...], list[_Piece]] = {}
        fitting, others = [], []
        for operands, gradient in zip(tensors, gradients or [None] * len(tensors), strict=True):
            weight, _, window = operands
            if not weight.is_contiguous() or not (gradient is None or gradient.is_contiguous()):
                others.append((operands, gradient))
                continue
            fitting.append(operands)
            if gradient is not None and window is not None:
                # A multi-tensor operation on several dtypes falls apart into one a tensor.
                group = groups.setdefault((weight.dtype, gradient.dtype, window.dtype), [])
                group.append((weight, gradient, window))
        for pieces in groups.values():
            for some in _slices(pieces):
                _add(some, formula, guard, flat)
        if masking is not False:
            _zero_pruned_(fitting, masking)
        self.num_plain = len(others)
        if others:
            rest, added = [one for one, _ in others], [gradient for _, gradient in others]
            PLAIN.accumulate_(rest, added, formula, flag, masking)

    def count_digits_(self, keys: Tensor, counts: Tensor, high: Tensor | None) -> None:
        """See :meth:`Backend.count_digits_`."""
        PLAIN.count_digits_(keys, counts, high)


class _FlatScratch(threading.local):
    """Flat float32 temporaries, handed out again and again, and their views in given shapes."""

    def __init__(self) -> None:
        self._buffers: dict[tuple[str, torch.device], Tensor] = {}
        self._views: dict[tuple, tuple[Tensor, list[Tensor]]] = {}

    def like(self, tensors: Sequence[Tensor], role: str) -> tuple[Tensor, list[Tensor]]:
        """A flat tensor, and its views in the shapes of some tensors; valid until the next call."""
        device = tensors[0].device
        if isinstance(tensors[0], FakeTensor):  # kept, it would meet real ones
            flat = tensors[0].new_empty(sum(x.numel() for x in tensors), dtype=torch.float32)
            return flat, _views(flat, tensors)
        # Making a view costs as much as an operation on a small tensor, so views are kept.
        key = (role, device, *(tensor.shape for tensor in tensors))
        kept = self._views.get(key)
        if kept is None:
            flat = self._buffer(role, device, sum(tensor.numel() for tensor in tensors))
            kept = self._views[key] = (flat, _views(flat, tensors))
        return kept

    def _buffer(self, role: str, device: torch.device, numel: int) -> Tensor:
        buffer = self._buffers.get((role, device))
        # Views of a smaller buffer would keep it alive, and those of models long gone add up.
        if buffer is None or buffer.numel() < numel or len(self._views) > 4096:
            self._views.clear()
            buffer = torch.empty(numel, dtype=torch.float32, device=device)
            self._buffers[role, device] = buffer
        return buffer[:numel]


def _add(
    pieces: Sequence[_Piece], formula: Formula, guard: Tensor | None, flat: _FlatScratch
) -> None:
    """Add the samples of pieces that are alike in dtypes to their windows."""
    weights, gradients, windows = ([*column] for column in zip(*pieces, strict=True))
    first = gradients if formula == "squared_gradient" else weights
    sample, samples = flat.like(weights, "sample")
    torch._foreach_copy_(samples, first)
    if gradients[0].dtype == torch.float32:
        torch._foreach_mul_(samples, gradients)
    else:
        second, seconds = flat.like(weights, "second")
        torch._foreach_copy_(seconds, gradients)
        sample.mul_(second)
    if formula == "abs_product":
        sample.abs_()
    elif formula == "negative_product":
        sample.neg_()
    if guard is not None:
        sample.masked_fill_(guard, NOTHING)
    if windows[0].dtype == torch.float32:
        torch._foreach_add_(windows, samples)
        return
    # Added up in float32 and rounded once.
    total, totals = flat.like(weights, "second")
    torch._foreach_copy_(totals, windows)
    total.add_(sample)
    torch._foreach_copy_(windows, totals)


def _views(flat: Tensor, tensors: Sequence[Tensor]) -> list[Tensor]:
    parts = flat.split_with_sizes([tensor.numel() for tensor in tensors])
    return [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]


def _slices(pieces: Sequence[_Piece]) -> Iterator[list[_Piece]]:
    """Pieces in runs of a slice at most; one that is larger is cut."""
    limit = CPU_SLICE if pieces[0][0].device.type == "cpu" else GPU_SLICE
    run: list[_Piece] = []
    room = limit
    for piece in pieces:
        numel = piece[0].numel()
        if numel > limit:
            yield from ([cut] for cut in zip(*(_cut(part, limit) for part in piece), strict=True))  # type: ignore[misc]
            continue
        if numel > room:
            yield run
            run, room = [], limit
        run.append(piece)
        room -= numel
    if run:
        yield run


def _cut(tensor: Tensor, limit: int) -> tuple[Tensor, ...]:
    return torch.functional.split(tensor.view(-1), limit)


def _zero_pruned_(tensors: Sequence[Operands], masking: bool | Tensor) -> None:
    zeros: dict[torch.dtype, Tensor] = {}
    all_stay = guard_of(masking).logical_not_() if isinstance(masking, Tensor) else None
    for weight, mask, _ in tensors:
        if weight.dtype not in zeros:
            zeros[weight.dtype] = weight.new_zeros(())
        # A multiplication would leave NaN and -0.
        kept = mask if all_stay is None else mask.logical_or(all_stay)
        torch.where(kept, weight, zeros[weight.dtype], out=weight)


FOREACH = ForeachBackend()
