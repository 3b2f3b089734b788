"""Coupled groups of attention and feed-forward layers, by the names of their submodules.

transformers' models spell them in a few ways, told in the tables below. What has a part that is
not understood (a norm over all heads, a convolution between, a gate of its own) is left alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from platon_prune.groups.coupled import CoupledGroups, Member

# Query, key, value and output in one module; "../" is the module that holds it.
_ATTENTION = (
    ("q_proj", "k_proj", "v_proj", "o_proj"),
    ("q_proj", "k_proj", "v_proj", "out_proj"),
    ("q_proj", "k_proj", "v_proj", "dense"),
    ("query", "key", "value", "../output.dense"),
    ("query", "key", "value", "dense"),
    ("query", "key", "value", "out_proj"),
    ("query_proj", "key_proj", "value_proj", "../output.dense"),
    ("q", "k", "v", "o"),
    ("q_lin", "k_lin", "v_lin", "out_lin"),
)
# All that reads the input (two if one gates the other), and what reads the neurons.
_FEED_FORWARD = (
    (("gate_proj", "up_proj"), "down_proj"),
    (("up_proj",), "down_proj"),
    (("wi_0", "wi_1"), "wo"),
    (("wi",), "wo"),
    (("intermediate.dense",), "output.dense"),
    (("fc1",), "fc2"),
    (("lin1",), "lin2"),
    (("linear1",), "linear2"),
    (("c_fc",), "c_proj"),
    (("dense_h_to_4h",), "dense_4h_to_h"),
    (("ffn",), "ffn_output"),
)
_NUM_HEADS = ("num_attention_heads", "num_heads", "n_heads", "n_head")
_HEAD_SIZE = ("head_dim", "attention_head_size", "key_value_proj_dim")
# Their heads are not independent: blocks drawn per head, averages over heads.
_ENTANGLED = ("BlockSparse", "Autoformer", "ProbSparse")


class _Projection(NamedTuple):
    """A linear layer or a transformers Conv1D, whose weight is the other way round."""

    name: str
    module: nn.Module
    num_out: int
    num_in: int
    out_dim: int

    def out(self, group_of: Tensor) -> Iterator[Member]:
        yield Member(f"{self.name}.weight", self.out_dim, group_of)
        if getattr(self.module, "bias", None) is not None:
            yield Member(f"{self.name}.bias", 0, group_of)

    def into(self, group_of: Tensor) -> Iterator[Member]:
        yield Member(f"{self.name}.weight", 1 - self.out_dim, group_of)


def layout_groups(model: nn.Module) -> Iterator[CoupledGroups]:
    """Heads and neurons of every attention and feed-forward layer that is understood.

    Args:
        model: Any module; only names, shapes and numbers of heads are looked at.

    Yields:
        Places in the order of the modules that hold them.
    """
    modules = dict(model.named_modules())
    shared = _shared_parameters(model)
    for name in modules:
        found = (_heads(modules, name), _fused_heads(modules, name), _neurons(modules, name))
        for groups in found:
            if groups is not None and not any(
                id(_parameter(modules, member.name)) in shared for member in groups.members
            ):
                yield groups


# --- attention ----------------------------------------------------------------------------------


def _heads(modules: Mapping[str, nn.Module], name: str) -> CoupledGroups | None:
    """Heads whose query, key and value have layers of their own.

    With grouped queries, a key-value head with all query heads that read it. A head's column of
    T5's table of relative positions is in no group: all layers share it, and nothing of a masked
    head is seen whatever its positions say.
    """
    for spelling in _ATTENTION:
        layers = [_projection(modules, _child(name, part)) for part in spelling]
        query, key, value, output = layers
        if query is None or key is None or value is None or output is None:
            continue
        size = _head_size(modules[name], query.num_out)
        extra = [_projection(modules, _child(name, f"pos_{part}")) for part in spelling[:2]]
        positions = [layer for layer in extra if layer is not None]
        known = {layer.name for layer in (query, key, value, output, *positions)}
        if (
            size is None
            or not _fit(query, key, value, output, size)
            or any(layer.num_out != query.num_out for layer in positions)
            or not _only_understood(modules[name], name, known, size)
        ):
            return None
        num_groups = key.num_out // size
        of_query = torch.arange(query.num_out) // (query.num_out // num_groups)
        of_key = torch.arange(key.num_out) // size
        members = [
            *query.out(of_query),
            *key.out(of_key),
            *value.out(of_key),
            *(member for layer in positions for member in layer.out(of_query)),
            *output.into(of_query),
        ]
        return CoupledGroups(name, "heads", num_groups, tuple(members))
    return None


def _fit(
    query: _Projection, key: _Projection, value: _Projection, output: _Projection, size: int
) -> bool:
    return (
        key.num_out == value.num_out
        and output.num_in == query.num_out
        and key.num_out % size == 0
        and query.num_out % key.num_out == 0
    )


def _fused_heads(modules: Mapping[str, nn.Module], name: str) -> CoupledGroups | None:
    """Heads of GPT-2: query, key and value side by side in one Conv1D.

    In its cross-attention only the latter two are, beside a query of their own.
    """
    fused = _projection(modules, _child(name, "c_attn"))
    query = _projection(modules, _child(name, "q_attn"))
    output = _projection(modules, _child(name, "c_proj"))
    if fused is None or output is None or fused.out_dim == 0:  # a Linear may be laid out otherwise
        return None
    parts = 3 if query is None else 2
    width = output.num_in
    size = _head_size(modules[name], width)
    known = {layer.name for layer in (fused, query, output) if layer is not None}
    if (
        size is None
        or fused.num_out != parts * width
        or (query is not None and query.num_out != width)
        or not _only_understood(modules[name], name, known, size)
    ):
        return None
    of_one = torch.arange(width) // size
    members = [
        *fused.out(of_one.repeat(parts)),
        *(() if query is None else query.out(of_one)),
        *output.into(of_one),
    ]
    return CoupledGroups(name, "heads", width // size, tuple(members))


def _head_size(attention: nn.Module, num_out: int) -> int | None:
    """Entries of one query head; None if it can't be told."""
    if any(word in type(attention).__name__ for word in _ENTANGLED):
        return None
    size = _first_integer(attention, _HEAD_SIZE)
    if size is None:
        num_heads = _first_integer(attention, _NUM_HEADS)
        if num_heads is None:
            num_heads = _first_integer(getattr(attention, "config", None), _NUM_HEADS)
        size = None if num_heads is None or num_out % num_heads else num_out // num_heads
    return size if size and num_out % size == 0 else None


