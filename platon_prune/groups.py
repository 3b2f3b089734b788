"""Which coupled groups a model has: by its layout, or by how its layers depend on each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from platon_prune.coupled import CoupledGroups
from platon_prune.layouts import layout_groups

KINDS = ("heads", "neurons", "channels")


def find_groups(
    model: nn.Module,
    example_inputs: Any = None,
    *,
    kinds: Sequence[str] = KINDS,
) -> list[CoupledGroups]:
    """Find what can be removed from a model as a whole: heads, neurons, channels.

    Args:
        model: The model, with masks or without.
        example_inputs: Needed where layers are not known by their names.
        kinds: Which kinds of groups, of "heads", "neurons", "channels".

    Returns:
        One entry per place, in the order of the model.
    """
    return [groups for groups in layout_groups(model) if groups.kind in kinds]
