"""`to_semi_structured`: linear layers with 2:4 weights for the sparse kernels of torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

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
from platon_prune.tables import table

_N, _M = 2, 4  # the one pattern that torch has kernels for
_OLDEST = (8, 0)  # compute capability
_TRIED = 128  # rows, columns and inputs of what the device is tried with


@dataclass(frozen=True)
class ConvertedLayer:
    """One linear layer: whether it is "2:4" now or still "dense", and why."""

    name: str
    shape: tuple[int, int]
    chosen: str
    reason: str


@dataclass(frozen=True)
class SemiStructuredReport:
    """What became of the linear layers of a model; prints as a table."""

    rows: tuple[ConvertedLayer, ...]

    def __iter__(self) -> Iterator[ConvertedLayer]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def num_converted(self) -> int:
        """How many layers were converted."""
        return sum(row.chosen == "2:4" for row in self.rows)

    def __str__(self) -> str:
        lines = [("layer", "shape", "chosen", "reason")]
        lines += [
            (row.name, "x".join(map(str, row.shape)), row.chosen, row.reason) for row in self.rows
        ]
        return f"{table(lines)}\n{self.num_converted} of {len(self)} linear layers are 2:4 now"


@torch.no_grad()
def to_semi_structured(
    model: nn.Module,
    *,
    include: str | Sequence[str] | None = None,
    exclude: str | Sequence[str] | None = None,
) -> nn.Module:
    """Make a finalized 2:4 model faster on a GPU: torch's kernels skip two of four products.

    Every linear layer that pruning selects by default (or by ``include``) is first verified to hold
    2:4. Then its weight is replaced by what ``torch.sparse.to_sparse_semi_structured`` makes of it;
    a Conv1D of transformers becomes an ``nn.Linear``. A layer stays dense if the kernels do not
    take its shape, if its weight is shared with another module, or if its parent may read it.

    Args:
        model: A model without masks, pruned by :func:`platon_prune.semi_structured` at 2:4 and
            finalized by :func:`platon_prune.remove`, in float16 or bfloat16 on a GPU; changed in
            place.
        include: Substrings of parameter names, if it was pruned by them.
        exclude: Substrings of names to leave dense.

    Returns:
        The same model; or, if it is itself a Conv1D, its replacement. What was done is its
        attribute ``semi_structured_report``, which prints as a table.

    Raises:
        ValueError: If the model carries masks, has no linear layer to convert, or a layer does not
            hold 2:4: names the layer and its first group. The model is untouched then.
        RuntimeError: If the device, the type of the weights or torch's build has no such kernels;
            says what is missing. The model is untouched then.

    Source:
        ``torch.sparse.to_sparse_semi_structured``.
    """
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
    # Tried for real: which kernels a build of torch has, no version or property tells.
    for device, dtype in {(layer.weight.device, layer.weight.dtype) for layer in chosen}:
        missing = try_conversion(device, dtype)
        if missing:
            raise RuntimeError(f"2:4 kernels need {missing}; the model is unchanged")
    converted = _converted(chosen, reasons)
    for layer, weight in converted:
        model = _put(layer, weight, model)
    model.semi_structured_report = _report(layers, reasons)  # type: ignore[assignment]
    return model


def try_conversion(device: torch.device, dtype: torch.dtype) -> str | None:
    """What 2:4 kernels lack on a device for a type of weights, found out by using them.

    Args:
        device: Where the weights are.
        dtype: Of the weights.

    Returns:
        What is missing, to follow "need"; None if the kernels work.
    """
    gpu = "a CUDA GPU of compute capability 8.0 or newer and weights in float16 or bfloat16"
    if device.type != "cuda":
        return f"{gpu}, got {device.type}: call model.half().cuda() first, or stay dense"
    capability = torch.cuda.get_device_capability(device)
    if capability < _OLDEST:
        return f"{gpu}, got {torch.cuda.get_device_name(device)} with {capability}: stay dense"
    weight = torch.randn(_TRIED, _TRIED, device=device).to(dtype)
    # A pattern that is known to be 2:4, whatever the weights of the model are.
    weight.view(-1, _M)[:, _N:] = 0
    inputs = torch.randn(_TRIED, _TRIED, device=device).to(dtype)
    expected = nn.functional.linear(inputs, weight)
    try:
        sparse = torch.sparse.to_sparse_semi_structured(weight)
        found = nn.functional.linear(inputs, sparse)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, NotImplementedError, ValueError) as error:
        return f"{gpu}, got {str(dtype).removeprefix('torch.')} weights and from torch: {error}"
    # Kernels of an unknown card may run and be wrong, which no error would tell.
    if not torch.allclose(found, expected, rtol=0.02, atol=0.1):
        return f"right results, got wrong ones from torch {torch.__version__} on {device}"
    return None


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
    if getattr(model, "semi_structured_report", None) is not None:
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
            reason = reason_against_groups(layer.module, layer.module.weight, _M)  # type: ignore[arg-type]
        if reason is not None:
            reasons[layer.name] = reason
    return layers, reasons


def _require_two_of_four(layer: Layer) -> None:
    weight: Tensor = layer.module.weight  # type: ignore[assignment]
    pattern = pattern_of(layer.name, weight, _N, _M, input_dim(layer.module, weight))
    if pattern.first is None:
        return
    # The user sees the four entries that break the pattern, not only where they are.
    start = pattern.first[pattern.dim]
    index: list[int | slice] = list(pattern.first)
    index[pattern.dim] = slice(start, start + _M)
    entries = [float(f"{entry:.3g}") for entry in weight[tuple(index)].tolist()]
    raise ValueError(
        f"{layer.name}.weight must have at most 2 entries that are not zero in every 4 along its "
        f"inputs, got {entries} in the group that begins at "
        f"{list(pattern.first)} ({pattern.num_broken} of {pattern.num_groups} groups have more): "
        "prune it with platon_prune.semi_structured(model, n=2, m=4) to the end of its schedule, "
        "or leave it dense with exclude=[...]"
    )


def _converted(layers: Sequence[Layer], reasons: dict[str, str]) -> list[tuple[Layer, Tensor]]:
    """The new weights; adds to the reasons why torch refuses some. Changes no layer."""
    converted: list[tuple[Layer, Tensor]] = []
    for layer in layers:
        try:
            sparse = torch.sparse.to_sparse_semi_structured(layer.weight.detach().contiguous())
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            reasons[layer.name] = f"refused by torch: {error}"
        else:
            converted.append((layer, sparse))
    if not converted:
        raise RuntimeError(
            "2:4 kernels need layers of shapes that they take, got: "
            + "; ".join(f"{name} {reason}" for name, reason in reasons.items())
        )
    return converted


def _put(layer: Layer, weight: Tensor, model: nn.Module) -> nn.Module:
    # torch has no gradients for these weights.
    parameter = nn.Parameter(weight, requires_grad=False)
    if not layer.transposed:
        layer.module.weight = parameter
        return model
    outputs, inputs = layer.shape
    # On meta, so that no dense weight is allocated only to be thrown away.
    linear = nn.Linear(inputs, outputs, device="meta")
    linear.weight = parameter
    linear.bias = layer.module.bias  # type: ignore[assignment]
    layer.replace(linear)
    return linear if layer.module is model else model


def _report(layers: Sequence[Layer], reasons: dict[str, str]) -> SemiStructuredReport:
    rows = (
        ConvertedLayer(
            layer.name,
            layer.shape,
            "dense" if layer.name in reasons else "2:4",
            reasons.get(layer.name, ""),
        )
        for layer in layers
    )
    return SemiStructuredReport(tuple(rows))
