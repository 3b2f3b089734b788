"""Facts about a model, the kind of machine, and the libraries that took part."""

from __future__ import annotations

import contextlib
import importlib.metadata
import platform
from pathlib import Path
from typing import Any

import torch
from torch import nn

from platon_prune.reports.summary import summary
from platon_prune.version import __version__

_LIBRARIES = (
    "torch", "transformers", "onnx", "onnxscript", "onnxruntime", "openvino", "torchao", "nncf",
)  # fmt: skip


def model_facts(model: nn.Module, dtype: torch.dtype) -> dict[str, Any]:
    """The class, size, type and sparsity of a model."""
    try:
        sparsity = summary(model).total.sparsity
    except ValueError:
        sparsity = 0.0
    return {
        "class": type(model).__name__,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "dtype": str(dtype).removeprefix("torch."),
        "sparsity": sparsity,
    }


def machine_facts(device: str) -> dict[str, Any]:
    """The kind of machine; nothing that names this one."""
    processor = platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        models = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        processor = models[0].partition(":")[2].strip() if models else processor
    kind = torch.device(device).type
    is_cuda = kind == "cuda"
    other = f"CPU ({processor})" if kind == "cpu" else device
    return {
        "system": platform.system(),
        "architecture": platform.machine(),
        "processor": processor,
        "device": torch.cuda.get_device_name(device) if is_cuda else other,
        "threads": torch.get_num_threads(),
        **({"cuda": torch.version.cuda} if is_cuda else {}),
    }


def versions() -> dict[str, str]:
    """The version of each library that is installed."""
    versions = {"platon_prune": __version__, "python": platform.python_version()}
    for name in _LIBRARIES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions
