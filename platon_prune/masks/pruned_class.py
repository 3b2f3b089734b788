"""The subclass that a pruned module's class is made into, where ``module.weight`` is a property.

As in torch's parametrize, it is made for the purpose, so what is read is never stale. It also says
how pruned modules are copied, moved, saved and loaded.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from platon_prune.masks.made_classes import made_once
from platon_prune.masks.masked import mask_of, method_of, weight_of
from platon_prune.masks.state_forms import (
    TensorForm,
    asked_by_save_pretrained,
    to_own_keys,
    to_torch_form,
)
from platon_prune.tensors.shards import are_alike, is_sharded, placed_like


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

    def __prepare_scriptable__(self) -> NoReturn:
        # What torch.jit.script asks for first; it can't read the property, and would say so at
        # length without naming the mask.
        raise RuntimeError(
            f"a {type(self).__name__} with a mask can't be scripted: finalize the model with "
            "platon_prune.remove(model) first, or a copy.deepcopy of it to go on with pruning"
        )

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
                to_own_keys(destination, prefix, form, is_saved=always)

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


def class_with(cls: Any, forms: tuple[TensorForm, ...]) -> Any:
    """The class of a module with these tensors masked instead of those of ``cls``."""
    if not hasattr(cls, "_platon_forms"):
        return _pruned_class(cls, forms)
    if "_platon_base" in cls.__dict__:
        return _pruned_class(cls._platon_base, forms)
    # Something has derived from our class since (a parametrization of another tensor).
    bases = tuple(
        class_with(base, forms) if hasattr(base, "_platon_forms") else base
        for base in cls.__bases__
    )
    body = {key: cls.__dict__[key] for key in cls.__dict__.keys() - {"__dict__", "__weakref__"}}
    return type(cls)(cls.__name__, bases, body)


@made_once
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
