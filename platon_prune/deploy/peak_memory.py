"""A program of its own: loads one form of a model, runs it, and prints what memory that took.

It is started as a file, not as a part of the package, so that a process that runs ONNX Runtime or
OpenVINO holds no more than such a process needs. It imports no other file of the package.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import sys
from pathlib import Path
from typing import Any


def main(job: dict[str, Any]) -> None:
    """Do a job, and print a JSON object with "bytes", or with "reason" if it can't be measured.

    Args:
        job: "kind" of the form: "torch", "onnx" or "openvino"; "path" of the form's file, "inputs"
            the path of the inputs, "num_threads", and the "modules" to import first.
    """
    # Before memory is first looked at, since the model's code is not the form's memory.
    for name in job["modules"]:
        importlib.import_module(name)
    run = {"torch": _torch, "onnx": _onnx, "openvino": _openvino}[job["kind"]]
    print(json.dumps(run(job)))


def _torch(job: dict[str, Any]) -> dict[str, Any]:
    import torch

    # Each thread has buffers of its own, so their number is that of the timed runs.
    torch.set_num_threads(job["num_threads"])
    inputs = torch.load(job["inputs"], weights_only=True)
    before = _start()
    with torch.inference_mode():
        # Our own file, written a moment ago by the process that started this one.
        model = torch.load(job["path"], weights_only=False)
        for args, kwargs in inputs:
            model(*args, **kwargs)
    return _stop(before)


def _onnx(job: dict[str, Any]) -> dict[str, Any]:
    import numpy as np
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = job["num_threads"]
    before = _start()
    session = onnxruntime.InferenceSession(job["path"], options, providers=["CPUExecutionProvider"])
    session.run(None, dict(np.load(job["inputs"])))
    return _stop(before)


def _openvino(job: dict[str, Any]) -> dict[str, Any]:
    import numpy as np
    import openvino

    core = openvino.Core()
    before = _start()
    settings = {
        "INFERENCE_NUM_THREADS": job["num_threads"],
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
    }
    compiled = core.compile_model(job["path"], "CPU", settings)
    compiled(dict(np.load(job["inputs"])))
    return _stop(before)


def _start() -> int | None:
    """Memory before the form is loaded; the highest so far is forgotten where that can be done."""
    before = resident_bytes("VmRSS")
    if before is not None:
        # Where it can't be, libraries that took more while they were loaded count; few do.
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
    return before


def _stop(before: int | None) -> dict[str, Any]:
    peak = resident_bytes("VmHWM")
    if before is None or peak is None:
        return {"reason": "only Linux tells the highest memory of a process"}
    return {"bytes": peak - before}


def resident_bytes(entry: str) -> int | None:
    """This process's memory now (VmRSS) or at its highest (VmHWM), from the kernel's records."""
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    lines = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
    return 1024 * int(lines[entry].split()[0]) if entry in lines else None


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
