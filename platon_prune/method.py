"""`PlatonUnstructured`: puts a mask on one tensor of a module, updates it in place, takes it off.

As in torch's prune, the Parameter is registered as ``weight_orig``, the mask as the buffer
``weight_mask``, and the method sits among the forward pre-hooks. As in torch's parametrize,
``module.weight`` is a property of a subclass made for the purpose, so it is never stale. The zeros
are in the parameter itself, and its gradient stays dense: that is how a pruned weight comes back.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from platon_prune import shards
from platon_prune.blocks import Scratch, blocks, zero_pruned_
from platon_prune.forms import (
    TensorForm,
    asked_by_save_pretrained,
    to_own_keys,
    to_torch_form,
)
from platon_prune.selection import ScoredTensor, prune_smallest_
from platon_prune.shards import are_alike, as_placed, is_sharded, local_of, placed_like
from platon_prune.targets import check_prunable

MASKINGS = ("step", "window")


class PlatonUnstructured(prune.BasePruningMethod):
    """Unstructured pruning of one tensor by given scores, with a mask that can be updated.

    Attached once per tensor by :func:`platon_prune.global_unstructured`, whose scheduler updates
    the mask. It also honours torch's abstract contract: handed to
    ``torch.nn.utils.prune.global_unstructured`` as ``pruning_method``, it computes the masks that
    torch then attaches with its own, frozen ``CustomFromMask``. Give that function
    ``importance_scores``: without, it hands over the weights with their signs.

    Args:
        amount: What to prune of a tensor given to :meth:`compute_mask`: a fraction in [0, 1], or
            a count.

    Raises:
        ValueError: If ``amount`` is out of range.
    """

    PRUNING_TYPE = "unstructured"

    def __init__(self, amount: float | int = 0.0) -> None:
        prune._validate_pruning_amount_init(amount)
        self.amount = amount

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
        prune._validate_pruning_amount(self.amount, t.numel())
        count = prune._compute_nparams_toprune(self.amount, t.numel())  # type: ignore[no-untyped-call]
        scores = (
            t.detach().to(torch.float32).reshape(-1).nan_to_num(nan=torch.inf, posinf=torch.inf)
        )
        mask = default_mask.detach().reshape(-1).ne(0)
        prune_smallest_([ScoredTensor(lambda index: scores[index], mask, offset=0)], count)
        return default_mask * mask.view(default_mask.shape)

    def apply_mask(self, module: nn.Module) -> Tensor:
        """The masked tensor, as torch's contract has it: same shape and dtype, a new tensor."""
        form = _form_of(module, self._tensor_name)
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
        check_prunable(module, name, f"{type(module).__name__}.{name}")
        weight = getattr(module, name)
        scores = weight.detach().abs() if importance_scores is None else importance_scores
        if scores.shape != weight.shape:
            raise ValueError(
                f"importance_scores must have the shape of {name}, got {tuple(scores.shape)} for "
                f"{tuple(weight.shape)}"
            )
        mask = cls(amount).compute_mask(scores, torch.ones_like(weight, dtype=torch.bool))
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
        form = _form_of(module, name)
        apply_mask_(module, name, Scratch())
        forms = tuple(other for other in _forms_of(module) if other is not form)
        module.__class__ = _class_with(type(module), forms)
        _rename(module, form.orig, name)
        del module._buffers[form.mask]
        module._non_persistent_buffers_set.discard(form.mask)
        del module.__dict__["_platon_methods"][name]
        if not forms:
            del module.__dict__["_platon_methods"]
        if isinstance(module, nn.RNNBase):
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
    weight = shards.registered(module, name)
    method = PlatonUnstructured(amount)
    method._tensor_name = name
    form = TensorForm(name, masking, own_keys)
    pruned_class = _class_with(type(module), (*_forms_of(module), form))
    if mask is None:
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
        for form in _forms_of(module):
            yield f"{prefix}.{form.name}" if prefix else form.name, module, form.name


def method_of(module: nn.Module, name: str) -> PlatonUnstructured | None:
    """Our method on ``module.name``, or None if it carries no mask of ours."""
    methods: dict[str, PlatonUnstructured] = module.__dict__.get("_platon_methods", {})
    return methods.get(name)


# --- the subclass -------------------------------------------------------------------------------


class _PrunedModule(nn.Module):
    """What pruned modules of every class share: how they are copied, moved, saved and loaded."""

    _platon_base: type[nn.Module]
    _platon_forms: tuple[TensorForm, ...]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        # Not passed on: a class that registers its subclasses, or wants arguments for each, must
        # not take ours for one of them.
        pass

    def __reduce_ex__(self, protocol: Any) -> Any:
        # The class can't be found by its name, which is its base's; it is made again instead.
        return _new_instance, (self._platon_base, self._platon_forms), self.__getstate__()  # type: ignore[no-untyped-call]

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        for form in self._platon_forms:
            if form.name == name:
                if not is_sharded(param):
                    _refuse_assignment(self, form)
                name = form.orig  # tensor parallelism puts the sharded weight in its place
        super().register_parameter(name, param)

    def _apply(self, fn: Any, *args: Any, **kwargs: Any) -> Any:
        without_values = [mask_of(self, form.name).is_meta for form in self._platon_forms]
        super()._apply(fn, *args, **kwargs)  # type: ignore[no-untyped-call]
        for form, was_meta in zip(self._platon_forms, without_values, strict=True):
            # type(dtype) and to(memory_format=...) change buffers too.
            mask = mask_of(self, form.name).to(torch.bool).contiguous()
            self._buffers[form.mask] = mask
            if was_meta and not mask.is_meta:
                mask.fill_(True)
        if isinstance(self, nn.RNNBase):
            self.flatten_parameters()
        return self

    def named_buffers(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, Tensor]]:
        yield from super().named_buffers(prefix, recurse, remove_duplicate)
        if not recurse:
            # What torch.distributed.checkpoint reads to learn which keys a whole dict may have.
            for form in self._platon_forms:
                if form.own_keys:
                    yield f"{prefix}.{form.name}" if prefix else form.name, getattr(self, form.orig)

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        for form in self._platon_forms:
            mask_of(self, form.name)  # puts it where the weight is
        super()._save_to_state_dict(destination, prefix, keep_vars)
        always = asked_by_save_pretrained()
        for form in self._platon_forms:
            if form.own_keys or always:
                to_own_keys(destination, prefix, form)

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        *args: Any,
        **kwargs: Any,
    ) -> None:
        assign = local_metadata.get("assign_to_params_buffers", False)
        for form in self._platon_forms:
            mask_of(self, form.name)  # puts it where the weight is
            own = None if assign else weight_of(self, form.name)
            to_torch_form(state_dict, prefix, form, own)
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args, **kwargs)


