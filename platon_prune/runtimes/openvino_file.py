"""A model as OpenVINO's files, made from its ONNX file, and the same compiled for this CPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from platon_prune.runtimes.onnx_file import Runner, named_inputs


def write_openvino(onnx_path: Path, path: Path) -> None:
    """Convert an ONNX file.

    Args:
        onnx_path: What to read.
        path: File to write, ending in ".xml"; the weights go beside it, in a file ".bin".
    """
    import openvino

    # read_model, not convert_model: the latter reports its use to the makers of OpenVINO.
    model = openvino.Core().read_model(onnx_path)
    openvino.save_model(model, path, compress_to_fp16=False)


def openvino_runner(path: Path, num_threads: int) -> Runner:
    """Compile a file for OpenVINO on the CPU.

    Args:
        path: OpenVINO's ".xml" or an ONNX file.
        num_threads: Of OpenVINO.
    """
    import openvino

    settings: dict[str, Any] = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": num_threads,
        # Where the CPU has bfloat16, OpenVINO rounds to it unless it is told not to.
        "INFERENCE_PRECISION_HINT": "f32",
    }
    compiled = openvino.Core().compile_model(path, "CPU", settings)
    names = [entry.get_any_name() for entry in compiled.inputs]

    def prepare(example: Any) -> Callable[[], list[Tensor]]:
        feed = named_inputs(example, names)
        request = compiled.create_infer_request()

        def run() -> list[Tensor]:
            # Without it every call would copy its inputs first.
            results = request.infer(feed, share_inputs=True)
            return [torch.from_numpy(array) for array in results.to_tuple()]

        return run

    return Runner(names, prepare)
