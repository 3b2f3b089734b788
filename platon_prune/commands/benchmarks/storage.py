"""What averages in bfloat16 cost: how far their masks agree with float32's, and the accuracy."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

import platon_prune
from platon_prune.commands.benchmarks import digits as _digits


class _Pair:
    """Two schedulers that are fed the same weights and gradients; the first one prunes."""

    def __init__(self, model: nn.Module, settings: dict[str, Any]) -> None:
        self._model, self._shadow = model, copy.deepcopy(model)
        self._first = platon_prune.global_unstructured(model, **settings)
        self._second = platon_prune.global_unstructured(
            self._shadow, state_dtype=torch.bfloat16, **settings
        )
        self.agreements: list[float] = []

    @property
    def amount(self) -> float:
        return self._first.amount

    @torch.no_grad()
    def step(self) -> None:
        """One step of both; after a choice, the share of kept weights that both keep."""
        pairs = zip(self._model.parameters(), self._shadow.parameters(), strict=True)
        for parameter, copied in pairs:
            # The second one's own masks must not steer what it is fed.
            copied.copy_(parameter)
            copied.grad = None if parameter.grad is None else parameter.grad.clone()
        self._first.step()
        self._second.step()
        if self._first.schedule.is_choosing_step(self._first.last_step):
            masks = zip(self._first.masks().values(), self._second.masks().values(), strict=True)
            pairs_of_counts = [(int((a & b).sum()), int(a.sum())) for a, b in masks]
            both, kept = (sum(counts) for counts in zip(*pairs_of_counts, strict=True))
            self.agreements.append(both / kept)


def table(amounts: Sequence[float], seeds: Sequence[int]) -> str:
    """Train on the digits for each amount and seed; returns the rows to print.

    Agreement is of the weights that float32 averages keep, given the same weights and gradients at
    each step; accuracy is of a run of its own with averages in bfloat16.
    """
    lines = [
        "pruned  seed  bytes a weight  kept by both, last (least)  accuracy, float32  bfloat16"
    ]
    for amount in amounts:
        for seed in seeds:
            settings = _digits.Settings(seed=seed, amounts=(amount,))
            digits = _digits.load_digits(settings)
            dense = _digits.train_dense(digits, settings, lambda: None)
            pruning: dict[str, Any] = dict(
                amount=amount,
                total_steps=settings.steps,
                warmup_steps=settings.warmup_steps,
                cooldown_steps=settings.cooldown_steps,
                window=settings.window,
            )
            rate = settings.fine_tuning_learning_rate
            # A run for each: pruning by other masks trains other weights.
            exact = _digits.Run("float32", copy.deepcopy(dense.model), amount)
            pair = _Pair(exact.model, pruning)
            _digits.train(exact, digits, settings, rate, pair, lambda: None)
            small = _digits.Run("bfloat16", copy.deepcopy(dense.model), amount)
            scheduler = platon_prune.global_unstructured(
                small.model, state_dtype=torch.bfloat16, **pruning
            )
            _digits.train(small, digits, settings, rate, scheduler, lambda: None)
            lines.append(
                f"{amount:<7.0%} {seed:<5} {scheduler.memory().per_weight:<15.0f} "
                f"{pair.agreements[-1]:.2%} ({min(pair.agreements):.2%})".ljust(58)
                + f"{exact.accuracy:<18.1f} {small.accuracy:.1f}"
            )
    return "\n".join(lines)
