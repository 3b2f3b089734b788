"""`remove` and `apply_masks`: what is done to a pruned model as a whole."""

from __future__ import annotations

from typing import TypeVar

from torch import nn
from torch.nn.utils import prune

from platon_prune.masks.masked import apply_mask_, pruned_tensors
from platon_prune.tensors.blocks import Scratch

# The same model comes back, so its class does: remove(model).generate(...) passes a type checker.
M = TypeVar("M", bound=nn.Module)


def remove(model: M) -> M:
    """Finalize: every pruned tensor keeps its zeros and becomes an ordinary parameter again.

    Args:
        model: A model with masks of ours; changed in place. Masks of torch's methods stay.

    Returns:
        The same model.

    Raises:
        ValueError: If no tensor of the model carries a mask of ours.
    """
    pruned = _pruned_or_raise(model)
    for module, tensor_name in pruned:
        prune.remove(module, tensor_name)  # type: ignore[no-untyped-call]
    return model


def apply_masks(model: M) -> M:
    """Zero again, in the parameters, what the masks prune; for weights that came from elsewhere.

    A copy that averages weights over training (``torch.optim.swa_utils.AveragedModel``) fills the
    zeros in; call this on it before evaluating or finalizing it.

    Args:
        model: A model with masks of ours; changed in place.

    Returns:
        The same model.

    Raises:
        ValueError: If no tensor of the model carries a mask of ours.
    """
    scratch = Scratch()
    for module, tensor_name in _pruned_or_raise(model):
        apply_mask_(module, tensor_name, scratch)
    return model


def _pruned_or_raise(model: nn.Module) -> list[tuple[nn.Module, str]]:
    pruned = [(module, tensor_name) for _, module, tensor_name in pruned_tensors(model)]
    if not pruned:
        raise ValueError(
            f"model must carry masks of platon_prune, got a {type(model).__name__} without: it is "
            "finalized already, or was never pruned"
        )
    return pruned
