"""A step in two launches for all tensors, by Triton kernels over a table of addresses."""

from __future__ import annotations

import contextlib
import functools
import operator
from array import array
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from platon_prune.criteria import Formula
from platon_prune.tensors.interface import BackendName, Operands
from platon_prune.tensors.plain_backend import NUM_DIGITS, PLAIN
from platon_prune.tensors.triton_kernels import (
    TYPES,
    accumulate_kernel,
    count_kernel,
    flag_kernel,
)

# Entries that one program of a launch works on, and warps of a program.
BLOCK = 4096
NUM_WARPS = 8
# Histograms that programs take in turns: fewer of them wait for one another at one bin.
NUM_HISTOGRAMS = 16
MAX_TABLES = 64


# Dtypes of weight, gradient and window.
_Kind = tuple[torch.dtype, torch.dtype, torch.dtype]


class _Table(NamedTuple):
    """What a launch reads: rows of addresses, and which chunk belongs to which of them."""

    numbers: list[int]
    rows: Tensor
    chunks: Tensor
    num_chunks: int
    is_aligned: bool


class TritonBackend:
    """Does what :class:`~platon_prune.tensors.interface.Backend` says, all tensors in one launch.

    Args:
        block: Entries that one program works on, a power of 2.

    Attributes:
        num_plain: How many tensors of the last call took the plain path: they were not contiguous,
            or float64.
    """

    name: BackendName = "triton"

    def __init__(self, block: int = BLOCK) -> None:
        self.num_plain = 0
        self._block = block
        self._tables: dict[tuple, _Table] = {}

    def __reduce__(self) -> str:
        return "TRITON"  # a copy of a scheduler goes on with the one that is there

    def flag_non_finite_(self, gradients: Sequence[Tensor], flag: Tensor) -> None:
        """See :meth:`Backend.flag_non_finite_`."""
        groups: dict[torch.dtype, list[int]] = {}
        others = []
        address = _address_of(flag)
        for gradient in gradients:
            dtype = gradient.dtype
            if dtype not in TYPES or not gradient.is_contiguous():
                others.append(gradient)
                continue
            if dtype not in groups:
                groups[dtype] = []
            groups[dtype] += (address(gradient), gradient.numel())
        for dtype, numbers in groups.items():
            table = self._table((dtype,), numbers, 2, flag)
            self._launch(flag_kernel, table, flag, gradient_type=TYPES[dtype])
        if others:
            PLAIN.flag_non_finite_(others, flag)

    def accumulate_(
        self, tensors: Sequence[Operands], formula: Formula, flag: Tensor | None, masking: bool
    ) -> None:
        """See :meth:`Backend.accumulate_`."""
        groups: dict[_Kind, list[int]] = {}
        others, written = [], []
        address = _address_of(tensors[0].weight) if tensors else Tensor.data_ptr
        # Hundreds of tensors pass here at each step, so each line is written to be quick.
        for operands in tensors:
            weight, gradient, mask, window = operands
            dtype = weight.dtype
            kind = (
                dtype,
                dtype if gradient is None else gradient.dtype,
                torch.float32 if window is None else window.dtype,
            )
            if kind not in groups:
                if dtype not in TYPES or kind[1] not in TYPES:
                    others.append(operands)
                    continue
                groups[kind] = []
            if not (weight.is_contiguous() and (gradient is None or gradient.is_contiguous())):
                others.append(operands)
                continue
            written.append(weight)
            groups[kind] += (
                address(weight),
                0 if gradient is None else address(gradient),
                address(mask),
                0 if window is None else address(window),
                weight.numel(),
            )
        for kind, numbers in groups.items():
            table = self._table(kind, numbers, 5, tensors[0].weight)
            weights, gradients, windows = (TYPES[dtype] for dtype in kind)
            self._launch(
                accumulate_kernel, table, flag, formula=formula, is_guarded=flag is not None,
                masking=masking, weight_type=weights, gradient_type=gradients,
                window_type=windows,
            )  # fmt: skip
        if masking and written:
            # As an operation of torch would: autograd must see that what it saved has changed.
            torch.autograd.graph.increment_version(written)
        self.num_plain = len(others)
        if others:
            PLAIN.accumulate_(others, formula, flag, masking)

    def count_digits_(self, keys: Tensor, counts: Tensor, high: Tensor | None) -> None:
        """See :meth:`Backend.count_digits_`."""
        # 2^31 keys at most, which an int32 bin can count.
        for piece in keys.split(1 << 30) if keys.numel() else ():  # type: ignore[no-untyped-call]
            several = counts.new_zeros((NUM_HISTOGRAMS, NUM_DIGITS), dtype=torch.int32)
            if not isinstance(keys, FakeTensor):
                with _on(keys.device):
                    count_kernel[(-(-piece.numel() // self._block),)](
                        piece, several, high, piece.numel(), has_high=high is not None,
                        num_counts=NUM_HISTOGRAMS, size=self._block,
                    )  # fmt: skip
            counts.add_(several.sum(0))

    def _table(self, kind: tuple, numbers: list[int], width: int, like: Tensor) -> _Table:
        """The table of some rows on the device, sent only if a number in it has changed."""
        numels = numbers[width - 1 :: width]
        key = (like.device, *kind, *numels)
        kept = self._tables.get(key)
        if kept is not None and kept.numbers == numbers:
            return kept
        rows = _send(numbers, "q", like)
        is_aligned = not functools.reduce(operator.or_, numbers, 0) & 15
        if kept is not None:
            kept = kept._replace(numbers=numbers, rows=rows, is_aligned=is_aligned)
        else:
            if len(self._tables) >= MAX_TABLES:  # of models long gone
                self._tables.clear()
            chunks = [
                number
                for tensor, numel in enumerate(numels)
                for chunk in range(-(-numel // self._block))
                for number in (tensor, chunk)
            ]
            chunk_map = _send(chunks, "i", like)
            kept = _Table(numbers, rows, chunk_map, len(chunks) // 2, is_aligned)
        if not isinstance(rows, FakeTensor):  # kept, it would be taken for a real one
            self._tables[key] = kept
        return kept

    def _launch(self, kernel: Any, table: _Table, flag: Tensor | None, **constants: Any) -> None:
        if not table.num_chunks or isinstance(table.rows, FakeTensor):
            return
        with _on(table.rows.device):
            # Fused, a product and a sum would be rounded once, and differ from the plain twin's.
            kernel[(table.num_chunks,)](
                table.rows, table.chunks, flag, is_aligned=table.is_aligned, size=self._block,
                num_warps=NUM_WARPS, enable_fp_fusion=False, **constants,
            )  # fmt: skip


def _address_of(like: Tensor) -> Callable[[Tensor], int]:
    # A fake tensor has no address, and a launch over fake tensors does not take place.
    return Tensor.numel if isinstance(like, FakeTensor) else Tensor.data_ptr


def _send(numbers: list[int], code: str, like: Tensor) -> Tensor:
    """Some numbers where ``like`` is, without waiting for it; ``code`` is that of an array."""
    dtype = torch.int64 if code == "q" else torch.int32
    if isinstance(like, FakeTensor) or not numbers:
        return like.new_empty(len(numbers), dtype=dtype)
    # By way of an array: torch reads a list number by number, at ten times the price.
    host = torch.frombuffer(array(code, numbers), dtype=dtype)
    if like.device.type == "cpu":
        return host
    # Pinned memory is given out again only after the copy from it: it can be let go of here.
    return host.pin_memory().to(like.device, non_blocking=True)


def _on(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Triton launches on the current device, whatever its arguments are on."""
    if device.type == "cpu":  # in Triton's interpreter
        return contextlib.nullcontext()
    return torch.accelerator.device_index(device.index)


TRITON = TritonBackend()
