"""PLATON as one would write it down first: the yardstick of ``platon-prune bench``."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from platon_prune.schedule import CubicSchedule


class Textbook:
    """The rules of the reference implementation, one expression per tensor and formula.

    Scores are joined to find the threshold, weights are zeroed in place without keeping masks, and
    every step of the final phase chooses anew.

    Args:
        weights: The tensors to prune, changed in place.
        schedule: The amount at each step.
        beta1: Share of the old sensitivity that a window keeps.
        beta2: Share of the old uncertainty that a window keeps.
    """

    def __init__(
        self,
        weights: Sequence[Tensor],
        schedule: CubicSchedule,
        beta1: float = 0.85,
        beta2: float = 0.95,
    ) -> None:
        self.weights = weights
        self.schedule = schedule
        self.beta1 = beta1
        self.beta2 = beta2
        self.last_step = 0
        self.windows = [torch.zeros_like(weight) for weight in weights]
        self.sensitivities = [torch.zeros_like(weight) for weight in weights]
        self.uncertainties = [torch.zeros_like(weight) for weight in weights]

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor]) -> None:
        """Take in the gradients of an optimizer step, and prune by the schedule."""
        self.last_step += 1
        window = self.schedule.window
        ends_window = self.last_step % window == 0
        for i, (weight, gradient) in enumerate(zip(self.weights, gradients, strict=True)):
            sample = (weight * gradient).abs()
            if ends_window:
                self._update_averages(i, self.windows[i] / window)
                self.windows[i] = sample
            else:
                self.windows[i] = self.windows[i] + sample
        # On the ramp at windows' ends only, in the final phase at every step: the reference's rule.
        in_ramp = self.schedule.warmup_steps < self.last_step <= self.schedule.ramp_end
        if self.last_step > self.schedule.ramp_end or (in_ramp and ends_window):
            self._prune(self.schedule.amount_at(self.last_step))

    def _update_averages(self, i: int, mean: Tensor) -> None:
        beta1, beta2 = self.beta1, self.beta2
        self.sensitivities[i] = beta1 * self.sensitivities[i] + (1 - beta1) * mean
        deviation = (mean - self.sensitivities[i]).abs()
        self.uncertainties[i] = beta2 * self.uncertainties[i] + (1 - beta2) * deviation

    def _prune(self, amount: float) -> None:
        scores = [
            sensitivity * uncertainty
            for sensitivity, uncertainty in zip(self.sensitivities, self.uncertainties, strict=True)
        ]
        # A copy of all scores, which is what the library does without.
        joined = torch.cat([score.view(-1) for score in scores])
        threshold = torch.kthvalue(joined, round(amount * joined.numel())).values.item()
        for weight, score in zip(self.weights, scores, strict=True):
            # No masks are kept: until the next choice the optimizer may fill these in again.
            weight.masked_fill_(score <= threshold, 0)
