"""`inspect`: zeros, n:m patterns and removable groups of a file or folder, without the model."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from platon_prune.export.tensor_files import StoredTensor, open_tensors
from platon_prune.groups.coupled import CoupledGroups, Member
from platon_prune.groups.places import find_places, input_dims
from platon_prune.tables import table
from platon_prune.tensors.blocks import count_true

# Lengths of groups that are looked at.
_LENGTHS = (4, 8, 16, 32)
# A pattern is one that was made, not one that holds by chance, if it is filled so far.
_FILLED = 0.75


@dataclass(frozen=True)
class TensorRow:
    """One tensor.

    Args:
        name: In the file.
        dtype: Without "torch.".
        shape: As stored.
        zeros: How many entries are zero, negative zeros among them.
        most_kept: Of a matrix or convolution, by m: the most entries that are not zero in m
            neighbours along the input dimension; n:m holds for this n. Only where it is below m.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    zeros: int
    most_kept: Mapping[int, int]

    @property
    def numel(self) -> int:
        """Number of entries."""
        return math.prod(self.shape)

    @property
    def sparsity(self) -> float:
        """Fraction of zeros; 0 of an empty tensor."""
        return self.zeros / self.numel if self.numel else 0.0

    @property
    def pattern(self) -> str:
        """The pattern that says most: 2:4 or less of four, else one that is filled; or "-"."""
        if not self.numel or self.zeros == self.numel:
            return "-"
        if self.most_kept.get(4, 4) <= 2:
            return f"{self.most_kept[4]}:4"
        for m, n in sorted(self.most_kept.items(), key=lambda pair: pair[1] / pair[0]):
            if 1 - self.sparsity >= _FILLED * n / m:
                return f"{n}:{m}"
        return "-"


@dataclass(frozen=True)
class PlaceRow:
    """Groups of one place: how many there are, and the numbers of those of which nothing is left.

    These are what :func:`platon_prune.shrink` removes; of a channel the filter and bias are known.
    """

    name: str
    kind: str
    size: int
    removable: tuple[int, ...]


@dataclass(frozen=True)
class Inspection:
    """What is in a file or folder; prints as tables."""

    kind: str
    tensors: tuple[TensorRow, ...]
    places: tuple[PlaceRow, ...]

    def __iter__(self) -> Iterator[TensorRow]:
        return iter(self.tensors)

    @property
    def num_entries(self) -> int:
        """Of all tensors."""
        return sum(row.numel for row in self.tensors)

    @property
    def zeros(self) -> int:
        """Of all tensors."""
        return sum(row.zeros for row in self.tensors)

    def to_json(self) -> dict[str, Any]:
        """Everything as numbers and text."""
        rows = [
            asdict(row) | {"sparsity": row.sparsity, "pattern": row.pattern} for row in self.tensors
        ]
        places = [asdict(place) for place in self.places]
        return {"kind": self.kind, "tensors": rows, "groups": places}

    def __str__(self) -> str:
        return self.to_text(every=True)

    def to_text(self, every: bool = False) -> str:
        """As tables; vectors only if ``every``."""
        rows = [row for row in self.tensors if every or len(row.shape) > 1]
        lines = [["tensor", "dtype", "shape", "zeros", "n:m"]]
        lines += [
            [row.name, row.dtype, "x".join(map(str, row.shape)), f"{row.sparsity:.2%}", row.pattern]
            for row in rows
        ]
        share = self.zeros / self.num_entries if self.num_entries else 0.0
        notes = [
            f"{self.kind}: {self.num_entries:,} entries in {len(self.tensors)} tensors, "
            f"{share:.2%} zero"
        ]
        if len(rows) < len(self.tensors):
            left = len(self.tensors) - len(rows)
            notes.append(f"{left} vectors and scalars are not listed: --all lists them")
        parts = [table(lines), "\n".join(notes)]
        return "\n\n".join([*parts, *self._groups()])

    def _groups(self) -> list[str]:
        if not self.places:
            return []
        lines = [["heads, neurons, channels", "kind", "groups", "removable"]]
        lines += [
            [place.name, place.kind, f"{place.size:,}", f"{len(place.removable):,}"]
            for place in self.places
        ]
        return [table(lines)]


@torch.no_grad()
def inspect_path(path: str | Path) -> Inspection:
    """Look at every tensor of a file or folder, one at a time.

    Args:
        path: A safetensors file, a file or folder that :func:`platon_prune.save` wrote, or a
            folder of transformers, sharded or not.

    Raises:
        ValueError: If it is something else, or damaged.
    """
    source = open_tensors(Path(path))
    shapes = {tensor.name: tensor.shape for tensor in source.tensors}
    # An empty tensor may have a dimension of any length, and is in no group.
    filled = {name: shape for name, shape in shapes.items() if math.prod(shape)}
    places = find_places(filled, source.config)
    wanted: dict[str, list[tuple[CoupledGroups, Member]]] = defaultdict(list)
    for place in places:
        for member in place.members:
            wanted[member.name].append((place, member))
    left = {id(place): torch.zeros(place.size, dtype=torch.bool) for place in places}
    dims = input_dims(shapes, source.config)
    rows = []
    for stored in source.tensors:
        kept = _kept(stored.read())
        rows.append(_row(stored, kept, dims[stored.name]))
        for place, member in wanted[stored.name]:
            left[id(place)] |= place.left(member, kept.value)
    found = tuple(_place_row(place, left[id(place)]) for place in places)
    return Inspection(source.kind, tuple(rows), found)


# --- one tensor ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Kept:
    dtype: str
    value: Tensor  # bool, the tensor's shape


def _kept(tensor: Tensor) -> _Kept:
    dtype = str(tensor.dtype).removeprefix("torch.")
    # Types of one byte have no comparison of their own everywhere.
    if tensor.is_floating_point() and tensor.itemsize == 1:
        tensor = tensor.float()
    return _Kept(dtype, tensor.ne(0))


def _row(stored: StoredTensor, kept: _Kept, input_dim: int) -> TensorRow:
    zeros = kept.value.numel() - count_true(kept.value)
    most_kept = {}
    if len(stored.shape) in (2, 3, 4) and kept.value.numel():
        matrix = kept.value.movedim(input_dim, -1)
        most_kept = {
            m: n for m in _LENGTHS if matrix.shape[-1] % m == 0 and (n := _most_of(matrix, m)) < m
        }
    return TensorRow(stored.name, kept.dtype, stored.shape, zeros, most_kept)


def _most_of(kept: Tensor, m: int) -> int:
    groups = kept.reshape(-1, m)
    return max(int(part.sum(1, dtype=torch.uint8).max()) for part in groups.split(1 << 20))  # type: ignore[no-untyped-call]


# --- groups -------------------------------------------------------------------------------------


def _place_row(place: CoupledGroups, left: Tensor) -> PlaceRow:
    removable = tuple((~left).nonzero()[:, 0].tolist())
    return PlaceRow(place.name, place.kind, place.size, removable)
