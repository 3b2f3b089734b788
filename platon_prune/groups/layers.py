"""What finders of groups ask of a network: its layers by names and sizes, of a model or a file."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from platon_prune.groups.coupled import Member
from platon_prune.spellings import Projection

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Linear:
    """A linear layer by its sizes.

    Args:
        name: Its path.
        num_out: Number of outputs.
        num_in: Number of inputs.
        out_dim: The dimension of its weight along which outputs lie: 1 of transformers' Conv1D.
        has_bias: Whether it has a bias.
    """

    name: str
    num_out: int
    num_in: int
    out_dim: int
    has_bias: bool

    def out(self, group_of: Tensor) -> Iterator[Member]:
        """What groups hold of it that lie along its outputs."""
        yield Member(f"{self.name}.weight", self.out_dim, group_of)
        if self.has_bias:
            yield Member(f"{self.name}.bias", 0, group_of)

    def into(self, group_of: Tensor) -> Iterator[Member]:
        """What groups hold of it that lie along its inputs."""
        yield Member(f"{self.name}.weight", 1 - self.out_dim, group_of)


@dataclass(frozen=True)
class ExpertLayout:
    """How the matrices of fused experts lie, of shape (experts, one side, other side).

    Args:
        in_dim: The dimension along which inputs lie: 2, or 1 where experts are (experts, in, out).
        is_interleaved: Whether gates and values take turns along the outputs.
    """

    in_dim: int
    is_interleaved: bool


class Layers(Protocol):
    """What can be told of a network by names and shapes; a model tells it, and a file."""

    def holders(self) -> Iterable[str]:
        """Paths of all modules, the network itself as ""."""

    def linear(self, path: str) -> Linear | None:
        """The linear layer at a path, if there is one."""

    def filters(self, path: str, count: int) -> bool | None:
        """Whether a convolution with one filter for each of ``count`` channels has a bias.

        None if there is no such convolution at the path.
        """

    def experts(self, holder: str) -> ExpertLayout | None:
        """How the matrices of fused experts lie; None if the holder is none."""

    def own(self, holder: str) -> Mapping[str, Shape]:
        """Names and shapes of the parameters that the holder has itself."""

    def parameters(self, holder: str) -> Iterable[tuple[str, Shape]]:
        """Names, from the holder, and shapes of all parameters at and below it."""

    def head_size(self, holder: str, num_queries: int) -> int | None:
        """Entries of one query head of ``num_queries`` in all; None if it can't be told."""

    def entangled(self, holder: str) -> str | None:
        """What ties the heads of an attention together; None if nothing does."""

    def is_rms_norm(self, path: str) -> bool:
        """Whether a norm divides by the root of the mean square alone."""


def child(holder: str, name: str) -> str:
    """The path of what a spelling calls ``name``; "../" is the module that holds the holder."""
    if name.startswith("../"):
        holder, name = holder.rpartition(".")[0], name.removeprefix("../")
    return f"{holder}.{name}" if holder and name else holder or name


def evenly(count: int, groups: int) -> Tensor:
    """The group of each of ``count`` entries that neighbouring groups share evenly; int64."""
    return torch.arange(count) // (count // groups)


def outputs_of(
    projection: Projection, width: Mapping[str, int], groups: int, stay: Collection[str] = ()
) -> Tensor:
    """The group of each output of a projection; int64, -1 for none.

    Args:
        projection: Which parts it has, and in which order.
        width: How many outputs each part has.
        groups: How many groups there are.
        stay: Parts that are in no group.
    """
    if projection.by_head and not set(stay).intersection(projection.parts):
        return evenly(sum(width[part] for part in projection.parts), groups)
    # By head or not, one key-value head lies behind all queries that read it.
    parts = [
        torch.full((width[part],), -1) if part in stay else evenly(width[part], groups)
        for part in projection.parts
    ]
    return torch.cat(parts)
