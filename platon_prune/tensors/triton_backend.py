"""A step in two launches for all tensors, by Triton kernels over a table of addresses."""

from __future__ import annotations

import contextlib
import functools
import operator
from array import array
from collections.abc import Sequence
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from platon_prune.criteria import Formula
from platon_prune.tensors.capture import Capture
from platon_prune.tensors.interface import BackendName, FixedList, Operands
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
# Tables of one sort that are kept before all are dropped: most are then of models long gone.
MAX_TABLES = 64

# Dtypes of weight, gradient and window; of the gradient alone to flag.
_Kind = tuple[torch.dtype, ...]
# Of each gradient its dtype; None where there is none, and a layout where it is not contiguous.
_Forms = tuple[torch.dtype | torch.layout | None, ...]


class _Group(NamedTuple):
    """Tensors that are alike in dtypes: what one launch works on.

    Args:
        kind: The dtypes.
        chunks: Of each program, the number of a tensor and of a chunk of it.
        num_chunks: How many programs there are.
        is_aligned: Whether sizes and addresses are multiples of 16, those of gradients aside.
    """

    kind: _Kind
    chunks: Tensor
    num_chunks: int
    is_aligned: bool


class _Plan(NamedTuple):
    """What the launches over some tensors read, as long as only gradients move.

    Args:
        table: A row of each tensor, on the device.
        groups: Those that fit.
        written: The weights in them.
        others: The numbers of the tensors that fit none.
    """

    table: Tensor
    groups: Sequence[_Group]
    written: Sequence[Tensor]
    others: Sequence[int]


class _Numbers(NamedTuple):
    """Some numbers, and the same ones on a device; whether all are multiples of 16."""

    here: list[int]
    there: Tensor
    is_aligned: bool


