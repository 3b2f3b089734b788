"""`Memory`: the bytes that pruning keeps for the weights, kind by kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from platon_prune.tables import table


@dataclass(frozen=True)
class Memory:
    """Bytes that a process keeps for pruning; prints as a table.

    Args:
        rows: Of each kind: "mask", "window" and the criterion's averages.
        num_local: Weights that this process holds.
        num_weights: Weights that all processes hold together.
    """

    rows: Mapping[str, int]
    num_local: int
    num_weights: int

    @classmethod
    def of(cls, tensors: Sequence[Mapping[str, int]], num_weights: int) -> Memory:
        """Add up the bytes of several tensors, whose masks have one byte for a weight."""
        rows = {kind: sum(tensor[kind] for tensor in tensors) for kind in tensors[0]}
        # A mask has one byte for a weight, so its bytes are the number of weights here.
        return cls(rows, rows["mask"], num_weights)

    @property
    def total(self) -> int:
        """The sum over all kinds, in bytes."""
        return sum(self.rows.values())

    @property
    def per_weight(self) -> float:
        """Bytes for each weight that this process holds; 0 if it holds none."""
        return self.total / self.num_local if self.num_local else 0.0

    def __str__(self) -> str:
        lines = [("kept here", "bytes", "per weight")]
        for kind, size in (*self.rows.items(), ("total", self.total)):
            share = size / self.num_local if self.num_local else 0.0
            lines.append((kind, f"{size:,}", f"{share:.2f}"))
        return f"{table(lines)}\n({self.num_local:,} of {self.num_weights:,} weights are here)"
