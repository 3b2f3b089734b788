"""Finds a model's linear layers: where each is held, how many tokens it sees, what rules it out."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from platon_prune.example_inputs import call_model
from platon_prune.masks.default_selection import is_conv1d
from platon_prune.spellings import CONV1D

# From here on CSR with 32-bit indices takes as much memory as the dense weight.
_LARGEST_DENSITY = 0.5
_LARGEST_COUNT = torch.iinfo(torch.int32).max
# Their fast paths read the weights of their linear layers instead of calling these.
_READERS = (nn.TransformerEncoderLayer, nn.MultiheadAttention)
_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
)


@dataclass(frozen=True)
class Layer:
    """A linear layer of a model.

    Args:
        name: The first name under which the model has it.
        module: The layer.
        sites: Every (parent, key) that holds it; none if it is the model itself.
    """

    name: str
    module: nn.Module
    sites: list[tuple[nn.Module, str]] = field(default_factory=list)

    @property
    def transposed(self) -> bool:
        """Whether it is a Conv1D of transformers, which stores inputs by outputs."""
        return not isinstance(self.module, nn.Linear)

    @property
    def shape(self) -> tuple[int, int]:
        """The numbers of outputs and inputs, whichever way the weight lies."""
        outputs, inputs = ("nf", "nx") if self.transposed else ("out_features", "in_features")
        return getattr(self.module, outputs), getattr(self.module, inputs)

    @property
    def weight(self) -> Tensor:
        """The weight as outputs by inputs; a view where it is stored the other way round."""
        weight: Tensor = self.module.weight  # type: ignore[assignment]
        return weight.t() if self.transposed else weight

    def replace(self, replacement: nn.Module) -> None:
        """Put another module at every site of this one, with its mode and its forward hooks."""
        replacement.train(self.module.training)
        for hooks in _HOOKS:
            # The same dict, not a copy: a user's handle removes its hook from the one it knows.
            setattr(replacement, hooks, getattr(self.module, hooks))
        for parent, key in self.sites:
            parent._modules[key] = replacement


def find_layers(model: nn.Module) -> list[Layer]:
    """Every linear layer once, subclasses too, in the order of the model."""
    layers: dict[nn.Module, Layer] = {}
    if _is_linear(model):
        layers[model] = Layer("(the model)", model)
    for prefix, parent in model.named_modules():
        for key, module in parent._modules.items():
            if module is not None and _is_linear(module):
                name = f"{prefix}.{key}" if prefix else key
                layers.setdefault(module, Layer(name, module)).sites.append((parent, key))
    return list(layers.values())


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or is_conv1d(module)


def count_tokens(
    model: nn.Module, example_inputs: Any, layers: Sequence[Layer]
) -> dict[nn.Module, int]:
    """The most rows that each layer sees in one call of the model; 0 if it is not called."""
    tokens = dict.fromkeys((layer.module for layer in layers), 0)

    def count(module: nn.Module, inputs: Any, output: Any) -> None:
        # A subclass, which stays dense anyway, may return something else.
        if isinstance(output, Tensor):
            tokens[module] = max(tokens[module], math.prod(output.shape[:-1]))

    handles = [layer.module.register_forward_hook(count) for layer in layers]
    try:
        call_model(model, example_inputs)
    finally:
        for handle in handles:
            handle.remove()
    return tokens


def count_holders(model: nn.Module) -> Counter[int]:
    """How many parameters and buffers begin at each address, a tied one once per holder."""
    return Counter(
        tensor.data_ptr()
        for module in model.modules()
        for tensor in (*module._parameters.values(), *module._buffers.values())
        if tensor is not None and _is_plain(tensor)
    )


def reason_to_skip(layer: Layer, num_tokens: int, holders: Mapping[int, int]) -> str | None:
    """What rules CSR out whatever the zeros, if anything does.

    Args:
        layer: The layer.
        num_tokens: Rows that it sees in a call.
        holders: What :func:`count_holders` says of the model.
    """
    reason = reason_against_replacing(layer, holders)
    if reason is not None:
        return reason
    for tensor in (layer.module.weight, layer.module.bias):
        # The bias too: both take part in one operation.
        if isinstance(tensor, Tensor) and tensor.device.type != "cpu":
            return f"on {tensor.device.type}"
        if isinstance(tensor, Tensor) and tensor.dtype != torch.float32:
            return f"in {str(tensor.dtype).removeprefix('torch.')}, which has no sparse kernel"
    if num_tokens == 0:
        return "that example_inputs do not reach"
    return None


def reason_against_replacing(layer: Layer, holders: Mapping[int, int]) -> str | None:
    """What rules out to replace a layer, or its weight, by any sparse form, if anything does.

    Args:
        layer: The layer.
        holders: What :func:`count_holders` says of the model.
    """
    module = layer.module
    cls = type(module)
    if cls is not nn.Linear and not (is_conv1d(module) and cls.__name__ == CONV1D):
        return f"of the subclass {cls.__name__}"
    # An instance may carry its own forward (wrapped by a library), which would be lost.
    if "forward" in module.__dict__:
        return "with a forward of its own"
    if any(isinstance(parent, _READERS) for parent, _ in layer.sites):
        return "whose parent reads the weight without calling the layer"
    weight = module._parameters.get("weight")
    bias = module._parameters.get("bias")
    if weight is None or not all(
        _is_plain(tensor) for tensor in (weight, bias) if tensor is not None
    ):
        return "with a weight or bias that is no plain parameter"
    # Without values there is nothing to look at.
    if weight.is_meta:
        return "on meta"
    if weight.numel() == 0:
        return "without entries"
    # The other holder needs the dense weight, so replacing this one would save no memory.
    if holders[weight.data_ptr()] > 1:
        return "with a weight that another module shares"
    return None


def _is_plain(tensor: Tensor) -> bool:
    return type(tensor) in (Tensor, nn.Parameter) and tensor.layout == torch.strided


def reason_to_stay_dense(num_kept: int, numel: int) -> str | None:
    """Why a weight with so many entries that are not zero is not tried as CSR, if so."""
    if num_kept > _LARGEST_DENSITY * numel:
        return f"with more than {_LARGEST_DENSITY:.0%} of the entries not zero"
    if num_kept > _LARGEST_COUNT:
        return "with more entries than 32-bit indices can count"
    return None
