"""Coupled groups of a model that lies in a file, by the names and shapes of its tensors.

The model is not built. What the table of spellings does not know is not found, and no harm done.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import takewhile
from typing import Any

import torch

from platon_prune.groups.coupled import CoupledGroups, Member
from platon_prune.groups.layers import ExpertLayout, Linear
from platon_prune.groups.spelled import spelled_groups
from platon_prune.spellings import (
    ATTENTION,
    BUFFERS,
    CONFIG_NUM_HEADS,
    CONFIG_NUM_HEADS_BELOW,
    CONV1D_LAYERS,
    ENTANGLED,
    EXPERTS_PATH,
    EXPERTS_WRITE,
    FEED_FORWARD,
    INTERLEAVED_EXPERTS_TYPES,
    OWN_MATRICES,
    TRANSPOSED_EXPERTS_TYPES,
)

Shapes = Mapping[str, tuple[int, ...]]


def find_places(shapes: Shapes, config: Mapping[str, Any]) -> list[CoupledGroups]:
    """Every place with heads or neurons, and every convolution with its channels.

    Args:
        shapes: Of the tensors by name.
        config: Of the model, for the number of heads; without it no heads are found.

    Returns:
        Coupled groups, called by the innermost module that holds all of their tensors. Of a channel
        only its filter and bias are known: which norm and which next layer belong to it, names do
        not tell.
    """
    layers = _FileLayers(shapes, config)
    found = [replace(groups, name=_common_holder(groups)) for groups in spelled_groups(layers)]
    found += _channels(shapes)
    return sorted(found, key=lambda place: (_natural(place.name), place.kind))


def input_dims(shapes: Shapes, config: Mapping[str, Any]) -> dict[str, int]:
    """For each tensor, the dimension along which the inputs lie if it is a weight.

    Args:
        shapes: Of the tensors by name.
        config: Of the model, for experts that are stored inputs by outputs.
    """
    transposed = _transposed_weights(shapes)
    of_experts = 1 if _is_of_types(config, TRANSPOSED_EXPERTS_TYPES) else 2
    return {
        name: of_experts if _is_of_experts(name, shape) else 0 if name in transposed else 1
        for name, shape in shapes.items()
    }


def _is_of_types(config: Mapping[str, Any], types: Sequence[str]) -> bool:
    # As text: in a damaged config it may be anything.
    return not {str(part.get("model_type")) for part in _parts_of(config, "")}.isdisjoint(types)


def _transposed_weights(shapes: Shapes) -> set[str]:
    """Weights stored inputs by outputs: those of transformers' Conv1D, as in GPT-2."""
    # The bias tells: one entry for each output.
    is_conv1d = any(
        shapes.get(_bias(name)) == shape[1:] != shape[:1]
        for name, shape in shapes.items()
        if _is_weight_of(name, CONV1D_LAYERS[:1])
    )
    return {name for name in shapes if is_conv1d and _is_weight_of(name, CONV1D_LAYERS)}


class _FileLayers:
    """What a file tells of its layers; see :class:`platon_prune.groups.layers.Layers`."""

    def __init__(self, shapes: Shapes, config: Mapping[str, Any]) -> None:
        self._shapes = shapes
        self._config = config
        self._transposed = _transposed_weights(shapes)
        self._names = sorted(name for name in shapes if not _is_buffer(name, shapes))

    def holders(self) -> Iterable[str]:
        # Only those where a spelling begins: a name in a hostile file may have a million dots.
        firsts = {spelling.reads[0].name for spelling in ATTENTION}
        firsts |= {spelling.reads[0].name for spelling in FEED_FORWARD}
        ends = tuple(f".{first}.weight" for first in firsts)
        ends += tuple(f".{next(iter(spelling.holds))}" for spelling in OWN_MATRICES)
        ends += (f".{EXPERTS_WRITE}",)
        found = (
            f".{name}".removesuffix(end) for name in self._names for end in ends
            if f".{name}".endswith(end)
        )  # fmt: skip
        return dict.fromkeys(path.removeprefix(".") for path in found)

    def linear(self, path: str) -> Linear | None:
        weight = f"{path}.weight"
        shape = self._shapes.get(weight, ())
        if len(shape) != 2:
            return None
        out_dim = int(weight in self._transposed)
        num_out = shape[out_dim]
        has_bias = self._shapes.get(_bias(weight)) == (num_out,)
        return Linear(path, num_out, shape[1 - out_dim], out_dim, has_bias)

    def filters(self, path: str, count: int) -> bool | None:
        shape = self._shapes.get(f"{path}.weight", ())
        if len(shape) < 3 or shape[:2] != (count, 1):
            return None
        return self._shapes.get(f"{path}.bias") == (count,)

    def experts(self, holder: str) -> ExpertLayout | None:
        name = f"{holder}.{EXPERTS_WRITE}"
        if not _is_of_experts(name, self._shapes.get(name, ())):
            return None
        in_dim = 1 if _is_of_types(self._config, TRANSPOSED_EXPERTS_TYPES) else 2
        return ExpertLayout(in_dim, _is_of_types(self._config, INTERLEAVED_EXPERTS_TYPES))

    def own(self, holder: str) -> dict[str, tuple[int, ...]]:
        return {key: shape for key, shape in self.parameters(holder) if "." not in key}

    def entangled(self, holder: str) -> str | None:
        parts = _parts_of(self._config, holder)
        found = (e.why for e in ENTANGLED for p in parts if p.get(e.config_key) == e.config_value)
        return next(found, None)

    def is_rms_norm(self, path: str) -> bool:
        return f"{path}.bias" not in self._shapes

    def parameters(self, holder: str) -> Iterator[tuple[str, tuple[int, ...]]]:
        prefix = f"{holder}." if holder else ""
        start = bisect_left(self._names, prefix)  # sorted, what is below a holder is one run
        for name in takewhile(lambda name: name.startswith(prefix), self._names[start:]):
            yield name.removeprefix(prefix), self._shapes[name]

    def head_size(self, holder: str, num_queries: int) -> int | None:
        num_heads = _num_heads(_parts_of(self._config, holder), holder)
        return num_queries // num_heads if num_heads and num_queries % num_heads == 0 else None


