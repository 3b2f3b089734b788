"""Coupled groups of the attention and feed-forward layers of a model, by its submodules' names."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from torch import Tensor, nn

from platon_prune.groups.coupled import CoupledGroups
from platon_prune.groups.spelled import Linear, spelled_groups
from platon_prune.masks.default_selection import is_conv1d
from platon_prune.spellings import ENTANGLED, HEAD_SIZE, NUM_HEADS


def layout_groups(model: nn.Module) -> Iterator[CoupledGroups]:
    """Heads and neurons of every attention and feed-forward layer that is understood.

    Args:
        model: Any module; only names, shapes and numbers of heads are looked at.

    Yields:
        Places in the order of the modules that hold them.
    """
    layers = _ModelLayers(model)
    shared = _shared_parameters(model)
    for groups in spelled_groups(layers):
        # Another layer that holds the tensor would be cut along, at a place of its own.
        if not any(id(layers.parameter(member.name)) in shared for member in groups.members):
            yield groups


class _ModelLayers:
    """What a model tells of its layers; see :class:`platon_prune.groups.spelled.Layers`."""

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

    def parameters(self, holder: str) -> Iterator[tuple[str, tuple[int, ...]]]:
        for key, parameter in self._modules[holder].named_parameters():
            yield key, tuple(parameter.shape)

    def head_size(self, holder: str, num_queries: int) -> int | None:
        attention = self._modules[holder]
        if any(entangled.in_class in type(attention).__name__ for entangled in ENTANGLED):
            return None
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
