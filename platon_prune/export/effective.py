"""The tensors of a model as finalizing would leave them, one at a time, with what is tied."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from platon_prune.export.container import CODES


@dataclass(frozen=True)
class NamedTensor:
    """One entry of what is saved; its value is made only when it is asked for."""

    name: str
    tensor: Tensor
    mask: Tensor | None = None
    persistent: bool = True

    def value(self) -> Tensor:
        """The tensor with its zeros."""
        if self.mask is None:
            return self.tensor
        kept = self.mask != 0
        # A method of torch's may have a mask that is not 0 or 1, and it is a factor there.
        factor = self.tensor if self.mask.dtype == torch.bool else self.tensor * self.mask
        return torch.where(kept, factor, 0)

    @property
    def identity(self) -> Hashable:
        """Equal for two entries that are one tensor."""
        if not self.tensor.numel():
            return self.name
        mask = None if self.mask is None else _memory(self.mask)
        return _memory(self.tensor), mask


def tensors_of(model: nn.Module, non_persistent: bool = False) -> list[NamedTensor]:
    """Every tensor of a model's state dict under the name that it has without masks.

    Args:
        model: With masks of ours or of torch's methods, or without.
        non_persistent: Whether to add the buffers that the state dict leaves out.

    Raises:
        ValueError: If one of them can't be saved.
    """
    state: dict[str, Any] = model.state_dict()
    pruned = list(_pruned(model))
    entries = {name: NamedTensor(name, weight, mask) for name, weight, mask in pruned}
    renamed = {f"{name}_orig": name for name in entries}
    masks = {f"{name}_mask" for name in entries}
    # Removing a mask zeroes the parameter: whatever else shares it is masked, too.
    mask_of = {_memory(weight): mask for _, weight, mask in pruned if weight.numel()}
    found = {}
    for key, tensor in state.items():
        name = renamed.get(key, key)
        if key not in masks:
            _check(key, tensor)
            mask = mask_of.get(_memory(tensor))
            found[name] = entries.get(name) or NamedTensor(name, tensor, mask)
    if non_persistent:
        for name, buffer in model.named_buffers(remove_duplicate=False):
            if name not in found and name not in masks:
                _check(name, buffer)
                found[name] = NamedTensor(name, buffer, persistent=False)
    # A module that keeps its own keys lists its masked tensors last.
    order = {name: i for i, name in enumerate(_names_in_order(model, renamed))}
    return sorted(found.values(), key=lambda entry: order.get(entry.name, len(order)))


def versions_of(model: nn.Module) -> dict[str, int]:
    """Version of each module, as ``load_state_dict`` hands it to modules that ask."""
    return {
        name: module._version
        for name, module in model.named_modules(remove_duplicate=False)
        if type(module._version) is int
    }


def _names_in_order(model: nn.Module, renamed: dict[str, str]) -> Iterator[str]:
    for prefix, module in model.named_modules(remove_duplicate=False):
        for key in (*module._parameters, *module._buffers):
            name = f"{prefix}.{key}" if prefix else key
            yield renamed.get(name, name)


def _pruned(model: nn.Module) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Name, parameter and mask of every tensor under a method of torch's prune, ours included."""
    for prefix, module in model.named_modules(remove_duplicate=False):
        for hook in module._forward_pre_hooks.values():
            if isinstance(hook, prune.BasePruningMethod):
                key = hook._tensor_name
                weight, mask = getattr(module, f"{key}_orig"), getattr(module, f"{key}_mask")
                yield f"{prefix}.{key}" if prefix else key, weight.detach(), mask.detach()


def _memory(tensor: Tensor) -> Hashable:
    if type(tensor) is not Tensor and not isinstance(tensor, nn.Parameter):
        return id(tensor)
    storage = tensor.untyped_storage().data_ptr() if tensor.layout == torch.strided else id(tensor)
    start = tensor.storage_offset() if tensor.layout == torch.strided else 0
    return (storage, start, tensor.shape, tensor.stride(), tensor.dtype, tensor.device)


def _check(name: str, tensor: Any) -> None:
    if not isinstance(tensor, Tensor):
        raise ValueError(
            f"{name} must be a tensor, got {type(tensor).__name__}: a sparse file holds nothing "
            "that would have to be pickled; save it on its own, or leave it out of the state dict"
        )
    if type(tensor) not in (Tensor, nn.Parameter) or tensor.layout != torch.strided:
        raise ValueError(
            f"{name} must be a plain dense tensor, got {type(tensor).__name__} of layout "
            f"{tensor.layout}: gather sharded tensors and dequantise or densify others first"
        )
    if tensor.is_meta:
        raise ValueError(
            f"{name} must have values, got a tensor on the meta device: load its values first"
        )
    if tensor.dtype not in CODES:
        raise ValueError(
            f"{name} must have one of the dtypes {', '.join(map(str, CODES))}, got "
            f"{tensor.dtype}: convert it first"
        )
