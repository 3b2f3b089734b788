"""The heads of attention layers that the table of spellings knows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from platon_prune.groups.coupled import CoupledGroups, Member, Missed, first_that_fits
from platon_prune.groups.layers import Layers, Linear, Shape, child, evenly, outputs_of
from platon_prune.spellings import (
    ATTENTION,
    OF_EACH_HEAD,
    OF_HEADS,
    OF_HEADS_ABOVE,
    OF_THE_INPUT,
    OF_THE_RESULT,
    OVER_ALL_HEADS,
    Attention,
    Projection,
)

Reads = Mapping[Projection, Linear]
_KEYS = ("key", "value")  # what grouped queries share


def heads_of(layers: Layers, holder: str) -> CoupledGroups | Missed | None:
    """Heads of the first spelling that fits; with grouped queries, key-value heads.

    Where all queries read one key-value head, that one stays, and each query head is a group.

    A head's column of T5's table of relative positions is in no group: all layers share it, and
    nothing of a masked head is seen whatever its positions say.

    Returns:
        Why there are none if layers are there but none of the spellings fits; None if none are.
    """
    return first_that_fits(
        holder, "heads", (_look(layers, holder, spelling) for spelling in ATTENTION)
    )


def _look(layers: Layers, holder: str, spelling: Attention) -> CoupledGroups | str | None:
    found = _linears(layers, holder, spelling)
    return None if found is None else _groups(layers, holder, spelling, *found)


def _linears(layers: Layers, holder: str, spelling: Attention) -> tuple[Reads, Linear] | None:
    """The layers of a spelling; None if one is missing."""
    writes = layers.linear(child(holder, spelling.writes))
    if writes is None:
        return None
    reads = {}
    for projection in (*spelling.reads, *spelling.may_read):
        layer = layers.linear(child(holder, projection.name))
        if layer is not None:
            reads[projection] = layer
        elif projection in spelling.reads:
            return None
    if spelling.is_conv1d and any(layer.out_dim == 0 for layer in reads.values()):
        return None
    return reads, writes


def _groups(
    layers: Layers, holder: str, spelling: Attention, reads: Reads, writes: Linear
) -> CoupledGroups | str:
    """The heads, or why there are none."""
    if why := layers.entangled(holder):
        return why
    size = layers.head_size(holder, writes.num_in)
    if size is None:
        return "the size of a head can't be told"
    width = _widths(reads, writes.num_in)
    num_groups = _num_groups(spelling, reads, width, size)
    if not num_groups:
        return "its projections are not of whole heads"
    stay: tuple[str, ...] = ()
    if num_groups == 1 and not spelling.is_latent and width["key"] < width["query"]:
        num_groups, stay = width["query"] // size, _KEYS
    others = _members_beside(layers, holder, reads, writes, width, num_groups, size)
    if isinstance(others, str):
        return others
    if others and spelling.blocks > 1:
        return f"{others[0].name} is not known to lie in blocks"
    block = {part: entries // spelling.blocks for part, entries in width.items()}
    members: list[Member] = []
    for projection, layer in reads.items():
        if set(projection.parts) <= set(stay):
            continue
        of_block = (
            evenly(layer.num_out, num_groups)
            if spelling.is_latent
            else outputs_of(projection, block, num_groups, stay)
        )
        members += layer.out(of_block.repeat(spelling.blocks))
    members += others
    members += writes.into(evenly(block["query"], num_groups).repeat(spelling.blocks))
    return CoupledGroups(holder, "heads", num_groups, tuple(members))


def _num_groups(spelling: Attention, reads: Reads, width: Mapping[str, int], size: int) -> int:
    """How many groups the heads make; 0 if the projections do not fit each other."""
    if spelling.is_latent:
        count = width["query"] // size
        return 0 if any(layer.num_out % count for layer in reads.values()) else count
    if (
        not width["key"]
        or width["key"] % (size * spelling.blocks)
        or width["query"] % width["key"]
        or any(layer.num_out != sum(width[p] for p in r.parts) for r, layer in reads.items())
    ):
        return 0
    return width["key"] // size // spelling.blocks


def _widths(reads: Reads, num_queries: int) -> dict[str, int]:
    """How many outputs each part has; no keys if they do not come out even."""
    width = {"query": num_queries, "gate": num_queries}  # all that the heads give is read
    width["key"] = width["value"] = _key_width(reads, num_queries)
    return width


def _key_width(reads: Reads, num_queries: int) -> int:
    """The outputs that are keys, by the layer that has them; 0 if they do not come out even."""
    for projection, layer in reads.items():
        num_others = sum(part in ("query", "gate") for part in projection.parts)
        if others := len(projection.parts) - num_others:
            width, rest = divmod(layer.num_out - num_others * num_queries, others)
            return 0 if rest or width < 0 else width
    return 0


# --- what is beside the projections -------------------------------------------------------------


def _members_beside(
    layers: Layers,
    holder: str,
    reads: Reads,
    writes: Linear,
    width: Mapping[str, int],
    num_groups: int,
    size: int,
) -> list[Member] | str:
    """What groups hold of all other parameters inside, or why that is not known."""
    known = {layer.name for layer in (*reads.values(), writes)}
    members = []
    for key, shape in layers.parameters(holder):
        layer = key.rpartition(".")[0]
        if (layer and child(holder, layer) in known) or _is_of_each_head(layer, shape, size):
            continue
        found = list(_along_heads(layers, holder, key, shape, width, num_groups))
        harmless = {layer, layer.split(".")[0]}.intersection((*OF_THE_RESULT, *OF_THE_INPUT))
        if not found and not harmless:
            return f"what {key} does to its heads is not known"
        members += found
    for key, dim in OF_HEADS_ABOVE.items():
        path, _, last = child(holder, key).rpartition(".")
        shape = layers.own(path).get(last, ())
        if dim < len(shape) and shape[dim] % num_groups == 0:
            members.append(Member(f"{path}.{last}", dim, evenly(shape[dim], num_groups)))
    return members


def _is_of_each_head(layer: str, shape: Shape, size: int) -> bool:
    # Its scales are repeated for every head only if there are as many as a head has entries.
    return shape[-1:] == (size,) and any(word in layer for word in OF_EACH_HEAD)


def _along_heads(
    layers: Layers,
    holder: str,
    key: str,
    shape: Shape,
    width: Mapping[str, int],
    num_groups: int,
) -> Iterator[Member]:
    """The member of a parameter that has entries for each head; none of any other."""
    dim = OF_HEADS.get(key)
    if dim is not None and dim < len(shape) and shape[dim] % num_groups == 0:
        yield Member(child(holder, key), dim, evenly(shape[dim], num_groups))
    layer, _, last = key.rpartition(".")
    part = OVER_ALL_HEADS.get(layer)
    # One that also subtracts a mean or adds a bias does not come out alike with fewer heads.
    if (
        part is not None
        and last == "weight"
        and shape == (width[part],)
        and layers.is_rms_norm(child(holder, layer))
    ):
        yield Member(child(holder, key), 0, evenly(shape[0], num_groups))
