"""One masked tensor of a module: its parameter, mask and method, which there are, and zeroing."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from torch import Tensor, nn
from torch.nn.utils import prune

from platon_prune.masks.state_forms import TensorForm
from platon_prune.tensors import shards
from platon_prune.tensors.blocks import Scratch, blocks, zero_pruned_
from platon_prune.tensors.shards import are_alike, local_of, placed_like


def weight_of(module: nn.Module, name: str) -> Tensor:
    """The parameter under a mask, whatever has replaced it since (wrapping, ``assign=True``)."""
    # Looked up at each use: what is held across wrapping or loading is no longer trained.
    return shards.registered(module, f"{name}_orig")


def mask_of(module: nn.Module, name: str) -> Tensor:
    """The bool mask of a pruned tensor (True = kept), placed over processes as its weight is.

    Updating it in place is allowed.
    """
    key = f"{name}_mask"
    mask: Tensor = getattr(module, key)
    weight = weight_of(module, name)
    if not are_alike(mask, weight):  # the weight has been sharded since
        # fully_shard shards parameters alone; the mask follows here, and is kept that way.
        mask = module._buffers[key] = placed_like(mask, weight)
    return mask


def apply_mask_(module: nn.Module, name: str, scratch: Scratch) -> None:
    """Zero, in the parameter itself, what the mask prunes."""
    # Detached, so that autograd neither records the zeroing nor refuses it on a leaf.
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
    # In a dict of the module, not by its hooks: torch takes a hook out while it adds a method.
    methods: dict[str, prune.BasePruningMethod] = module.__dict__.get("_platon_methods", {})
    return methods.get(name)


def refuse_other_masks(model: nn.Module, among: Collection[str] | None = None) -> None:
    """Raise a ValueError if a tensor carries a mask of another method of torch's prune.

    Args:
        model: The model.
        among: Full names of the tensors that matter; None for all.
    """
    for prefix, module in model.named_modules():
        for hook in module._forward_pre_hooks.values():
            if not isinstance(hook, prune.BasePruningMethod):
                continue
            key = hook._tensor_name
            name = f"{prefix}.{key}".lstrip(".")
            if method_of(module, key) is not hook and (among is None or name in among):
                raise ValueError(
                    f"model must carry no masks of other methods, got one on {name}: finalize it "
                    f'first with torch.nn.utils.prune.remove(module, "{key}")'
                )


def forms_of(module: nn.Module) -> tuple[TensorForm, ...]:
    """The forms of a module's masked tensors, in the order in which masks were put on."""
    # On the class, so that a copy or an unpickled module has them before its state is set.
    forms: tuple[TensorForm, ...] = getattr(type(module), "_platon_forms", ())
    return forms


def form_of(module: nn.Module, name: str) -> TensorForm:
    """The form of one masked tensor of a module."""
    return next(form for form in forms_of(module) if form.name == name)
