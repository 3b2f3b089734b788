"""`Readings`: what can be read of a scheduler while it runs, and once it has ended."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from platon_prune.choice.granularity import Granularity
from platon_prune.criteria import Criterion
from platon_prune.goals.pursuit import Pursuit
from platon_prune.history.history import History
from platon_prune.schedule import Schedule
from platon_prune.scheduling.memory import Memory
from platon_prune.scheduling.modes import in_plain_mode
from platon_prune.scheduling.recording import Recording
from platon_prune.scheduling.selected import SelectedTensors
from platon_prune.scheduling.states import settings_of


class Readings:
    """The part of :class:`~platon_prune.PlatonScheduler` that changes nothing."""

    schedule: Schedule
    criterion: Criterion
    masking: str
    granularity: Granularity
    goal: Pursuit | None
    history: History
    last_step: int
    adopts_zeros: bool
    _tensors: SelectedTensors
    _recording: Recording
    _adopted: float | None

    @property
    def amount(self) -> float:
        """Fraction that the schedule prunes at the last step; before the first, what is adopted.

        Of the weights, or of what else the granularity counts: of n:m, of the groups.
        """
        has_begun = self.last_step or self._adopted is not None
        return self.schedule.amount_at(self.last_step) if has_begun else 0.0

    @property
    def target_sparsity(self) -> float:
        """Fraction of zeros among the selected weights that the schedule asks for in the end."""
        return self.granularity.sparsity_of(self.schedule.amount)

    @in_plain_mode
    def sparsity(self) -> float:
        """Measured fraction of zeros, as evaluation uses the weights; collective if sharded.

        Raises:
            RuntimeError: If the run has ended.
        """
        return self._tensors.sparsity(self.settings)

    def memory(self) -> Memory:
        """What pruning keeps for the weights in this process; prints as a table.

        Raises:
            RuntimeError: If the run has ended.
        """
        return Memory.of([self._tensors.bytes()], self._tensors.num_weights)

    @in_plain_mode
    def score(self, name: str) -> Tensor:
        """The scores of a tensor now.

        Collective if the criterion looks at whole tensors, as "scaled_magnitude" does.

        Args:
            name: Its name before pruning, such as ``layer.0.weight``.

        Returns:
            A new float32 tensor of the weight's shape; a DTensor if that is one.

        Raises:
            KeyError: If no pruned tensor has that name.
            RuntimeError: If the run has ended.
        """
        return self._tensors.score(name, self.settings)

    def masks(self, step: int | None = None) -> dict[str, Tensor]:
        """A copy of every mask: name before pruning to bool tensor (True = kept).

        Args:
            step: After which step; None for the last. Of an earlier one, or of any once the masks
                are removed, :meth:`record_masks` must have been called before.

        Returns:
            DTensors where the weights are, or were when it was noticed that the run has ended.

        Raises:
            ValueError: If that step was not taken, or its masks were not recorded or are replaced.
            TypeError: If it is no whole number.
        """
        return self._recording.masks(step, self.last_step)

    @property
    def settings(self) -> dict[str, Any]:
        """Criterion, masking, schedule and granularity, as they are saved with the state."""
        own = settings_of(
            self.criterion, self.masking, self.schedule, self.granularity.settings,
            self.adopts_zeros,
        )  # fmt: skip
        return own if self.goal is None else own | self.goal.settings

    def __repr__(self) -> str:
        steps, final = self.schedule.total_steps, self.schedule.amount
        shown = [
            f"step {self.last_step} of {steps}" if steps else f"step {self.last_step}",
            f"amount {self.amount:.3g} of {final:.3g}",
        ]
        # As of the last choice: counting the zeros now may need a device, and other processes.
        if len(self.history):
            shown.append(f"sparsity {self.history[-1].sparsity:.3g}")
        shown.append(f"criterion {self.criterion.name}")
        shown.append(f"{len(self._tensors)} tensors")
        return f"{type(self).__name__}({', '.join(shown)})"