def _first_integer(owner: Any, names: Sequence[str]) -> int | None:
    values = (getattr(owner, name, None) for name in names)
    return next((value for value in values if type(value) is int and value > 0), None)


def _only_understood(attention: nn.Module, name: str, known: set[str], size: int) -> bool:
    """Whether all other parameters inside leave each head to itself."""
    for key, parameter in attention.named_parameters():
        layer = key.rpartition(".")[0]
        of_each_head = parameter.shape[-1:] == (size,) and (
            "norm" in layer or layer == "distance_embedding"
        )
        of_the_result = layer in ("LayerNorm", "relative_attention_bias")
        if _child(name, layer) not in known and not of_each_head and not of_the_result:
            return False
    return True


# --- feed-forward -------------------------------------------------------------------------------


def _neurons(modules: Mapping[str, nn.Module], name: str) -> CoupledGroups | None:
    """Neurons between two linear layers, or three where one gates another."""
    for reading, writing in _FEED_FORWARD:
        first = [_projection(modules, _child(name, part)) for part in reading]
        second = _projection(modules, _child(name, writing))
        found = [layer for layer in first if layer is not None]
        if second is None or len(found) < len(first):
            continue
        size = second.num_in
        known = {layer.name for layer in (*found, second)}
        if any(layer.num_out != size for layer in found) or _is_seen_elsewhere(
            modules[name], name, known, size
        ):
            return None
        group_of = torch.arange(size)
        members = [member for layer in found for member in layer.out(group_of)]
        members += second.into(group_of)
        return CoupledGroups(name, "neurons", size, tuple(members))
    return None


def _is_seen_elsewhere(holder: nn.Module, name: str, known: set[str], size: int) -> bool:
    """Whether another parameter may act on the neurons: a norm or a convolution of their number."""
    return any(
        size in parameter.shape and _child(name, key.rpartition(".")[0]) not in known
        for key, parameter in holder.named_parameters()
    )


# --- names --------------------------------------------------------------------------------------


def _child(name: str, part: str) -> str:
    if part.startswith("../"):
        name, part = name.rpartition(".")[0], part.removeprefix("../")
    return f"{name}.{part}" if name and part else name or part


def _projection(modules: Mapping[str, nn.Module], name: str) -> _Projection | None:
    module = modules.get(name)
    if isinstance(module, nn.Linear):
        num_out, num_in = module.weight.shape
        return _Projection(name, module, num_out, num_in, out_dim=0)
    if any(
        cls.__name__ == "Conv1D" and cls.__module__.startswith("transformers.")
        for cls in type(module).__mro__
    ):
        num_in, num_out = module.weight.shape  # type: ignore[union-attr,misc]
        return _Projection(name, module, num_out, num_in, out_dim=1)  # type: ignore[arg-type]
    return None


def _parameter(modules: Mapping[str, nn.Module], name: str) -> Any:
    path, _, tensor_name = name.rpartition(".")
    return getattr(modules[path], tensor_name)


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
