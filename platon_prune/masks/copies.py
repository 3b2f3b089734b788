"""Masks onto anybody's copy of a pruned model, found by the names and shapes of its tensors."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from platon_prune.masks.default_selection import all_tensors
from platon_prune.masks.masked import mask_of, method_of, weight_of
from platon_prune.tensors.blocks import Scratch, blocks, zero_pruned_
from platon_prune.tensors.shards import local_of, placed_like, registered

# What wrappers inside a model put into the names of its tensors.
_WRAPPERS = frozenset({"_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module"})


@dataclass(frozen=True)
class _Found:
    """A tensor of a copy, and the mask of ours that it carries, if any."""

    tensor: Tensor
    mask: Tensor | None


@torch.no_grad()
def apply_to_copy_(copy: Any, masks: Mapping[str, Tensor], own: Collection[int]) -> None:
    """Zero in every copy of the pruned tensors what the masks prune, in the tensors themselves.

    A copy is a place under which each name is found with its shape, whatever stands before the
    names (``module.``, ``ema_model.``). Where it carries masks of ours, they become these.

    Args:
        copy: A module, a mapping of names to tensors, or an object that holds one module.
        masks: Name before pruning to bool mask (True = kept).
        own: Of the tensors that are no copy but the pruned ones, what ``id`` gives.

    Raises:
        ValueError: If there is no copy, or it can't be told which of several is meant. Nothing is
            changed then.
        TypeError: If ``copy`` is something else.
    """
    found = dict(_tensors_of(_holder(copy)))
    masks = {_plain(name): mask for name, mask in masks.items()}
    scratch = Scratch()
    for prefix in _chosen(found, masks, own, type(copy).__name__):
        for name, mask in masks.items():
            _write(found[prefix + name], mask, scratch)


def _holder(copy: Any) -> nn.Module | Mapping[str, Tensor]:
    if isinstance(copy, (nn.Module, Mapping)):
        return copy
    # Some averages are no modules, but keep one (timm's ModelEma).
    held = [
        value for value in getattr(copy, "__dict__", {}).values() if isinstance(value, nn.Module)
    ]
    if len(held) != 1:
        raise TypeError(
            "model must be a module, a mapping of names to tensors or an object that holds one "
            f"module, got a {type(copy).__name__} with {len(held)} modules: pass the copy itself"
        )
    return held[0]


def _tensors_of(copy: nn.Module | Mapping[str, Tensor]) -> Iterator[tuple[str, _Found]]:
    if isinstance(copy, nn.Module):
        for name, module, key in all_tensors(copy):
            if method_of(module, key) is not None:
                yield _plain(name), _Found(weight_of(module, key), mask_of(module, key))
                continue
            held = key if module._parameters.get(key) is not None else f"{key}_orig"
            yield _plain(name), _Found(registered(module, held), None)
        return
    for name, tensor in copy.items():
        # A state dict in torch's form has the mask beside the weight.
        base = name.removesuffix("_orig")
        mask = copy.get(f"{base}_mask") if base != name else None
        if isinstance(tensor, Tensor):
            yield _plain(name if mask is None else base), _Found(tensor, mask)


def _plain(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def _chosen(
    found: Mapping[str, _Found], masks: Mapping[str, Tensor], own: Collection[int], kind: str
) -> list[str]:
    """The prefixes of what is meant."""
    names = {name: tuple(mask.shape) for name, mask in masks.items()}
    prefixes = _prefixes(found, names)
    if not prefixes:
        raise ValueError(_why_none(found, names, kind))
    copies = [p for p in prefixes if any(id(found[p + n].tensor) not in own for n in names)]
    masked = [p for p in copies if all(found[p + n].mask is not None for n in names)]
    # What was copied from the pruned model carries masks of ours, so nothing else can be meant.
    if masked:
        return masked
    if len(copies) > 1:
        raise ValueError(
            f"model must hold one copy of the pruned tensors, got a {kind} with {len(copies)} that "
            f"their names and shapes fit, such as {copies[0]}{next(iter(names))} and "
            f"{copies[1]}{next(iter(names))}: pass the part that is the copy"
        )
    return copies or prefixes


def _prefixes(found: Mapping[str, _Found], shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """What stands before the names, wherever all of them are found with their shapes."""
    first = next(iter(shapes))
    candidates = (
        name.removesuffix(first) for name in found if name == first or name.endswith(f".{first}")
    )
    return [p for p in candidates if not _lacking(found, shapes, p)]


def _lacking(
    found: Mapping[str, _Found], shapes: Mapping[str, tuple[int, ...]], prefix: str
) -> list[str]:
    return [
        name
        for name, shape in shapes.items()
        if prefix + name not in found or tuple(found[prefix + name].tensor.shape) != shape
    ]


def _why_none(found: Mapping[str, _Found], shapes: Mapping[str, tuple[int, ...]], kind: str) -> str:
    """The sentence for a copy that is none, by what its nearest place lacks."""
    prefixes = {
        name.removesuffix(wanted)
        for wanted in shapes
        for name in found
        if name == wanted or name.endswith(f".{wanted}")
    }
    lacking = min((_lacking(found, shapes, p) for p in prefixes), key=len, default=list(shapes))
    names = ", ".join(list(found)[:2]) or "none"
    return (
        f"model must have each pruned tensor under its name and in its shape, got a {kind} without "
        f"{len(lacking)} of {len(shapes)}, such as {lacking[0]} of shape {shapes[lacking[0]]} (its "
        f"own names: {names}): pass a copy of the model that the scheduler prunes"
    )


def _write(entry: _Found, mask: Tensor, scratch: Scratch) -> None:
    tensor = entry.tensor.detach()
    mask = local_of(placed_like(mask, tensor)).to(tensor.device)
    for block, kept in blocks(local_of(tensor), mask):
        zero_pruned_(block, kept, scratch)
    if entry.mask is not None:
        local_of(entry.mask).copy_(mask)
