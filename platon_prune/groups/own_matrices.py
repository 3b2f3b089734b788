"""Groups of layers whose matrices are parameters of the module itself: XLNet's heads, experts."""

from __future__ import annotations

import torch

from platon_prune.groups.coupled import CoupledGroups, Member, Missed
from platon_prune.groups.layers import ExpertLayout, Layers, child, evenly
from platon_prune.spellings import (
    EXPERTS_READ,
    EXPERTS_WRITE,
    OF_THE_RESULT,
    OWN_MATRICES,
    OwnMatrices,
)


def own_groups(layers: Layers, holder: str) -> CoupledGroups | Missed | None:
    """Heads or neurons of a module that holds its matrices itself; None if it is no such module."""
    layout = layers.experts(holder)
    if layout is not None:
        return _of_experts(layers, holder, layout)
    own = layers.own(holder)
    for spelling in OWN_MATRICES:
        if spelling.holds.keys() <= own.keys():
            return _of(layers, holder, spelling)
    return None


def _of(layers: Layers, holder: str, spelling: OwnMatrices) -> CoupledGroups | Missed:
    shapes = dict(layers.parameters(holder))
    sizes = {shapes[key][dim] for key, dim in spelling.holds.items() if dim < len(shapes[key])}
    unknown = [
        key for key in shapes
        if key not in spelling.holds and key.split(".")[0] not in OF_THE_RESULT
    ]  # fmt: skip
    if unknown or len(sizes) != 1:
        why = f"what {unknown[0]} does is not known" if unknown else "its sizes do not fit"
        return Missed(holder, spelling.kind, why)
    size = sizes.pop()
    each = torch.arange(size)
    members = tuple(Member(child(holder, key), dim, each) for key, dim in spelling.holds.items())
    return CoupledGroups(holder, spelling.kind, size, members)


def _of_experts(layers: Layers, holder: str, layout: ExpertLayout) -> CoupledGroups | Missed:
    """Neurons that all experts of a layer lose together, so that their matrices stay one tensor."""
    own, in_dim = layers.own(holder), layout.in_dim
    size, out_dim = own[EXPERTS_WRITE][in_dim], 3 - in_dim
    members = []
    for key in (key for key in EXPERTS_READ if key in own):
        times, rest = divmod(own[key][out_dim], size)
        if rest or times not in (1, 2):
            return Missed(holder, "neurons", f"{key} does not fit {EXPERTS_WRITE}")
        group_of = torch.arange(size).repeat(times)
        if layout.is_interleaved:
            group_of = evenly(times * size, size)
        members.append(Member(child(holder, key), out_dim, group_of))
        if f"{key}_bias" in own:
            members.append(Member(child(holder, f"{key}_bias"), 1, group_of))
    if not members:
        return Missed(holder, "neurons", "what computes its neurons is not known")
    known = {member.name.rpartition(".")[2] for member in members}
    known |= {EXPERTS_WRITE, f"{EXPERTS_WRITE}_bias"}
    if unknown := [key for key in own if key not in known]:
        return Missed(holder, "neurons", f"what {unknown[0]} does is not known")
    members.append(Member(child(holder, EXPERTS_WRITE), in_dim, torch.arange(size)))
    return CoupledGroups(holder, "neurons", size, tuple(members))
