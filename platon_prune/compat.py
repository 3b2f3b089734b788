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

from platon_prune.criteria import Criterion, Magnitude, Platon, Sensitivity
from platon_prune.name_patterns import NamePatterns
from platon_prune.tensors.blocks import Scratch, blocks, zero_pruned_
from platon_prune.tensors.ranking import kth_smallest


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
        self.patterns = tuple(non_mask_name if use_no_mask else mask_param_name)
        self.use_no_mask = use_no_mask
        self.criterion = _criterion(pruner_name, args)
        self.averages: dict[str, tuple[Tensor, ...]] = {}
        self.windows: dict[str, Tensor] = {}
        self._kept: dict[str, Tensor] = {}  # the masks of the last choice
        self._threshold: float | None = None
        self._scratch = Scratch()
        if not self._selected(model):
            raise ValueError(f"some parameter name must match {self.patterns}, got none that does")

    @torch.no_grad()
    def update_and_pruning(self, model: nn.Module, global_step: int) -> tuple[float, float | None]:
        """Take in the gradients of a step and prune in place; after ``optimizer.step()``.

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
        if self.criterion.windowed:
            for name, parameter in selected.items():
                self._take_in(name, parameter, global_step)
        density, phase = self._schedule(global_step)
        if phase == "warmup" or (phase == "ramp" and global_step % self.args.deltaT):
            return density, None
        scores_changed = not self.criterion.windowed or global_step % self.args.deltaT == 0
        if scores_changed or self._threshold is None:
            self._choose(selected, density)
        for name, parameter in selected.items() if self._threshold is not None else ():
            for block, kept in blocks(parameter.detach(), self._kept[name]):
                zero_pruned_(block, kept, self._scratch)
        return density, self._threshold

    def _take_in(self, name: str, parameter: Tensor, step: int) -> None:
        if parameter.grad is None:
            raise RuntimeError(
                f"{name} has no gradient: call update_and_pruning after loss.backward() and "
                "before optimizer.zero_grad()"
            )
        if name not in self.windows:
            self.windows[name] = torch.zeros_like(parameter, dtype=torch.float32)
            self.averages[name] = tuple(
                torch.zeros_like(self.windows[name]) for _ in self.criterion.averages
            )
        operands = (parameter.detach(), parameter.grad, self.windows[name], *self.averages[name])
        for weight, grad, window, *averages in blocks(*operands):
            if step % self.args.deltaT == 0:
                self.criterion.update_averages_(window.div_(self.args.deltaT), averages)
                window.zero_()
            product = self._scratch.like(weight, torch.float32)
            window.add_(self.criterion.sample(weight, grad, product))

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
        scores = {
            name: self.criterion.score(
                parameter.detach(),
                self.averages.get(name, ()),
                torch.empty(parameter.shape, device=parameter.device),
            )
            for name, parameter in selected.items()
        }
        rank = int(sum(score.numel() for score in scores.values()) * (1 - density))
        if rank == 0:
            self._threshold = None
            return
        # Not-a-number ranks as the largest and compares as not below, as in the reference: a score
        # that one infinite gradient has spoilt is never pruned.
        ranked = [
            score.view(-1).nan_to_num(nan=torch.inf, posinf=torch.inf) for score in scores.values()
        ]
        self._threshold = float(
            kth_smallest(lambda: iter(ranked), rank, (-torch.inf, torch.inf)).value
        )
        if math.isinf(self._threshold):
            self._kept = {
                name: torch.ones_like(score, dtype=torch.bool) for name, score in scores.items()
            }
            return
        # As the reference does: strictly below, so the entry that defines the threshold stays.
        self._kept = {name: ~(score < self._threshold) for name, score in scores.items()}

    def _selected(self, model: nn.Module) -> dict[str, nn.Parameter]:
        patterns = NamePatterns("mask_param_name", self.patterns)
        return {
            name: parameter
            for name, parameter in model.named_parameters()
            if patterns.matches(name) != self.use_no_mask
        }


def _criterion(pruner_name: str, args: PrunerArgs) -> Criterion:
    if pruner_name == "Magnitude":
        return Magnitude()
    if pruner_name != "PLATON":
        raise ValueError(f'pruner_name must be "PLATON" or "Magnitude", got {pruner_name!r}')
    for name in ("beta1", "beta2"):
        if not 0 <= getattr(args, name) <= 1:
            raise ValueError(f"{name} must be in [0, 1], got {getattr(args, name)}")
    if args.beta2 == 1:
        return Sensitivity(args.beta1)
    return Platon(args.beta1, args.beta2)
