"""Example inputs of a model: how they are passed to its forward, and made from its config."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree


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


def moved_to(inputs: Any, device: torch.device | str) -> Any:
    """Example inputs with all of their tensors on a device."""
    return pytree.tree_map(
        lambda leaf: leaf.to(device) if isinstance(leaf, Tensor) else leaf,
        dict(inputs) if hasattr(inputs, "keys") else inputs,
    )


def guessed_inputs(model: nn.Module) -> Any | None:
    """Small inputs for a text or image model of transformers; None for any other.

    They are a guess by its config: whether the model runs on them is not known.
    """
    kind = getattr(model, "main_input_name", None)
    if getattr(model, "config", None) is None or kind not in ("input_ids", "pixel_values"):
        return None
    try:
        # Two examples: batch norms in training refuse a single one.
        return text_inputs(model, 2, 6) if kind == "input_ids" else image_inputs(model, 2)
    except (AttributeError, TypeError, ValueError, RuntimeError):  # a config of another kind
        return None


def text_inputs(model: nn.Module, batch_size: int, num_tokens: int) -> dict[str, Tensor]:
    """Tokens by a transformers config, the same in each call."""
    generator = torch.Generator().manual_seed(0)
    config: Any = model.config
    vocabulary = config.get_text_config().vocab_size
    shape = (batch_size, num_tokens)
    tokens = torch.randint(vocabulary, shape, generator=generator)
    padding = getattr(config, "pad_token_id", None)
    if padding is not None and vocabulary > 1:
        # Some models count the positions of tokens that are no padding.
        tokens[tokens == padding] = (padding + 1) % vocabulary
    inputs = {"input_ids": tokens}
    accepted = inspect.signature(model.forward).parameters
    if "attention_mask" in accepted:
        inputs["attention_mask"] = torch.ones(shape, dtype=torch.int64)
    if getattr(config, "is_encoder_decoder", False):
        inputs["decoder_input_ids"] = tokens
    return inputs


def image_inputs(model: nn.Module, batch_size: int) -> dict[str, Tensor]:
    """Images by a transformers config, the same in each call."""
    config: Any = model.config
    size = getattr(config, "image_size", None) or 64  # any will do for a model that has none
    height, width = size if isinstance(size, (tuple, list)) else (size, size)
    shape = (batch_size, getattr(config, "num_channels", 3), height, width)
    return {"pixel_values": torch.randn(shape, generator=torch.Generator().manual_seed(0))}
