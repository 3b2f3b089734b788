"""The settings that all doors have in common, as one value that is handed through whole."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from platon_prune.criteria import Criterion, make_criterion
from platon_prune.goals.goal import Goal
from platon_prune.masks.method import MASKINGS, Masking
from platon_prune.masks.targets import Pairs
from platon_prune.schedule import RampSchedule, find_schedule
from platon_prune.scheduling.averages import Storage


@dataclass(frozen=True)
class Settings:
    """What a door was given, as it was given: nothing is checked before it is asked for.

    The fields are arguments of :func:`platon_prune.global_unstructured`, and mean the same.
    """

    total_steps: int
    warmup_steps: int | float
    cooldown_steps: int | float
    beta1: float
    beta2: float
    window: int
    schedule: str | type[RampSchedule]
    criterion: str | Criterion
    masking: Masking
    include: str | Sequence[str] | None
    exclude: str | Sequence[str] | None
    history: bool
    mask_history: str | os.PathLike[str] | None
    own_keys: bool | None
    state_dtype: torch.dtype
    offload_averages: bool
    capturable: bool
    process_group: dist.ProcessGroup | None
    max_drop: float | None
    baseline: float | None
    greater_is_better: bool
    patience: int

    @classmethod
    def of(cls, arguments: Mapping[str, Any]) -> Settings:
        """The settings among the arguments of a door.

        Args:
            arguments: Its ``locals()``, before it has other variables than its arguments.
        """
        return cls(**{field.name: arguments[field.name] for field in fields(cls)})

    def checked_masking(self) -> Masking:
        """The masking.

        Raises:
            ValueError: If there is no such masking.
        """
        if self.masking not in MASKINGS:
            raise ValueError(f'masking must be "step" or "window", got {self.masking!r}')
        return self.masking

    def made_criterion(self) -> Criterion:
        """The criterion, with its betas if it has any.

        Raises:
            ValueError: If there is none of that name, or a beta is out of range.
            TypeError: If a beta is not a number, or a class is given.
        """
        return make_criterion(self.criterion, self.beta1, self.beta2)

    def storage(self) -> Storage:
        """How the window and the averages are kept.

        Raises:
            ValueError: If the dtype is none that scores can be kept in.
        """
        if self.state_dtype not in (torch.float32, torch.bfloat16):
            raise ValueError(
                "state_dtype must be torch.float32 or torch.bfloat16, got "
                f"{self.state_dtype}: scores span more orders of magnitude than float16 has"
            )
        return Storage(self.state_dtype, self.offload_averages)

    def shape(self) -> type[RampSchedule]:
        """The shape of the schedule.

        Raises:
            ValueError: If there is none of that name.
            TypeError: If an instance is given.
        """
        return find_schedule(self.schedule)

    def check(self, amount: float, initial_amount: float) -> None:
        """Raise what the others below and above raise, of all of them.

        Args:
            amount: As for :meth:`made_schedule`.
            initial_amount: Likewise.
        """
        self.checked_masking(), self.storage()
        schedule = self.made_schedule(amount, initial_amount)
        if self.made_criterion().windowed:
            schedule.require_scores()

    def made_goal(self, model: nn.Module | Pairs) -> Goal | None:
        """How far a metric may fall, if that is said.

        Args:
            model: What is pruned.

        Raises:
            ValueError: If a number is out of range or would be ignored, or the weights that would
                have to go back are not known.
            TypeError: If a number is of the wrong type.
        """
        goal = Goal.of(self.max_drop, self.baseline, self.greater_is_better, self.patience)
        if goal is not None and not isinstance(model, nn.Module):
            raise ValueError(
                "model must be an nn.Module for max_drop, got pairs: where the metric falls, all "
                "that is trained goes back; name what to prune with include=[...]"
            )
        if goal is not None and self.capturable:
            raise ValueError(
                "capturable must be False for max_drop, got True: where the metric falls, the "
                "optimizer's state is replaced, which a captured graph would not notice"
            )
        return goal

    def made_schedule(self, amount: float, initial_amount: float) -> RampSchedule:
        """The schedule between two amounts, as fractions.

        Raises:
            ValueError: If a number is out of range, or the initial amount would be ignored.
            TypeError: If a number of steps is not an integer.
        """
        shape = self.shape()
        if initial_amount and not shape.has_ramp:
            raise ValueError(
                f'initial_amount must be 0 for schedule="{shape.name}", which prunes nothing '
                f"before its choice, got {initial_amount}: leave it out"
            )
        # Its own lengths are none until total_steps is known to be a whole number.
        whole_run = shape(
            amount=amount,
            total_steps=self.total_steps,
            initial_amount=initial_amount,
            window=self.window,
        )
        return whole_run.lasting(self.total_steps, self.warmup_steps, self.cooldown_steps)
