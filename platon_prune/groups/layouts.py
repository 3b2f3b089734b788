"""Coupled groups of the attention and feed-forward layers of a model, by its submodules' names."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from platon_prune.groups.coupled import CoupledGroups, Missed
from platon_prune.groups.layers import ExpertLayout, Linear, Shape
from platon_prune.groups.spelled import looked_at
from platon_prune.masks.default_selection import is_conv1d, is_named, is_pruned
from platon_prune.masks.input_dims import input_dim
from platon_prune.spellings import (
    DECLARES_RUNS,
    ENTANGLED,
    EXPERTS,
    EXPERTS_WRITE,
    HEAD_SIZE,
    NORM_EPS,
    NUM_HEADS,
    RMS_NORM,
)


def layout_groups(model: nn.Module) -> Iterator[CoupledGroups]:
    """Heads and neurons of every attention and feed-forward layer that is understood.

    Args:
        model: Any module; only names, shapes and numbers of heads are looked at.

    Yields:
        Places in the order of the modules that hold them.
    """
    return (found for found in layouts(model) if isinstance(found, CoupledGroups))


def layouts(model: nn.Module) -> Iterator[CoupledGroups | Missed]:
    """Every attention and feed-forward layer of known names: its groups, or why it has none."""
    layers = _ModelLayers(model)
    shared = _shared_parameters(model)
    for found in looked_at(layers):
        if isinstance(found, Missed):
            yield found
            continue
        # Another layer that holds the tensor would be cut along, at a place of its own.
        names = [m.name for m in found.members if id(layers.parameter(m.name)) in shared]
        yield Missed(found.name, found.kind, f"{names[0]} is shared") if names else found


class _ModelLayers:
    """What a model tells of its layers; see :class:`platon_prune.groups.layers.Layers`."""

    def __init__(self, model: nn.Module) -> None:
        self._modules = dict(model.named_modules())

    def holders(self) -> Iterable[str]:
        return self._modules

    def linear(self, path: str) -> Linear | None:
        module: Any = self._modules.get(path)
        if isinstance(module, nn.Linear):
            (num_out, num_in), out_dim = module.weight.shape, 0
        elif module is not None and is_conv1d(module):
            (num_in, num_out), out_dim = module.weight.shape, 1
        else:
            return None
        has_bias = getattr(module, "bias", None) is not None
        return Linear(path, num_out, num_in, out_dim, has_bias)

    def filters(self, path: str, count: int) -> bool | None:
        module: Any = self._modules.get(path)
        if not isinstance(module, nn.modules.conv._ConvNd):
            return None
        if not module.groups == module.in_channels == module.out_channels == count:
            return None
        return module.bias is not None

    def experts(self, holder: str) -> ExpertLayout | None:
        module = self._modules[holder]
        weight = own_parameters(module).get(EXPERTS_WRITE)
        if not is_named(module, "", EXPERTS) or weight is None or weight.ndim != 3:
            return None
        return ExpertLayout(
            input_dim(module, weight), getattr(module, DECLARES_RUNS, True) is False
        )

    def own(self, holder: str) -> Mapping[str, Shape]:
        module = self._modules.get(holder)
        own = {} if module is None else own_parameters(module)
        return {key: tuple(parameter.shape) for key, parameter in own.items()}

    def parameters(self, holder: str) -> Iterator[tuple[str, Shape]]:
        for prefix, module in self._modules[holder].named_modules():
            for key, parameter in own_parameters(module).items():
                yield f"{prefix}.{key}" if prefix else key, tuple(parameter.shape)

    def entangled(self, holder: str) -> str | None:
        attention = self._modules[holder]
        config = getattr(attention, "config", None)
        for entangled in ENTANGLED:
            if entangled.in_class in type(attention).__name__:
                # Where a class can do either, its config tells.
                value = getattr(config, entangled.config_key, entangled.config_value)
                if value == entangled.config_value:
                    return entangled.why
        return None

    def is_rms_norm(self, path: str) -> bool:
        module = self._modules[path]
        has_eps = any(type(getattr(module, name, None)) is float for name in NORM_EPS)
        return RMS_NORM in type(module).__name__ and has_eps

    def head_size(self, holder: str, num_queries: int) -> int | None:
        attention = self._modules[holder]
        size = _first_integer(attention, HEAD_SIZE)
        if size is None:
            # The module's own number before the config's: shrinking gives each layer its own.
            num_heads = _first_integer(attention, NUM_HEADS) or _first_integer(
                getattr(attention, "config", None), NUM_HEADS
            )
            size = num_queries // num_heads if num_heads and num_queries % num_heads == 0 else None
        return size if size and num_queries % size == 0 else None

    def parameter(self, name: str) -> Any:
        path, _, tensor_name = name.rpartition(".")
        return getattr(self._modules[path], tensor_name)


def own_parameters(module: nn.Module) -> dict[str, Tensor]:
    """The parameters that a module holds itself, by their names without masks."""
    found: dict[str, Tensor] = {}
    for key, parameter in module._parameters.items():
        name = key.removesuffix("_orig")
        if parameter is not None:
            found[name if name != key and is_pruned(module, name) else key] = parameter
    return found


def _first_integer(owner: Any, names: Sequence[str]) -> int | None:
    values = (getattr(owner, name, None) for name in names)
    return next((value for value in values if type(value) is int and value > 0), None)


def _shared_parameters(model: nn.Module) -> set[int]:
    """Identities of parameters that several modules hold."""
    seen: set[int] = set()
    shared: set[int] = set()
    for parameter in _held(model.modules()):
        (shared if id(parameter) in seen else seen).add(id(parameter))
    return shared


def _held(modules: Iterable[nn.Module]) -> Iterator[Tensor]:
    for module in modules:
        yield from (value for value in module._parameters.values() if value is not None)
