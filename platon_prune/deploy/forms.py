"""The forms of a model, each built from the same weights: what runs it, and what it takes to load.

A form that can't be built raises an error; its first line is what the report says of it.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.utils import prune

from platon_prune.deploy.form import (
    Form,
    Source,
    UnavailableError,
    call_compiled,
    call_in,
    call_of,
    dense_files,
    name_of,
    of_torch,
)
from platon_prune.deploy.rounded_forms import compiled_int8, half, int8, int8_weights
from platon_prune.deploy.runtime_forms import onnx, onnx_int8, openvino, openvino_int8
from platon_prune.example_inputs import as_dtype
from platon_prune.export.files import save
from platon_prune.masks.method import PlatonUnstructured
from platon_prune.runtimes.semi_structured_inference import to_semi_structured
from platon_prune.runtimes.sparse_inference import to_sparse_inference
from platon_prune.runtimes.two_of_four_kernels import DTYPES
from platon_prune.shrinking.shrink import shrink


def finalized(model: nn.Module) -> nn.Module:
    """A model without masks: itself if it has none, else a copy with the zeros in its weights."""
    if not prune.is_pruned(model):  # type: ignore[no-untyped-call]
        return model
    with torch.no_grad():
        for module, method in _methods(model):
            if not isinstance(method, PlatonUnstructured):
                # Torch's methods leave the product of weight and mask on the module; with its
                # graph it could not be copied. The next forward makes it anew.
                setattr(module, method._tensor_name, method.apply_mask(module))
    model = copy.deepcopy(model)
    for module, method in _methods(model):
        prune.remove(module, method._tensor_name)  # type: ignore[no-untyped-call]
    return model


def _methods(model: nn.Module) -> list[tuple[nn.Module, Any]]:
    return [
        (module, hook)
        for module in model.modules()
        for hook in module._forward_pre_hooks.values()
        if isinstance(hook, prune.BasePruningMethod)
    ]


# --- one function a form ------------------------------------------------------------------------


def dense(source: Source) -> Form:
    """The ordinary model."""
    return of_torch(source, source.dense, "dense")


def masked(source: Source) -> Form:
    """The model as it is while it is being pruned."""
    if source.model is source.dense:
        raise UnavailableError("the model carries no masks")
    return of_torch(source, source.model, "masked")


def csr(source: Source) -> Form:
    """Linear layers as CSR, where each was measured to be faster so."""
    source.require_cpu()
    model = to_sparse_inference(copy.deepcopy(source.dense), source.largest)
    # Without a layer that gains it would be the dense model under another name.
    report: Any = model.sparse_report
    if not report.num_sparse:
        left = Counter(choice.reason for choice in report)
        reasons = "; ".join(f"{count} {reason}" for reason, count in left.items())
        raise UnavailableError(f"no linear layer is faster as CSR (left dense: {reasons})")
    path = source.folder / "csr.sparse"
    save(nn.ModuleDict({"model": source.dense}), path)
    products = Counter(choice.product for choice in report if choice.chosen == "sparse")
    by = " and ".join(f"{count} by {product}" for product, count in products.items())
    note = f"{report.num_sparse} of {len(report)} linear layers are CSR ({by}), the file is sparse"
    return Form(call_of(model), "torch", (path,), model, note=note)


def dense_of(source: Source, weights: str) -> Form:
    """The model with other weights than those of dense, as torch runs it."""
    source = WEIGHTS[weights](source)
    return of_torch(source, source.dense, "dense")


def _of_weights(source: Source, weights: str, build: Callable[[Source], Form]) -> Form:
    return build(WEIGHTS[weights](source))


def _shrunk(source: Source) -> Source:
    """Without the heads, neurons and channels that are masked."""

    def make() -> nn.Module:
        model = copy.deepcopy(source.model)
        # From the masked model, since masks tell which groups were pruned as a whole.
        shrink(model, example_inputs=source.largest)
        return model

    return source.of("shrunk", make)


def _unpruned(source: Source) -> Source:
    """As the model was before it was pruned."""

    def make() -> nn.Module:
        if source.unpruned is None:
            raise UnavailableError("the model before pruning was not given")
        return source.unpruned

    return source.of("unpruned", make)


def semi_structured(source: Source) -> Form:
    """Linear layers in the form of torch's 2:4 kernels, where each was measured to be faster so."""
    # The kernels take 16 bits alone.
    dtype = source.dtype if source.dtype in DTYPES else torch.float16
    model = to_semi_structured(source.in_dtype(dtype), as_dtype(source.largest, dtype))
    report: Any = model.semi_structured_report
    if not report.num_converted:
        left = Counter(row.reason for row in report)
        reasons = "; ".join(f"{count} {reason}" for reason, count in left.items())
        raise UnavailableError(f"no linear layer is faster as 2:4 (left dense: {reasons})")
    note = f"{report.num_converted} of {len(report)} linear layers are 2:4, the file is dense"
    if dtype != source.dtype:
        note += f"; in {name_of(dtype)}, with which it is to be compared"
    # Only the dense weights can be saved.
    files = dense_files(source.in_dtype(dtype), source.folder / "2of4")
    call = call_in(model, dtype)
    return Form(call, "torch", files, model, note=note, selected=source.dense, rounds=True)


