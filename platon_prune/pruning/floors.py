"""How many groups each place keeps at least, and where that may be none."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from platon_prune.amounts import is_count, is_number
from platon_prune.groups.blocks import KIND as BLOCKS
from platon_prune.groups.blocks import blocks_in, path_of, positions_of, reasons_against, stacks_of
from platon_prune.groups.coupled import CoupledGroups
from platon_prune.groups.emptied import is_inside
from platon_prune.groups.experts import KIND as EXPERTS


@dataclass(frozen=True)
class Floors:
    """The floors of the kinds of places.

    Args:
        min_heads: A count for each attention layer.
        min_neurons: A share of each feed-forward layer, in [0, 1].
        min_channels: Likewise, of each stage of channels.
        min_experts: A count for each mixture.
        min_blocks: A count for each list of layers.
    """

    min_heads: int
    min_neurons: float
    min_channels: float
    min_experts: int
    min_blocks: int

    def of(self, model: nn.Module, place: CoupledGroups) -> int:
        """How many groups a place keeps at least.

        Raises:
            ValueError: If the floor of its kind is out of range.
        """
        if place.kind == "heads":
            _check_count("min_heads", self.min_heads, 0)
            return min(place.size, int(self.min_heads))
        if place.kind == EXPERTS:
            _check_count("min_experts", self.min_experts, 1)
            return min(place.size, max(place.least, int(self.min_experts)))
        if place.kind == BLOCKS:
            _check_count("min_blocks", self.min_blocks, 1)
            # Layers that can't go are kept as it is.
            others = len(list(model.get_submodule(place.name).children())) - place.size
            return min(place.size, max(0, int(self.min_blocks) - others))
        is_neurons = place.kind == "neurons"
        argument = "min_neurons" if is_neurons else "min_channels"
        share = self.min_neurons if is_neurons else self.min_channels
        if not is_number(share) or not 0 <= share <= 1:
            raise ValueError(f"{argument} must be a share of each layer in [0, 1], got {share!r}")
        if is_neurons and not share and self._may_be_empty():
            return 0
        return max(1, math.ceil(share * place.size - 1e-9))  # 0.1 * 30 is above 3

    def _may_be_empty(self) -> bool:
        # A layer goes once both are gone; one that keeps a head keeps a neuron as well.
        return not self.min_heads

    def require_empty_layers_can_go(
        self, model: nn.Module, places: Sequence[CoupledGroups], inputs: Any
    ) -> None:
        """Raise a ValueError if a layer may lose all heads though it does more than hand on."""
        if self.min_heads != 0 or not is_count(self.min_heads):
            return
        inside = [place for place in places if place.kind in ("heads", "neurons")]
        layers: dict[str, nn.Module] = {}
        blocks: set[str] = set()
        for stack, module in stacks_of(model).items():
            layers |= {path_of(stack, i): layer for i, layer in blocks_in(module).items()}
        for place in places:
            if place.kind == BLOCKS:
                blocks |= {path_of(place.name, i) for i in positions_of(place)}
        holding = {
            place.name: [path for path in layers if is_inside(place, path)] for place in inside
        }
        tried = {path: layers[path] for paths in holding.values() for path in paths[:1]}
        names = [member.name for place in inside for member in place.members]
        reasons = reasons_against(model, tried, inputs, names) if tried else {}
        for name, paths in holding.items():
            why = reasons[paths[0]] if paths else "it is in no list of layers"
            if why is not None and not blocks.intersection(paths):
                raise ValueError(
                    "min_heads must be a count of at least 1 where a layer without heads and "
                    f"neurons can't go, got 0 with {name} ({why}): give min_heads=1, or name "
                    'kinds=["heads", "neurons", "blocks"]'
                )


def _check_count(argument: str, value: Any, least: int) -> None:
    if not is_count(value) or value < least:
        raise ValueError(f"{argument} must be a count of at least {least}, got {value!r}")
