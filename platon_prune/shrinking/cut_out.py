"""What stays is planned, and the plan carried out: on a twin that is tried, or on the model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from platon_prune.masks.routers import forget_where_none_is_out_
from platon_prune.shrinking import head_bias
from platon_prune.shrinking.removable import Place, kept_indices
from platon_prune.shrinking.resize import Kept, check_sizes, resize_


@dataclass(frozen=True)
class Cut:
    """What stays of a model's tensors.

    Args:
        kept: For each tensor that is cut, along which dimensions, and which indices stay; int64.
        heads: For each attention that shares a position bias, which of its columns are its heads.
    """

    kept: dict[str, dict[int, Tensor]]
    heads: dict[str, Tensor]


def plan_cut(model: nn.Module, places: Sequence[Place]) -> Cut:
    """What stays of each tensor when places are left as planned.

    Args:
        model: Not changed.
        places: What each place is left with.

    Raises:
        ValueError: If a layer or its parent would be left with sizes that do not fit.
    """
    kept = kept_indices(places)
    # Before the cut: afterwards the layers no longer tell which heads they had.
    heads = head_bias.left_heads(model, places)
    for name in head_bias.tables(model):
        kept.pop(name, None)  # cut to the heads that any of its layers keeps
    check_sizes(model, kept)
    return Cut(kept, heads)


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
