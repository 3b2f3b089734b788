"""Heads and neurons of layers that the table of spellings knows, in whatever tells their names.

One finder serves models and files, so that both find the same. A layer with a part that is not
understood (a norm over all heads, a convolution between, a gate of its own) is left alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from platon_prune.groups.coupled import CoupledGroups, Member
from platon_prune.spellings import (
    ATTENTION,
    BESIDE_NEURONS,
    FEED_FORWARD,
    OF_EACH_HEAD,
    OF_THE_RESULT,
    Attention,
    FeedForward,
    Projection,
)


@dataclass(frozen=True)
class Linear:
    """A linear layer by its sizes.

    Args:
        name: Its path.
        num_out: Number of outputs.
        num_in: Number of inputs.
        out_dim: The dimension of its weight along which outputs lie: 1 of transformers' Conv1D.
        has_bias: Whether it has a bias.
    """

    name: str
    num_out: int
    num_in: int
    out_dim: int
    has_bias: bool

    def out(self, group_of: Tensor) -> Iterator[Member]:
        """What groups hold of it that lie along its outputs."""
        yield Member(f"{self.name}.weight", self.out_dim, group_of)
        if self.has_bias:
            yield Member(f"{self.name}.bias", 0, group_of)

    def into(self, group_of: Tensor) -> Iterator[Member]:
        """What groups hold of it that lie along its inputs."""
        yield Member(f"{self.name}.weight", 1 - self.out_dim, group_of)


class Layers(Protocol):
    """What can be told of a network by names and shapes; a model tells it, and a file."""

    def holders(self) -> Iterable[str]:
        """Paths of all modules, the network itself as ""."""

    def linear(self, path: str) -> Linear | None:
        """The linear layer at a path, if there is one."""

    def parameters(self, holder: str) -> Iterable[tuple[str, tuple[int, ...]]]:
        """Names, from the holder, and shapes of all parameters at and below it."""

    def head_size(self, holder: str, num_queries: int) -> int | None:
        """Entries of one query head of ``num_queries`` in all; None if it can't be told."""


def spelled_groups(layers: Layers) -> Iterator[CoupledGroups]:
    """Heads and neurons of every attention and feed-forward layer that is understood.

    Yields:
        Places in the order of the modules that hold them, called by their paths.
    """
    for holder in layers.holders():
        for groups in (_heads(layers, holder), _neurons(layers, holder)):
            if groups is not None:
                yield groups


def child(holder: str, name: str) -> str:
    """The path of what a spelling calls ``name``; "../" is the module that holds the holder."""
    if name.startswith("../"):
        holder, name = holder.rpartition(".")[0], name.removeprefix("../")
    return f"{holder}.{name}" if holder and name else holder or name


# --- attention ----------------------------------------------------------------------------------


def _heads(layers: Layers, holder: str) -> CoupledGroups | None:
    """Heads of the first spelling whose layers are there; with grouped queries, key-value heads.

    A head's column of T5's table of relative positions is in no group: all layers share it, and
    nothing of a masked head is seen whatever its positions say.
    """
    for spelling in ATTENTION:
        found = _linears(layers, holder, spelling)
        if found is not None:
            return _heads_of(layers, holder, spelling, *found)
    return None


def _heads_of(
    layers: Layers,
    holder: str,
    spelling: Attention,
    reads: dict[Projection, Linear],
    writes: Linear,
) -> CoupledGroups | None:
    reads = reads | {
        projection: layer
        for projection in spelling.may_read
        if (layer := layers.linear(child(holder, projection.name))) is not None
    }
    width = {"query": writes.num_in}  # all that the heads give is read
    width["key"] = width["value"] = _key_width(reads, width["query"])
    size = layers.head_size(holder, width["query"])
    known = {layer.name for layer in (*reads.values(), writes)}
    if (
        size is None
        or not width["key"]
        or width["key"] % size
        or width["query"] % width["key"]
        or any(layer.num_out != sum(width[part] for part in p.parts) for p, layer in reads.items())
        or not _leaves_heads_to_themselves(layers, holder, known, size)
    ):
        return None
    num_groups = width["key"] // size
    group_of = {
        part: torch.arange(entries) // (entries // num_groups) for part, entries in width.items()
    }
    members = _members(reads, writes, group_of, group_of["query"])
    return CoupledGroups(holder, "heads", num_groups, members)


def _key_width(reads: dict[Projection, Linear], num_queries: int) -> int:
    """The outputs that are keys, by the layer that has them; 0 if they do not come out even."""
    for projection, layer in reads.items():
        num_others = projection.parts.count("query")
        if others := len(projection.parts) - num_others:
            width, rest = divmod(layer.num_out - num_others * num_queries, others)
            return 0 if rest or width < 0 else width
    return 0


def _leaves_heads_to_themselves(layers: Layers, holder: str, known: set[str], size: int) -> bool:
    """Whether all other parameters inside act on each head by itself, or on the result."""
    for key, shape in layers.parameters(holder):
        layer = key.rpartition(".")[0]
        # Its scales are repeated for every head only if there are as many as a head has entries.
        of_each_head = shape[-1:] == (size,) and any(word in layer for word in OF_EACH_HEAD)
        if child(holder, layer) not in known and not of_each_head and layer not in OF_THE_RESULT:
            return False
    return True


# --- feed-forward -------------------------------------------------------------------------------


def _neurons(layers: Layers, holder: str) -> CoupledGroups | None:
    """Neurons of the first spelling whose layers are there."""
    for spelling in FEED_FORWARD:
        found = _linears(layers, holder, spelling)
        if found is None:
            continue
        reads, writes = found
        size = writes.num_in
        known = {layer.name for layer in (*reads.values(), writes)}
        if any(
            layer.num_out != size * len(p.parts) for p, layer in reads.items()
        ) or _is_seen_elsewhere(layers, holder, known, size):
            return None
        each = torch.arange(size)
        return CoupledGroups(
            holder, "neurons", size, _members(reads, writes, {"neurons": each}, each)
        )
    return None


def _is_seen_elsewhere(layers: Layers, holder: str, known: set[str], size: int) -> bool:
    """Whether another parameter may act on the neurons: a norm or a convolution of their number."""
    return any(
        size in shape
        and child(holder, key.rpartition(".")[0]) not in known
        and not set(key.split(".")) & set(BESIDE_NEURONS)
        for key, shape in layers.parameters(holder)
    )


# --- both ---------------------------------------------------------------------------------------


def _linears(
    layers: Layers, holder: str, spelling: Attention | FeedForward
) -> tuple[dict[Projection, Linear], Linear] | None:
    """The layers of a spelling; None if one is missing."""
    writes = layers.linear(child(holder, spelling.writes))
    if writes is None:
        return None
    reads = {}
    for projection in spelling.reads:
        layer = layers.linear(child(holder, projection.name))
        if layer is None:
            return None
        reads[projection] = layer
    is_conv1d = isinstance(spelling, Attention) and spelling.is_conv1d
    if is_conv1d and any(layer.out_dim == 0 for layer in reads.values()):
        return None
    return reads, writes


def _members(
    reads: dict[Projection, Linear],
    writes: Linear,
    group_of: dict[str, Tensor],
    of_written: Tensor,
) -> tuple[Member, ...]:
    members: list[Member] = []
    for projection, layer in reads.items():
        # Parts lie one run after another; a spelling that mixes them by head would differ here.
        members += layer.out(torch.cat([group_of[part] for part in projection.parts]))
    return (*members, *writes.into(of_written))
