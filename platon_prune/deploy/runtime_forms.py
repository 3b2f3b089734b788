"""The forms that run outside of torch, from an exported file: ONNX Runtime and OpenVINO."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from platon_prune.deploy.form import Form, Source
from platon_prune.deploy.inputs import varied_inputs
from platon_prune.runtimes.int8 import import_nncf, write_int8_onnx, write_int8_openvino
from platon_prune.runtimes.onnx_file import onnx_runner, write_onnx
from platon_prune.runtimes.openvino_file import openvino_runner, write_openvino

_ROWS = 3  # of a batch that shows the exporter that there may be any number


def onnx(source: Source) -> Form:
    """ONNX Runtime on the CPU."""
    source.require_cpu()
    path, note = _onnx_file(source)
    return _onnx_form(source, path, note)


def onnx_int8(source: Source) -> Form:
    """ONNX Runtime with int8 weights, and activations that are rounded in each call."""
    source.require_cpu()
    source.require_float32()
    import onnxruntime.quantization  # noqa: F401  # before the export, which takes long

    onnx_path, note = _onnx_file(source)
    path = source.folder / "model_int8.onnx"
    write_int8_onnx(onnx_path, path)
    return _onnx_form(source, path, note, rounds_weights=True)


def openvino(source: Source) -> Form:
    """OpenVINO on the CPU, from the ONNX file."""
    source.require_cpu()
    import openvino  # noqa: F401  # before the export, which takes long

    onnx_path, note = _onnx_file(source)
    path = source.folder / "openvino.xml"
    write_openvino(onnx_path, path)
    return _openvino_form(source, path, note)


def openvino_int8(source: Source) -> Form:
    """OpenVINO with weights that NNCF has rounded to int8."""
    source.require_cpu()
    source.require_float32()
    import openvino  # noqa: F401

    import_nncf()
    onnx_path, note = _onnx_file(source)
    path = source.folder / "openvino_int8.xml"
    write_int8_openvino(onnx_path, path)
    return _openvino_form(source, path, note, rounds_weights=True)


# --- parts --------------------------------------------------------------------------------------


def _onnx_form(source: Source, path: Path, note: str, rounds_weights: bool = False) -> Form:
    # The same number of threads as torch has, or the runtimes would not be compared.
    names, prepare = onnx_runner(path, source.num_threads)
    return Form(
        prepare, "onnx", _with_data(path), names=tuple(names), note=note,
        rounds_weights=rounds_weights,
    )  # fmt: skip


def _openvino_form(source: Source, path: Path, note: str, rounds_weights: bool = False) -> Form:
    names, prepare = openvino_runner(path, source.num_threads)
    files = (path, path.with_suffix(".bin"))
    return Form(
        prepare, "openvino", files, names=tuple(names), note=note, rounds_weights=rounds_weights
    )


def _onnx_file(source: Source) -> tuple[Path, str]:
    """The ONNX file, exported once for all who need it, and what is to be said of it."""

    def write() -> tuple[Path, str]:
        # What the other runtimes read is made by these.
        import onnxscript  # noqa: F401

        path = source.folder / "model.onnx"
        inputs = [example.inputs for example in source.examples]
        others = _other_sizes(source) if source.any_batch else []
        if others and write_onnx(source.dense, [*inputs, *others], path):
            return path, ""
        # An evaluation with other batches than these will say what it can't run.
        takes_all = write_onnx(source.dense, inputs, path)
        return path, (
            "" if takes_all else "torch can export this model for one size of inputs only"
        )

    found: tuple[Path, str] = source.once("model.onnx", write)
    return found


def _other_sizes(source: Source) -> list[Any]:
    """Inputs with another number of rows, and of a text model with another length as well."""
    batch = _larger_batch(source.largest)
    others = [] if batch is None else [batch]
    with contextlib.suppress(ValueError):  # of a model that is no text or image model
        # Two, of which one may have the length that is measured.
        for other in varied_inputs(source.dense):
            # A caller may have passed more than a config tells of.
            if isinstance(source.largest, Mapping) and other.keys() == source.largest.keys():
                others.append(other)
    return others


def _larger_batch(inputs: Any) -> Any | None:
    """The same inputs several times over; None where no dimension of theirs is that of a batch."""
    sizes = {leaf.shape[:1] for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, Tensor)}
    if len(sizes) != 1 or sizes == {torch.Size()}:
        return None
    return pytree.tree_map(
        lambda leaf: torch.cat([leaf] * _ROWS) if isinstance(leaf, Tensor) else leaf, inputs
    )


def _with_data(path: Path) -> tuple[Path, ...]:
    data = path.with_name(path.name + ".data")
    return (path, data) if data.exists() else (path,)
