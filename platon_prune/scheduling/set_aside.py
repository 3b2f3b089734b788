"""`SetAside`: the values that pruned weights had, kept so that they can come back as they were."""

from __future__ import annotations

import torch
from torch import Tensor

from platon_prune.tensors.shards import Shard


class SetAside:
    """Values of the pruned entries of one tensor, from the moment at which they were pruned.

    A single weight grows again from zero by its gradient. A neuron with zeros on both sides has
    none: what comes into it and what goes out of it are each multiplied by the other.
    """

    def __init__(self) -> None:
        self._values: Tensor | None = None  # allocated when first needed

    def values(self, weight: Tensor) -> Tensor:
        """The values, where the weight is; of entries that are kept, anything."""
        if self._values is None:
            self._values = torch.zeros_like(weight)
        if self._values.device != weight.device or self._values.dtype != weight.dtype:
            self._values = self._values.to(weight)
        return self._values

    def cut_to_(self, shard: Shard) -> None:
        """Keep the values of a shard only, of a tensor that was whole so far."""
        if self._values is not None:
            self._values = shard.of(self._values)

    def exchange_(self, weight: Tensor, before: Tensor, after: Tensor) -> None:
        """Set aside what a choice prunes, and put back into the weight what it no longer does.

        Args:
            weight: The weight; what goes must not be zeroed yet.
            before: The mask before the choice.
            after: The mask now.
        """
        goes, returns = before & ~after, after & ~before
        # A choice that prunes nothing, as before the ramp, must not cost the memory of the weight.
        if self._values is None and not bool(goes.any()):
            return
        values = self.values(weight)
        # torch.where and not a product: an infinite or NaN weight times 0 would be NaN.
        values.copy_(torch.where(goes, weight, values))
        weight.copy_(torch.where(returns, values, weight))
