"""Example inputs of a model: made from a transformers config, or as the caller gives them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from platon_prune.example_inputs import image_inputs, moved_to, text_inputs

DEFAULT_NUM_TOKENS = (8, 32, 128)
_LENGTH_LIMITS = ("max_position_embeddings", "n_positions")


@dataclass(frozen=True)
class Example:
    """Inputs of one size.

    Args:
        label: How tables call the size.
        inputs: A tensor, a tuple of arguments, or a mapping of keyword arguments.
    """

    label: str
    inputs: Any


def make_examples(
    model: nn.Module, example_inputs: Any, num_tokens: Sequence[int] | None, batch_size: int
) -> list[Example]:
    """One example per size.

    Args:
        model: Asked for its config where there are no ``example_inputs``.
        example_inputs: As :func:`platon_prune.deploy_report` takes them.
        num_tokens: Lengths of a sequence; None for the default ones, or where they do not apply.
        batch_size: Sequences or images in a call.

    Raises:
        ValueError: If a setting can't be used with this model.
    """
    for name, value in [("batch_size", batch_size), *(("num_tokens", n) for n in num_tokens or ())]:
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be whole numbers from 1, got {value!r}")
    # Made on the CPU from one seed, then moved: equal inputs on every device.
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    if example_inputs is None:
        examples = _from_config(model, num_tokens, batch_size)
    # Asked before num_tokens is refused: a function is told the number.
    elif callable(example_inputs):
        sizes = num_tokens or DEFAULT_NUM_TOKENS
        examples = [Example(f"{size} tokens", example_inputs(size)) for size in sizes]
    elif num_tokens is not None:
        raise ValueError(
            "num_tokens must be left out where example_inputs are given, got both: drop one, or "
            "give a function from a number of tokens to inputs as example_inputs"
        )
    else:
        examples = [Example(_shape_label(example_inputs), example_inputs)]
    return [Example(example.label, moved_to(example.inputs, device)) for example in examples]


def varied_inputs(model: nn.Module) -> list[Any]:
    """Inputs of two sizes from a model's config: what may have any size differs between them.

    Raises:
        ValueError: If the model is no text or image model of transformers.
    """
    # Not 1, to which torch's exporter would fix a dimension.
    small = _from_config(model, None if _is_image_model(model) else (6,), 2)
    large = _from_config(model, None if _is_image_model(model) else (8,), 3)
    return [small[0].inputs, large[0].inputs]


def _is_image_model(model: nn.Module) -> bool:
    return getattr(model, "main_input_name", None) == "pixel_values"


def _from_config(
    model: nn.Module, num_tokens: Sequence[int] | None, batch_size: int
) -> list[Example]:
    kind = getattr(model, "main_input_name", None)
    config = getattr(model, "config", None)
    if config is not None and kind == "input_ids":
        sizes = num_tokens or DEFAULT_NUM_TOKENS
        _check_length(config, sizes)
        return [
            Example(_label(batch_size, size), text_inputs(model, batch_size, size))
            for size in sizes
        ]
    if config is not None and kind == "pixel_values" and hasattr(config, "image_size"):
        if num_tokens is not None:
            raise ValueError(
                f"num_tokens must be left out for a model of images, got {num_tokens}: the size "
                "of an image decides; give a batch size instead"
            )
        return [Example(_label(batch_size, None), image_inputs(model, batch_size))]
    raise ValueError(
        "example_inputs must be given for a model that is no text or image model of transformers, "
        f"got none for a {type(model).__name__}"
    )


def _check_length(config: Any, sizes: Sequence[int]) -> None:
    # Beyond its positions a model fails with an index error that names no setting.
    limits = [value for name in _LENGTH_LIMITS if (value := getattr(config, name, None))]
    if limits and max(sizes) > min(limits):
        raise ValueError(
            f"num_tokens must be at most {min(limits)}, the model's longest sequence, got "
            f"{max(sizes)}: give smaller ones"
        )


def _label(batch_size: int, num_tokens: int | None) -> str:
    if num_tokens is None:
        return "1 image" if batch_size == 1 else f"{batch_size} images"
    tokens = "1 token" if num_tokens == 1 else f"{num_tokens} tokens"
    return tokens if batch_size == 1 else f"{batch_size} x {tokens}"


def _shape_label(inputs: Any) -> str:
    tensors = [leaf for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, Tensor)]
    return "x".join(map(str, tensors[0].shape)) if tensors else "inputs"
