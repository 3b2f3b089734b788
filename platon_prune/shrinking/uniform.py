"""The same counts in every layer: what a config can tell of a plan, and plans that it can tell."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from platon_prune.shrinking.attention import head_bias
from platon_prune.shrinking.config_sizes import config_for, config_of
from platon_prune.shrinking.named import find, named_parameter, tensor_at
from platon_prune.shrinking.removable import Place, kept_indices
from platon_prune.shrinking.resize import companions


def with_same_counts(model: nn.Module, places: Sequence[Place]) -> list[Place]:
    """The smallest counts that every layer of the model can have and its config can tell.

    Args:
        model: A model of transformers; not changed.
        places: What each place could be left with.

    Returns:
        The places with some more groups kept; all of those of a kind that the config can't tell.

    Raises:
        ValueError: If the model has no config.
    """
    config = config_of(model)
    if config is None:
        raise ValueError(
            "model must have a config, as transformers' models do, for uniform=True, got a "
            f"{type(model).__name__}: shrink it without, and load it with platon_prune.load_into"
        )
    result = list(places)
    told: list[Place] = []
    for kind in _kinds(places):
        chosen = [i for i, place in enumerate(places) if place.groups.kind == kind]
        ours = _sharing_heads(model, [places[i] for i in chosen])
        found, changed = _smallest(model, config, kind, ours, told)
        if changed is not None:
            config = changed  # the next kind must fit beside this one
            told += found
        for i, place in zip(chosen, found, strict=True):
            result[i] = place
    return result


def config_as_left(model: nn.Module, places: Sequence[Place]) -> tuple[Any | None, tuple[str, ...]]:
    """What the config can tell of a plan.

    Args:
        model: Any; not changed.
        places: What each place is left with.

    Returns:
        A new config, and the kinds of places whose counts it has; no config if it is none of them.
    """
    config, told = config_of(model), []
    if config is None:
        return None, ()
    before: list[Place] = []
    for kind in _kinds(places):
        ours = [place for place in places if place.groups.kind == kind]
        counts = {place.after for place in ours}
        # A config has one number for all layers, and T5's heads must also be the same columns.
        if len(counts) == 1 and _agree_on_heads(model, ours):
            shapes = _shapes(model, ours, before)
            tables = head_bias.tables(model)
            changed = config_for(model, config, kind, counts.pop(), shapes, tables)
            if changed is not None:
                config = changed
                told.append(kind)
                before += ours
    return (config if told else None), tuple(told)


def _kinds(places: Sequence[Place]) -> list[str]:
    """The kinds of which something is removed."""
    return sorted({place.groups.kind for place in places if not place.kept.all()})


def _smallest(
    model: nn.Module, config: Any, kind: str, places: list[Place], told: Sequence[Place]
) -> tuple[list[Place], Any | None]:
    sizes = {place.groups.size for place in places}
    first = max(place.after for place in places)
    # Upwards: the first count that a config can tell is the smallest model.
    for count in range(first, max(sizes)) if len(sizes) == 1 else ():
        filled = [place.keeping(_filled(place.kept, count)) for place in places]
        shapes = _shapes(model, filled, told)
        changed = config_for(model, config, kind, count, shapes, head_bias.tables(model))
        if changed is not None:
            return filled, changed
    note = f"fewer {kind} are beyond the config: they stay as zeros"
    return [
        place if place.kept.all() else place.keeping_all(place.note or note) for place in places
    ], None


def _filled(kept: Tensor, count: int) -> Tensor:
    """As many groups kept as ``count``, the first ones of the others added."""
    # Any would do, all being zero; the first ones make it the same in every run.
    more = (~kept).nonzero().flatten()[: count - int(kept.sum())]
    filled = kept.clone()
    filled[more] = True
    return filled


def _shapes(
    model: nn.Module, places: Sequence[Place], told: Sequence[Place]
) -> dict[str, tuple[int, ...]]:
    """What the tensors of the places will be, beside what the config has been told already."""
    # Experts and their neurons are cut from the same tensors.
    kept = kept_indices([*places, *told])
    shapes = {}
    for name in {member.name for place in places for member in place.groups.members}:
        module, key = find(model, name)
        tensors = {name: named_parameter(module, key)} | {
            f"{name.removesuffix(key)}{other}": tensor_at(module, other)
            for other in companions(module, key)
            if other not in module._non_persistent_buffers_set
        }
        dims = kept.get(name, {})
        for each, tensor in tensors.items():
            shapes[each] = tuple(
                dims[dim].numel() if dim in dims else size for dim, size in enumerate(tensor.shape)
            )
    return shapes


def _sharing_heads(model: nn.Module, places: list[Place]) -> list[Place]:
    """Places whose layers share a bias of heads keep what any of them keeps."""
    for paths in head_bias.stacks(model):
        queries = {head_bias.query_of(path) for path in paths}
        sharing = [
            i
            for i, place in enumerate(places)
            if queries.intersection(member.name for member in place.groups.members)
        ]
        if sharing and len({places[i].groups.size for i in sharing}) == 1:
            kept = torch.stack([places[i].kept for i in sharing]).any(dim=0)
            for i in sharing:
                places[i] = places[i].keeping(kept)
    return places


def _agree_on_heads(model: nn.Module, places: Sequence[Place]) -> bool:
    return head_bias.have_same_heads(model, head_bias.left_heads(model, places))