def _num_heads(parts: Sequence[Mapping[str, Any]], holder: str) -> int:
    """A number of the config, or of the first part of it that has it; 0 if there is none."""
    sides = holder.split(".")
    below = [keys for side, keys in CONFIG_NUM_HEADS_BELOW.items() if side in sides]
    keys = [key for keys in (*below, CONFIG_NUM_HEADS) for key in keys]
    counts = (_of_stage(part.get(key), sides) for part in parts for key in keys)
    return next((count for count in counts if type(count) is int and count > 0), 0)


def _of_stage(value: Any, path: Sequence[str]) -> Any:
    """An entry of a config, or of a list with one for each stage that of the first number."""
    stage = next((int(part) for part in path if part.isdecimal()), 0)
    if isinstance(value, list):
        return value[stage] if stage < len(value) else None
    return value


def _parts_of(config: Mapping[str, Any], path: str) -> list[Mapping[str, Any]]:
    """The config and the configs in it, first the one whose name stands in the path."""
    inner = [(key, value) for key, value in config.items() if isinstance(value, dict)]
    words = path.replace("_", ".").split(".")
    named = {key: key.removesuffix("_config") for key, _ in inner}
    ours = [(words.index(named[key]), key) for key, _ in inner if named[key] in words]
    first = [config[min(ours)[1]]] if ours else []
    return [*first, config, *(value for _, value in inner)]


def _channels(shapes: Shapes) -> Iterator[CoupledGroups]:
    for name, shape in shapes.items():
        if len(shape) == 4 and name.endswith("weight"):
            each = torch.arange(shape[0])
            members = [Member(name, 0, each)]
            if shapes.get(_bias(name)) == shape[:1]:
                members.append(Member(_bias(name), 0, each))
            place = name.removesuffix(".weight")
            yield CoupledGroups(place, "channels", shape[0], tuple(members))


# --- names --------------------------------------------------------------------------------------


def _common_holder(groups: CoupledGroups) -> str:
    # A layer's weight lies in the layer, one more module down than a parameter of the holder.
    paths = [
        member.name.split(".")[: -2 if member.name.endswith((".weight", ".bias")) else -1]
        for member in groups.members
    ]
    common = []
    for words in zip(*paths, strict=False):
        if len(set(words)) > 1:
            break
        common.append(words[0])
    return ".".join(common) or "(the model)"


def _is_weight_of(name: str, layers: Sequence[str]) -> bool:
    path, _, key = name.rpartition(".")
    return key == "weight" and path.rpartition(".")[2] in layers


def _is_buffer(name: str, shapes: Shapes) -> bool:
    # A layer that is itself called "attention" has a weight beside its bias.
    is_bias = f"{name.removesuffix('bias')}weight" in shapes
    return f".{name}".endswith(BUFFERS) and not is_bias


def _is_of_experts(name: str, shape: tuple[int, ...]) -> bool:
    # Convolutions over time have three dimensions too, but do not lie there.
    return len(shape) == 3 and name.split(".")[-2:-1] == [EXPERTS_PATH]


def _bias(weight: str) -> str:
    return f"{weight.removesuffix('weight')}bias"


def _natural(name: str) -> list[tuple[int, str]]:
    """Numbers by value: layer 2 before layer 10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in name.split(".")]
