"""`Told`: what a step that may be recorded in a graph reads and counts on its device.

A replay runs no Python, so what it does at a window's end, or in the final phase, it is told by a
number in memory; and how often it ran, and with what luck, it leaves there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from platon_prune.scheduling.outcomes import Outcome
from platon_prune.tensors.capture import Capture

# So many graphs can be recorded before another step is taken.
NUM_SPARE = 4
# Counts are exact in float32 up to 2^24.
_MOST = 1 << 20


class Told:
    """The numbers of the steps of one scheduler, on one device.

    Attributes:
        captures: What belongs to each graph, and the tensors that have no gradient in it.
    """

    def __init__(self) -> None:
        self.captures: list[tuple[Capture, frozenset[int]]] = []
        self._spare: list[Capture] = []
        self._retired: list[tuple[Capture, frozenset[int]]] = []
        # 1 for a step; whether it is skipped; whether nothing is learnt; whether to zero.
        self._numbers: Tensor | None = None
        self._is: tuple[bool, bool] | None = None
        # Of steps that were no replays, by the tensors that had no gradient.
        self._counts: dict[frozenset[int], Tensor] = {}
        self._num_steps = 0  # since they were read

    def __getstate__(self) -> dict[str, Any]:
        # Of a copy: it goes on from the same counts, but no graph was recorded of its model.
        none: dict[str, Any] = {"captures": [], "_spare": [], "_retired": []}
        return {**vars(self), **none, "_counts": self._all_counts()}

    def _all_counts(self) -> dict[frozenset[int], Tensor]:
        """Counts by the tensors that had no gradient, whether steps were replays or not."""
        counts = dict(self._counts)
        for capture, without in self.captures:
            counts[without] = counts.get(without, 0) + capture.counts
        return counts

    def _move(self, device: torch.device) -> None:
        """Go on from the same counts on another device, where no graph was recorded."""
        self._counts = {key: each.to(device) for key, each in self._all_counts().items()}
        self._retired += self.captures  # whoever replays one now writes to no freed memory
        self.captures, self._spare = [], []
        self._numbers, self._is = torch.ones(4, device=device), None

    # --- from here to the device --------------------------------------------------------------

    @property
    def learns(self) -> bool:
        """Whether steps were told to learn."""
        return self._is is None or self._is[0]

    def tell(self, device: torch.device, num_tensors: int, *, learns: bool, masks: bool) -> None:
        """Tell the next step whether to learn, and whether to zero what is pruned.

        Args:
            device: Where the tensors are.
            num_tensors: How many there are.
            learns: Before a change of this, what was counted must be read.
            masks: Whether it zeroes.
        """
        if self._numbers is None or self._numbers.device != device:
            self._move(device)
        while len(self._spare) < NUM_SPARE:
            self._spare.append(Capture(num_tensors, device))
        # A launch only where something changes: most steps are told what the last one was.
        if self._is is None or self._is[0] != learns:
            self._at(2).fill_(not learns)
        if self._is is None or self._is[1] != masks:
            self._at(3).fill_(masks)
        self._is = (learns, masks)

    def is_ready(self, device: torch.device) -> bool:
        """Whether a graph can be recorded there: a step was told what it does."""
        return self._numbers is not None and self._numbers.device == device

    @property
    def has_room(self) -> bool:
        """Whether there is room for one more graph."""
        return bool(self._spare)

    # --- in a step, recorded or not -----------------------------------------------------------

    def flag(self) -> Tensor:
        """The flag of this step: float32, one entry, not 0 if nothing is to be added."""
        # A copy of 0 or 1, by an operation that fake tensors on a device that is not there allow.
        return torch.abs(self._at(2), out=self._at(1))

    @property
    def masks(self) -> Tensor:
        """Whether to zero: float32, one entry."""
        return self._at(3)

    def count_(self, without: frozenset[int], capture: Capture | None) -> None:
        """Count this step, with its flag, on the device.

        Args:
            without: The numbers of the tensors that have no gradient.
            capture: Of the graph that is being recorded, if so.
        """
        one_and_flag = self._at(0, 2)
        if capture is not None:
            counts = capture.counts
        elif without in self._counts:
            counts = self._counts[without]
        else:
            counts = self._counts[without] = torch.zeros_like(one_and_flag)
        counts.add_(one_and_flag)

    def _at(self, first: int, size: int = 1) -> Tensor:
        assert self._numbers is not None
        return self._numbers.narrow(0, first, size)

    # --- graphs -------------------------------------------------------------------------------

    def new_capture(self) -> Capture:
        """Take what was laid ready for a graph."""
        capture = self._spare.pop()
        capture.kept.append(self._numbers)
        return capture

    # --- from the device to here --------------------------------------------------------------

    def add(self) -> None:
        """Note that a step was taken, as a replay or otherwise."""
        self._num_steps += 1

    @property
    def is_full(self) -> bool:
        """Whether the counts must be read before the next step."""
        return self._num_steps >= _MOST

    def read(self) -> Sequence[Outcome]:
        """Wait for the device, and return how the steps since the last call went.

        Raises:
            RuntimeError: If there were more replays than were announced, or fewer.
        """
        every = self._every()
        if not every:
            return []
        found = torch.stack([counts for counts, _ in every]).tolist()
        expected = self._num_steps
        self.forget()
        counted = sum(int(steps) for steps, _ in found)
        if counted != expected:
            raise RuntimeError(
                "each replay must come between scheduler.before_replay() and "
                f"scheduler.after_replay(), got {counted} steps on the device where {expected} "
                "were announced: call both around every replay, and go on from the last saved state"
            )
        if not self.learns:  # then the flag says so, whatever the gradients were
            return []
        return [
            Outcome(skipped, without)
            for (steps, skips), (_, without) in zip(found, every, strict=True)
            for skipped in [True] * int(skips) + [False] * int(steps - skips)
        ]

    def forget(self) -> None:
        """Count anew: the steps since the last reading are given up."""
        for counts, _ in self._every():
            counts.zero_()
        self._num_steps, self._counts = 0, {}

    def _every(self) -> list[tuple[Tensor, frozenset[int]]]:
        """The counts of each graph and of other steps, and what had no gradient in them."""
        every = [(capture.counts, without) for capture, without in self.captures]
        return every + [(counts, without) for without, counts in self._counts.items()]
