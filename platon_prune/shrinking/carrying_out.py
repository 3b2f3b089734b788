"""A plan is carried out on a model, its optimizer and its config; nothing is refused any more."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from platon_prune.groups.blocks import KIND as BLOCKS
from platon_prune.groups.blocks import place_of, positions_of
from platon_prune.groups.coupled import CoupledGroups
from platon_prune.shrinking.config_sizes import adopt_
from platon_prune.shrinking.cut_out import Cut, cut_out_, plan_cut
from platon_prune.shrinking.empty_blocks import still_there
from platon_prune.shrinking.fewer_blocks import parameters_of, renamed
from platon_prune.shrinking.holders import Kept
from platon_prune.shrinking.named import find, named_parameter
from platon_prune.shrinking.optimizer_states import check_states, cut_states_, forget_
from platon_prune.shrinking.removable import Place, groups_left
from platon_prune.shrinking.uniform import config_as_left


class Left(NamedTuple):
    """What a model is left with.

    Args:
        places: The heads, neurons and channels of layers that stay, called and numbered anew.
        blocks: The layers of lists that stay, likewise.
        in_config: Kinds of places whose counts the config tells.
    """

    places: list[CoupledGroups]
    blocks: list[CoupledGroups]
    in_config: tuple[str, ...]


def check_optimizer(model: nn.Module, cut: Cut, optimizer: torch.optim.Optimizer | None) -> None:
    """Raise a ValueError if what an optimizer remembers can't be cut as the model is."""
    if optimizer is None:
        return
    names: dict[Tensor, str] = {named_parameter(*find(model, n)): n for n in cut.kept}
    check_states(optimizer, {p: cut.kept[name] for p, name in names.items()}, names)


def carry_out_(
    model: nn.Module,
    cut: Cut,
    places: Sequence[Place],
    blocks: Sequence[Place],
    optimizer: torch.optim.Optimizer | None,
) -> Left:
    """Cut a model, what its optimizer remembers, and what its config says.

    Args:
        model: Without masks; changed in place.
        cut: The plan for all places and blocks.
        places: What heads, neurons and channels are left with.
        blocks: What each list of layers is left with.
        optimizer: Checked with :func:`check_optimizer`; None to leave it alone.
    """

    def also(tensor: Tensor, indices: Kept) -> None:
        if optimizer is not None:
            cut_states_(optimizer, tensor, indices)

    if cut.layers:
        # First, so that what the config can tell of the others is asked of the layers that stay.
        if optimizer is not None:
            forget_(optimizer, parameters_of(model, cut.layers))
        cut_out_(model, plan_cut(model, blocks), also)
        places = still_there(places, cut.layers)
    config, in_config = config_as_left(model, places)
    cut_out_(model, plan_cut(model, places), also)
    if config is not None:
        adopt_(model, config)
    in_config += (BLOCKS,) if cut.config is not None else ()
    left = groups_left(model, places)
    return Left(left, blocks_left(model, blocks, cut.layers, left), in_config)


def blocks_left(
    model: nn.Module,
    blocks: Sequence[Place],
    gone: dict[str, list[int]],
    others: Sequence[CoupledGroups],
) -> list[CoupledGroups]:
    """The layers of each list that stay, as they lie in the model now."""
    found = []
    for place in blocks:
        stays = zip(positions_of(place.groups), place.kept.tolist(), strict=True)
        start = f"{place.groups.name}." if place.groups.name else ""
        names = [renamed(f"{start}{position}", gone) for position, kept in stays if kept]
        positions = [int(str(name).removeprefix(start)) for name in names]
        if positions:
            found.append(place_of(model, place.groups.name, positions, others))
    return found
