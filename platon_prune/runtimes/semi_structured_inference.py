"""`to_semi_structured`: linear layers as 2:4 for sparse kernels, where that was measured to pay."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from platon_prune.masks.input_dims import input_dim, reason_against_groups
from platon_prune.masks.targets import find_tensors
from platon_prune.reports.n_of_m_patterns import pattern_of
from platon_prune.runtimes.linear_layers import (
    Layer,
    count_holders,
    find_layers,
    reason_against_replacing,
)
from platon_prune.runtimes.measuring import WORTHWHILE, check_tokens, tokens_of
from platon_prune.runtimes.semi_structured_times import LayerTimes, Measure, as_linear, convert_by
from platon_prune.runtimes.two_of_four_kernels import KERNELS, Convert, M, N, usable_kernels
from platon_prune.tables import table
from platon_prune.timing import Clock, clock


@dataclass(frozen=True)
class ConvertedLayer:
    """One linear layer: what was measured, and whether it is "2:4" now or still "dense", and why.

    Times are milliseconds of a call, None or left out if the layer was not measured: the shortest
    of many that take turns. Layers of one shape share a measurement.
    """

    name: str
    shape: tuple[int, int]
    chosen: str
    reason: str
    num_tokens: int = 0
    dense_ms: float | None = None
    kernel_ms: Mapping[str, float] = field(default_factory=dict)
    kernel: str = ""


@dataclass(frozen=True)
class SemiStructuredReport:
    """What became of the linear layers of a model; prints as a table.

    Args:
        rows: The layers, in the order of the model.
        compiled: Whether they were timed as ``torch.compile`` makes them.
    """

    rows: tuple[ConvertedLayer, ...]
    compiled: bool = False

    def __iter__(self) -> Iterator[ConvertedLayer]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def num_converted(self) -> int:
        """How many layers were converted."""
        return sum(row.chosen == "2:4" for row in self.rows)

    def __str__(self) -> str:
        heads = ("layer", "shape", "tokens", "dense ms", *(f"{name} ms" for name in KERNELS))
        lines = [(*heads, "chosen")]
        for row in self.rows:
            times = (row.dense_ms, *(row.kernel_ms.get(name) for name in KERNELS))
            shown = ("-" if each is None else f"{each:.3f}" for each in times)
            shape, tokens = "x".join(map(str, row.shape)), str(row.num_tokens or "-")
            lines.append((row.name, shape, tokens, *shown, row.kernel or row.chosen))
        notes = [f"{self.num_converted} of {len(self)} linear layers are 2:4 now"]
        left = Counter(row.reason for row in self.rows if row.chosen == "dense")
        notes += [f"left dense: {count} {reason}" for reason, count in left.items()]
        notes += ["timed as torch.compile makes them"] if self.compiled else []
        return "\n".join([table(lines), *notes])


@torch.no_grad()
def to_semi_structured(
    model: nn.Module,
    example_inputs: Any = None,
    *,
    num_tokens: int | None = None,
    include: str | Sequence[str] | None = None,
    exclude: str | Sequence[str] | None = None,
    compiled: bool = False,
    timed: Clock | None = None,
) -> nn.Module:
    """Make a finalized 2:4 model faster on a GPU, where sparse kernels are: none becomes slower.

    Every linear layer that pruning selects by default (or by ``include``) is first verified to hold
    2:4. Then each is timed as it is and with its weight in the form of each kernel that works here
    (cuSPARSELt's and CUTLASS's), for as many tokens as it will see. It gets the fastest form if
    that saves at least a tenth of its time, else it is left alone; a Conv1D of transformers becomes
    an ``nn.Linear``. A layer stays dense as well if the kernels do not take its shape, if its
    weight is shared with another module, or if its parent may read it.

    Args:
        model: A model without masks, pruned by :func:`platon_prune.semi_structured` at 2:4 and
            finalized by :func:`platon_prune.remove`, in float16 or bfloat16 on a GPU; changed in
            place.
        example_inputs: What the model will be called with: a tensor, a tuple of arguments, or a
            mapping of keyword arguments. It is run once to count the tokens of each layer.
        num_tokens: Instead of ``example_inputs``, rows that every layer sees in a call: batch size
            times sequence length. 128 if neither is given. Fewer tokens gain less, so give the
            fewest that are usual.
        include: Substrings of parameter names, if it was pruned by them.
        exclude: Substrings of names to leave dense.
        compiled: Whether the model will be run by ``torch.compile``: layers are timed so, which
            takes some seconds for each shape.
        timed: How many milliseconds a function takes; wall-clock time by default, until the
            device is done.

    Returns:
        The same model; or, if it is itself a Conv1D that gains, its replacement. What was measured
        and chosen is its attribute ``semi_structured_report``, which prints as a table.

    Raises:
        ValueError: If the model carries masks, has no linear layer to convert, a layer does not
            hold 2:4 (names the layer and its first group), or a setting is out of range. The model
            is untouched then.
        TypeError: If ``num_tokens`` is not a whole number.
        RuntimeError: If the device, the type of the weights or torch's build has no such kernels;
            says what is missing. The model is untouched then.

    Source:
        ``torch.sparse.to_sparse_semi_structured``.
    """
    check_tokens(model, example_inputs, num_tokens)
    layers, reasons = _candidates(model, include, exclude)
    chosen = [layer for layer in layers if layer.name not in reasons]
    if not chosen:
        raise ValueError(
            "model must have linear layers that can be 2:4, got "
            + ("; ".join(f"{n} {reason}" for n, reason in reasons.items()) or "none")
        )
    # Everything is verified and converted before the first layer changes: all or nothing.
    for layer in chosen:
        _require_two_of_four(layer)
    kernels = {kind: _kernels_of(*kind) for kind in {_kind(layer) for layer in chosen}}
    tokens = tokens_of(model, example_inputs, num_tokens, layers)
    measure = Measure(lambda device: timed or clock(str(device)), compiled)
    rows, converted = [], []
    for layer in layers:
        row = ConvertedLayer(layer.name, layer.shape, "dense", reasons.get(layer.name, ""))
        if layer.name not in reasons:
            row, weight = _choose(row, layer, tokens[layer.module], kernels[_kind(layer)], measure)
            converted += [] if weight is None else [(layer, weight)]
        rows.append(row)
    _require_shapes(rows, {layer.name for layer in chosen})
    for layer, weight in converted:
        model = _put(layer, weight, model)
    model.semi_structured_report = SemiStructuredReport(tuple(rows), compiled)  # type: ignore[assignment]
    return model


def _kind(layer: Layer) -> tuple[torch.device, torch.dtype]:
    return layer.weight.device, layer.weight.dtype


def _kernels_of(device: torch.device, dtype: torch.dtype) -> dict[str, Convert]:
    kernels, missing = usable_kernels(device, dtype)
    if missing:
        raise RuntimeError(f"2:4 kernels need {missing}; the model is unchanged")
    return kernels


def _candidates(
    model: nn.Module,
    include: str | Sequence[str] | None,
    exclude: str | Sequence[str] | None,
) -> tuple[list[Layer], dict[str, str]]:
    """The selected linear layers, and why some of them stay dense."""
    if prune.is_pruned(model):  # type: ignore[no-untyped-call]
        raise ValueError(
            "model must not carry masks, got one that is being pruned: finalize it with "
            "platon_prune.remove(model), or torch.nn.utils.prune.remove for masks of torch's"
        )
    report: Any = getattr(model, "semi_structured_report", None)
    # One in which nothing gained may be tried again, for other inputs.
    if report is not None and report.num_converted:
        raise ValueError(
            "model must have dense layers, got one that is converted already: convert the dense "
            "model again"
        )
    # By identity: the names of layers and of tensors are listed in different orders.
    selected = {(id(module), key) for _, module, key in find_tensors(model, include, exclude)}
    layers = [layer for layer in find_layers(model) if (id(layer.module), "weight") in selected]
    holders = count_holders(model)
    reasons = {}
    for layer in layers:
        reason = reason_against_replacing(layer, holders)
        if reason is None:
            reason = reason_against_groups(layer.module, layer.module.weight, M)  # type: ignore[arg-type]
        if reason is not None:
            reasons[layer.name] = reason
    return layers, reasons


def _require_two_of_four(layer: Layer) -> None:
    weight: Tensor = layer.module.weight  # type: ignore[assignment]
    pattern = pattern_of(layer.name, weight, N, M, input_dim(layer.module, weight))
    if pattern.first is None:
        return
    # The user sees the four entries that break the pattern, not only where they are.
    start = pattern.first[pattern.dim]
    index: list[int | slice] = list(pattern.first)
    index[pattern.dim] = slice(start, start + M)
    entries = [float(f"{entry:.3g}") for entry in weight[tuple(index)].tolist()]
    raise ValueError(
        f"{layer.name}.weight must have at most 2 entries that are not zero in every 4 along its "
        f"inputs, got {entries} in the group that begins at "
        f"{list(pattern.first)} ({pattern.num_broken} of {pattern.num_groups} groups have more): "
        "prune it with platon_prune.semi_structured(model, n=2, m=4) to the end of its schedule, "
        "or leave it dense with exclude=[...]"
    )


# --- the choice ---------------------------------------------------------------------------------


def _choose(
    row: ConvertedLayer,
    layer: Layer,
    num_tokens: int,
    kernels: Mapping[str, Convert],
    measure: Measure,
) -> tuple[ConvertedLayer, Tensor | None]:
    """The row of a layer that could be 2:4, and its new weight; None if it stays dense."""
    if num_tokens == 0:
        return replace(row, reason="that example_inputs do not reach"), None
    times = measure(layer, num_tokens, kernels)
    row = replace(row, num_tokens=num_tokens, dense_ms=times.dense_ms, kernel_ms=times.kernel_ms)
    if times.dense_ms is None:
        # One sentence is enough: kernels differ in the smallest shape that they take.
        return replace(row, reason=next(iter(times.refused.values()))), None
    kernel = min(times.kernel_ms, key=lambda name: times.kernel_ms[name])
    if times.kernel_ms[kernel] > WORTHWHILE * times.dense_ms:
        return replace(
            row, reason=f"where 2:4 does not save {1 - WORTHWHILE:.0%} of the time"
        ), None
    weight = _weight_by(kernel, kernels, layer, times)
    return replace(row, chosen="2:4", kernel=kernel), weight


def _weight_by(
    kernel: str, kernels: Mapping[str, Convert], layer: Layer, times: LayerTimes
) -> Tensor:
    if kernel in times.converted:
        return times.converted[kernel]
    converted, _ = convert_by({kernel: kernels[kernel]}, layer)
    return converted[kernel]


def _require_shapes(rows: Sequence[ConvertedLayer], names: set[str]) -> None:
    """Raise a RuntimeError if no kernel takes the shape of any layer that was tried."""
    tried = [row for row in rows if row.name in names and row.num_tokens]
    if tried and all(row.dense_ms is None for row in tried):
        raise RuntimeError(
            "2:4 kernels need layers of shapes that they take, got: "
            + "; ".join(f"{row.name} {row.reason}" for row in rows)
        )


def _put(layer: Layer, weight: Tensor, model: nn.Module) -> nn.Module:
    if not layer.transposed:
        # torch has no gradients for these weights.
        layer.module.weight = nn.Parameter(weight, requires_grad=False)
        return model
    linear = as_linear(layer, weight)
    layer.replace(linear)
    return linear if layer.module is model else model
