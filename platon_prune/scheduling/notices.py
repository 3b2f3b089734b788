"""`Notices`: the warnings of a running scheduler, each once for a tensor."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from platon_prune.history.changes import Change, nearly_empty, soon_empty
from platon_prune.warning import PruningWarning


class Notices:
    """Says what went wrong in a step, once all of it is done.

    Args:
        may_empty: Whether a choice could leave nothing of a tensor, given its name.
        may_be_gone: Whether that is meant, and no news; by default of none.
        without_gradient: What a user can act on, given the names of tensors without a gradient.
    """

    def __init__(
        self,
        may_empty: Callable[[str], bool],
        may_be_gone: Callable[[str], bool] = lambda name: False,
        without_gradient: Callable[[Sequence[str]], Sequence[str]] = list,
    ) -> None:
        self._named: set[tuple[str, str]] = set()
        self.follow(may_empty, may_be_gone, without_gradient)

    def follow(
        self,
        may_empty: Callable[[str], bool],
        may_be_gone: Callable[[str], bool],
        without_gradient: Callable[[Sequence[str]], Sequence[str]],
    ) -> None:
        """Ask others from here on, as once a model was cut; what was said is not said again."""
        self._may_empty = may_empty
        self._may_be_gone = may_be_gone
        self._without_gradient = without_gradient

    def of_no_gradient(self, names: Sequence[str]) -> None:
        """Name the tensors that had no gradient in the window that ended."""
        self._named.update(("gradient", name) for name in names)
        # Once for each of them: a pooler without a gradient is without one in every window.
        told = self._without_gradient(names)
        new = [name for name in told if self._is_first("no gradient", name)]
        if new:
            PruningWarning.warn(
                f"{', '.join(new)} had no gradient for a whole window, which counts as no "
                "importance: if the model does not use it, exclude it from pruning"
            )

    def of_choice(self, step: int, changed: Sequence[Change], skipped: int) -> None:
        """Name the tensors that a choice nearly emptied or soon will, or say that none was made.

        Args:
            step: The step.
            changed: What a choice did to each tensor; none if it was no choosing step.
            skipped: How many steps were skipped, if that is why no choice was made; else 0.
        """
        empty = nearly_empty(changed)
        soon = [
            change
            for change in soon_empty(changed)
            if change not in empty and self._may_empty(change.name)
        ]
        self._of_little("empty", f"nearly empty since step {step}", empty)
        self._of_little("soon", f"empty soon if pruning goes on as at step {step}", soon)
        if skipped:
            PruningWarning.warn(
                f"no mask is chosen at step {step}: {skipped} steps were skipped or had gradients "
                "that were not finite, so no window of scores has ended"
            )

    def _of_little(self, kind: str, what: str, changed: Sequence[Change]) -> None:
        named = [
            f"{change.name} keeps {change.kept} of {change.numel} weights"
            for change in changed
            # What has no gradients has no scores, so that it goes first: that is said.
            if not self._may_be_gone(change.name)
            and ("gradient", change.name) not in self._named
            and self._is_first(kind, change.name)
        ]
        if named:
            PruningWarning.warn(
                f"{what}: {', '.join(named)}; where nothing leads around such a layer, limit what "
                "it may lose (max_amount; of groups min_heads, min_neurons, min_channels), or "
                "exclude it from pruning"
            )

    def _is_first(self, kind: str, name: str) -> bool:
        is_first = (kind, name) not in self._named
        # Before the warning: one that is an error must not come again at each step.
        self._named.add((kind, name))
        return is_first
