"""Where transformers models keep heads and neurons, by the names and shapes of their tensors.

Only names: the model is not built. What follows no pattern here is not found, and no harm done.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from platon_prune.groups.coupled import CoupledGroups, Member

Shapes = Mapping[str, tuple[int, ...]]

# Names of modules beside each other: query, key, value and the output matrix (which may also be
# one part of the name up); what feeds a neuron, one or two matrices, and what it feeds.
_HEADS = (
    ("self.query", "self.key", "self.value", "output.dense"),
    ("attention.query", "attention.key", "attention.value", "output.dense"),
    ("self.query_proj", "self.key_proj", "self.value_proj", "output.dense"),
    ("q_proj", "k_proj", "v_proj", "o_proj"),
    ("q_proj", "k_proj", "v_proj", "out_proj"),
    ("q_lin", "k_lin", "v_lin", "out_lin"),
    ("SelfAttention.q", "SelfAttention.k", "SelfAttention.v", "SelfAttention.o"),
    ("EncDecAttention.q", "EncDecAttention.k", "EncDecAttention.v", "EncDecAttention.o"),
)
_FUSED = ("attn.c_attn", "attn.c_proj")
_NEURONS = (
    (("intermediate.dense",), "output.dense"),
    (("gate_proj", "up_proj"), "down_proj"),
    (("fc1",), "fc2"),
    (("lin1",), "lin2"),
    (("linear1",), "linear2"),
    (("c_fc",), "c_proj"),
    (("DenseReluDense.wi",), "DenseReluDense.wo"),
    (("DenseReluDense.wi_0", "DenseReluDense.wi_1"), "DenseReluDense.wo"),
)
_NUM_HEADS = ("num_attention_heads", "n_head", "num_heads", "n_heads")
_ENCODER_DECODER = {"encoder": "encoder_attention_heads", "decoder": "decoder_attention_heads"}
_NUM_KEY_VALUE_HEADS = "num_key_value_heads"


def find_places(shapes: Shapes, config: Mapping[str, Any]) -> list[CoupledGroups]:
    """Every place with heads or neurons, and every convolution with its channels.

    Args:
        shapes: Of the tensors by name.
        config: Of the model, for the number of heads; without it no heads are found.

    Returns:
        Coupled groups by name. Of a channel only its filter and bias are known: which norm and
        which next layer belong to it, names do not tell.
    """
    transposed = transposed_weights(shapes)
    found = [
        *_separate_heads(shapes, config),
        *_fused_heads(shapes, config, transposed),
        *_neurons(shapes, transposed),
        *_channels(shapes),
    ]
    return sorted(found, key=lambda place: (_natural(place.name), place.kind))


def transposed_weights(shapes: Shapes) -> set[str]:
    """Weights stored inputs by outputs: those of transformers' Conv1D, as in GPT-2."""
    fused = [name for name in shapes if name.endswith("c_attn.weight")]
    # The bias tells: one entry for each output.
    is_conv1d = any(
        shapes.get(_bias(name)) == shapes[name][1:] != shapes[name][:1] for name in fused
    )
    layers = ("c_attn", "q_attn", "c_proj", "c_fc")
    return {
        name for name in shapes if is_conv1d and name.split(".")[-2:-1] and
        name.split(".")[-2] in layers and name.endswith(".weight")
    }  # fmt: skip


# --- kinds --------------------------------------------------------------------------------------


def _separate_heads(shapes: Shapes, config: Mapping[str, Any]) -> Iterator[CoupledGroups]:
    for query, key, value, output in _HEADS:
        for prefix in _prefixes(shapes, value):
            inner = [f"{prefix}{part}.weight" for part in (query, key, value)]
            out = _beside(shapes, prefix, output)
            if out is None or not all(len(shapes.get(name, ())) == 2 for name in inner):
                continue
            num_heads = _count(config, _NUM_HEADS, prefix)
            # Where several query heads share one of keys and values, they go together.
            size = _count(config, (_NUM_KEY_VALUE_HEADS,), prefix) or num_heads
            lengths = [shapes[name][0] for name in inner]
            if not size or num_heads % size or any(n % size for n in (*lengths, shapes[out][1])):
                continue
            positions = [f"{prefix}{part}" for part in ("self.pos_query_proj", "self.pos_key_proj")]
            inner += [f"{name}.weight" for name in positions if f"{name}.weight" in shapes]
            members = [
                member
                for name in inner
                for member in _members(shapes, name, 0, _runs(size, shapes[name][0]))
            ]
            members.append(Member(out, 1, _runs(size, shapes[out][1])))
            yield CoupledGroups(_place(prefix), "heads", size, tuple(members))


