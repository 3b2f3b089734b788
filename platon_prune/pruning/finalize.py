"""`remove` and `apply_masks`: what is done to a pruned model as a whole."""

from __future__ import annotations

from typing import Any, TypeVar

from torch import Tensor, nn
from torch.nn.utils import prune

from platon_prune.groups.experts import pass_over_zeros_
from platon_prune.masks.copies import apply_to_copy_
from platon_prune.masks.masked import (
    apply_mask_,
    form_of,
    mask_of,
    method_of,
    pruned_tensors,
    weight_of,
)
from platon_prune.scheduling.scheduler import PlatonScheduler
from platon_prune.tensors.blocks import Scratch, count_kept
from platon_prune.tensors.shards import local_of
from platon_prune.warning import PruningWarning

# The same model comes back, so its class does: remove(model).generate(...) passes a type checker.
M = TypeVar("M", bound=nn.Module)
C = TypeVar("C")  # an average need not be a module


def remove(model: M) -> M:
    """Finalize: every pruned tensor keeps its zeros and becomes an ordinary parameter again.

    What was filled in since the last step, as a merge of adapters or an average does it, is zeroed,
    with a warning that says how much that is.

    Args:
        model: A model with masks of ours; changed in place. Masks of torch's methods stay.

    Returns:
        The same model.

    Raises:
        ValueError: If no tensor of the model carries a mask of ours.
    """
    pruned = _pruned_or_raise(model)
    filled = sum(_num_filled(*site) for site in pruned)
    for module, tensor_name in pruned:
        prune.remove(module, tensor_name)  # type: ignore[no-untyped-call]
    if filled:
        PruningWarning.warn(
            f"{filled} pruned weights were filled in since the last step (by a merge of adapters, "
            "or an average) and are zero again: evaluate the model as it is now"
        )
    return model


def _num_filled(module: nn.Module, name: str) -> int:
    """How many pruned entries have a value where none may have: in "window" they train."""
    weight = local_of(weight_of(module, name).detach())
    # A copy is nobody's run: what is written into one is meant.
    is_run = getattr(method_of(module, name), "before_removal", None) is not None
    if not is_run or form_of(module, name).masking == "window" or weight.is_meta:
        return 0
    kept = count_kept(weight, local_of(mask_of(module, name)))
    return count_kept(weight, None) - kept


def apply_masks(model: C, scheduler: PlatonScheduler | None = None) -> C:
    """Zero again, in the tensors, what the masks prune; for weights that came from elsewhere.

    A copy that averages weights over training fills the zeros in; call this on it before evaluating
    or finalizing it. With ``scheduler`` the copy need not know of the masks: it is found by the
    names and shapes of the pruned tensors, whatever stands before the names. So it works on
    ``torch.optim.swa_utils.AveragedModel``, on the averages of ema-pytorch and timm, and on copies
    of your own.

    Args:
        model: A model with masks of ours; or, with ``scheduler``, any copy of the pruned model: a
            module that is or holds one, a mapping of names to tensors (a state dict), or an object
            that holds one module. Changed in place; masks of ours in it become the scheduler's.
        scheduler: Whose masks to apply: made for a model, not for (module, name) pairs, whose names
            it does not know, and not finalized, unless it recorded its masks (``mask_history``).

    Returns:
        The same model.

    Raises:
        ValueError: If no tensor of the model carries a mask of ours; with ``scheduler``, if a
            pruned tensor is not found, or it can't be told which of several copies is meant.
            Nothing is changed then.
        TypeError: If ``model`` is none of these, or ``scheduler`` no scheduler of ours.

    Example:
        >>> average = torch.optim.swa_utils.AveragedModel(model)
        >>> train(model, scheduler, after_each_step=average.update_parameters)
        >>> apply_masks(average, scheduler)
        >>> remove(model)
    """
    if scheduler is not None:
        apply_to_copy_(model, _masks_of(scheduler), _own_tensors(scheduler))
        if isinstance(model, nn.Module):
            pass_over_zeros_(model)
        return model
    scratch = Scratch()
    for module, tensor_name in _pruned_or_raise(model):
        apply_mask_(module, tensor_name, scratch)
    return model


def _masks_of(scheduler: PlatonScheduler) -> dict[str, Tensor]:
    if not isinstance(scheduler, PlatonScheduler):
        raise TypeError(
            "scheduler must be the PlatonScheduler of the pruned model, got a "
            f"{type(scheduler).__name__}: pass what global_unstructured or its like returned, or "
            "callback.scheduler, behind the copy"
        )
    try:
        return scheduler.masks()
    except ValueError as error:
        raise ValueError(
            "scheduler must still have its masks, got one whose run has ended: call "
            "apply_masks(model, scheduler) before the pruned model is finalized, or set pruning up "
            "with mask_history"
        ) from error


def _own_tensors(scheduler: PlatonScheduler) -> set[int]:
    """What ``id`` gives for the parameters that the scheduler itself prunes."""
    held = [
        module._parameters.get(key)
        for tensor in scheduler._tensors
        for module, name in tensor.target.sites
        for key in (name, f"{name}_orig")
    ]
    return {id(parameter) for parameter in held if parameter is not None}


def _pruned_or_raise(model: Any) -> list[tuple[nn.Module, str]]:
    is_module = isinstance(model, nn.Module)
    pruned = [(m, name) for _, m, name in pruned_tensors(model)] if is_module else []
    if not pruned:
        raise ValueError(
            f"model must carry masks of platon_prune, got a {type(model).__name__} without: it is "
            "finalized already, or was never pruned; to zero a copy of a pruned model, call "
            "apply_masks(model, scheduler)"
        )
    return pruned
