"""Ordinary networks of which some channels can't be cut: what reads them counts on their number."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812


class Net(nn.Module):
    """A block of an awkward kind, and after it neurons that can be cut."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.hidden, self.out = nn.Linear(width, 12), nn.Linear(12, 3)

    def tail(self, x: Tensor) -> Tensor:
        return self.out(F.relu(self.hidden(x)))


class ConstantView(Net):
    """LeNet's way of flattening."""

    def __init__(self) -> None:
        super().__init__(8 * 6 * 6)
        self.conv = nn.Conv2d(3, 8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.tail(F.relu(self.conv(x)).view(-1, 8 * 6 * 6))


class _FrozenNorm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("scale", torch.rand(width) + 0.5)
        self.register_buffer("shift", torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale[:, None, None] + self.shift[:, None, None]


class BuffersOfTheWidth(Net):
    """A batch norm that is all buffers, as torchvision's FrozenBatchNorm2d."""

    def __init__(self) -> None:
        super().__init__(5)
        self.conv, self.norm, self.next = nn.Conv2d(3, 8, 3), _FrozenNorm(8), nn.Conv2d(8, 5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.tail(self.next(F.relu(self.norm(self.conv(x)))).mean((2, 3)))


class SplitWithSizes(Net):
    """A CSP block."""

    def __init__(self) -> None:
        super().__init__(5)
        self.conv, self.one, self.next = nn.Conv2d(3, 8, 3), nn.Conv2d(4, 4, 1), nn.Conv2d(8, 5, 3)

    def forward(self, x: Tensor) -> Tensor:
        left, right = torch.split(self.conv(x), [4, 4], 1)
        return self.tail(self.next(torch.cat([left, self.one(right)], 1)).mean((2, 3)))


class HeadOfTraining(Net):
    """An auxiliary head as GoogLeNet's, which evaluation does not run."""

    def __init__(self) -> None:
        super().__init__(5)
        self.conv, self.next, self.aux = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 5, 3), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        x = F.relu(self.conv(x))
        result = self.tail(self.next(x).mean((2, 3)))
        return (result, self.aux(x.mean((2, 3)))) if self.training else result


class _GainConv(nn.Conv2d):
    """A convolution with a gain for each filter, in a buffer that the library can't know."""

    def __init__(self, *sizes: int) -> None:
        super().__init__(*sizes)
        self.register_buffer("gain", torch.rand(self.out_channels) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.gain[:, None, None]


class ConvWithBuffer(Net):
    """A subclass of a convolution."""

    def __init__(self) -> None:
        super().__init__(5)
        self.conv, self.next = _GainConv(3, 8, 3), nn.Conv2d(8, 5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.tail(self.next(F.relu(self.conv(x))).mean((2, 3)))


class ScaleByWidth(Net):
    """A scale that is computed from the number of channels: nothing breaks, but all is wrong."""

    def __init__(self) -> None:
        super().__init__(8)
        self.inner = nn.Linear(3 * 8 * 8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.inner(x.flatten(1)))
        return self.tail(x / math.sqrt(x.shape[-1]))


class Splits(Net):
    """Res2Net's: each piece is added to the next."""

    def __init__(self) -> None:
        super().__init__(5)
        self.conv, self.next = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 5, 3)
        self.pieces = nn.ModuleList(nn.Conv2d(2, 2, 3, padding=1) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        first, *others = torch.split(self.conv(x), 2, 1)
        done = [first]
        for conv, piece in zip(self.pieces, others, strict=True):
            done.append(F.relu(conv(piece + done[-1] if len(done) > 1 else piece)))
        return self.tail(self.next(torch.cat(done, 1)).mean((2, 3)))


class TiedReader(Net):
    """What reads the channels is also an embedding, whose width is not theirs alone."""

    def __init__(self) -> None:
        super().__init__(8)
        self.words = nn.Embedding(6, 8)
        self.inner, self.tied = nn.Linear(3 * 8 * 8, 8), nn.Linear(8, 6, bias=False)
        self.tied.weight = self.words.weight

    def forward(self, x: Tensor) -> Tensor:
        chosen = self.tied(F.relu(self.inner(x.flatten(1)))).softmax(-1)
        return self.tail(chosen @ self.words.weight + self.words(torch.tensor(0)))


def _layer(fewer: int, more: int, kernel: int = 3) -> nn.Module:
    conv = nn.Conv2d(fewer, more, kernel, padding=kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(more), nn.SiLU())


class C2f(nn.Module):
    """YOLOv8's block, which splits by sizes and collects features in a list."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.half = width // 2
        self.first, self.last = _layer(width, width, 1), _layer(3 * self.half, width, 1)
        self.block = nn.Sequential(_layer(self.half, 6), _layer(6, self.half))

    def forward(self, x: Tensor) -> Tensor:
        found = list(self.first(x).split((self.half, self.half), 1))
        found.append(found[-1] + self.block(found[-1]))
        return self.last(torch.cat(found, 1))


class SplitWithinList(Net):
    """Two of them, which the tracer can't follow."""

    def __init__(self) -> None:
        super().__init__(8)
        self.features = nn.Sequential(_layer(3, 8), C2f(8), nn.Conv2d(8, 8, 3, 2, 1), C2f(8))

    def forward(self, x: Tensor) -> Tensor:
        return self.tail(self.features(x).mean((2, 3)))


class Recurrent(Net):
    """Layers before a recurrent one, and after it."""

    def __init__(self, cls: type[nn.RNNBase] = nn.GRU, bidirectional: bool = False) -> None:
        super().__init__(10 if bidirectional else 5)
        self.inner = nn.Linear(3, 12)
        self.recurrent = cls(12, 5, batch_first=True, bidirectional=bidirectional)

    def forward(self, x: Tensor) -> Tensor:
        steps = x.flatten(2).transpose(1, 2)[:, :8]  # three channels at eight positions
        return self.tail(self.recurrent(F.relu(self.inner(steps)))[0])


def images() -> Tensor:
    return torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
