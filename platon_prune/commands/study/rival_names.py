"""Names of the rivals of the structured study; without torch, so that its help is quick."""

from __future__ import annotations

import importlib.util

RIVALS = ("tp-taylor", "tp-magnitude", "tp-hessian")


def is_installed() -> bool:
    """Whether torch-pruning is there."""
    return importlib.util.find_spec("torch_pruning") is not None
