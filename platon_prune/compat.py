"""The reference implementation's interface and arithmetic, for replication.

It differs from :func:`platon_prune.global_unstructured` on purpose where the reference does: one
entry fewer is pruned and ties stay, weights are zeroed in place without masks, pruned weights
train freely between choices, and every step of the final phase prunes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from platon_prune.choice.one_walk import compare, prune_below_
from platon_prune.choice.scored import Line, ScoredLine, scatter_
from platon_prune.choice.selection import rank_scores
from platon_prune.criteria import Criterion, Magnitude, Platon, Sensitivity
from platon_prune.name_patterns import NamePatterns
from platon_prune.scheduling.averages import Averages, Storage
from platon_prune.scheduling.line_scores import line_scores
from platon_prune.tensors.backends import Operands, backend_for
from platon_prune.tensors.blocks import Scratch


class PrunerArgs(Protocol):
    """The settings that :class:`Pruner` reads from ``args``; its "threshold" means density."""

    initial_threshold: float
    final_threshold: float
    warmup_steps: int
    initial_warmup: int
    final_warmup: int
    beta1: float
    beta2: float
    deltaT: int  # noqa: N815


class Pruner:
    """Drop-in for the reference's pruner.

    Args:
        model: The model; its weights are zeroed in place.
        args: An object with the attributes of :class:`PrunerArgs`.
        total_step: Length of the run, in optimizer steps.
        tb_writer: Accepted for the interface; log the returned values instead.
        mask_param_name: Substrings of the names of parameters to prune, biases included.
        non_mask_name: Substrings (case-sensitive) to leave out if ``use_no_mask``.
        use_no_mask: Prune everything but ``non_mask_name``.
        pruner_name: "PLATON" or "Magnitude".

    Raises:
        ValueError: If no parameter is selected, a beta is outside [0, 1], or the name is unknown.

    Source:
        Zhang et al., PLATON, ICML 2022; rules as recorded from its published implementation.
    """

    def __init__(
        self,
        model: nn.Module,
        args: PrunerArgs,
        total_step: int,
        tb_writer: Any = None,
        mask_param_name: Sequence[str] = ("attention.self", "attention.output.dense")
        + ("output.dense", "intermediate.dense"),
        non_mask_name: Sequence[str] = ("embedding", "norm"),
        use_no_mask: bool = False,
        pruner_name: str = "PLATON",
    ) -> None:
        self.args = args
        self.total_step = total_step
        self.mask_param_name = mask_param_name
        self._last_step = 0
        self.patterns = tuple(non_mask_name if use_no_mask else mask_param_name)
        self.use_no_mask = use_no_mask
        self.criterion = _criterion(pruner_name, args)
        self._shares: list[_Share] = []
        self._homes: dict[str, tuple[torch.device, torch.Size]] = {}
        self._threshold: float | None = None
        if not self._selected(model):
            raise ValueError(f"some parameter name must match {self.patterns}, got none that does")

    @property
    def averages(self) -> dict[str, tuple[Tensor, ...]]:
        """The averages of each parameter, by its name; they share the pruner's memory."""
        return {
            name: tuple(kept[each] for each in self.criterion.averages)
            for share in self._shares
            for name, kept in share.remembered().items()
        }

    # --- what scripts of theirs read ----------------------------------------------------------

    @property
    def config(self) -> dict[str, Any]:
        """The settings in ``args``, by name."""
        return vars(self.args)

    @property
    def ipt(self) -> dict[str, Tensor]:
        """The mean of the window so far, of each parameter, by its name; new tensors."""
        # The window is kept as a sum; the first one has a sample of zero in it.
        num_samples = self._last_step % self.args.deltaT + 1
        return {name: window / num_samples for name, window in self._kept("window").items()}

    @property
    def exp_avg_ipt(self) -> dict[str, Tensor]:
        """The averages of the importance, by name; they share the pruner's memory."""
        return self._kept("sensitivity")

    @property
    def exp_avg_unc(self) -> dict[str, Tensor]:
        """The averages of the uncertainty, by name; none where ``beta2`` is 1."""
        return self._kept("uncertainty")

    def _kept(self, key: str) -> dict[str, Tensor]:
        return {
            name: kept[key]
            for share in self._shares
            for name, kept in share.remembered().items()
            if key in kept
        }

    # --- a step -------------------------------------------------------------------------------

    @torch.no_grad()
    def update_and_pruning(self, model: nn.Module, global_step: int) -> tuple[float, float | None]:
        """Learn from the gradients of a step and prune in place; after ``optimizer.step()``.

        Args:
            model: The model, with the gradients that produced this step.
            global_step: Step number, from 1.

        Returns:
            The density of the schedule, and the score below which weights were zeroed (None where
            nothing was).

        Raises:
            RuntimeError: If a selected parameter has no gradient.
        """
        selected = self._selected(model)
        self._seat(selected)
        self._require_gradients(selected)
        # In the reference's order: the window that ended is averaged before this step joins.
        ends_window = global_step % self.args.deltaT == 0
        for share in self._shares if ends_window else ():
            if share.averages is not None:
                share.averages.end_window_(self.args.deltaT, repairs=False)
        self._last_step = global_step
        density, phase = self._schedule(global_step)
        prunes = phase == "final" or (phase == "ramp" and ends_window)
        # Scores of windows can't have changed within one.
        is_new = not self.criterion.windowed or ends_window or self._threshold is None
        if prunes and is_new:
            self._choose(selected, density)
        # Scores know nothing of this step's samples, so that one walk adds them and zeroes.
        masking = prunes and self._threshold is not None
        for share in self._shares if masking or self.criterion.windowed else ():
            share.accumulate_(selected, masking)
        return density, self._threshold if prunes else None

    def _require_gradients(self, selected: dict[str, nn.Parameter]) -> None:
        for name, parameter in selected.items() if self.criterion.windowed else ():
            if parameter.grad is None:
                raise RuntimeError(
                    f"{name} has no gradient: call update_and_pruning after loss.backward() "
                    "and before optimizer.zero_grad()"
                )

    def _seat(self, selected: dict[str, nn.Parameter]) -> None:
        """Make room for what is remembered, at the first step or once parameters have moved."""
        homes = {name: (each.device, each.shape) for name, each in selected.items()}
        if homes == self._homes:
            return
        # A model may be moved between steps; what was remembered moves along.
        before = {name: kept for share in self._shares for name, kept in share.remembered().items()}
        by_device: dict[torch.device, list[str]] = {}
        for name, (device, _) in homes.items():
            by_device.setdefault(device, []).append(name)
        self._shares = [
            _Share(self.criterion, {name: homes[name][1] for name in names}, device)
            for device, names in by_device.items()
        ]
        for share in self._shares:
            for name, kept in share.remembered().items():
                for key, values in before.get(name, {}).items():
                    kept[key].copy_(values)
        self._homes = homes

    def _schedule(self, step: int) -> tuple[float, str]:
        args = self.args
        start = args.initial_warmup * args.warmup_steps
        end = self.total_step - args.final_warmup * args.warmup_steps
        if step <= start:
            return args.initial_threshold, "warmup"
        if step > end:
            return args.final_threshold, "final"
        left = 1 - (step - start) / (end - start)
        return (
            args.final_threshold + (args.initial_threshold - args.final_threshold) * left**3,
            "ramp",
        )

    def _choose(self, selected: dict[str, nn.Parameter], density: float) -> None:
        lines = [share.scored(selected) for share in self._shares]
        # The reference's rounding down, on purpose: exact counts are those of our own API.
        rank = int(sum(line.numel for line in lines) * (1 - density))
        if rank == 0:
            self._threshold = None
            return
        # As the reference does: strictly below goes, so the entry that defines the threshold stays.
        in_one_walk = len(lines) == 1 and lines[0].device.type == "cpu"
        threshold = prune_below_(lines[0], rank) if in_one_walk else None
        if threshold is not None and not math.isinf(threshold):
            self._threshold = threshold
            return
        self._threshold = threshold = rank_scores(lines, rank).value
        for line in lines:
            for slab in line.line.slabs:
                # An infinite threshold is not-a-number there, and takes nothing.
                kept = line.new_mask(slab)
                compare(torch.ge, line.score(slab), threshold, kept, line.scratch)
                scatter_(kept.fill_(True) if math.isinf(threshold) else kept,
                         line.masks_in(slab))  # fmt: skip

    def _selected(self, model: nn.Module) -> dict[str, nn.Parameter]:
        patterns = NamePatterns("mask_param_name", self.patterns)
        return {
            name: parameter
            for name, parameter in model.named_parameters()
            if patterns.matches(name) != self.use_no_mask
        }


