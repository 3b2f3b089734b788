"""What stays is planned, and the plan carried out: on a twin that is tried, or on the model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from platon_prune.groups.blocks import KIND as BLOCKS
from platon_prune.masks.routers import forget_where_none_is_out_
from platon_prune.shrinking.attention import head_bias
from platon_prune.shrinking.fewer_blocks import config_without, is_gone, layers_gone, take_out_
from platon_prune.shrinking.holders import Kept
from platon_prune.shrinking.removable import Place, kept_indices
from platon_prune.shrinking.resize import check_sizes, resize_


@dataclass(frozen=True)
class Cut:
    """What stays of a model's tensors.

    Args:
        kept: For each tensor that is cut, along which dimensions, and which indices stay; int64.
        heads: For each attention that shares a position bias, which of its columns are its heads.
        layers: Which layers of which lists go as a whole.
        config: What says so of a model of transformers.
    """

    kept: dict[str, dict[int, Tensor]]
    heads: dict[str, Tensor]
    layers: dict[str, list[int]] = field(default_factory=dict)
    config: Any = None


def plan_cut(model: nn.Module, places: Sequence[Place]) -> Cut:
    """What stays of each tensor when places are left as planned.

    Args:
        model: Not changed.
        places: What each place is left with.

    Raises:
        ValueError: If a layer or its parent would be left with sizes that do not fit, or the config
            of a model of transformers can't tell it without layers that go.
    """
    layers = layers_gone(places)
    config = config_without(model, layers)
    # What lies in a layer that goes is not cut before.
    places = [p for p in places if p.groups.kind != BLOCKS and not _lies_in(p, layers)]
    kept = kept_indices(places)
    # Before the cut: afterwards the layers no longer tell which heads they had.
    heads = head_bias.left_heads(model, places)
    for name in head_bias.tables(model):
        kept.pop(name, None)  # cut to the heads that any of its layers keeps
    check_sizes(model, kept)
    return Cut(kept, heads, layers, config)


def _lies_in(place: Place, layers: dict[str, list[int]]) -> bool:
    return all(is_gone(member.name, layers) for member in place.groups.members)


def cut_out_(
    model: nn.Module,
    cut: Cut,
    also: Callable[[Tensor, Kept], Any] = lambda tensor, kept: None,
) -> None:
    """Cut a model as planned, and set all sizes that its modules keep.

    Args:
        model: Without masks; changed in place.
        cut: The plan, of this model or of one like it.
        also: Called with each tensor just before it is cut, and with what stays of it.
    """
    resize_(model, cut.kept, also)
    head_bias.share_bias_(model, cut.heads, also)
    forget_where_none_is_out_(model)
    take_out_(model, cut.layers, cut.config)
