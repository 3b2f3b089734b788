"""The forms of a model, each built from the same weights: what runs it, and what it takes to load.

A form that can't be built raises an error; its first line is what the report says of it.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.utils import prune

from platon_prune.deploy.form import (
    Form,
    Source,
    UnavailableError,
    call_in,
    call_of,
    dense_files,
    of_torch,
)
from platon_prune.example_inputs import as_dtype
from platon_prune.export.files import save
from platon_prune.masks.method import PlatonUnstructured
from platon_prune.runtimes.onnx_file import onnx_runner, write_onnx
from platon_prune.runtimes.openvino_file import openvino_runner, write_openvino
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


def shrunk(source: Source) -> Form:
    """Without the heads, neurons and channels that are masked."""
    model = copy.deepcopy(source.model)
    # From the masked model, since masks tell which groups were pruned as a whole.
    shrink(model, example_inputs=source.largest)
    return of_torch(source, model, "shrunk")


def half(source: Source, dtype: torch.dtype) -> Form:
    """Weights and activations in 16 bits."""
    name = name_of(dtype)
    if source.dtype == dtype:
        raise UnavailableError(f"the model is in {name} already, which is what dense measures")
    model = source.in_dtype(dtype)
    files = dense_files(model, source.folder / name)
    return Form(call_in(model, dtype), "torch", files, model, rounds=True)


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
    return Form(call_of(run), "compiled", dense_files(model, source.folder / "dense"), model)


def onnx(source: Source) -> Form:
    """ONNX Runtime on the CPU."""
    source.require_cpu()
    path, takes_all = _onnx_file(source)
    # The same number of threads as torch has, or the runtimes would not be compared.
    names, prepare = onnx_runner(path, source.num_threads)
    return Form(prepare, "onnx", _with_data(path), names=tuple(names), note=_sizes_note(takes_all))


def openvino(source: Source) -> Form:
    """OpenVINO on the CPU, from the ONNX file."""
    source.require_cpu()
    import openvino  # noqa: F401  # before the export, which takes long

    onnx_path, takes_all = _onnx_file(source)
    path = source.folder / "openvino.xml"
    write_openvino(onnx_path, path)
    names, prepare = openvino_runner(path, source.num_threads)
    files = (path, path.with_suffix(".bin"))
    return Form(prepare, "openvino", files, names=tuple(names), note=_sizes_note(takes_all))


# In the order of the table.
FORMS: Mapping[str, Callable[[Source], Form]] = {
    "dense": dense,
    "masked": masked,
    "float16": partial(half, dtype=torch.float16),
    "bfloat16": partial(half, dtype=torch.bfloat16),
    "CSR": csr,
    "shrunk": shrunk,
    "2:4": semi_structured,
    "compiled": compiled,
    "ONNX Runtime": onnx,
    "OpenVINO": openvino,
}
_ON_CPU = ("dense", "masked", "CSR", "shrunk", "2:4", "ONNX Runtime", "OpenVINO")
_ON_GPU = ("dense", "masked", "float16", "bfloat16", "shrunk", "2:4", "compiled")


def usual_forms(device: str) -> tuple[str, ...]:
    """The names of the forms that are measured on a device unless others are named."""
    return _ON_CPU if torch.device(device).type == "cpu" else _ON_GPU


# --- parts --------------------------------------------------------------------------------------


def _onnx_file(source: Source) -> tuple[Path, bool]:
    """The ONNX file, exported once for all who need it, and whether it takes every size."""
    # A file beside it notes that it takes one size only: two forms ask, one exports.
    path, mark = source.folder / "model.onnx", source.folder / "model.onnx.fixed"
    if not path.exists():
        # What the other runtimes read is made by these.
        import onnxscript  # noqa: F401

        inputs = [example.inputs for example in source.examples]
        if not write_onnx(source.dense, inputs, path):
            mark.touch()
    return path, not mark.exists()


def _with_data(path: Path) -> tuple[Path, ...]:
    data = path.with_name(path.name + ".data")
    return (path, data) if data.exists() else (path,)


def _sizes_note(takes_all: bool) -> str:
    return "" if takes_all else "torch can export this model for one size of inputs only"


def name_of(dtype: torch.dtype) -> str:
    """What a type is called in tables."""
    return str(dtype).removeprefix("torch.")
