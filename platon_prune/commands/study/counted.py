"""A scheduler in the study of digits, with what it brings back and what it costs."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from torch import Tensor

from platon_prune.scheduling.scheduler import PlatonScheduler


class Counted:
    """A scheduler as the training loop sees it, which counts what was pruned and came back.

    Args:
        scheduler: Of the whole model.
    """

    def __init__(self, scheduler: PlatonScheduler) -> None:
        self._scheduler = scheduler
        self._kept = self._masks()
        self._ever_pruned = ~self._kept
        self._returns: list[tuple[int, float]] = []  # step, share of the kept that came back
        self._seconds = 0.0
        self._num_steps = 0

    @property
    def amount(self) -> float:
        """Fraction that is due."""
        return self._scheduler.amount

    def step(self) -> None:
        """Called after each optimizer step."""
        # In the process's own time: these machines are shared. Counting is not the scheduler's.
        start = time.process_time()
        scheduler = self._scheduler
        scheduler.step()
        self._seconds += time.process_time() - start
        self._num_steps += 1
        if scheduler.schedule.is_choosing_step(scheduler.last_step):
            kept = self._masks()
            if bool(self._ever_pruned.any()):
                returned = int((kept & ~self._kept).sum()) / max(1, int(kept.sum()))
                self._returns.append((scheduler.last_step, returned))
            self._kept = kept
            self._ever_pruned |= ~kept

    def regrowth(self) -> dict[str, float]:
        """In percent of the kept weights: had been pruned; come back at a choice, and late."""
        kept = max(1, int(self._kept.sum()))
        late = [share for step, share in self._returns if step > self._ramp_end]
        return {
            "regrown": 100 * int((self._kept & self._ever_pruned).sum()) / kept,
            "returning": 100 * _mean([share for _, share in self._returns]),
            "returning_late": 100 * _mean(late),
        }

    def state_bytes(self) -> float:
        """What is kept for each weight, in bytes; before the masks are taken off."""
        memory = self._scheduler.memory()
        return memory.total / memory.num_local

    def step_ms(self) -> float:
        """Processor time of a step of pruning, in milliseconds."""
        return 1000 * self._seconds / self._num_steps

    @property
    def _ramp_end(self) -> int:
        return self._scheduler.schedule.ramp_end

    def _masks(self) -> Tensor:
        return torch.cat([mask.flatten() for mask in self._scheduler.masks().values()])


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
