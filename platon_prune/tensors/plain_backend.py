"""A step by torch operations, one tensor after another, in blocks that stay in cache."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import torch
from torch import Tensor

from platon_prune.criteria import Formula
from platon_prune.tensors.blocks import Scratch, block_size, blocks, zero_pruned_
from platon_prune.tensors.interface import BackendName, FixedList, Operands
from platon_prune.tensors.together import Together

NUM_DIGITS = 1 << 16
# Added where nothing is to be added: x + -0 is x for every x, and -0 + 0 would be +0.
NOTHING = -0.0


class PlainBackend:
    """Does what :class:`~platon_prune.tensors.interface.Backend` says, for any strides and dtypes.

    It is the twin that the other backends equal, and what they give the tensors to that they
    can't take.
    """

    name: BackendName = "plain"

    def __init__(self) -> None:
        self._local = _OfThread()
        self._together = Together()

    def __reduce__(self) -> str:
        return "PLAIN"  # a copy of a scheduler goes on with the one that is there

    def flag_non_finite_(self, gradients: Sequence[Tensor | None], flag: Tensor) -> None:
        """See :meth:`Backend.flag_non_finite_`."""
        rest = gradients
        if isinstance(gradients, FixedList) and gradients.beside and not gradients.unread:
            rest = self._not_cleared(gradients, gradients.beside)
        # A NaN is both extremes. Unlike a sum, they can't overflow.
        present = [each for each in rest if each is not None and each.numel()]
        raise_flag_([extreme for each in present for extreme in torch.aminmax(each)], flag)

    def accumulate_(
        self,
        tensors: Sequence[Operands],
        gradients: Sequence[Tensor | None] | None,
        formula: Formula,
        flag: Tensor | None,
        masking: bool | Tensor,
    ) -> None:
        """See :meth:`Backend.accumulate_`."""
        if isinstance(masking, Tensor):
            self._accumulate_unread(tensors, gradients, formula, flag, masking)
            return
        is_skipped: bool | Tensor = False
        if flag is not None:
            # On a CPU there is nothing to wait for, and a look spares one walk through the sample.
            is_skipped = bool(flag) if flag.device.type == "cpu" else guard_of(flag)
        runs, numbers = self._together.plan(tensors)
        added = gradients or [None] * len(tensors)
        for run in runs:
            adds = gradients is not None and bool(run.windows) and is_skipped is not True
            if adds and not self._together.add(run, added, formula):
                numbers = numbers + run.numbers
            elif masking:
                run.zero_pruned_()
        scratch = self._local.scratch
        for i in numbers:
            _accumulate(tensors[i], added[i], formula, is_skipped, masking, scratch)

    def _accumulate_unread(
        self,
        tensors: Sequence[Operands],
        gradients: Sequence[Tensor | None] | None,
        formula: Formula,
        flag: Tensor | None,
        masking: Tensor,
    ) -> None:
        """The same as part of a graph: nothing is decided here, and temporaries are its own."""
        is_skipped: bool | Tensor = False if flag is None else guard_of(flag)
        # Those that others use too may be given up for larger ones while a graph still writes them.
        scratch, masks = Scratch(), guard_of(masking)
        for operands, gradient in zip(tensors, gradients or [None] * len(tensors), strict=True):
            _accumulate(operands, gradient, formula, is_skipped, masks, scratch)

    def _not_cleared(
        self, gradients: FixedList[Tensor | None], operands: FixedList[Operands]
    ) -> list[Tensor | None]:
        """The gradients that one sum over many does not tell to be finite."""
        runs, numbers = self._together.plan(operands)
        for run in runs:
            if not self._together.all_finite(run, gradients):
                numbers = numbers + run.numbers
        return [gradients[i] for i in numbers]

    def count_digits_(self, keys: Tensor, counts: Tensor, high: Tensor | None) -> None:
        """See :meth:`Backend.count_digits_`."""
        for piece in keys.split(block_size(keys.device)):  # type: ignore[no-untyped-call]
            digits = (piece >> 16).add_(NUM_DIGITS // 2)
            if keys.device.type == "cpu":
                if high is not None:
                    digits = piece[digits == high] & (NUM_DIGITS - 1)
                counts.add_(torch.bincount(digits, minlength=NUM_DIGITS))
                continue
            # bincount would wait there for the largest value.
            counted = counts.new_ones(1).expand(digits.numel())
            if high is not None:
                counted = digits.eq(high).to(counts.dtype)
                digits = piece & (NUM_DIGITS - 1)
            counts.scatter_add_(0, digits.to(torch.int64), counted)


class _OfThread(threading.local):
    """Temporaries of one thread: torch lets another one run inside an operation."""

    def __init__(self) -> None:
        self.scratch = Scratch()


def _accumulate(
    operands: Operands,
    gradient: Tensor | None,
    formula: Formula,
    is_skipped: bool | Tensor,
    masking: bool | Tensor,
    scratch: Scratch,
) -> None:
    weight, mask, window = operands
    if gradient is None or window is None or is_skipped is True:
        if masking is not False:
            for block, kept in blocks(weight, mask):
                _zero_pruned_(block, kept, masking, scratch)
        return
    for block, kept, grad, total in blocks(weight, mask, gradient, window):
        sample = _sample(block, grad, formula, scratch)
        if isinstance(is_skipped, Tensor):
            sample.masked_fill_(is_skipped, NOTHING)
        # With a bfloat16 window torch adds in float32 too, and rounds once.
        total.add_(sample)
        if masking is not False:
            _zero_pruned_(block, kept, masking, scratch)


def _zero_pruned_(block: Tensor, mask: Tensor, masking: bool | Tensor, scratch: Scratch) -> None:
    """Zero what a mask prunes; ``masking`` is True, or a bool tensor that says whether to."""
    if not isinstance(masking, Tensor):
        zero_pruned_(block, mask, scratch)
        return
    goes = torch.logical_not(mask, out=scratch.like(mask, torch.bool, role="goes"))
    block.masked_fill_(goes.logical_and_(masking), 0)


def guard_of(flag: Tensor) -> Tensor:
    """Whether an entry on the device is not 0: a bool tensor without dimensions, there too."""
    return flag.reshape(()).ne(0)


def raise_flag_(values: list[Tensor] | tuple[Tensor, ...], flag: Tensor) -> None:
    """Set ``flag`` to 1 if one of some tensors without dimensions is not finite; no wait."""
    if values:
        flag.masked_fill_(torch.stack(values).isfinite().all().logical_not_(), 1)


def _sample(weight: Tensor, gradient: Tensor, formula: Formula, scratch: Scratch) -> Tensor:
    """What one step adds, in float32; valid until the next call."""
    if formula == "squared_gradient":
        return _product(gradient, gradient, scratch)
    product = _product(weight, gradient, scratch)
    return product.abs_() if formula == "abs_product" else product.neg_()


def _product(first: Tensor, second: Tensor, scratch: Scratch) -> Tensor:
    """Both brought to float32, then multiplied: a product in bfloat16 would keep 8 bits."""
    out = scratch.like(first, torch.float32)
    dtypes = {first.dtype, second.dtype}
    # Of two types torch multiplies in the one that holds both: for bfloat16 and float16, float32.
    if torch.float64 not in dtypes and (len(dtypes) == 2 or torch.float32 in dtypes):
        return torch.mul(first, second, out=out)
    if second.dtype == torch.float64:  # else torch would multiply in float64
        second = scratch.like(second, torch.float32, role="second").copy_(second)
    return out.copy_(first).mul_(second)


PLAIN = PlainBackend()
