"""The networks of the structured study: the demo's transformer, and a small residual CNN."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from platon_prune.commands.benchmarks import digits as _digits

WIDTHS = (16, 32, 64)  # of the three stages, at 8 x 8, 4 x 4 and 2 x 2
EXAMPLE = (1, 1, 8, 8)  # the shape of one digit


class _Block(nn.Module):
    """Two convolutions beside a residual, which a third one fits where sizes change."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.relu(self.norm1(self.conv1(x)))
        return torch.relu(self.norm2(self.conv2(hidden)) + self.shortcut(x))


class ResidualCNN(nn.Module):
    """Three stages of two blocks, a mean over positions and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, WIDTHS[0], 3, 1, 1, bias=False)
        self.norm = nn.BatchNorm2d(WIDTHS[0])
        blocks = []
        before = WIDTHS[0]
        for width in WIDTHS:
            blocks += [_Block(before, width, 1 if width == before else 2), _Block(width, width, 1)]
            before = width
        self.blocks = nn.Sequential(*blocks)
        self.classifier = nn.Linear(before, 10)

    def forward(self, x: Tensor) -> Tensor:
        """From images to logits."""
        hidden = self.blocks(torch.relu(self.norm(self.conv(x))))
        scores: Tensor = self.classifier(hidden.mean(dim=(2, 3)))
        return scores


def make_cnn(settings: _digits.Settings) -> nn.Module:
    """The CNN with random weights of a seed."""
    torch.manual_seed(settings.seed)
    return ResidualCNN()


@torch.no_grad()
def multiply_adds(model: nn.Module, keyword_inputs: Mapping[str, Any] | None = None) -> int:
    """Of one forward in evaluation, attention's products among them.

    Args:
        model: Any.
        keyword_inputs: What it is called with; one digit if None.
    """
    was_training = model.training
    device = next(model.parameters()).device
    digit = () if keyword_inputs is not None else (torch.zeros(EXAMPLE, device=device),)
    # The fused kernel of attention is not counted; the plain one is two products that are.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model.eval()(*digit, **(keyword_inputs or {}))
    model.train(was_training)
    return int(counter.get_total_flops()) // 2  # a multiply-add is two operations


def num_parameters(model: nn.Module) -> int:
    """All of them, whether they are pruned or not."""
    return sum(parameter.numel() for parameter in model.parameters())