def _new_instance(base: type[nn.Module], forms: tuple[TensorForm, ...]) -> nn.Module:
    cls: type[nn.Module] = _pruned_class(base, forms)  # type: ignore[arg-type]
    return cls.__new__(cls)


def _class_with(cls: Any, forms: tuple[TensorForm, ...]) -> Any:
    """The class of a module with these tensors masked instead of those of ``cls``."""
    if not hasattr(cls, "_platon_forms"):
        return _pruned_class(cls, forms)
    if "_platon_base" in cls.__dict__:
        return _pruned_class(cls._platon_base, forms)
    # Something has derived from our class since (a parametrization of another tensor).
    bases = tuple(
        _class_with(base, forms) if hasattr(base, "_platon_forms") else base
        for base in cls.__bases__
    )
    body = {key: cls.__dict__[key] for key in cls.__dict__.keys() - {"__dict__", "__weakref__"}}
    return type(cls)(cls.__name__, bases, body)


@functools.cache
def _pruned_class(base: type, forms: tuple[TensorForm, ...]) -> Any:
    """The subclass of ``base`` with these tensors as properties; ``base`` if there are none."""
    if not forms:
        return base
    body: dict[str, Any] = {form.name: _weight_property(form) for form in forms}
    if issubclass(base, nn.RNNBase):
        body |= _RECURRENT
    body |= {
        "_platon_base": base,
        "_platon_forms": forms,
        "__module__": base.__module__,
        "__qualname__": base.__qualname__,
        "__doc__": base.__doc__,
    }
    return type(base)(base.__name__, (_PrunedModule, base), body)


# The forward of a recurrent module reads a list of its parameters that it keeps beside them. While
# pruned it is made at each reading, for the list would go stale, and never in between: half-way
# through a move or a load the masks and the weights do not fit each other.
_RECURRENT: dict[str, Any] = {
    "_flat_weights": property(
        lambda self: [getattr(self, name) for name in self._flat_weights_names],
        lambda self, value: None,
    ),
    "_init_flat_weights": lambda self: setattr(
        self, "_flat_weight_refs", [None] * len(self._flat_weights_names)
    ),
    "__setattr__": nn.Module.__setattr__,
    "_replicate_for_data_parallel": nn.Module._replicate_for_data_parallel,
}


def _weight_property(form: TensorForm) -> property:
    def get(module: nn.Module) -> Tensor:
        if not torch.compiler.is_compiling():
            _refuse_foreign_method(module, form)
        weight: Tensor = getattr(module, form.orig)
        if form.masking == "step" or module.training:
            return weight
        mask: Tensor = getattr(module, form.mask)
        if not are_alike(mask, weight):  # gathered for a forward: so must the mask be
            mask = placed_like(mask, weight)
        return torch.where(mask, weight, 0)

    def set_(module: nn.Module, value: Any) -> None:
        _refuse_assignment(module, form)

    return property(get, set_, doc=f"The pruned ``{form.name}``.")


def _refuse_assignment(module: nn.Module, form: TensorForm) -> NoReturn:
    raise RuntimeError(
        f"{form.name} of a pruned {type(module).__name__} can't be assigned: write to "
        f'{form.orig}, or finalize with torch.nn.utils.prune.remove(module, "{form.name}")'
    )


def _refuse_foreign_method(module: nn.Module, form: TensorForm) -> None:
    """Put our hook back and complain if a torch method is about to take its place.

    torch's ``apply`` takes the hook of an earlier method out to wrap it in a container, then
    reads the tensor: the one moment at which it can be stopped before it changes anything.
    """
    method = method_of(module, form.name)
    assert method is not None
    if any(hook is method for hook in module._forward_pre_hooks.values()):
        return
    module.register_forward_pre_hook(method)
    raise RuntimeError(
        f"{form.name} of a {type(module).__name__} pruned by platon_prune can't take a second "
        f'pruning method: finalize it first with torch.nn.utils.prune.remove(module, "{form.name}")'
    )


def _forms_of(module: nn.Module) -> tuple[TensorForm, ...]:
    forms: tuple[TensorForm, ...] = getattr(type(module), "_platon_forms", ())
    return forms


def _form_of(module: nn.Module, name: str) -> TensorForm:
    return next(form for form in _forms_of(module) if form.name == name)


def _rename(module: nn.Module, old: str, new: str) -> None:
    """Rename a parameter without moving it: optimizers and their states go by the order."""
    shards.rename(module, old, new)
    parameters: dict[str, Any] = module._parameters
    items: list[tuple[str, Any]] = [
        (new if key == old else key, value) for key, value in parameters.items()
    ]
    parameters.clear()
    parameters.update(items)
