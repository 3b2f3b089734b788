"""BERT-base with random weights and zeros in it, and the figures that its forms are to reach."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from platon_prune.tables import table

if TYPE_CHECKING:
    from torch import nn

    from platon_prune.deploy.report import DeployReport

# Of BERT-base; its sizes are never changed here, only its number of layers.
_HEADS = 12


class Aim(NamedTuple):
    """A figure, what it is to be, and what it was; None if it was not measured.

    Args:
        what: In words.
        aim: The least value, or the largest one if ``at_most``.
        measured: In this run.
        at_most: Whether less is better.
    """

    what: str
    aim: float
    measured: float | None
    at_most: bool = False

    @property
    def verdict(self) -> str:
        """In a word."""
        if self.measured is None:
            return "not measured"
        reached = self.measured <= self.aim if self.at_most else self.measured >= self.aim
        return "reached" if reached else "missed"


def make_bert(num_layers: int) -> nn.Module:
    """A BERT of base's sizes, built from its config."""
    import torch
    from transformers import BertConfig, BertModel

    # Every process that is started to measure must build the same weights.
    torch.manual_seed(0)
    model: nn.Module = BertModel(BertConfig(num_hidden_layers=num_layers))
    return model.eval()


def sparse(num_layers: int, amount: float) -> nn.Module:
    """The smallest of the encoder's weights are zero."""
    import torch

    from platon_prune.masks.targets import find_tensors

    model = make_bert(num_layers)
    weights = [getattr(module, name).detach() for _, module, name in find_tensors(model)]
    # All layers share one threshold, as in a global choice, so some are sparser than others.
    magnitudes = torch.cat([weight.abs().flatten() for weight in weights])
    threshold = magnitudes.kthvalue(round(amount * magnitudes.numel())).values
    for weight in weights:
        weight.masked_fill_(weight.abs() <= threshold, 0)
    return model


def halved(num_layers: int) -> nn.Module:
    """Every second head and neuron is zero in all that belongs to it."""
    import torch

    model: Any = make_bert(num_layers)
    with torch.no_grad():
        for layer in model.encoder.layer:
            attention, middle = layer.attention, layer.intermediate.dense
            inner = [attention.self.query, attention.self.key, attention.self.value]
            hidden = attention.output.dense.in_features
            _zero_every_second(inner, attention.output.dense, hidden // _HEADS)
            _zero_every_second([middle], layer.output.dense, 1)
    return model  # type: ignore[no-any-return]


def _zero_every_second(inner: list[Any], outer: Any, size: int) -> None:
    for layer in inner:
        # Every second group of rows: a whole head, or a single neuron.
        layer.weight.view(-1, 2, size, layer.in_features)[:, 1] = 0
        layer.bias.view(-1, 2, size)[:, 1] = 0
    # What reads a group must not read it either, or shrinking would keep it.
    outer.weight.view(outer.out_features, -1, 2, size)[:, :, 1] = 0


MODELS: Mapping[str, Callable[[int], Any]] = {
    "90 percent": partial(sparse, amount=0.9),
    "95 percent": partial(sparse, amount=0.95),
    "half of heads and neurons": halved,
}


def aims(reports: Mapping[str, DeployReport]) -> list[Aim]:
    """The figures of a run: all ratios to dense, of times that took turns with it."""
    ninety, ninety_five, half = (reports[name] for name in MODELS)
    found = [
        Aim("90 %, CSR: times as fast as dense", 1.2, _speed(ninety, "CSR")),
        Aim("95 %, CSR: times as fast as dense", 2.0, _speed(ninety_five, "CSR")),
        Aim("half removed: times as fast as dense", 1.7, _speed(half, "shrunk")),
        Aim("half removed: times smaller matrices of the encoder", 1.7, _smaller(half)),
    ]
    limits = {"sparse": 0.135, "sparse, zstd": 0.105}
    return found + list(_files(ninety, limits))


def table_of(aims: list[Aim]) -> str:
    """Aims as a table."""
    lines = [["figure", "aim", "measured", ""]]
    for aim in aims:
        bound = f"{'<=' if aim.at_most else '>='} {aim.aim:g}"
        measured = "-" if aim.measured is None else f"{aim.measured:.3g}"
        lines.append([aim.what, bound, measured, aim.verdict])
    return table(lines)


def _speed(report: DeployReport, form: str) -> float | None:
    """At the largest size."""
    names = [row.name for row in report]
    # Small sizes time the starting of operations more than the zeros.
    return report.speed(form, report.sizes[-1]) if form in names else None


def _smaller(report: DeployReport) -> float | None:
    rows = {row.name: row for row in report}
    dense, shrunk = rows["dense"].num_weights, rows.get("shrunk")
    if dense is None or shrunk is None or shrunk.num_weights is None:
        return None
    return dense / shrunk.num_weights


def _files(report: DeployReport, limits: Mapping[str, float]) -> Iterator[Aim]:
    sizes = {file.name: file.matrix_bytes for file in report.files}
    for name, limit in limits.items():
        share = sizes[name] / sizes["dense"] if name in sizes else None
        yield Aim(f"90 %, {name}: share of the dense matrices' file", limit, share, at_most=True)
