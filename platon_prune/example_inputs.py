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


def as_dtype(inputs: Any, dtype: torch.dtype) -> Any:
    """Example inputs with all of their floating-point tensors in a type."""
    return pytree.tree_map(
        lambda leaf: (
            leaf.to(dtype) if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf
        ),
        dict(inputs) if hasattr(inputs, "keys") else inputs,
    )


def guessed_inputs(model: nn.Module) -> Any | None:
    """Small inputs for a text, image, sound or series model of transformers; None for any other.

    They are a guess by its config: whether the model runs on them is not known.
    """
    kind = getattr(model, "main_input_name", None)
    if getattr(model, "config", None) is None:
        return None
    try:
        # Two examples: batch norms in training refuse a single one.
        if kind == "input_ids":
            return text_inputs(model, 2, 6)
        if kind == "pixel_values":
            return image_inputs(model, 2)
        if kind == "input_features":
            return spectrum_inputs(model, 1)
        return series_inputs(model, 2) if kind in ("input_values", "past_values") else None
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


def series_inputs(model: nn.Module, batch_size: int) -> dict[str, Tensor]:
    """Sounds or time series by a transformers config, the same in each call."""
    config: Any = model.config
    name = str(model.main_input_name)
    # Half a second of sound, of which a speech model's stem makes some two dozen frames.
    shape: tuple[int, ...] = (batch_size, 8000)
    if name == "past_values":
        shape = (batch_size, config.context_length, config.num_input_channels)
    return {name: torch.randn(shape, generator=torch.Generator().manual_seed(0))}


def spectrum_inputs(model: nn.Module, batch_size: int) -> dict[str, Tensor]:
    """Spectra of sounds as Whisper takes them, and tokens, by a transformers config."""
    config: Any = model.config
    # Its stem halves the frames, of which the model takes one number only.
    shape = (batch_size, config.num_mel_bins, 2 * config.max_source_positions)
    spectra = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    tokens = text_inputs(model, batch_size, 6)["input_ids"]
    return {"input_features": spectra, "decoder_input_ids": tokens}
