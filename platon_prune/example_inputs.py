"""Example inputs of a model: how a tensor, a tuple or a mapping is passed to its forward."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn


def as_call(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Split example inputs into the arguments and the keyword arguments of one call.

    Args:
        inputs: A mapping of keyword arguments (a ``BatchEncoding`` is one), a tuple or list of
            arguments, or anything else, which is one argument.

    Returns:
        The two, for ``model(*args, **kwargs)``.
    """
    # First: transformers' BatchEncoding is a mapping that can also be iterated like a list.
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    return (tuple(inputs), {}) if isinstance(inputs, (tuple, list)) else ((inputs,), {})


def call_model(model: nn.Module, inputs: Any) -> Any:
    """Run a model on example inputs, which :func:`as_call` splits, and return its output."""
    args, kwargs = as_call(inputs)
    return model(*args, **kwargs)
