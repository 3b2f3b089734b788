"""What ``platon-prune bench`` prunes: tensors in the shapes of models, and two schedules."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from platon_prune.commands.benchmarks.figures import Spread
from platon_prune.schedule import CubicSchedule

# The paper's schedule for SQuAD, over which the times of single steps are averaged.
SQUAD = CubicSchedule(
    amount=0.9, total_steps=55_000, warmup_steps=5_400, cooldown_steps=27_000, window=10
)
# One that has a step of each kind early. Its first window touches new memory and is not counted,
# and its last step is not taken: a choice between two windows, which SQUAD does not have.
SHORT = CubicSchedule(amount=0.9, total_steps=45, warmup_steps=20, cooldown_steps=5, window=10)
KINDS = ("ordinary step", "window's end", "choosing step", "final-phase step")

Shape = tuple[int, int]  # inputs and outputs of a linear layer


def kind_of(schedule: CubicSchedule, step: int) -> str:
    """Which of ``KINDS`` a step is."""
    if not schedule.ends_window(step):
        return "final-phase step" if step > schedule.ramp_end else "ordinary step"
    return "choosing step" if step > schedule.warmup_steps else "window's end"


def average(times: Mapping[str, Spread]) -> Spread:
    """Time of a step of SQuAD's schedule, from how often each kind of step occurs in it."""
    counts = Counter(kind_of(SQUAD, step) for step in range(1, SQUAD.total_steps + 1))
    return Spread(
        *(
            sum(counts[kind] * times[kind][i] for kind in KINDS) / SQUAD.total_steps
            for i in range(3)
        )
    )


class Size(NamedTuple):
    """The linear layers of a model.

    Args:
        name: What the model is called.
        shapes: Of each layer.
        biases: Whether biases are pruned too.
    """

    name: str
    shapes: Sequence[Shape]
    biases: bool = True

    @property
    def tensor_sizes(self) -> list[int]:
        """Entries of each tensor, in the order of the layers, a bias after its weight."""
        return [
            size
            for inputs, outputs in self.shapes
            for size in (inputs * outputs, outputs)[: 1 + self.biases]
        ]


def bert_base(scale: float) -> Size:
    """BERT-base's encoder; at less than 1 with fewer layers, and below one layer narrower."""
    return Size("BERT-base", _encoder(768, 12, scale))


def smaller_sizes(scale: float) -> list[Size]:
    """Two models for which starting operations costs more than carrying them out."""
    return [
        Size("small encoder", _encoder(384, 6, scale)),
        Size("digits transformer", _encoder(64, 4, scale), biases=False),
    ]


def _encoder(hidden: int, num_layers: int, scale: float) -> list[Shape]:
    hidden = max(8, round(hidden * math.sqrt(min(1, num_layers * scale))))
    attention, up, down = (hidden, hidden), (hidden, 4 * hidden), (4 * hidden, hidden)
    return ([attention] * 4 + [up, down]) * max(1, round(num_layers * scale))


class Workload:
    """Linear layers in the shapes of a model, with random gradients.

    Args:
        size: The model.
        device: Where the tensors are.
    """

    def __init__(self, size: Size, device: str) -> None:
        self.size = size
        self.modules = [nn.Linear(*shape, bias=size.biases, device=device) for shape in size.shapes]
        self._gradients = [torch.randn_like(parameter) for parameter in self.parameters]
        self._alike: dict[torch.Size, list[int]] = {}
        for i, gradient in enumerate(self._gradients):
            self._alike.setdefault(gradient.shape, []).append(i)

    @property
    def pairs(self) -> list[tuple[nn.Module, str]]:
        """What to prune."""
        names = ("weight", "bias")[: 1 + self.size.biases]
        return [(module, name) for module in self.modules for name in names]

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The parameters, in the order of ``pairs`` while they are not pruned."""
        return [parameter for module in self.modules for parameter in module.parameters()]

    def renew(self) -> None:
        """Make the weights random again: a contest leaves most of them zero."""
        for module in self.modules:
            module.reset_parameters()

    @property
    def num_weights(self) -> int:
        """How many entries are selected."""
        return sum(gradient.numel() for gradient in self._gradients)

    def gradients(self, step: int) -> list[Tensor]:
        """The gradients of a step: each tensor gets those of another one of its shape."""
        # New random numbers would take longer than what is measured.
        found = list(self._gradients)
        for places in self._alike.values():
            for i, place in enumerate(places):
                found[place] = self._gradients[places[(i + step) % len(places)]]
        return found
