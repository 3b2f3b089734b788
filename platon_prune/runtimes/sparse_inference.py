"""`to_sparse_inference`: linear layers as CSR where that was measured to be faster than dense."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.utils import prune

from platon_prune.runtimes import llvm_product
from platon_prune.runtimes.linear_layers import (
    Layer,
    count_holders,
    find_layers,
    reason_to_skip,
    reason_to_stay_dense,
)
from platon_prune.runtimes.measuring import (
    WORTHWHILE,
    check_tokens,
    shortest_times,
    tokens_of,
)
from platon_prune.runtimes.sparse_linear import Product, SparseLinear
from platon_prune.tables import table
from platon_prune.tensors.blocks import count_kept
from platon_prune.timing import Clock, clock


@dataclass(frozen=True)
class LayerChoice:
    """One linear layer: what was measured, and whether it is "sparse" now or still "dense".

    Times are in milliseconds, None if the layer was not measured: the shortest of many calls that
    take turns. ``torch_ms`` is the time with torch's sparse product and ``llvm_ms`` with that of
    llvmlite, None without it. Layers of one shape and nearly the same number of zeros share a
    measurement. Density is None if it was not counted.
    """

    name: str
    shape: tuple[int, int]
    num_tokens: int
    chosen: str
    reason: str
    density: float | None = None
    dense_ms: float | None = None
    torch_ms: float | None = None
    llvm_ms: float | None = None

    @property
    def product(self) -> Product:
        """Which sparse product was the faster one, as far as both were measured."""
        if self.torch_ms is None or self.llvm_ms is None:
            return "torch"
        return "llvm" if self.llvm_ms < self.torch_ms else "torch"

    @property
    def sparse_ms(self) -> float | None:
        """The time with the faster one."""
        return min((ms for ms in (self.torch_ms, self.llvm_ms) if ms is not None), default=None)


@dataclass(frozen=True)
class SparseReport:
    """The choices for the linear layers of a model; prints as a table.

    Args:
        rows: A choice for each layer.
        without_llvm: Why LLVM's product was not measured, if it could not be.
    """

    rows: tuple[LayerChoice, ...]
    without_llvm: str | None = None

    def __iter__(self) -> Iterator[LayerChoice]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def num_sparse(self) -> int:
        """How many layers were converted."""
        return sum(row.chosen == "sparse" for row in self.rows)

    def __str__(self) -> str:
        times = [("dense ms", "dense_ms"), ("torch ms", "torch_ms"), ("llvm ms", "llvm_ms")]
        lines = [("layer", "shape", "density", "tokens", *(head for head, _ in times), "chosen")]
        lines += [
            (
                row.name,
                "x".join(map(str, row.shape)),
                "-" if row.density is None else f"{row.density:.2%}",
                str(row.num_tokens),
                *("-" if (ms := getattr(row, key)) is None else f"{ms:.3f}" for _, key in times),
                row.chosen,
            )
            for row in self.rows
        ]
        notes = [f"{self.num_sparse} of {len(self)} linear layers are sparse now"]
        left = Counter(row.reason for row in self.rows if row.chosen == "dense")
        notes += [f"left dense: {count} {reason}" for reason, count in left.items()]
        if self.without_llvm is not None and any(row.torch_ms is not None for row in self.rows):
            notes.append(f"measured without the product of LLVM: {self.without_llvm}")
        return "\n".join([table(lines), *notes])


@torch.no_grad()
def to_sparse_inference(
    model: nn.Module,
    example_inputs: Any = None,
    *,
    num_tokens: int | None = None,
    contiguous_outputs: bool = True,
    machine_code: bool = True,
    timed: Clock | None = None,
) -> nn.Module:
    """Make a finalized model faster on the CPU: its sparse linear layers skip their zeros.

    Each ``nn.Linear`` and each Conv1D of transformers is timed as it is and with its weight as
    CSR, for as many tokens as it will see and on as many threads as torch uses now: with torch's
    sparse product, and where llvmlite is installed with a faster one that it compiles. The layer is
    replaced by a :class:`~platon_prune.runtimes.sparse_linear.SparseLinear` with the faster one if
    that saves at least a tenth of its time, else left alone. Outputs stay equal up to float32
    rounding, and the dense weight of a replaced layer is freed.

    Whatever its zeros, a layer stays dense if it is not float32 on the CPU, if its weight is
    shared with another module (an embedding, say), or if its parent may read the weight.

    Args:
        model: A model without masks whose pruned weights are zero; changed in place. Finalize one
            that is being pruned with :func:`platon_prune.remove`.
        example_inputs: What the model will be called with: a tensor, a tuple of arguments, or a
            mapping of keyword arguments. It is run once to count the tokens of each layer.
        num_tokens: Instead of ``example_inputs``, rows that every layer sees in a call: batch size
            times sequence length. 128 if neither is given. More tokens gain less, so give the
            most that are usual.
        contiguous_outputs: Whether outputs are laid out as a dense layer's. False saves the copy
            that this takes after torch's product; code that joins dimensions of an output with
            ``.view`` then fails with torch's own error (``.reshape`` works).
        machine_code: Whether the product that llvmlite compiles may be tried. False is for
            systems that forbid a program to make code, and to measure torch's product alone.
        timed: How many milliseconds a function takes, such as
            ``platon_prune.timing.clock("cpu", processor_time=True)``; wall-clock time by default.

    Returns:
        The same model; or, if it is itself a linear layer that gains, its replacement. What was
        measured and chosen is its attribute ``sparse_report``, which prints as a table.

    Raises:
        ValueError: If the model carries masks, is converted already or is on another device, or
            a setting is out of range. The model is untouched then.
        TypeError: If ``num_tokens`` is not a whole number.

    Example:
        >>> model = to_sparse_inference(platon_prune.remove(model).eval(), num_tokens=128)
        >>> print(model.sparse_report)
    """
    _check_model(model)
    # All that can be refused, before the first layer is replaced.
    check_tokens(model, example_inputs, num_tokens)
    layers = find_layers(model)
    _check_device(layers)
    tokens = tokens_of(model, example_inputs, num_tokens, layers)
    holders = count_holders(model)
    measure = _Measure(clock("cpu") if timed is None else timed, machine_code)
    rows = []
    layers.reverse()
    while layers:
        # Nothing here keeps a layer alive once it is replaced, so memory never grows by much.
        layer = layers.pop()
        choice = _choose(layer, tokens.pop(layer.module), holders, measure)
        rows.append(choice)
        if choice.chosen == "sparse":
            sparse = _to_sparse(layer, contiguous_outputs, choice.product)
            layer.replace(sparse)
            model = sparse if layer.module is model else model
    without_llvm = llvm_product.why_not() if machine_code else "machine_code is False"
    model.sparse_report = SparseReport(tuple(rows), without_llvm)  # type: ignore[assignment]
    return model


def _check_model(model: nn.Module) -> None:
    if prune.is_pruned(model):  # type: ignore[no-untyped-call]
        raise ValueError(
            "model must not carry masks, got one that is being pruned: finalize it with "
            "platon_prune.remove(model), or torch.nn.utils.prune.remove for masks of torch's"
        )
    # A sparse layer has no dense weight to measure against.
    if any(isinstance(module, SparseLinear) for module in model.modules()):
        raise ValueError(
            "model must have dense layers, got one that is converted already: convert the dense "
            "model again"
        )


def _check_device(layers: list[Layer]) -> None:
    devices = {parameter.device.type for layer in layers for parameter in layer.module.parameters()}
    if devices and "cpu" not in devices:
        raise ValueError(
            f"model must be on the CPU, got one on {' and '.join(sorted(devices))}: call "
            "model.cpu() first"
        )


# --- the choice ---------------------------------------------------------------------------------


def _choose(layer: Layer, num_tokens: int, holders: Counter[int], measure: _Measure) -> LayerChoice:
    dense = LayerChoice(layer.name, layer.shape, num_tokens, "dense", "")
    reason = reason_to_skip(layer, num_tokens, holders)
    if reason is not None:
        return replace(dense, reason=reason)
    numel = layer.weight.numel()
    num_kept = count_kept(layer.weight, None)
    dense = replace(dense, density=num_kept / numel)
    reason = reason_to_stay_dense(num_kept, numel)
    if reason is not None:
        return replace(dense, reason=reason)
    times = measure(layer, num_tokens, num_kept)
    dense_ms, torch_ms, llvm_ms = times["dense_ms"], times["torch_ms"], times.get("llvm_ms")
    timed = replace(dense, dense_ms=dense_ms, torch_ms=torch_ms, llvm_ms=llvm_ms)
    if min(torch_ms, torch_ms if llvm_ms is None else llvm_ms) <= WORTHWHILE * dense_ms:
        return replace(timed, chosen="sparse", reason="faster")
    return replace(timed, reason=f"where CSR does not save {1 - WORTHWHILE:.0%} of the time")


class _Measure:
    """Times of a layer, dense and sparse, by their names; alike layers are measured once."""

    def __init__(self, timed: Clock, machine_code: bool) -> None:
        self._timed = timed
        self._machine_code = machine_code
        self._times: dict[Hashable, dict[str, float]] = {}

    def __call__(self, layer: Layer, num_tokens: int, num_kept: int) -> dict[str, float]:
        # In steps of a tenth, as fine as the margin that a layer must gain by.
        bucket = round(math.log(max(num_kept, 1), 1.1))
        has_bias = layer.module.bias is not None
        key = (type(layer.module), layer.shape, has_bias, num_tokens, bucket)
        if key not in self._times:
            self._times[key] = layer_times(layer, num_tokens, self._timed, self._machine_code)
        return self._times[key]


def layer_times(
    layer: Layer, num_tokens: int, timed: Clock, machine_code: bool = True
) -> dict[str, float]:
    """The shortest of many times of a layer, dense and with each sparse product that takes it.

    Args:
        layer: With its zeros.
        num_tokens: Rows of an input, which is random.
        timed: The clock.
        machine_code: Whether llvmlite's product may be tried.

    Returns:
        ``dense_ms``, ``torch_ms`` and, with llvmlite, ``llvm_ms``, in what the clock counts.
    """
    products: list[Product] = ["torch"]
    if machine_code and llvm_product.takes(layer.shape):
        products.append("llvm")
    # With the copy that makes outputs contiguous, whoever makes it in the end. The functions
    # are the bare forwards: hooks would count for both.
    forms = {"dense_ms": layer.module} | {
        f"{product}_ms": _to_sparse(layer, True, product) for product in products
    }
    # A generator of its own: the user's random numbers stay what they were.
    inputs = torch.randn(num_tokens, layer.shape[1], generator=torch.Generator().manual_seed(0))
    functions = [partial(form.forward, inputs) for form in forms.values()]
    with torch.no_grad():
        return dict(zip(forms, shortest_times(functions, timed), strict=True))


def _to_sparse(layer: Layer, contiguous_outputs: bool, product: Product) -> SparseLinear:
    bias = layer.module._parameters["bias"]
    return SparseLinear(layer.weight, bias, contiguous_output=contiguous_outputs, product=product)
