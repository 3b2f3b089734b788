"""`Outcomes`: how the last steps went, while only their device knows; and `Counters` of steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

# So many flags lie ready: a window is read at its end, or when this many steps are unread.
_CAPACITY = 256


class Outcome(NamedTuple):
    """How a step went.

    Args:
        skipped: Whether a gradient was not finite, so that nothing was added to the scores.
        without_gradient: The numbers of the tensors that had no gradient.
    """

    skipped: bool
    without_gradient: frozenset[int]


@dataclass
class Counters:
    """What steps have led to so far; saved with a scheduler's state.

    Args:
        skipped_steps: How many had no finite gradients.
        window_steps: How many have their samples in the window.
        has_scores: Whether a window with samples has ended.
    """

    skipped_steps: int = 0
    window_steps: int = 0
    has_scores: bool = False

    def add(self, outcome: Outcome, windowed: bool) -> None:
        """Count a step."""
        self.skipped_steps += outcome.skipped
        self.window_steps += windowed and not outcome.skipped

    def end_window(self, *, is_first: bool) -> int:
        """Begin a new window.

        Returns:
            How many samples the mean of the one that ended is over; 0 if it had none.
        """
        num_samples, self.window_steps = self.window_steps, 0
        if not num_samples:
            return 0
        self.has_scores = True
        # The first window starts from a zero sample, as the reference implementation's does.
        return num_samples + is_first


class Outcomes:
    """Flags that steps set on the device, which are read together: one wait for all of them."""

    def __init__(self) -> None:
        self._flags: Tensor | None = None
        self._without: list[frozenset[int]] = []
        self._elsewhere: list[Outcome] = []  # of steps on a device that the tensors have left

    def flag(self, device: torch.device) -> Tensor:
        """The flag of the next step: float32, one entry, 0."""
        if self._flags is None or self._flags.device != device:
            self._elsewhere = [*self.read()]
            self._flags = torch.zeros(_CAPACITY, device=device)
        # A view for each step, so that a window's flags are one read.
        return self._flags.narrow(0, len(self._without), 1)

    def add(self, without_gradient: frozenset[int]) -> None:
        """Note that a step has used its flag, and which tensors had no gradient in it."""
        self._without.append(without_gradient)

    @property
    def is_full(self) -> bool:
        """Whether the flags must be read before the next step."""
        return len(self._without) == _CAPACITY

    def read(self) -> Sequence[Outcome]:
        """Wait for the device, and return how the steps since the last call went."""
        elsewhere, self._elsewhere = self._elsewhere, []
        if not self._without or self._flags is None:
            return elsewhere
        flags = self._flags.narrow(0, 0, len(self._without))
        outcomes = [
            Outcome(flag != 0, without)
            for flag, without in zip(flags.tolist(), self._without, strict=True)
        ]
        # The next steps set the same flags again.
        flags.zero_()
        self._without = []
        return elsewhere + outcomes
