"""How a pruned tensor is named in its module, and the forms that state dicts keep it in."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from platon_prune.tensors.shards import placed_like
from platon_prune.warning import PruningWarning


@dataclass(frozen=True)
class TensorForm:
    """How one tensor of a pruned class is masked and saved.

    Args:
        name: The tensor's name before pruning, such as "weight".
        masking: "step" or "window".
        own_keys: Whether state dicts keep the key ``name`` and no mask.
    """

    name: str
    masking: str = "step"
    own_keys: bool = False

    @property
    def orig(self) -> str:
        """The name under which the parameter is registered, as torch's prune has it."""
        return f"{self.name}_orig"

    @property
    def mask(self) -> str:
        """The name under which the mask is registered as a buffer."""
        return f"{self.name}_mask"


def asked_by_save_pretrained() -> bool:
    """Whether a ``save_pretrained`` is what asks for the state dict.

    A state dict under other keys would be a silent loss: ``from_pretrained`` initialises anew,
    without an error, what it does not find under the model's own keys.
    """
    # Nothing but the stack tells. A module can't see the model that it is a part of, and may have
    # become a part of it after it was pruned; save_pretrained passes nothing that a module's
    # state_dict receives, and a hook could be put on the whole model only where we were given it.
    frame = sys._getframe(1)
    while frame.f_back is not None:
        frame = frame.f_back
        if frame.f_code.co_name == "save_pretrained":
            return True
    return False


def to_own_keys(
    state_dict: dict[str, Any], prefix: str, form: TensorForm, is_saved: bool = False
) -> None:
    """Change a module's entries of a state dict from ``_orig`` and ``_mask`` to a plain weight.

    Args:
        state_dict: The dict, with the entries of torch's form.
        prefix: What the module's entries begin with.
        form: How the tensor is masked.
        is_saved: Whether ``save_pretrained`` asks, so that nobody can mask the weight later.
    """
    weight = state_dict.pop(prefix + form.orig)
    mask = state_dict.pop(prefix + form.mask)
    # In step masking the zeros are in the parameter already, which must not be copied for nothing:
    # tied weights are known by their memory. But a merge of adapters fills them in.
    if form.masking == "window" or (is_saved and _has_filled(weight, mask)):
        weight = torch.where(mask, weight, 0)
    state_dict[prefix + form.name] = weight


def _has_filled(weight: Tensor, mask: Tensor) -> bool:
    """Whether an entry that is pruned has a value; tells so, once for all tensors."""
    if weight.is_meta or not bool(weight.detach().ne(0).logical_and_(~mask).any()):
        return False
    PruningWarning.warn(
        "pruned weights that were filled in since the last step (by a merge of adapters, or an "
        "average) are saved as zeros"
    )
    return True


def to_torch_form(
    state_dict: dict[str, Any], prefix: str, form: TensorForm, own: Tensor | None = None
) -> None:
    """Change a module's entries of any state dict to ``_orig`` and a bool ``_mask``.

    The dict may be dense, of a model that torch's prune has masked, or one of ours.

    Without a mask in the dict, the zeros of the weight are one. What is there is placed over
    processes as ``own``, the module's parameter, or as the weight in the dict.
    """
    dense = state_dict.pop(prefix + form.name, None)
    if dense is not None:
        # torch's distributed checkpoints put what the module has now beside what is loaded.
        state_dict[prefix + form.orig] = dense
        state_dict.pop(prefix + form.mask, None)
    weight = state_dict.get(prefix + form.orig)
    if weight is None:
        return
    # Of another shape it is left alone, so that torch's load names the mismatch itself.
    if own is not None and own.shape == weight.shape:
        weight = state_dict[prefix + form.orig] = placed_like(weight, own)
    mask = state_dict.get(prefix + form.mask, weight).detach()
    if mask.dtype != torch.bool:
        mask = mask != 0
    if mask.shape == weight.shape:
        mask = placed_like(mask, weight)
    state_dict[prefix + form.mask] = mask.contiguous()
    if form.masking == "step" and mask.shape == weight.shape:
        zeroed = torch.where(mask, weight.detach(), 0)
        # The same tensor where nothing changes: a copy would untie shared weights (assign=True).
        if weight.is_meta or not _is_local(weight) or not torch.equal(zeroed, weight):
            state_dict[prefix + form.orig] = zeroed


def _is_local(tensor: Tensor) -> bool:
    return type(tensor) in (Tensor, nn.Parameter)
