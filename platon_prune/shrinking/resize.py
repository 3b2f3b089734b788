"""Cutting the tensors of layers in place, and the sizes that layers keep beside them.

A Parameter stays the same object, so that optimizers, schedulers, averages and tied modules that
hold it need no word of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from platon_prune.masks.default_selection import is_conv1d, is_named
from platon_prune.masks.routers import OUT, known_router
from platon_prune.mixtures import CORRECTION
from platon_prune.shrinking.attention.norms_over_heads import is_over_heads, spread_
from platon_prune.shrinking.expert_counts import check_experts, count_experts_
from platon_prune.shrinking.holders import HELD, Kept, noted_sizes
from platon_prune.shrinking.named import find, output_dim, plain_names, tensor_at
from platon_prune.shrinking.own_config import set_in_own_config_
from platon_prune.spellings import EXPERTS


def take(tensor: Tensor, kept: Kept) -> Tensor:
    """A new tensor of the entries that stay, in the memory format of the old one."""
    for dim, index in kept.items():
        tensor = tensor.index_select(dim, index.to(tensor.device))
    return tensor


def cut_(tensor: Tensor, kept: Kept) -> None:
    """Cut a parameter or buffer in place, and its gradient."""
    gradient, tensor.grad = tensor.grad, None
    new = _in_format_of(tensor, take(tensor.detach(), kept))
    # Whatever is left of the last backward pass, a loss for instance, keeps alive what autograd
    # knows of the old shape; only another dtype makes it forget.
    other = torch.float32 if tensor.dtype == torch.float64 else torch.float64
    tensor.data = torch.empty(0, dtype=other, device=tensor.device)
    tensor.data = new
    if gradient is not None:
        tensor.grad = _in_format_of(gradient, take(gradient, kept))


def _in_format_of(old: Tensor, new: Tensor) -> Tensor:
    for memory_format in (torch.channels_last, torch.channels_last_3d):
        fits = old.dim() == (4 if memory_format == torch.channels_last else 5)
        if fits and not old.is_contiguous() and old.is_contiguous(memory_format=memory_format):
            return new.contiguous(memory_format=memory_format)
    return new.contiguous()


# --- layers -------------------------------------------------------------------------------------


def refusal(module: nn.Module, key: str, dim: int, name: str) -> str | None:
    """Why a tensor of a layer can't be cut along a dimension; None if it can.

    Args:
        module: The layer.
        key: What it calls the tensor.
        dim: The dimension.
        name: What the model calls the tensor.
    """
    cls = type(module)
    if isinstance(module, (nn.modules.conv._ConvNd)):
        if module.groups > 1 and not (is_depthwise(module) and dim == 0):
            return "the channels of a grouped convolution go in sets"
    elif isinstance(module, nn.Embedding):
        if dim == 0:
            return "the rows of an embedding are its vocabulary"
    elif not (
        isinstance(module, (nn.Linear, _NormBase, nn.PReLU))
        or is_conv1d(module)
        or (key, dim) in HELD
        or is_named(module, "", EXPERTS)
        or (dim == 0 and known_router(module) is not None)
        or is_over_heads(module, name)
    ):
        return f"how to cut a {cls.__name__} is not known"
    if isinstance(module, nn.modules.lazy.LazyModuleMixin):
        return "a lazy layer has no size yet"
    return None


def is_depthwise(module: nn.modules.conv._ConvNd) -> bool:
    """Whether each channel is convolved by itself."""
    return module.groups > 1 and module.groups == module.in_channels == module.out_channels


def companions(module: nn.Module, key: str) -> tuple[str, ...]:
    """Buffers of a layer that are cut along with its tensor ``key``."""
    if isinstance(module, _NormBase) and key == "weight" and module.running_mean is not None:
        return ("running_mean", "running_var")
    if key == "weight" and known_router(module) is not None:
        return tuple(name for name in (CORRECTION, OUT) if name in module._buffers)
    return ()


def refresh_sizes_(module: nn.Module) -> None:
    """Set the sizes that a layer keeps to those of its weight."""
    weight = module._parameters.get("weight")
    if weight is None:
        return  # the module holds its matrices itself, and counts them as `noted_sizes` tells
    sizes: dict[str, int] = {}
    if is_conv1d(module):
        sizes = dict(zip(("nx", "nf"), weight.shape, strict=True))
    elif isinstance(module, nn.Linear):
        sizes = dict(zip(("out_features", "in_features"), weight.shape, strict=True))
    elif isinstance(module, nn.modules.conv._ConvTransposeNd):
        sizes = {"in_channels": weight.shape[0], "out_channels": weight.shape[1] * module.groups}
    elif isinstance(module, nn.modules.conv._ConvNd):
        if is_depthwise(module):
            sizes["groups"] = sizes["in_channels"] = weight.shape[0]
        else:
            sizes["in_channels"] = weight.shape[1] * module.groups
        sizes["out_channels"] = weight.shape[0]
    elif isinstance(module, _NormBase):
        sizes["num_features"] = weight.shape[0]
    elif isinstance(module, nn.Embedding):
        sizes["embedding_dim"] = weight.shape[1]
    elif isinstance(module, nn.PReLU):
        sizes["num_parameters"] = weight.shape[0]
    for name, size in sizes.items():
        setattr(module, name, size)


def resize_(
    model: nn.Module,
    kept: Mapping[str, Kept],
    also: Callable[[Tensor, Kept], Any] = lambda tensor, kept: None,
) -> None:
    """Cut tensors of a model without masks, and set all sizes that modules keep of them.

    Args:
        model: Changed in place.
        kept: What stays, by names of tensors; checked with :func:`check_sizes`.
        also: Called with each tensor just before it is cut, and with what stays of it.
    """
    attributes = list(noted_sizes(model, kept))  # while weights still have their sizes
    done: set[int] = set()
    for name, indices in kept.items():
        module, key = find(model, name)
        before = tensor_at(module, key).shape[0]
        for each in (key, *companions(module, key)):
            tensor = tensor_at(module, each)
            if id(tensor) not in done:  # a shared tensor has several names
                done.add(id(tensor))
                also(tensor, indices)
                cut_(tensor, indices)
        if is_over_heads(module, name):
            spread_(module, before)
    for name in kept:
        refresh_sizes_(find(model, name)[0])
    count_experts_(model, kept)
    for parent, sizes, in_config in attributes:
        for attribute, size in sizes.items():
            setattr(parent, attribute, size)
        if in_config:
            set_in_own_config_(parent, in_config)


def check_sizes(model: nn.Module, kept: Mapping[str, Kept]) -> None:
    """Raise a ValueError if a layer or its parent would be left with sizes that do not fit."""
    list(noted_sizes(model, kept))
    check_experts(model, kept)
    for name in kept:
        module, _ = find(model, name)
        path = name.rpartition(".")[0]
        sizes = {
            key: _new_shape(module, key, kept.get(f"{path}.{key}" if path else key, {}))
            for key in ("weight", "bias")
            if key in (names := plain_names(module)) and names[key] is not None
        }
        if "bias" in sizes and sizes["bias"][0] != _outputs(module, sizes["weight"]):
            raise ValueError(
                f"the groups of {path} must hold its weight and its bias alike, got what leaves "
                f"{sizes['weight']} and {sizes['bias']}: add what is missing to their members"
            )


def _new_shape(module: nn.Module, key: str, kept: Kept) -> tuple[int, ...]:
    shape = plain_names(module)[key].shape  # type: ignore[union-attr]
    return tuple(kept[dim].numel() if dim in kept else size for dim, size in enumerate(shape))


def _outputs(module: nn.Module, shape: tuple[int, ...]) -> int:
    if isinstance(module, nn.modules.conv._ConvTransposeNd):
        return shape[1] * module.groups
    return shape[output_dim(module) or 0]