def _fused_heads(
    shapes: Shapes, config: Mapping[str, Any], transposed: set[str]
) -> Iterator[CoupledGroups]:
    fused, output = _FUSED
    for prefix in _prefixes(shapes, fused):
        weight, out = f"{prefix}{fused}.weight", f"{prefix}{output}.weight"
        size = _count(config, _NUM_HEADS, prefix)
        if out not in shapes or weight not in transposed or not size:
            continue
        width = shapes[out][0]
        if shapes[weight][1] != 3 * width or width % size:
            continue
        inner = _members(shapes, weight, 1, _runs(size, width).repeat(3))
        members = (*inner, Member(out, 0, _runs(size, width)))
        yield CoupledGroups(_place(f"{prefix}attn."), "heads", size, members)


def _neurons(shapes: Shapes, transposed: set[str]) -> Iterator[CoupledGroups]:
    for inner, output in _NEURONS:
        for prefix in _prefixes(shapes, inner[0]):
            weights = [f"{prefix}{part}.weight" for part in inner]
            out = f"{prefix}{output}.weight"
            if not all(len(shapes.get(name, ())) == 2 for name in (*weights, out)):
                continue
            flipped = int(out in transposed)
            size = shapes[out][1 - flipped]
            if any(shapes[name][flipped] != size for name in weights):
                continue
            each = torch.arange(size)
            members = [m for name in weights for m in _members(shapes, name, flipped, each)]
            members.append(Member(out, 1 - flipped, each))
            yield CoupledGroups(_place(prefix), "neurons", size, tuple(members))


def _channels(shapes: Shapes) -> Iterator[CoupledGroups]:
    for name, shape in shapes.items():
        if len(shape) == 4 and name.endswith("weight"):
            members = _members(shapes, name, 0, torch.arange(shape[0]))
            yield CoupledGroups(name.removesuffix(".weight"), "channels", shape[0], members)


# --- parts --------------------------------------------------------------------------------------


def _prefixes(shapes: Shapes, part: str) -> Iterator[str]:
    """What stands before a module's name, ending in a dot or empty."""
    pattern = re.compile(rf"(|.*\.){re.escape(part)}\.weight")
    for name in shapes:
        match = pattern.fullmatch(name)
        if match:
            yield match.group(1)


def _beside(shapes: Shapes, prefix: str, output: str) -> str | None:
    """The output matrix: next to the others, or one part of the name up."""
    parent = prefix.removesuffix(".").rpartition(".")[0]
    for start in (prefix, f"{parent}." if parent else ""):
        name = f"{start}{output}.weight"
        if len(shapes.get(name, ())) == 2:
            return name
    return None


def _members(shapes: Shapes, weight: str, dim: int, group_of: Tensor) -> tuple[Member, ...]:
    """A weight and, if there is one, its bias."""
    bias = _bias(weight)
    members = [Member(weight, dim, group_of)]
    if shapes.get(bias) == (group_of.numel(),):
        members.append(Member(bias, 0, group_of))
    return tuple(members)


def _bias(weight: str) -> str:
    return f"{weight.removesuffix('weight')}bias"


def _runs(num_groups: int, length: int) -> Tensor:
    return torch.arange(num_groups).repeat_interleave(length // num_groups)


def _count(config: Mapping[str, Any], keys: Sequence[str], prefix: str) -> int:
    """A number of the config, or of the one part of it that has it; 0 if there is none."""
    if keys == _NUM_HEADS:
        keys = [name for side, name in _ENCODER_DECODER.items() if side in prefix.split(".")] + [
            *keys
        ]
    parts = [config, *(value for value in config.values() if isinstance(value, dict))]
    for key in keys:
        for part in parts:
            if type(part.get(key)) is int and part[key] > 0:
                return int(part[key])
    return 0


def _place(prefix: str) -> str:
    return prefix.removesuffix(".") or "(the model)"


def _natural(name: str) -> list[Any]:
    """Numbers by value: layer 2 before layer 10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in name.split(".")]
