"""n of every m in the study of digits: what ``pattern=2:4`` asks for, and masks by magnitude."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from platon_prune.masks.input_dims import input_dim, reason_against_groups
from platon_prune.reports.n_of_m_patterns import require_pattern

NO_PATTERN = "none"
_ROUNDING = 1e-3  # of an amount as 0.667, for the two thirds that 1:3 prunes


@dataclass(frozen=True)
class Pattern:
    """n entries are kept of every m along the inputs.

    Args:
        n: Entries kept.
        m: Neighbours in a group.
    """

    n: int
    m: int

    @classmethod
    def of(cls, text: str) -> Pattern | None:
        """What ``2:4`` says; None for "none".

        Raises:
            ValueError: If that is no pattern.
        """
        if text == NO_PATTERN:
            return None
        if not re.fullmatch(r"\d{1,4}:\d{1,4}", text):
            raise ValueError(
                f"pattern must be n:m, entries kept of every m, or {NO_PATTERN}, got {text!r}: "
                "write 2:4, for example"
            )
        n, m = map(int, text.split(":"))
        require_pattern(n, m)
        return cls(n, m)

    def share(self, amount: float) -> float:
        """The share of groups to constrain, so that an amount of the weights is pruned.

        Raises:
            ValueError: If that is more than the pattern prunes.
        """
        most = 1 - self.n / self.m
        if amount > most + _ROUNDING:
            raise ValueError(
                f"amount must be at most {most:.3g} with pattern={self.n}:{self.m}, which prunes "
                f"that fraction of the weights, got {amount:g}: give --amounts {most:.3g}"
            )
        return min(1.0, amount / most) if amount < most - _ROUNDING else 1.0

    def require_all(self, amount: float, who: str) -> None:
        """Raise a ValueError unless an amount takes every group."""
        if self.share(amount) < 1:
            most = 1 - self.n / self.m
            raise ValueError(
                f"amount must be {most:.3g} for {who} with pattern={self.n}:{self.m}, which it has "
                f"for all groups or none, got {amount:g}: give --amounts {most:.3g}"
            )

    def refuse(self, options: Mapping[str, Any]) -> None:
        """Raise a ValueError if there are options that groups of n:m can't have."""
        for name, value in options.items():
            raise ValueError(
                f"{name} must be left out with pattern={self.n}:{self.m}, got {value}: how many "
                "weights a group keeps is said by the pattern"
            )

    def fitting(
        self, selected: Sequence[tuple[str, nn.Module, str]]
    ) -> list[tuple[str, nn.Module, str]]:
        """Of (name, module, tensor name), those whose inputs m divides.

        Raises:
            ValueError: If there are none.
        """
        reasons = [
            reason_against_groups(module, getattr(module, name), self.m)
            for _, module, name in selected
        ]
        found = [each for each, reason in zip(selected, reasons, strict=True) if not reason]
        if not found:
            raise ValueError(
                f"m must divide the inputs of a layer, got pattern={self.n}:{self.m}, and the "
                f"first {reasons[0]}: choose another m"
            )
        return found

    def mask(self, module: nn.Module, name: str) -> Tensor:
        """True for the n largest magnitudes of each group; of the weight's shape, bool."""
        weight = getattr(module, name).detach()
        dim = input_dim(module, weight)
        groups = weight.abs().movedim(dim, -1).unflatten(-1, (-1, self.m))
        best = groups.topk(self.n, dim=-1).indices
        mask = torch.zeros_like(groups, dtype=torch.bool).scatter_(-1, best, True)
        return mask.flatten(-2).movedim(-1, dim)
