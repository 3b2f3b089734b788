"""Single weights pruned by other packages in the study of digits, each by its own public functions.

Batches, steps, optimizer, learning rate and the final amount are those of ours; where a package has
a schedule it is put on our ramp, and where the caller says when to choose, on our choosing steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from platon_prune.commands.benchmarks import digits as _digits
from platon_prune.commands.study.patterns import Pattern
from platon_prune.commands.study.rival_names import WEIGHT_RIVALS, require
from platon_prune.schedule import CubicSchedule
from platon_prune.studies.cells import Cell

_ON_THE_RAMP = ("warmup", "cooldown")
# The options of pruning that each knows.
RIVALS: Mapping[str, tuple[str, ...]] = {
    "torchao-pat": (*_ON_THE_RAMP, "pattern"),
    "nncf": (*_ON_THE_RAMP, "window"),
    "torch-l1": (*_ON_THE_RAMP, "window"),
    "one-shot": ("pattern",),
}
assert tuple(RIVALS) == WEIGHT_RIVALS


Selected = Sequence[tuple[str, nn.Module, str]]


@dataclass(frozen=True)
class Task:
    """What a rival is given.

    Args:
        model: A dense model, pruned in place.
        selected: (name, module, tensor name) of the weights that ours would prune.
        schedule: Of ours: amounts, and the steps of choices.
        pattern: n:m; None for single weights wherever they lie.
        example: An input of the model, of one example.
    """

    model: nn.Module
    selected: Selected
    schedule: CubicSchedule
    pattern: Pattern | None
    example: Tensor

    @property
    def weights(self) -> list[tuple[nn.Module, str]]:
        """The selected ones as torch's prune takes them."""
        return [(module, name) for _, module, name in self.selected]


class Rival:
    """What the training loop sees of a rival: nothing happens but what a subclass adds."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self._last_step = 0

    @property
    def amount(self) -> float:
        """Fraction that is due by our schedule."""
        return self.task.schedule.amount_at(self._last_step)

    def around(self, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
        """The optimizer that the loop is to step."""
        return optimizer

    def step(self) -> None:
        """Called after each optimizer step."""
        self._last_step += 1
        if self.task.schedule.is_choosing_step(self._last_step):
            self.choose(self._last_step)

    def choose(self, step: int) -> None:
        """Called at the steps at which ours chooses its mask."""

    def num_bytes(self) -> int:
        """What is kept for the selected weights beside their values, and the optimizer's own."""
        raise NotImplementedError

    def finish(self) -> None:
        """Leave ordinary parameters with zeros in them."""
        raise NotImplementedError


class _TorchPrune(Rival):
    """What both methods of ``torch.nn.utils.prune`` leave behind, and how it is taken off."""

    def num_bytes(self) -> int:
        """A mask of the weight's dtype, and the product of both."""
        pruned = [each for each in self.task.weights if prune.is_pruned(each[0])]
        masks: int = sum(getattr(module, f"{name}_mask").nbytes for module, name in pruned)
        products: int = sum(getattr(module, name).nbytes for module, name in pruned)
        return masks + products

    def finish(self) -> None:
        """Leave ordinary parameters with zeros in them."""
        for module, name in self.task.weights:
            if prune.is_pruned(module):  # not where an amount comes to no weight at all
                prune.remove(module, name)  # type: ignore[no-untyped-call]


class TorchL1(_TorchPrune):
    """``torch.nn.utils.prune``: the smallest of what is left go, and never come back."""

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        self._numel = sum(getattr(module, name).numel() for module, name in task.weights)
        self._pruned = 0

    def choose(self, step: int) -> None:
        """Prune on, up to the count that is due; its own amounts are of what is left."""
        due = round(self.amount * self._numel)
        if due > self._pruned:
            prune.global_unstructured(  # type: ignore[no-untyped-call]
                self.task.weights,
                pruning_method=prune.L1Unstructured,
                amount=due - self._pruned,
            )
            self._pruned = due


class OneShot(_TorchPrune):
    """``torch.nn.utils.prune``: masks by magnitude before the first step, fixed from then on."""

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        if task.pattern is None:
            prune.global_unstructured(  # type: ignore[no-untyped-call]
                task.weights, pruning_method=prune.L1Unstructured, amount=task.schedule.amount
            )
            return
        for module, name in task.weights:
            mask = task.pattern.mask(module, name)
            prune.custom_from_mask(module, name, mask)  # type: ignore[no-untyped-call]


