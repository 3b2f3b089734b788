"""What kind of machine measured something, and the versions it had; no name of it, no path."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from typing import Any

from platon_prune.version import __version__

PACKAGES = ("torch", "transformers", "scikit-learn", "numpy", "torch-pruning", "torchao", "nncf")


def machine_kind(device: str) -> dict[str, Any]:
    """Architecture, cores that this process may use, and the GPU's name if it is used."""
    import torch

    # In a container the machine may have more cores than this process may use.
    available = getattr(os, "sched_getaffinity", None)
    return {
        "architecture": platform.machine(),
        "cores": len(available(0)) if available else os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if device == "cuda" else None,
    }


def versions() -> dict[str, str]:
    """Versions of what decides numbers."""
    found = {"platon_prune": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
