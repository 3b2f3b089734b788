"""`PlatonUnstructured`: puts a mask on one tensor of a module and takes it off again.

As in torch's prune, the Parameter is registered as ``weight_orig``, the mask as the buffer
``weight_mask``, and the method sits among the forward pre-hooks. As in torch's parametrize,
``module.weight`` is a property of a subclass made for the purpose, so it is never stale. The zeros
are in the parameter itself, and its gradient stays dense: that is how a pruned weight comes back.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from platon_prune.choice.scored import ScoredTensor
from platon_prune.choice.selection import prune_smallest_
from platon_prune.masks.masked import apply_mask_, form_of, forms_of, mask_of, weight_of
from platon_prune.masks.pruned_class import class_with
from platon_prune.masks.routers import freeze_pruned_
from platon_prune.masks.state_forms import TensorForm
from platon_prune.masks.targets import check_prunable
from platon_prune.tensors import shards
from platon_prune.tensors.blocks import Scratch
from platon_prune.tensors.shards import as_placed, local_of
from platon_prune.warning import PruningWarning

Masking = Literal["step", "window"]
MASKINGS: tuple[Masking, ...] = ("step", "window")


class PlatonUnstructured(prune.BasePruningMethod):
    """Unstructured pruning of one tensor by given scores, with a mask that can be updated.

    Attached once per tensor by :func:`platon_prune.global_unstructured`, whose scheduler updates
    the mask. It also honours torch's abstract contract: handed to
    ``torch.nn.utils.prune.global_unstructured`` as ``pruning_method``, it computes the masks that
    torch then attaches with its own, frozen ``CustomFromMask``. Give that function
    ``importance_scores``: without, it hands over the weights with their signs, of which it warns.

    Args:
        amount: What to prune of a tensor given to :meth:`compute_mask`: a fraction in [0, 1], or
            a count.

    Raises:
        ValueError: If ``amount`` is out of range.
    """

    PRUNING_TYPE = "unstructured"
    # Called with the weight's gradient before the mask is removed; it may warn, or raise.
    before_removal: Callable[[Tensor | None], None] | None = None

    def __init__(self, amount: float | int = 0.0) -> None:
        prune._validate_pruning_amount_init(amount)
        self.amount = amount

    def __getstate__(self) -> dict[str, Any]:
        # A copy of a model is taken to be finalized at any step, and has no scheduler to speak of.
        return {key: value for key, value in vars(self).items() if key != "before_removal"}

    def __call__(self, module: nn.Module, inputs: Any) -> None:
        """Do nothing before a forward: the zeros are in the parameter already."""

    def compute_mask(self, t: Tensor, default_mask: Tensor) -> Tensor:
        """Prune the entries of ``t`` with the smallest scores.

        Args:
            t: Importance scores, any shape.
            default_mask: Same shape; what is 0 there stays pruned.

        Returns:
            A mask of the dtype of ``default_mask`` with exactly ``round(amount * numel)`` of the
            scores chosen for pruning, or ``amount`` of them if it is a count.
        """
        # What has a graph is no scores, which are data, but the weights that torch hands over.
        if t.requires_grad and (num_negative := int((t.detach() < 0).sum())):
            PruningWarning.warn(
                f"scores must be given to rank weights by, got {num_negative} of {t.numel()} below "
                "zero, as weights are, which go first, the largest of them too: pass "
                "importance_scores={(module, name): module.weight.abs()} for magnitudes"
            )
        return self._mask_by(t, default_mask)

    def _mask_by(self, t: Tensor, default_mask: Tensor) -> Tensor:
        # torch's own checks and rounding, so that an amount means here what it means there.
        prune._validate_pruning_amount(self.amount, t.numel())
        count = prune._compute_nparams_toprune(self.amount, t.numel())  # type: ignore[no-untyped-call]
        scores = (
            t.detach().to(torch.float32).reshape(-1).nan_to_num(nan=torch.inf, posinf=torch.inf)
        )
        # Entries that are pruned already go first among ties, and stay pruned by the product below.
        mask = default_mask.detach().reshape(-1).ne(0)
        prune_smallest_([ScoredTensor(lambda index: scores[index], mask, offset=0)], count)
        return default_mask * mask.view(default_mask.shape)

    def apply_mask(self, module: nn.Module) -> Tensor:
        """The masked tensor, as torch's contract has it: same shape and dtype, a new tensor."""
        form = form_of(module, self._tensor_name)
        return torch.where(getattr(module, form.mask), getattr(module, form.orig), 0)

    @classmethod
    def apply(  # type: ignore[override]
        cls,
        module: nn.Module,
        name: str,
        amount: float | int = 0.0,
        importance_scores: Tensor | None = None,
    ) -> PlatonUnstructured:
        """Attach to ``module.name`` and prune it once by its scores (its magnitudes by default).

        Args:
            module: The module that holds the tensor.
            name: The tensor's name in it.
            amount: What to prune: a fraction in [0, 1], or a count.
            importance_scores: Same shape as the tensor.

        Returns:
            The method, which is now one of the module's forward pre-hooks.

        Raises:
            ValueError: If the tensor can't be pruned or is pruned already.
        """
        # All that can be refused is refused before the module is touched.
        check_prunable(module, name, f"{type(module).__name__}.{name}")
        weight = getattr(module, name)
        scores = weight.detach().abs() if importance_scores is None else importance_scores
        if scores.shape != weight.shape:
            raise ValueError(
                f"importance_scores must have the shape of {name}, got {tuple(scores.shape)} for "
                f"{tuple(weight.shape)}"
            )
        # Computed before anything is attached: an error in it must leave the module as it was.
        mask = cls(amount)._mask_by(scores, torch.ones_like(weight, dtype=torch.bool))
        method = attach(module, name, amount=amount)
        mask_of(module, name).copy_(mask)
        apply_mask_(module, name, Scratch())
        return method

    def remove(self, module: nn.Module) -> None:
        """Finalize: zero what the mask prunes and make the module an ordinary one again.

        The Parameter stays the same object and takes its old place among the parameters. Called
        by ``torch.nn.utils.prune.remove(module, name)``.
        """
        name = self._tensor_name
        form = form_of(module, name)
        if self.before_removal is not None:
            self.before_removal(weight_of(module, name).grad)
        # In window masking pruned weights may have trained since the last choice.
        apply_mask_(module, name, Scratch())
        freeze_pruned_(module, name)
        forms = tuple(other for other in forms_of(module) if other is not form)
        # Without the property, which would shadow the parameter that is put back.
        module.__class__ = class_with(type(module), forms)
        _rename(module, form.orig, name)
        del module._buffers[form.mask]
        module._non_persistent_buffers_set.discard(form.mask)
        # The hook itself is taken out by torch's remove, once this has returned.
        del module.__dict__["_platon_methods"][name]
        if not forms:
            del module.__dict__["_platon_methods"]
        if isinstance(module, nn.RNNBase):
            # The list that cuDNN reads was made at each use while the module was pruned.
            module._init_flat_weights()


