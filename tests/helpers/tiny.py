"""Tiny models, a training loop that stops between two choices, and what it must have led to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

import platon_prune

MASKINGS = ("step", "window")


def sample(*shape: int, like: nn.Module | None = None, seed: int = 0) -> Tensor:
    """The same standard normal numbers each time, in the dtype of a model."""
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return values if like is None else values.to(next(like.parameters()).dtype)


def train(
    model: nn.Module,
    run: Callable[[nn.Module], Tensor],
    masking: str = "step",
    *,
    include: tuple[str, ...] | None = None,
    steps: int = 7,
    optimizer: torch.optim.Optimizer | None = None,
) -> platon_prune.PlatonScheduler:
    """Prune while training; by default stop one step after a choice, on the ramp.

    By then "window" has refilled what it prunes, so that the two maskings differ.
    """
    scheduler = platon_prune.global_unstructured(
        model,
        amount=0.6,
        total_steps=12,
        window=2,
        masking=masking,
        include=include,
        warmup_steps=0,
        cooldown_steps=0,
    )
    go_on(model, run, scheduler, steps, optimizer)
    return scheduler


def go_on(
    model: nn.Module,
    run: Callable[[nn.Module], Tensor],
    scheduler: platon_prune.PlatonScheduler,
    steps: int,
    optimizer: torch.optim.Optimizer | None = None,
) -> None:
    if optimizer is None:
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    model.train()
    for _ in range(steps):
        (run(model) - 0.5).square().mean().backward()
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()


def sites(model: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    """(module, tensor name) of every mask."""
    for module in model.modules():
        for key in list(module._buffers):
            if key.endswith("_mask"):
                yield module, key.removesuffix("_mask")


def masked(module: nn.Module, name: str) -> Tensor:
    """What the pruned tensor must read as in evaluation."""
    mask = module._buffers[f"{name}_mask"]
    assert mask is not None and mask.dtype == torch.bool
    return module._parameters[f"{name}_orig"].detach().masked_fill(~mask, 0)


def num_pruned(model: nn.Module) -> int:
    return sum(int((~module._buffers[f"{name}_mask"]).sum()) for module, name in sites(model))


@torch.no_grad()
def dense_twin(model: nn.Module, build: Callable[[], nn.Module]) -> nn.Module:
    """An ordinary model with the weights that the pruned one must have in evaluation."""
    twin = build().to(next(model.parameters()).dtype).eval()
    for (name, parameter), plain in zip(model.named_parameters(), twin.parameters(), strict=True):
        value = parameter
        if name.endswith("_orig"):
            path, _, key = name.rpartition(".")
            value = masked(model.get_submodule(path), key.removesuffix("_orig"))
        plain.copy_(value)
    return twin


@dataclass(frozen=True)
class Case:
    """A kind of model, how to run it on fixed input, and what of it to prune."""

    build: Callable[[], nn.Module]
    run: Callable[[nn.Module], Tensor]
    include: tuple[str, ...] | None = None

    def trained(self, masking: str) -> nn.Module:
        torch.manual_seed(1)
        model = self.build()
        train(model, self.run, masking, include=self.include)
        assert num_pruned(model) > 0
        return model


class Reader(nn.Module):
    """Reads its parameters without calling a module that holds them."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 6)
        self.rest = nn.ParameterList([nn.Parameter(torch.randn(6, 6)), nn.Parameter(torch.ones(6))])
        self.scale = nn.Parameter(torch.randn(6, 2))

    def forward(self, x: Tensor) -> Tensor:
        x = F.linear(x, self.first.weight, self.first.bias)
        return (x @ self.rest[0] + self.rest[1]) @ self.scale


def tied_linears() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
    model[2].weight = model[0].weight
    return model


def _recurrent(kind: type[nn.RNNBase]) -> Case:
    return Case(
        lambda: kind(4, 3, num_layers=2, bidirectional=True),
        lambda m: m(sample(5, 2, 4, like=m))[0],
        ("weight_ih", "weight_hh"),
    )


def _on(*shape: int) -> Callable[[nn.Module], Tensor]:
    return lambda model: model(sample(*shape, like=model))


def _attention(model: nn.Module) -> Tensor:
    x = sample(2, 5, 8, like=model)
    return model(x, x, x)[0]


def _wide_attention(model: nn.Module) -> Tensor:
    query, key, value = (sample(2, 5, size, like=model) for size in (8, 6, 4))
    return model(query, key, value)[0]


def hf_conv1d() -> nn.Module:
    from transformers.pytorch_utils import Conv1D

    return nn.Sequential(Conv1D(6, 4), nn.GELU(), Conv1D(2, 6))


CASES = {
    "linear": Case(lambda: nn.Sequential(nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 2)), _on(3, 4)),
    "linear with biases": Case(
        lambda: nn.Sequential(nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 2)),
        _on(3, 4),
        ("weight", "bias"),
    ),
    "conv1d": Case(lambda: nn.Conv1d(4, 6, 3), _on(2, 4, 9)),
    "conv2d": Case(lambda: nn.Conv2d(4, 6, 3, groups=2), _on(2, 4, 5, 5)),
    "transposed conv1d": Case(lambda: nn.ConvTranspose1d(4, 6, 3), _on(2, 4, 5)),
    "transposed conv2d": Case(lambda: nn.ConvTranspose2d(4, 6, 3), _on(2, 4, 5, 5)),
    "attention": Case(lambda: nn.MultiheadAttention(8, 2, batch_first=True), _attention),
    "attention of three widths": Case(
        lambda: nn.MultiheadAttention(8, 2, kdim=6, vdim=4, batch_first=True), _wide_attention
    ),
    "encoder layer": Case(
        lambda: nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True), _on(2, 5, 8)
    ),
    "transformers' Conv1D": Case(hf_conv1d, _on(3, 4)),
    "LSTM": _recurrent(nn.LSTM),
    "GRU": _recurrent(nn.GRU),
    "tied linears": Case(tied_linears, _on(3, 4)),
    "parameters read directly": Case(Reader, _on(3, 4), ("first", "rest", "scale")),
}


def assert_same_state(found: nn.Module, expected: nn.Module) -> None:
    state, other = found.state_dict(), expected.state_dict()
    assert list(state) == list(other)
    for name, value in other.items():
        assert state[name].dtype == value.dtype
        found_bits, bits = (t.reshape(-1).view(torch.uint8) for t in (state[name], value))
        assert torch.equal(found_bits, bits), name
