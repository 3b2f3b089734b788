"""Layers are taken out of their lists, and what counts or numbers them is set to those left."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import nn

from platon_prune.groups.blocks import KIND, path_of, positions_of
from platon_prune.shrinking.config_sizes import built_from, config_of
from platon_prune.shrinking.removable import Place
from platon_prune.spellings import LAYER_COUNTS, LAYER_LISTS, LAYER_NUMBERS

# For each list of layers, by its path, the positions of those that go.
Gone = Mapping[str, Sequence[int]]
# A config, and the path of an attribute from the model's own config to it: "" or "text_config".
_Part = tuple[Any, str]


class Untold(ValueError):  # noqa: N818  (a ValueError to users, told apart within)
    """No config describes the model without these layers."""


def layers_gone(places: Sequence[Place]) -> dict[str, list[int]]:
    """Which layers of which lists go by a plan."""
    gone: dict[str, set[int]] = {}
    for place in places:
        if place.groups.kind == KIND and not place.kept.all():
            positions = positions_of(place.groups)
            left = place.kept.tolist()
            found = {i for i, stays in zip(positions, left, strict=True) if not stays}
            gone.setdefault(place.groups.name, set()).update(found)
    return {stack: sorted(found) for stack, found in gone.items()}


def is_gone(name: str, gone: Gone) -> bool:
    """Whether a tensor or module lies in a layer that goes."""
    return renamed(name, gone) is None


def renamed(name: str, gone: Gone) -> str | None:
    """What a tensor or module is called once layers before it are gone; None if it goes itself."""
    for stack, positions in gone.items():
        start = f"{stack}." if stack else ""
        position, _, rest = name.removeprefix(start).partition(".")
        if name.startswith(start) and position.isdecimal():
            if int(position) in positions:
                return None
            new = int(position) - sum(other < int(position) for other in positions)
            name = path_of(stack, new) + (f".{rest}" if rest else "")
    return name


def parameters_of(model: nn.Module, gone: Gone) -> list[nn.Parameter]:
    """The parameters of layers that go."""
    layers = [model.get_submodule(path_of(stack, i)) for stack in gone for i in gone[stack]]
    return [parameter for layer in layers for parameter in layer.parameters()]


# --- what the config says -------------------------------------------------------------------------


def config_without(model: nn.Module, gone: Gone) -> Any | None:
    """A config that describes a model of transformers without some layers; None for any other.

    Args:
        model: Not changed.
        gone: Which layers go.

    Raises:
        Untold: If no config can say it: a layer is built by its number in a way that stays.
    """
    config = config_of(model)
    if config is None or not gone:
        return None
    whole = built_from(model, config)
    for stack, positions in gone.items():
        if whole is None:
            raise Untold("it can't be built from its config, which is to tell its layers")
        cut_list_(whole, stack, positions)
        config = _first_that_tells(model, whole, config, stack, positions)
    _tell_caches_(config)
    return config


def _tell_caches_(config: Any) -> None:
    """Say how many layers decode where a config, as T5's, is asked for those that encode."""
    own = getattr(config, "num_decoder_layers", None)
    if not getattr(config, "is_encoder_decoder", False) or type(own) is not int:
        return
    # By this name `get_text_config(decoder=True)` finds it, from which generation makes caches.
    if getattr(config, "decoder_layers", config.num_hidden_layers) != own:
        config.decoder_layers = own


def _first_that_tells(
    model: nn.Module, whole: nn.Module, config: Any, stack: str, positions: Sequence[int]
) -> Any:
    """The first change of a config that builds the list as it is in ``whole`` by now."""
    expected = _traits(whole, stack)
    before = len(_list(whole, stack)) + len(positions)
    why = "it does not count them"
    for changed in _candidates(model, config, stack, before, positions):
        built = built_from(model, changed)
        found = {} if built is None else _traits(built, stack)
        if found == expected:
            return changed
        if found:
            why = f"it says otherwise of {_first_difference(found, expected)}"
    raise Untold(f"the config can't tell the model without it: {why}")


def _first_difference(found: Mapping[str, Any], expected: Mapping[str, Any]) -> str:
    differing = [
        key for key in {**expected, **found} if found.get(key) != expected.get(key)
    ]  # fmt: skip
    # A tensor tells a reader more than an attribute.
    return min(differing, key=lambda key: type({**expected, **found}[key]) is not tuple)


