"""Heads and neurons of layers that the table of spellings knows, in whatever tells their names.

One finder serves models and files, so that both find the same. A layer with a part that is not
understood (a convolution between, a mixing of heads) is left alone, and the reason is told.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from platon_prune.groups.coupled import CoupledGroups, Member, Missed, first_that_fits
from platon_prune.groups.layers import Layers, Linear, child
from platon_prune.groups.own_matrices import own_groups
from platon_prune.groups.spelled_heads import heads_of
from platon_prune.spellings import BESIDE_NEURONS, FEED_FORWARD, FeedForward, Projection


def spelled_groups(layers: Layers) -> Iterator[CoupledGroups]:
    """Heads and neurons of every attention and feed-forward layer that is understood.

    Yields:
        Places in the order of the modules that hold them, called by their paths.
    """
    return (found for found in looked_at(layers) if isinstance(found, CoupledGroups))


def looked_at(layers: Layers) -> Iterator[CoupledGroups | Missed]:
    """Every layer that is spelled as in the table: its groups, or why it has none."""
    for holder in layers.holders():
        for look in (heads_of, _neurons, own_groups):
            found = look(layers, holder)
            if found is not None:
                yield found


def _neurons(layers: Layers, holder: str) -> CoupledGroups | Missed | None:
    """Neurons of the first spelling that fits; why there are none if layers are there."""
    return first_that_fits(
        holder, "neurons", (_look(layers, holder, spelling) for spelling in FEED_FORWARD)
    )


def _look(layers: Layers, holder: str, spelling: FeedForward) -> CoupledGroups | str | None:
    found = _linears(layers, holder, spelling)
    return None if found is None else _groups(layers, holder, spelling, *found)


def _linears(
    layers: Layers, holder: str, spelling: FeedForward
) -> tuple[dict[Projection, Linear], Linear] | None:
    """The layers of a spelling; None if one is missing."""
    writes = layers.linear(child(holder, spelling.writes))
    reads = {p: layers.linear(child(holder, p.name)) for p in spelling.reads}
    if writes is None or None in reads.values():
        return None
    return {p: layer for p, layer in reads.items() if layer is not None}, writes


def _groups(
    layers: Layers,
    holder: str,
    spelling: FeedForward,
    reads: dict[Projection, Linear],
    writes: Linear,
) -> CoupledGroups | str:
    """The neurons, or why there are none."""
    size = writes.num_in
    if any(layer.num_out != size * len(p.parts) for p, layer in reads.items()):
        return "its matrices do not fit each other"
    each = torch.arange(size)
    members = [m for p, layer in reads.items() for m in layer.out(each.repeat(len(p.parts)))]
    for name in spelling.may_filter:
        path = child(holder, name)
        has_bias = layers.filters(path, size)
        if has_bias is not None:
            members.append(Member(f"{path}.weight", 0, each))
            members += [Member(f"{path}.bias", 0, each)] * has_bias
    members += writes.into(each)
    known = {member.name for member in members} | {f"{writes.name}.bias"}
    for key, shape in layers.parameters(holder):
        is_beside = bool(set(key.split(".")) & set(BESIDE_NEURONS))
        # A norm or a convolution of as many entries may act on the neurons.
        if size in shape and child(holder, key) not in known and not is_beside:
            return f"what {key} does to its neurons is not known"
    return CoupledGroups(holder, "neurons", size, tuple(members))
