"""Models and files with int8 weights: by torchao, ONNX Runtime and NNCF, each zero an exact zero.

All of them round symmetrically, with a scale for each output of a matrix and none for a zero point,
so that 0 is 0 and what was pruned stays pruned.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

_NO_REPORTS = "NNCF_CI"


def has_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 by itself, without which it is slower than float32."""
    found = torch.cpu.get_capabilities()
    return any(found.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16"))


def has_vnni() -> bool:
    """Whether this CPU adds products of int8 up in 32 bits; older x86 cuts sums of two at 16."""
    found = torch.cpu.get_capabilities()
    return found["architecture"] not in ("x86", "x86_64") or any(
        found.get(name, False) for name in ("avx512_vnni", "avx_vnni", "amx_int8")
    )


def quantize_(model: nn.Module, *, activations: bool) -> int:
    """Round the weights of a model's ``nn.Linear`` to int8 by torchao, in place.

    Args:
        model: Without masks, in evaluation mode, its weights in float32.
        activations: Whether inputs of these layers are rounded too, token by token in each call.

    Returns:
        The number of layers that have int8 weights now.
    """
    from torchao.quantization import (
        Int8DynamicActivationInt8WeightConfig,
        Int8WeightOnlyConfig,
        quantize_,
    )

    kind = Int8DynamicActivationInt8WeightConfig if activations else Int8WeightOnlyConfig
    quantize_(model, kind())
    # torchao passes over layers of kinds that it does not know, and says nothing.
    layers = [
        module
        for module in model.modules()
        if isinstance(module, nn.Linear) and is_traceable_wrapper_subclass(module.weight)
    ]
    for layer in layers:
        # A text for people that torchao hangs on each layer, with which it could not be pickled.
        vars(layer).pop("extra_repr", None)
    return len(layers)


def write_int8_onnx(onnx_path: Path, path: Path) -> None:
    """Round the weights of an ONNX file to int8 by ONNX Runtime; activations are in each call.

    Args:
        onnx_path: What to read.
        path: File to write; where ``onnx_path`` keeps its weights in a second file, so does this.

    Raises:
        ValueError: If it rounds none.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    large = onnx_path.with_name(onnx_path.name + ".data").exists()
    with _quietly():
        quantize_dynamic(
            onnx_path,
            path,
            # Signed, which ONNX Runtime rounds symmetrically; unsigned would move 0.
            weight_type=QuantType.QInt8,
            per_channel=True,
            # With 7 bits no sum of two products is cut, where the CPU would.
            reduce_range=not has_vnni(),
            use_external_data_format=large,
        )
    stored = onnx.load(path, load_external_data=False).graph.initializer
    # A zero point is one number for each output, of which there may be a single one.
    _require_rounded(
        any(each.data_type == onnx.TensorProto.INT8 and len(each.dims) > 1 for each in stored),
        "ONNX Runtime",
    )


def write_int8_openvino(onnx_path: Path, path: Path) -> None:
    """Convert an ONNX file to OpenVINO's with weights of int8, by NNCF.

    OpenVINO rounds activations by itself in each call, where its CPU plugin has a kernel for that.

    Args:
        onnx_path: What to read.
        path: File to write, ending in ".xml"; the weights go beside it, in a file ".bin".

    Raises:
        ValueError: If it rounds none.
    """
    import openvino

    nncf = import_nncf()
    with _quietly():
        model = openvino.Core().read_model(onnx_path)
        model = nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_SYM)
    constants = (node for node in model.get_ops() if node.get_type_name() == "Constant")
    _require_rounded(any(each.get_element_type() == openvino.Type.i8 for each in constants), "NNCF")
    openvino.save_model(model, path, compress_to_fp16=False)


def _require_rounded(is_rounded: bool, by: str) -> None:
    # What comes out would be float32 under another name.
    if not is_rounded:
        raise ValueError(f"the model has no weight that {by} rounds to int8")


def import_nncf() -> Any:
    """NNCF, which sends no word of its use.

    Raises:
        ModuleNotFoundError: If it is not installed.
    """
    # It decides when it is imported whether to report its use to its makers.
    given = os.environ.get(_NO_REPORTS)
    os.environ[_NO_REPORTS] = "1"
    try:
        with _quietly():
            return importlib.import_module("nncf")
    finally:
        if given is None:
            del os.environ[_NO_REPORTS]
        else:
            os.environ[_NO_REPORTS] = given


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Without advice, tables and bars of progress; errors are raised as ever."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(before)
