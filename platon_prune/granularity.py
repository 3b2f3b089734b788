"""Which weights live or die together: the interface of a choice, and the choice of single weights.

A granularity turns scores and an amount into masks. To add one, derive from :class:`Granularity`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from platon_prune.collectives import Processes
from platon_prune.selection import ScoredTensor, prune_smallest_
from platon_prune.shards import Part


class Granularity:
    """Chooses the masks of all tensors of a scheduler together.

    Attributes:
        name: What it is called in settings and states.
        puts_back: Whether weights that come back get the values that they had when they went,
            because zeros of its kind have no gradient to grow by.
    """

    name: ClassVar[str]
    puts_back: ClassVar[bool] = False

    @property
    def settings(self) -> dict[str, Any]:
        """What decides its choices, as plain numbers and strings, for states and comparison."""
        return {"granularity": self.name}

    def sparsity_of(self, amount: float) -> float:
        """Fraction of zeros among the entries of all tensors that an amount asks for."""
        return amount

    def require_part(self, name: str, part: Part) -> None:
        """Raise a ValueError if the masks of a tensor can't be chosen part by part as it is placed.

        Args:
            name: The tensor's name.
            part: What this process holds of it.
        """

    def choose_(
        self, tensors: Sequence[ScoredTensor], amount: float, processes: Processes
    ) -> float | None:
        """Write the masks in place.

        Args:
            tensors: Those of the scheduler, in its order; of a sharded one, this process's part.
            amount: What is due by the schedule, in [0, 1]; of what, the granularity says.
            processes: Those that choose together; each calls this with the same amount.

        Returns:
            The threshold: the largest score pruned, of what the granularity compares; None if
            nothing was pruned.
        """
        raise NotImplementedError


class Unstructured(Granularity):
    """Each weight by itself: exactly ``round(amount * N)`` of all N entries are pruned."""

    name: ClassVar[str] = "unstructured"

    def choose_(
        self, tensors: Sequence[ScoredTensor], amount: float, processes: Processes
    ) -> float | None:
        """Prune the entries with the smallest scores of all tensors together."""
        total = sum(tensor.whole_numel for tensor in tensors)
        return prune_smallest_(tensors, round(amount * total), processes)
