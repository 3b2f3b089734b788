"""Whole runs of structured pruning: with masks alone, and cut as they go."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn

import platon_prune
from platon_prune.commands.benchmarks.figures import Spread
from platon_prune.tables import table
from platon_prune.timing import Clock

STEPS, AMOUNT, WINDOW = 200, 0.8, 5
# None: a dense run; 0: masks alone, cut in the end; else so many choices out before a cut.
KINDS: tuple[int | None, ...] = (None, 0, 1, 3)


class Outcome(NamedTuple):
    """What a kind of run came to.

    Args:
        name: In words.
        seconds: Of whole runs, the last cut included.
        parameters: Of the model in the end.
        loss: Of the last step; of the last run.
    """

    name: str
    seconds: Spread
    parameters: int
    loss: float


def outcomes(
    device: str, scale: float, repeats: int, timed: Clock, steps: int = STEPS
) -> list[Outcome]:
    """Run each kind so many times, in turns, and measure it.

    Args:
        device: Where to train.
        scale: Share of the width of the model, in (0, 1].
        repeats: Runs of each kind.
        timed: The clock.
        steps: Optimizer steps of a run.
    """
    seconds: dict[int | None, list[float]] = {kind: [] for kind in KINDS}
    last: dict[int | None, tuple[int, float]] = {}
    for _ in range(repeats):
        for kind in KINDS:
            made = _Run(device, scale, kind, steps)
            seconds[kind].append(timed(made.train) / 1000)
            last[kind] = made.num_parameters, made.loss
    return [Outcome(_name(kind), Spread.of(seconds[kind]), *last[kind]) for kind in KINDS]


def whole_run_table(found: Sequence[Outcome]) -> str:
    """The outcomes as a table, with the time of masks alone over each."""
    masks = found[KINDS.index(0)].seconds.median
    lines = [
        ("a whole run", "s, median (lowest-highest)", "masks alone / it", "parameters", "loss")
    ]
    for each in found:
        median, low, high = each.seconds
        lines.append(
            (
                each.name,
                f"{median:.1f} ({low:.1f}-{high:.1f})",
                f"{masks / median:.2f}",
                f"{each.parameters:,}",
                f"{each.loss:.3f}",
            )
        )
    return table(lines)


def _name(kind: int | None) -> str:
    if kind is None:
        return "dense"
    return f"cut after {kind} choice{'s' * (kind > 1)}" if kind else "masks alone, cut in the end"


class _Run:
    """A Llama of 12 M parameters (by ``scale``) that learns a fixed batch of 512 tokens."""

    def __init__(self, device: str, scale: float, kind: int | None, steps: int) -> None:
        from transformers import LlamaConfig, LlamaForCausalLM

        torch.manual_seed(0)
        width = max(32, int(384 * scale) // 32 * 32)
        config = LlamaConfig(  # type: ignore[call-arg]
            vocab_size=512, hidden_size=width, intermediate_size=4 * width, num_hidden_layers=5,
            num_attention_heads=8, num_key_value_heads=8,
        )  # fmt: skip
        self.model: nn.Module = LlamaForCausalLM(config).to(device)  # type: ignore[arg-type]
        self.tokens = torch.randint(512, (8, 64), device=device)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4)
        self.steps, self.kind, self.loss = steps, kind, 0.0
        self.scheduler = None
        if kind is not None:
            self.scheduler = platon_prune.global_structured(
                self.model,
                amount=AMOUNT,
                total_steps=steps,
                window=WINDOW,
                cut_after=kind or None,
                optimizer=self.optimizer,
            )

    @property
    def num_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.model.parameters())

    def train(self) -> None:
        with warnings.catch_warnings():
            # That layers sit on their floors is of no interest here.
            warnings.simplefilter("ignore", platon_prune.PruningWarning)
            for _ in range(self.steps):
                self._step()
            if self.scheduler is not None:
                self.scheduler.cut()
                platon_prune.remove(self.model)

    def _step(self) -> None:
        loss = self.model(input_ids=self.tokens, labels=self.tokens).loss
        loss.backward()
        self.optimizer.step()
        if self.scheduler is not None:
            self.scheduler.step()
        self.optimizer.zero_grad()
        self.loss = float(loss.detach())