class _Share:
    """The selected parameters of one device, with what is remembered of them and their masks.

    Args:
        criterion: Says what is remembered.
        shapes: Of the parameters, by their names.
        device: Where they are.
    """

    def __init__(
        self, criterion: Criterion, shapes: dict[str, torch.Size], device: torch.device
    ) -> None:
        self.criterion = criterion
        self.shapes = shapes
        self.line = Line([shape.numel() for shape in shapes.values()], device)
        self.scratch = Scratch()
        self.averages = None
        if criterion.windowed:
            self.averages = Averages(criterion, self.line, Storage(), self.scratch)
        self.masks = [
            torch.ones(shape, dtype=torch.bool, device=device) for shape in shapes.values()
        ]

    def remembered(self) -> dict[str, dict[str, Tensor]]:
        """Of each parameter the window and the averages, by name; of its shape."""
        if self.averages is None:
            return {}
        return {
            name: {key: flat.view(shape) for key, flat in self.averages.of(i).items()}
            for i, (name, shape) in enumerate(self.shapes.items())
        }

    def accumulate_(self, selected: dict[str, nn.Parameter], masking: bool) -> None:
        """Add this step's samples to the windows, if there are any; then zero what masks prune."""
        remembered = self.remembered()
        operands, gradients = [], []
        for name, mask in zip(self.shapes, self.masks, strict=True):
            window = remembered[name]["window"] if remembered else None
            operands.append(Operands(selected[name].detach(), mask, window))
            gradients.append(None if window is None else selected[name].grad)
        formula = self.criterion.formula or "abs_product"
        backend_for(self.line.device).accumulate_(operands, gradients, formula, None, masking)

    def scored(self, selected: dict[str, nn.Parameter]) -> ScoredLine:
        """All of it in a line.

        Not-a-number ranks as the largest and compares as not below, as in the reference: a score
        that one infinite gradient has spoilt is never pruned.
        """
        weights = [selected[name].detach().contiguous() for name in self.shapes]
        of_line = line_scores(self.criterion, self.line, weights, self.averages, self.scratch)

        def score(index: slice | Tensor) -> Tensor:
            return of_line(index).nan_to_num_(nan=torch.inf, posinf=torch.inf)

        return ScoredLine(
            self.line,
            score,
            self.line.cut(self.masks),
            self.shapes,
            self.criterion.signed,
            scratch=self.scratch,
        )


def _criterion(pruner_name: str, args: PrunerArgs) -> Criterion:
    if pruner_name == "Magnitude":
        return Magnitude()
    if pruner_name != "PLATON":
        raise ValueError(f'pruner_name must be "PLATON" or "Magnitude", got {pruner_name!r}')
    for name in ("beta1", "beta2"):
        if not 0 <= getattr(args, name) <= 1:
            raise ValueError(f"{name} must be in [0, 1], got {getattr(args, name)}")
    # The reference reads it so: no uncertainty, and the score is the sensitivity.
    if args.beta2 == 1:
        return Sensitivity(args.beta1)
    return Platon(args.beta1, args.beta2)