def attach(
    module: nn.Module,
    name: str,
    *,
    masking: str = "step",
    own_keys: bool = False,
    mask: Tensor | None = None,
    amount: float | int = 0.0,
) -> PlatonUnstructured:
    """Put a mask on ``module.name``, which must be prunable, without changing its values.

    Args:
        module: The module that holds the tensor.
        name: The tensor's name in it.
        masking: "step" or "window", see :func:`platon_prune.global_unstructured`.
        own_keys: Whether state dicts keep the key ``name`` and no mask.
        mask: Bool mask to register, of the tensor's shape; by default a new one, all True.
        amount: Recorded on the method.

    Returns:
        The method, which is now one of the module's forward pre-hooks.
    """
    # Of a module under fully_shard the sharded parameter, whatever a forward has left there.
    weight = shards.registered(module, name)
    method = PlatonUnstructured(amount)
    method._tensor_name = name
    form = TensorForm(name, masking, own_keys)
    # Made before anything changes: a metaclass may refuse the subclass.
    pruned_class = class_with(type(module), (*forms_of(module), form))
    if mask is None:
        # Each process fills its shard: a whole mask of a large tensor may fit no single device.
        local = torch.ones(local_of(weight).shape, dtype=torch.bool, device=weight.device)
        mask = as_placed(local, weight)
    _rename(module, name, form.orig)
    module.register_buffer(form.mask, mask)
    module.__class__ = pruned_class
    if isinstance(module, nn.RNNBase):
        # A property from here on; the list would keep parameters alive that are replaced.
        module.__dict__.pop("_flat_weights", None)
    module.__dict__.setdefault("_platon_methods", {})[name] = method
    module.register_forward_pre_hook(method)
    return method


def _rename(module: nn.Module, old: str, new: str) -> None:
    """Rename a parameter without moving it: optimizers and their states go by the order."""
    shards.rename(module, old, new)
    # In the very dict, which others hold: a wrapper may keep a reference to it.
    parameters: dict[str, Any] = module._parameters
    items: list[tuple[str, Any]] = [
        (new if key == old else key, value) for key, value in parameters.items()
    ]
    parameters.clear()
    parameters.update(items)
