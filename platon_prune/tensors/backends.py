"""The choice of a backend, which carries a step out on a device.

Weights and gradients belong to the model and lie anywhere, so what touches them is done for many
tensors in one call: by torch operations one tensor after another (`plain`), by torch's multi-tensor
operations (`foreach`), or by one Triton kernel over a table of addresses (`triton`).
"""

from __future__ import annotations

import functools
import importlib.util
import os
import sys

import torch
from torch import Tensor

from platon_prune.tensors.foreach_backend import FOREACH
from platon_prune.tensors.interface import Backend, BackendName, FixedList, Operands
from platon_prune.tensors.plain_backend import PLAIN

__all__ = [
    "Backend",
    "BackendName",
    "FixedList",
    "Operands",
    "address_of",
    "backend_for",
    "has_triton",
    "is_fake",
]

VARIABLE = "PLATON_PRUNE_BACKEND"


def backend_for(device: torch.device) -> Backend:
    """The fastest backend of a device, or the one that ``PLATON_PRUNE_BACKEND`` names.

    Raises:
        ValueError: If the variable names none, or Triton where it can't run.
    """
    name = os.environ.get(VARIABLE) or _fastest(device)
    if name == "plain":
        return PLAIN
    if name == "foreach":
        return FOREACH
    if name == "triton" and has_triton():
        from platon_prune.tensors.triton_backend import TRITON

        return TRITON
    wanted = "triton needs the package triton" if name == "triton" else f"got {name!r}"
    raise ValueError(f"{VARIABLE} must be plain, foreach or triton, {wanted}: unset it or mend it")


def address_of(tensor: Tensor) -> int | None:
    """Where its data lie; None for a fake tensor, which has none."""
    return None if is_fake(tensor) else tensor.data_ptr()


def is_fake(tensor: Tensor) -> bool:
    """Whether it has a device but no values: one of torch's ``FakeTensorMode``."""
    # Not imported for it: where nothing has, there are none, and it takes longer than we do.
    fakes = sys.modules.get("torch._subclasses.fake_tensor")
    return fakes is not None and isinstance(tensor, fakes.FakeTensor)


@functools.cache  # a search of the file system, otherwise at each step
def has_triton() -> bool:
    """Whether Triton is installed; torch's CUDA, ROCm and XPU wheels bring it."""
    return importlib.util.find_spec("triton") is not None


def _fastest(device: torch.device) -> str:
    if device.type == "cpu":
        # Operations cost little to start there, and in blocks they find their operands in cache.
        return "plain"
    return "triton" if device.type in ("cuda", "xpu") and has_triton() else "foreach"
