"""Whether tensors hold n:m: at most n entries that are not zero among every m along the inputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral

import torch
from torch import Tensor, nn

from platon_prune.masks.input_dims import input_dim, reason_against_groups
from platon_prune.masks.masked import mask_of, pruned_tensors, weight_of
from platon_prune.masks.targets import find_tensors
from platon_prune.tables import table
from platon_prune.tensors.lanes import Layout
from platon_prune.tensors.shards import is_sharded


@dataclass(frozen=True)
class TensorPattern:
    """One row of a report: how many groups of a tensor break the pattern n:m.

    Args:
        name: The tensor's name.
        shape: Its shape.
        dim: The dimension along which its groups lie.
        num_groups: How many it has.
        num_broken: How many of them have more than n.
        first: Index of the first entry of the first such group; None if there is none.
    """

    name: str
    shape: tuple[int, ...]
    dim: int
    num_groups: int
    num_broken: int
    first: tuple[int, ...] | None

    @property
    def holds(self) -> bool:
        """Whether no group has more than n."""
        return not self.num_broken


@dataclass(frozen=True)
class PatternReport:
    """Whether the tensors of a model hold n:m, one row for each; prints as a table.

    Args:
        n: Entries that a group may have.
        m: Entries of a group.
        rows: One for each tensor.
        left_out: Why others can't be cut into groups, by name.
    """

    n: int
    m: int
    rows: tuple[TensorPattern, ...]
    left_out: Mapping[str, str]

    def __iter__(self) -> Iterator[TensorPattern]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def holds(self) -> bool:
        """Whether all tensors in the rows hold the pattern, and there is one."""
        return bool(self.rows) and all(row.holds for row in self.rows)

    def __str__(self) -> str:
        lines = [("tensor", "shape", "groups", f"not {self.n}:{self.m}", "first")]
        lines += [
            (
                row.name,
                "x".join(map(str, row.shape)),
                f"{row.num_groups:,}",
                f"{row.num_broken:,}",
                "-" if row.first is None else str(list(row.first)),
            )
            for row in self.rows
        ]
        notes = [f"{name} {reason}" for name, reason in self.left_out.items()]
        return "\n".join([table(lines), *notes])


@torch.no_grad()
def check_semi_structured(
    model: nn.Module, n: int = 2, m: int = 4, *, include: str | Sequence[str] | None = None
) -> PatternReport:
    """Count the groups of a model that do not hold n:m, as evaluation uses its weights.

    Args:
        model: A model that is being pruned (its rows are the tensors with a mask), or any other
            (its rows are the weights that would be pruned by default), such as a finalized one.
        n: Entries of a group that may be other than zero, at least 1.
        m: Neighbours in a group along the inputs, more than n.
        include: Substrings of parameter names, for a model without masks that was pruned by them.

    Returns:
        One row per tensor; its attribute ``holds`` says whether all of them hold the pattern.

    Raises:
        ValueError: If the model has no such tensor, or it is sharded, or n:m is no pattern.
        TypeError: If n or m is not a whole number.
    """
    require_pattern(n, m)
    rows: list[TensorPattern] = []
    left_out: dict[str, str] = {}
    for name, module, weight, mask in _tensors_of(model, include):
        reason = reason_against_groups(module, weight, m)
        if reason:
            left_out[name] = reason
        else:
            dim = input_dim(module, weight)
            rows.append(pattern_of(name, weight, n, m, dim, mask))
    if not rows and not left_out:
        raise ValueError("model must have weights that can be pruned, got none")
    return PatternReport(n, m, tuple(rows), left_out)


def pattern_of(
    name: str, weight: Tensor, n: int, m: int, dim: int, mask: Tensor | None = None
) -> TensorPattern:
    """Count the groups of one tensor that do not hold n:m.

    Args:
        name: What to call it.
        weight: A tensor whose size along ``dim`` is a multiple of m.
        n: Entries of a group that may be other than zero.
        m: Neighbours in a group.
        dim: The dimension along which groups lie, from 0.
        mask: Bool, the same shape: what is False there counts as zero.
    """
    # In pieces, so that the flags never take as much memory as the weight does.
    layout = Layout(m, weight.shape[dim + 1 :].numel())
    flat = weight.detach().reshape(-1)
    num_broken, first = 0, None
    for piece in layout.pieces(flat.numel(), flat.device):
        kept = flat[piece].ne(0)
        if mask is not None:
            kept.logical_and_(mask.reshape(-1)[piece])
        # Neighbours along ``dim`` lie ``layout.inner`` entries apart in the flat tensor.
        broken = (kept.view(-1, m, layout.inner).sum(1) > n).view(-1).nonzero().view(-1)
        num_broken += broken.numel()
        if first is None and broken.numel():
            first = piece.start + int(layout.entries(broken[:1])[0])
    index = None if first is None else _index_of(first, weight.shape)
    return TensorPattern(name, tuple(weight.shape), dim, flat.numel() // m, num_broken, index)


def require_pattern(n: int, m: int) -> None:
    """Raise unless n of m is a pattern.

    Raises:
        TypeError: If one of them is not a whole number.
        ValueError: If not 1 <= n < m.
    """
    for name, value in (("n", n), ("m", m)):
        if isinstance(value, bool) or not isinstance(value, Integral):
            raise TypeError(f"{name} must be a whole number, got {value!r}")
    if not 1 <= n < m:
        raise ValueError(
            f"n must be at least 1 and less than m, got n={n} and m={m}: n entries are kept of "
            "every m"
        )


def _index_of(position: int, shape: Sequence[int]) -> tuple[int, ...]:
    """The index of a flat position."""
    index: list[int] = []
    for size in reversed(shape):
        index.insert(0, position % size)
        position //= size
    return tuple(index)


def _tensors_of(
    model: nn.Module, include: str | Sequence[str] | None
) -> Iterator[tuple[str, nn.Module, Tensor, Tensor | None]]:
    masked = list(pruned_tensors(model))
    seen: set[int] = set()
    for name, module, key in masked or find_tensors(model, include):
        weight = weight_of(module, key) if masked else getattr(module, key)
        # A shard may end within a group, whose entries no process has all of then.
        if is_sharded(weight):
            raise ValueError(
                f"{name} must be whole to be checked, got a sharded tensor: load the saved model "
                "in one process"
            )
        if id(weight) not in seen and weight.numel():
            seen.add(id(weight))
            yield name, module, weight, mask_of(module, key) if masked else None