class _PlansByForm:
    """Plans over one fixed list, by the forms of its gradients: mostly those of the last step."""

    def __init__(self) -> None:
        self._plans: dict[_Forms, _Plan] = {}
        self._last: tuple[_Forms, _Plan] | None = None

    def get(self, forms: _Forms) -> _Plan | None:
        # To compare hundreds of forms takes a fifth of the time that their hash takes.
        if self._last is not None and self._last[0] == forms:
            return self._last[1]
        plan = self._plans.get(forms)
        if plan is not None:
            self._last = forms, plan
        return plan

    def add(self, forms: _Forms, plan: _Plan) -> None:
        _make_room(self._plans)
        self._plans[forms] = plan


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
        # Numbers are looked up by themselves, and what holds tensors, or holds for them alone, by
        # the list of them until that is gone: by its `id` another list would find it.
        self._plans: WeakKeyDictionary[FixedList, _PlansByForm] = WeakKeyDictionary()
        # Of the flag, by the operands that the gradients lie beside.
        self._plans_beside: WeakKeyDictionary[FixedList, _PlansByForm] = WeakKeyDictionary()
        self._seen: WeakKeyDictionary[FixedList, tuple[_Forms, _Numbers]] = WeakKeyDictionary()
        self._flag_plans: dict[tuple, _Plan] = {}
        self._chunk_maps: dict[tuple, Tensor] = {}
        self._sent: dict[tuple, _Numbers] = {}

    def __reduce__(self) -> str:
        return "TRITON"  # a copy of a scheduler goes on with the one that is there

    def flag_non_finite_(self, gradients: Sequence[Tensor | None], flag: Tensor) -> None:
        """See :meth:`Backend.flag_non_finite_`."""
        forms, addresses = self._look_at(gradients, flag)
        plan = self._flag_plan(forms, gradients, flag)
        for group in plan.groups:
            types = {"gradient_type": TYPES[group.kind[0]]}
            self._launch(flag_kernel, plan.table, addresses, group, flag, **types)
        if plan.others:
            PLAIN.flag_non_finite_([gradients[i] for i in plan.others], flag)

    def accumulate_(
        self,
        tensors: Sequence[Operands],
        gradients: Sequence[Tensor | None] | None,
        formula: Formula,
        flag: Tensor | None,
        masking: bool | Tensor,
    ) -> None:
        """See :meth:`Backend.accumulate_`."""
        if not tensors:
            return
        gradients = [None] * len(tensors) if gradients is None else gradients
        forms, addresses = self._look_at(gradients, tensors[0].weight)
        plan = self._plan_of(tensors, forms, _capture_of(gradients))
        told = masking if isinstance(masking, Tensor) else None
        for group in plan.groups:
            weights, added, windows = (TYPES[dtype] for dtype in group.kind)
            self._launch(
                accumulate_kernel, plan.table, addresses, group, flag, told=told, formula=formula,
                is_guarded=flag is not None, masking=masking is not False,
                is_told=told is not None, weight_type=weights, gradient_type=added,
                window_type=windows,
            )  # fmt: skip
        if masking is not False and plan.written:
            # As an operation of torch would: autograd must see that what it saved has changed.
            torch.autograd.graph.increment_version(plan.written)
        self.num_plain = len(plan.others)
        if plan.others:
            rest = [tensors[i] for i in plan.others]
            PLAIN.accumulate_(rest, [gradients[i] for i in plan.others], formula, flag, masking)

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

    # --- what launches read -------------------------------------------------------------------

    def _plan_of(
        self, tensors: Sequence[Operands], forms: _Forms, capture: Capture | None
    ) -> _Plan:
        """A plan for tensors whose gradients have these forms; made once for a fixed list."""
        # A fake plan, kept, would be taken for a real one.
        if not isinstance(tensors, FixedList) or isinstance(tensors[0].weight, FakeTensor):
            return self._plan(tensors, forms)
        kept = self._plans.get(tensors) or self._plans.setdefault(tensors, _PlansByForm())
        plan = kept.get(forms)
        if plan is None:
            _require_warm_up(capture)
            plan = self._plan(tensors, forms)
            kept.add(forms, plan)
        return _kept_by(capture, plan)

    def _plan(self, tensors: Sequence[Operands], forms: _Forms) -> _Plan:
        like = tensors[0].weight
        members: dict[_Kind | None, list[int]] = {}
        rows: list[int] = []
        address = Tensor.numel if isinstance(like, FakeTensor) else Tensor.data_ptr
        for i, ((weight, mask, window), form) in enumerate(zip(tensors, forms, strict=True)):
            added = weight.dtype if form is None else form
            kind = None
            if weight.dtype in TYPES and added in TYPES and weight.is_contiguous():
                kind = (weight.dtype, added, torch.float32 if window is None else window.dtype)
            members.setdefault(kind, []).append(i)
            total = 0 if window is None else address(window)
            rows += (address(weight), address(mask), total, weight.numel())
        plan = self._grouped(members, rows, 4, like)
        others = set(plan.others)
        written = [one.weight for i, one in enumerate(tensors) if i not in others]
        return plan._replace(written=written)

    def _flag_plan(self, forms: _Forms, gradients: Sequence[Tensor | None], flag: Tensor) -> _Plan:
        """A plan for gradients of these forms; made once for the same operands, or sizes."""
        beside = gradients.beside if isinstance(gradients, FixedList) else None
        if beside is None or isinstance(flag, FakeTensor):
            return self._flag_plan_by_size(forms, gradients, flag)
        # What gradients lie beside is as large as they are, so that no size has to be asked for.
        kept = self._plans_beside.get(beside) or self._plans_beside.setdefault(
            beside, _PlansByForm()
        )
        plan = kept.get(forms)
        if plan is None:
            plan = self._flag_plan_by_size(forms, gradients, flag)
            kept.add(forms, plan)
        return _kept_by(_capture_of(gradients), plan)

    def _flag_plan_by_size(
        self, forms: _Forms, gradients: Sequence[Tensor | None], flag: Tensor
    ) -> _Plan:
        numels = [0 if each is None else each.numel() for each in gradients]
        key = (flag.device, forms, *numels)
        plan = None if isinstance(flag, FakeTensor) else self._flag_plans.get(key)
        capture = _capture_of(gradients)
        if plan is not None:
            return _kept_by(capture, plan)
        if not isinstance(flag, FakeTensor):
            _require_warm_up(capture)
        members: dict[_Kind | None, list[int]] = {}
        for i, form in enumerate(forms):
            if form is not None:
                members.setdefault((form,) if form in TYPES else None, []).append(i)
        plan = self._grouped(members, numels, 1, flag)
        if not isinstance(flag, FakeTensor):
            _make_room(self._flag_plans)
            self._flag_plans[key] = plan
        return plan

    def _grouped(
        self, members: dict[_Kind | None, list[int]], rows: list[int], width: int, like: Tensor
    ) -> _Plan:
        """A plan of tensors by kind, from rows that end with a size; those of no kind fit none."""
        others = members.pop(None, [])
        groups = []
        for kind, numbers in members.items():
            assert kind is not None
            numels = [0] * (len(rows) // width)
            bits = 0
            for i in numbers:
                row = rows[i * width : (i + 1) * width]
                numels[i] = row[-1]
                bits = functools.reduce(operator.or_, row, bits)
            chunks = self._chunk_map(numels, like)
            groups.append(_Group(kind, chunks, len(chunks) // 2, not bits & 15))
        return _Plan(self._send_once(f"rows of {width}", rows, like).there, groups, (), others)

    def _chunk_map(self, numels: list[int], like: Tensor) -> Tensor:
        """Which chunk of which tensor each program of a launch works on."""
        key = (like.device, *numels)
        chunks = None if isinstance(like, FakeTensor) else self._chunk_maps.get(key)
        if chunks is None:
            pairs = [
                number
                for tensor, numel in enumerate(numels)
                for chunk in range(-(-numel // self._block))
                for number in (tensor, chunk)
            ]
            chunks = _send(pairs, "i", like)
            if not isinstance(like, FakeTensor):
                _make_room(self._chunk_maps)
                self._chunk_maps[key] = chunks
        return chunks

    def _look_at(self, gradients: Sequence[Tensor | None], like: Tensor) -> tuple[_Forms, _Numbers]:
        """The forms of gradients, and where they are, 0 for none; once for flag and sum."""
        seen = self._seen.get(gradients) if isinstance(gradients, FixedList) else None
        if seen is not None:
            return seen
        is_fake = isinstance(like, FakeTensor)  # then there are no addresses, and none is kept
        addresses = [0 if each is None or is_fake else each.data_ptr() for each in gradients]
        capture = _capture_of(gradients)
        if capture is None or is_fake:
            numbers = self._send_once("gradients", addresses, like)
        else:
            # Not the table of other steps: those write theirs anew whenever a gradient moves.
            numbers = _Numbers(addresses, capture.send(addresses), _are_aligned(addresses))
        seen = _forms(gradients), numbers
        if isinstance(gradients, FixedList) and not is_fake:
            self._seen[gradients] = seen
        return seen

    def _send_once(self, role: str, numbers: list[int], like: Tensor) -> _Numbers:
        """Numbers on a device, sent only if one of them has changed."""
        key = (role, like.device, len(numbers))
        kept = None if isinstance(like, FakeTensor) else self._sent.get(key)
        if kept is not None and kept.here == numbers:
            return kept
        kept = _Numbers(numbers, _send(numbers, "q", like), _are_aligned(numbers))
        if not isinstance(like, FakeTensor):
            _make_room(self._sent)
            self._sent[key] = kept
        return kept

    def _launch(
        self, kernel: Any, table: Tensor, addresses: _Numbers, group: _Group, flag: Tensor | None,
        **others: Any,
    ) -> None:  # fmt: skip
        if not group.num_chunks or isinstance(addresses.there, FakeTensor):
            return
        with _on(table.device):
            # Fused, a product and a sum would be rounded once, and differ from the plain twin's.
            kernel[(group.num_chunks,)](
                table, addresses.there, group.chunks, flag,
                is_aligned=group.is_aligned and addresses.is_aligned, size=self._block,
                num_warps=NUM_WARPS, enable_fp_fusion=False, **others,
            )  # fmt: skip


def _forms(gradients: Sequence[Tensor | None]) -> _Forms:
    # From a list: a tuple of a generator takes twice as long, at each step.
    return tuple(
        [
            None if each is None else each.dtype if each.is_contiguous() else each.layout
            for each in gradients
        ]
    )


def _capture_of(gradients: Sequence[Tensor | None]) -> Capture | None:
    return gradients.capture if isinstance(gradients, FixedList) else None


def _kept_by(capture: Capture | None, plan: _Plan) -> _Plan:
    if capture is not None:
        capture.kept.append(plan)  # its graph reads it, whatever is dropped here
    return plan


def _require_warm_up(capture: Capture | None) -> None:
    """Raise a RuntimeError if a table would have to be made while a graph is recorded."""
    if capture is not None:
        raise RuntimeError(
            "a step that is captured must have gradients as a step before it had (the same ones, "
            "of the same dtypes and layouts), got others: take warm-up steps that do what the "
            "captured step does"
        )


def _are_aligned(numbers: Sequence[int]) -> bool:
    return not functools.reduce(operator.or_, numbers, 0) & 15


def _make_room(kept: dict) -> None:
    if len(kept) >= MAX_TABLES:
        kept.clear()


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