class TorchaoPat(Rival):
    """torchao's ``PruneOptimizer``: a proximal map at every step of our ramp.

    Single weights by its constraint on all tensors together along its cubic schedule, n:m by that
    on groups, at once; after the ramp its masks are fixed, which it calls healing.
    """

    def around(self, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
        """Its optimizer around ours, whose selected weights become a group of their own."""
        from torchao.prototype.pat.optim import PruneOptimizer

        pattern, schedule = self.task.pattern, self.task.schedule
        if pattern is None:
            settings: dict[str, Any] = {
                "prox_type": "GlobalMinSparsityConstraint",
                "group_type": "ElemGrouper",
                "min_sparsity": schedule.amount,
                "min_sparsity_schedule": True,
            }
        else:
            settings = {
                "prox_type": "NMSparseConstraint",
                "group_type": "KElementGrouper",
                "n_nonzero": pattern.n,
                "k": pattern.m,
            }
        chosen = [getattr(module, name) for module, name in self.task.weights]
        ids = {id(weight) for weight in chosen}
        for group in optimizer.param_groups:
            group["params"] = [each for each in group["params"] if id(each) not in ids]
        rate = optimizer.param_groups[0]["lr"]
        optimizer.add_param_group({"params": chosen, "lr": rate, **settings})
        made: torch.optim.Optimizer = PruneOptimizer(
            optimizer,
            warmup_steps=schedule.warmup_steps,
            healing_start_step=schedule.ramp_end,
        )
        self._optimizer, self._chosen = optimizer, chosen
        return made

    def num_bytes(self) -> int:
        """A second copy of each weight, without the zeros."""
        return sum(self._optimizer.state[weight]["latent"].nbytes for weight in self._chosen)

    def finish(self) -> None:
        """Its zeros are in the parameters as they are."""


class Nncf(Rival):
    """NNCF's magnitude over the norm of each tensor, with its exponential schedule on our ramp."""

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        import nncf
        from nncf.torch.function_hook.pruning.magnitude.schedulers import (
            ExponentialMagnitudePruningScheduler,
        )

        mode = nncf.PruneMode.UNSTRUCTURED_MAGNITUDE_GLOBAL
        selected = {name for name, _, _ in task.selected}
        others = [name for name, _ in task.model.named_parameters() if name not in selected]
        nncf.prune(
            task.model,
            mode,
            ratio=0.0,
            # Most are no weights that it could prune, hence in no list that they are held against.
            ignored_scope=nncf.IgnoredScope(names=others, validate=False),
            examples_inputs=task.example,
        )
        self._scheduler = ExponentialMagnitudePruningScheduler(
            task.model,
            mode=mode,
            initial_ratio=0.0,
            target_ratio=task.schedule.amount,
            # Its epochs are our steps.
            target_epoch=task.schedule.ramp_end - task.schedule.warmup_steps,
        )

    def choose(self, step: int) -> None:
        """Choose anew; pruned weights may come back, with the values that they had."""
        self._scheduler.step(step - self.task.schedule.warmup_steps)

    def num_bytes(self) -> int:
        """A mask of a byte for each weight."""
        return sum(
            values.nbytes
            for name, values in self.task.model.named_buffers()
            if name.endswith("binary_mask")
        )

    def finish(self) -> None:
        """Leave ordinary parameters with zeros in them."""
        import nncf

        nncf.strip(self.task.model, do_copy=False, strip_format=nncf.StripFormat.IN_PLACE)


_CLASSES = {"torchao-pat": TorchaoPat, "nncf": Nncf, "torch-l1": TorchL1, "one-shot": OneShot}


def fine_tune(
    run: _digits.Run,
    selected: Selected,
    cell: Cell,
    digits: _digits.Digits,
    training: _digits.Settings,
    pattern: str,
) -> dict[str, float]:
    """Fine-tune a run's model as ours is while a rival prunes it, finalize it, and measure it.

    Args:
        run: Of a dense model, which is changed in place.
        selected: (name, module, tensor name) of the weights that ours would prune.
        cell: Which rival, and how much.
        digits: The data.
        training: Its settings.
        pattern: As ``2:4``; "none" for single weights.

    Returns:
        What it costs: ``state_bytes``, for each selected weight.
    """
    schedule, example = _schedule(cell, training), digits.train_images[:1]
    task = Task(run.model, selected, schedule, Pattern.of(pattern), example)
    rival = _CLASSES[cell.criterion](task)
    rate = training.fine_tuning_learning_rate
    _digits.train(run, digits, training, rate, rival, _digits.unwatched)
    num_bytes = rival.num_bytes()
    rival.finish()
    run.accuracies[training.steps] = _digits.accuracy(run.model, digits)
    numel = sum(getattr(module, name).numel() for _, module, name in selected)
    return {"state_bytes": num_bytes / numel}


def check(cell: Cell, training: _digits.Settings, pattern: str) -> None:
    """Raise a ValueError that says what must hold, unless a rival can run with these settings."""
    require(cell.criterion)
    _schedule(cell, training)
    n_of_m = Pattern.of(pattern)
    if n_of_m is not None:
        n_of_m.require_all(cell.amount, cell.criterion)


def _schedule(cell: Cell, training: _digits.Settings) -> CubicSchedule:
    """Ours, whose steps a rival takes over."""
    return CubicSchedule(
        cell.amount,
        training.steps,
        training.warmup_steps,
        training.cooldown_steps,
        window=training.window,
    )
