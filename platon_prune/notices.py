"""What a scheduler warns about while it runs, each tensor once."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from platon_prune.changes import Change, nearly_empty

_CALLER = 4  # who called the scheduler's step, through what torch puts around that


class PruningWarning(UserWarning):
    """Something that pruning can live with but its user should know."""


class Notices:
    """Says what went wrong in a step, once all of it is done."""

    def __init__(self) -> None:
        self._named: set[tuple[str, str]] = set()

    def of_no_gradient(self, names: Sequence[str]) -> None:
        """Name the tensors that had no gradient in the window that ended."""
        new = [name for name in names if self._is_first("gradient", name)]
        if new:
            warnings.warn(
                f"{', '.join(new)} had no gradient for a whole window, which counts as no "
                "importance: if the model does not use it, exclude it from pruning",
                PruningWarning,
                stacklevel=_CALLER,
            )

    def of_choice(self, step: int, changed: Sequence[Change], skipped: int) -> None:
        """Name the tensors that a choice nearly emptied, or say that none was made.

        Args:
            step: The step.
            changed: What a choice did to each tensor; none if it was no choosing step.
            skipped: How many steps were skipped, if that is why no choice was made; else 0.
        """
        empty = [
            f"{change.name} keeps {change.kept} of {change.numel} weights"
            for change in nearly_empty(changed)
            # What has no gradients has no scores, so that it goes first: that is said.
            if ("gradient", change.name) not in self._named and self._is_first("empty", change.name)
        ]
        if empty:
            warnings.warn(
                f"nearly empty since step {step}: {', '.join(empty)}, so that next to nothing "
                "passes through; limit what a tensor may lose with max_amount, or exclude it from "
                "pruning",
                PruningWarning,
                stacklevel=_CALLER,
            )
        if skipped:
            warnings.warn(
                f"no mask is chosen at step {step}: {skipped} steps were skipped or had gradients "
                "that were not finite, so no window of scores has ended",
                PruningWarning,
                stacklevel=_CALLER,
            )

    def _is_first(self, what: str, name: str) -> bool:
        is_first = (what, name) not in self._named
        self._named.add((what, name))
        return is_first