def compiled(source: Source) -> Form:
    """The ordinary model through ``torch.compile``, for each size by itself."""
    model = copy.deepcopy(source.dense)
    run: Any = torch.compile(model, dynamic=False)
    return Form(call_compiled(run), "compiled", dense_files(model, source.folder / "dense"), model)


# In the order of the table; these are measured of other weights as well.
_RUNS: Mapping[str, Callable[[Source], Form]] = {
    "bfloat16": partial(half, dtype=torch.bfloat16),
    "int8 weights": int8_weights,
    "int8": int8,
    "compiled int8": compiled_int8,
    "ONNX Runtime": onnx,
    "ONNX Runtime int8": onnx_int8,
    "OpenVINO": openvino,
    "OpenVINO int8": openvino_int8,
}
# Other weights than those of dense; the form of this name runs them as they are.
WEIGHTS: Mapping[str, Callable[[Source], Source]] = {"shrunk": _shrunk, "unpruned": _unpruned}
FORMS: Mapping[str, Callable[[Source], Form]] = {
    "dense": dense,
    "masked": masked,
    "float16": partial(half, dtype=torch.float16),
    "bfloat16": _RUNS["bfloat16"],
    "CSR": csr,
    "shrunk": partial(dense_of, weights="shrunk"),
    "2:4": semi_structured,
    "compiled": compiled,
    **{name: build for name, build in _RUNS.items() if name != "bfloat16"},
    **{
        f"shrunk {name}": partial(_of_weights, weights="shrunk", build=build)
        for name, build in _RUNS.items()
    },
    "unpruned": partial(dense_of, weights="unpruned"),
    **{
        f"unpruned {name}": partial(_of_weights, weights="unpruned", build=build)
        for name, build in _RUNS.items()
    },
}
_ON_CPU = (
    "dense", "masked", "bfloat16", "CSR", "shrunk", "2:4", "ONNX Runtime", "OpenVINO",
)  # fmt: skip
_ON_GPU = ("dense", "masked", "float16", "bfloat16", "shrunk", "2:4", "compiled")


def usual_forms(device: str) -> tuple[str, ...]:
    """The names of the forms that are measured on a device unless others are named."""
    return _ON_CPU if torch.device(device).type == "cpu" else _ON_GPU


def int8_forms(with_unpruned: bool) -> tuple[str, ...]:
    """The names of those that int8 adds: of the weights as they are, shrunk, and unpruned."""
    weights = ("", "shrunk ", "unpruned ")[: 3 if with_unpruned else 2]
    return tuple(f"{of}{name}" for of in weights for name in _RUNS)


def weights_of(name: str) -> str:
    """The form that runs the same weights as another in the model's own type, by torch."""
    first = name.partition(" ")[0]
    return first if first in WEIGHTS else "dense"
