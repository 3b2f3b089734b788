"""One masked tensor of a module: its parameter, mask and method, which there are, and zeroing."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn
from torch.nn.utils import prune

from platon_prune import shards
from platon_prune.blocks import Scratch, blocks, zero_pruned_
from platon_prune.forms import TensorForm
from platon_prune.shards import are_alike, local_of, placed_like


def weight_of(module: nn.Module, name: str) -> Tensor:
    """The parameter under a mask, whatever has replaced it since (wrapping, ``assign=True``)."""
    return shards.registered(module, f"{name}_orig")


def mask_of(module: nn.Module, name: str) -> Tensor:
    """The bool mask of a pruned tensor (True = kept), placed over processes as its weight is.

    Updating it in place is allowed.
    """
    key = f"{name}_mask"
    mask: Tensor = getattr(module, key)
    weight = weight_of(module, name)
    if not are_alike(mask, weight):  # the weight has been sharded since
        mask = module._buffers[key] = placed_like(mask, weight)
    return mask


def apply_mask_(module: nn.Module, name: str, scratch: Scratch) -> None:
    """Zero, in the parameter itself, what the mask prunes."""
    weight = local_of(weight_of(module, name).detach())
    for block, mask in blocks(weight, local_of(mask_of(module, name))):
        zero_pruned_(block, mask, scratch)


def pruned_tensors(model: nn.Module) -> Iterator[tuple[str, nn.Module, str]]:
    """(full name, module, tensor name) of every tensor with a mask of ours, shared ones again."""
    for prefix, module in model.named_modules():
        for form in forms_of(module):
            yield f"{prefix}.{form.name}" if prefix else form.name, module, form.name


def method_of(module: nn.Module, name: str) -> prune.BasePruningMethod | None:
    """Our method on ``module.name``, or None if it carries no mask of ours."""
    methods: dict[str, prune.BasePruningMethod] = module.__dict__.get("_platon_methods", {})
    return methods.get(name)


def forms_of(module: nn.Module) -> tuple[TensorForm, ...]:
    """How each masked tensor of a module is kept, in the order of attaching."""
    forms: tuple[TensorForm, ...] = getattr(type(module), "_platon_forms", ())
    return forms


def form_of(module: nn.Module, name: str) -> TensorForm:
    """How a masked tensor is kept."""
    return next(form for form in forms_of(module) if form.name == name)