def _candidates(
    model: nn.Module, config: Any, stack: str, before: int, positions: Sequence[int]
) -> Iterator[Any]:
    part, path = _part_of(model, stack)
    names = [key for key in part.to_dict() if key.endswith(LAYER_COUNTS)]
    counts = [key for key in names if type(value := getattr(part, key)) is int and value == before]
    # One of them alone first: an encoder may have as many layers as its decoder.
    for keys in itertools.chain(([key] for key in counts), [counts] if len(counts) > 1 else ()):
        changed = copy.deepcopy(config)
        own = getattr(changed, path) if path else changed
        _set_counts_(own, keys, before, positions)
        yield changed


def _set_counts_(config: Any, keys: Sequence[str], before: int, positions: Sequence[int]) -> None:
    # Lists first: a config may check that they are as long as it counts, or longer.
    for key, value in list(vars(config).items()):
        is_of_layers = isinstance(value, (list, tuple)) and len(value) == before
        if is_of_layers and any(word in key for word in LAYER_LISTS):
            setattr(config, key, [each for i, each in enumerate(value) if i not in positions])
    for key in keys:
        setattr(config, key, before - len(positions))


def _part_of(model: nn.Module, stack: str) -> _Part:
    """The part of the model's config that its modules around a list of layers read."""
    top = config_of(model)
    holder = stack.rpartition(".")[0]
    while holder:
        own = config_of(model.get_submodule(holder))
        if own is not None:
            for key, value in vars(top).items():
                if value is own:
                    return own, key
            break
        holder = holder.rpartition(".")[0]
    return top, ""


def _traits(model: nn.Module, stack: str) -> dict[str, Any]:
    """What tells two models apart: their tensors, and plain attributes of the layers of a list."""
    traits: dict[str, Any] = {
        name: tuple(tensor.shape) for name, tensor in model.state_dict().items()
    }
    for name, module in _list(model, stack).named_modules(prefix=stack):
        for key, value in vars(module).items():
            if type(value) in (int, float, bool, str) and not key.startswith("_"):
                traits[f"{name}.{key}"] = value
    return traits


# --- taking them out ------------------------------------------------------------------------------


def take_out_(model: nn.Module, gone: Gone, config: Any | None) -> None:
    """Take layers out of their lists, in place, and set what counts and numbers them.

    Args:
        model: Without masks in these layers.
        gone: Which layers go.
        config: What :func:`config_without` gave for them.
    """
    for stack, positions in gone.items():
        before = len(_list(model, stack))
        part, _ = _part_of(model, stack) if config is not None else (None, "")
        cut_list_(model, stack, positions)
        if config is not None:
            _tell_configs_(model, stack, part, before, positions)
    if config is not None:
        _adopt_top_(model.config, config)


def cut_list_(model: nn.Module, stack: str, positions: Sequence[int]) -> None:
    """Take layers out of one list, and number the others anew."""
    layers = _list(model, stack)
    before = len(layers)
    numbers = [i for i in range(before) if i not in positions]
    for position in sorted(positions, reverse=True):
        del layers[position]
    for new, (old, layer) in enumerate(zip(numbers, layers, strict=True)):
        for module in layer.modules():
            for name in LAYER_NUMBERS:
                if type(getattr(module, name, None)) is int and getattr(module, name) == old:
                    setattr(module, name, new)
    holder = model.get_submodule(stack.rpartition(".")[0])
    for key, value in list(vars(holder).items()):
        if type(value) is int and value == before and key.endswith(LAYER_COUNTS):
            setattr(holder, key, len(numbers))


def _list(model: nn.Module, stack: str) -> Any:
    return model.get_submodule(stack)


def _tell_configs_(
    model: nn.Module, stack: str, part: Any, before: int, positions: Sequence[int]
) -> None:
    """Set the copies of a config that modules around a list have, as T5's decoder has one."""
    holder = model.get_submodule(stack.rpartition(".")[0])
    configs = {id(c): c for module in holder.modules() if (c := config_of(module)) is not None}
    for config in configs.values():
        # Those that share the model's own dict are set with it.
        if config is not part and vars(config) is not vars(part):
            # By this name caches ask for it; it stands for whatever the config calls it.
            keys = ["num_hidden_layers"]
            if getattr(config, keys[0], None) == before:
                _set_counts_(config, keys, before, positions)


def _adopt_top_(config: Any, new: Any) -> None:
    """Change a config, and the configs in it, to the entries of another."""
    for key, value in vars(new).items():
        own = vars(config).get(key)
        if hasattr(own, "to_dict") and hasattr(value, "to_dict"):
            _adopt_top_(own, value)  # its modules hold this very object
        elif own != value:
            setattr(config, key, value)
