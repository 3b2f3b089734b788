"""What takes part in a choice: the scores of one tensor, or those of all tensors in one line."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from platon_prune.tensors.bits import unpack_bits_
from platon_prune.tensors.blocks import CPU_BLOCK, Scratch, slices
from platon_prune.tensors.segments import ROW, SegmentCounts, Segments
from platon_prune.tensors.shards import Shard


class Scored(Protocol):
    """Entries with scores, some of which are kept: one tensor's, or many tensors' in a line."""

    @property
    def numel(self) -> int:
        """Number of entries that this process holds."""

    @property
    def whole_numel(self) -> int:
        """Number of entries that all processes hold together."""

    @property
    def owned(self) -> slice:
        """The slice that this process counts, so that each entry of a replica is counted once."""

    @property
    def device(self) -> torch.device:
        """Where the scores are."""

    @property
    def offset(self) -> int:
        """Global position of the first entry of the whole."""

    @property
    def signed(self) -> bool:
        """Whether a score can be negative, or -0."""

    def score(self, index: slice | Tensor) -> Tensor:
        """Scores at a slice, or at an int64 tensor of positions; valid until the next call."""

    def pieces(self, within: slice | None = None) -> Iterator[tuple[slice, Tensor]]:
        """Slices of the entries, or of a slice of them, with their scores."""

    def kept(self, piece: slice) -> Tensor:
        """The mask of a piece, to be read before the next call."""

    def kept_at(self, piece: slice, positions: Tensor) -> Tensor:
        """Whether the entries at some positions of a piece are kept."""

    def positions(self, local: Tensor) -> Tensor:
        """Global positions of local ones."""


@dataclass(frozen=True)
class ScoredTensor:
    """One tensor that takes part in a choice, or the shard of it that this process holds.

    Args:
        score: Returns the scores at a slice, or at an int64 tensor of positions, of the flat
            tensor: float32, never NaN. The result is used before the next call only.
        mask: Contiguous bool mask (True = kept); read for the order of ties, then overwritten.
        offset: Global position of the first entry of the whole tensor; fixes the order of ties.
        shard: Which entries of the whole tensor this process holds; None if all of them.
        name: What to call it in a message.
        signed: Whether a score can be negative, or -0.
    """

    score: Callable[[slice | Tensor], Tensor]
    mask: Tensor
    offset: int
    shard: Shard | None = None
    name: str = ""
    signed: bool = True

    @property
    def numel(self) -> int:
        """Number of entries that this process holds."""
        return self.mask.numel()

    @property
    def device(self) -> torch.device:
        """Where the scores are."""
        return self.mask.device

    @property
    def flat_mask(self) -> Tensor:
        """The mask, one-dimensional."""
        return self.mask.view(-1)

    @property
    def whole_numel(self) -> int:
        """Number of entries that all processes hold together."""
        return self.numel if self.shard is None else self.shard.shape.numel()

    @property
    def owned(self) -> slice:
        """The slice that this process counts, so that each entry of a replica is counted once."""
        return slice(0, self.numel) if self.shard is None else self.shard.owned

    @property
    def num_replicas(self) -> int:
        """How many processes hold the same shard."""
        return 1 if self.shard is None else self.shard.num_replicas

    def positions(self, local: Tensor) -> Tensor:
        """Global positions of positions in the flat tensor."""
        return (local if self.shard is None else self.shard.positions(local)) + self.offset

    def kept(self, piece: slice) -> Tensor:
        """The mask of a piece."""
        return self.flat_mask[piece]

    def keep_(self, piece: slice, mask: Tensor) -> None:
        """Nothing: what :meth:`kept` returns is the mask itself."""

    def kept_at(self, piece: slice, positions: Tensor) -> Tensor:
        """Whether the entries at some positions of a piece are kept."""
        return self.kept(piece)[positions]

    def pieces(self, within: slice | None = None) -> Iterator[tuple[slice, Tensor]]:
        """Slices of the flat tensor, or of a slice of it, with their scores."""
        start, stop = (0, self.numel) if within is None else (within.start, within.stop)
        for piece in slices(stop - start, self.mask.device):
            shifted = slice(start + piece.start, start + piece.stop)
            yield shifted, self.score(shifted)


class ScoredTensors(Sequence[ScoredTensor]):
    """The tensors of a choice, and the same as one line of entries where they can be walked so.

    Args:
        tensors: Yields them in the order of the scheduler; called only where they are needed.
        line: All of them in a line; None where they lie on several devices or are sharded, or where
            a score needs more than its own entry.
    """

    def __init__(
        self, tensors: Callable[[], Iterator[ScoredTensor]], line: ScoredLine | None = None
    ) -> None:
        # Made when first asked for: a choice in a line never needs them one by one.
        self._make = tensors
        self.line = line

    @functools.cached_property
    def _tensors(self) -> tuple[ScoredTensor, ...]:
        return tuple(self._make())

    def __len__(self) -> int:
        return len(self._tensors)

    def __getitem__(self, index: Any) -> Any:
        return self._tensors[index]


class Line:
    """Tensors in a line, cut into slabs of equal length whatever the tensors are.

    So the number of operations depends on the number of entries, not on that of tensors.

    Args:
        sizes: Number of entries of each tensor.
        device: Where they are.
        slab_size: Entries of a slab, a multiple of 128; by default few slabs on an accelerator,
            where each operation is a launch.
    """

    def __init__(
        self, sizes: Sequence[int], device: torch.device, slab_size: int | None = None
    ) -> None:
        self.sizes = tuple(sizes)
        self.device = device
        self.ends: list[int] = []
        for size in sizes:
            self.ends.append((self.ends[-1] if self.ends else 0) + size)
        self.numel = self.ends[-1] if self.ends else 0
        self.slab_size = slab_size or _slab_size(self.numel, device)
        self.slabs = [
            slice(start, min(start + self.slab_size, self.numel))
            for start in range(0, self.numel, self.slab_size)
        ]
        # Once for a line: cutting it anew at each choice would take a step for each tensor.
        self._cuts = [list(self._cut(slab)) for slab in self.slabs]

    def _cut(self, slab: slice) -> Iterator[tuple[int, slice]]:
        start = 0
        for i, end in enumerate(self.ends):
            first, last = max(start, slab.start), min(end, slab.stop)
            if first < last:
                yield i, slice(first - start, last - start)
            start = end

    @functools.cached_property
    def segments(self) -> Segments:
        """What counting flags by tensors needs."""
        return Segments(self.ends, self.slabs, self.device)

    def cut(self, tensors: Sequence[Tensor]) -> list[list[Tensor]]:
        """For each slab, the pieces of contiguous tensors that lie in it: flat views."""
        flat = [tensor.view(-1) for tensor in tensors]
        return [
            # A whole tensor is handed on as it is: a view costs as much as a small operation.
            [flat[i] if within.stop - within.start == self.sizes[i] else flat[i][within]
             for i, within in cut]
            for cut in self._cuts
        ]  # fmt: skip

    def pick(self, tensors: Sequence[Tensor], positions: Tensor, out: Tensor) -> Tensor:
        """Entries of contiguous tensors at positions of the line, in ascending order."""
        ends = torch.tensor(self.ends, device=positions.device)
        # One search and one read for all tensors; positions are few, so most tensors have none.
        bounds = [0, *torch.searchsorted(positions, ends).tolist()]
        for i, (first, last) in enumerate(itertools.pairwise(bounds)):
            if first < last:
                local = positions[first:last] - (self.ends[i] - self.sizes[i])
                out[first:last] = tensors[i].view(-1)[local]
        return out


def _slab_size(numel: int, device: torch.device) -> int:
    if device.type == "cpu":
        return CPU_BLOCK
    # A temporary of 4 bytes an entry is then at most a quarter of a byte for each entry of all.
    return min(max(1 << 20, -(-numel // 16 // 1024) * 1024), 1 << 24)


def gather(pieces: Sequence[Tensor], out: Tensor) -> Tensor:
    """Copy pieces side by side into a flat tensor, in one multi-tensor operation."""
    torch._foreach_copy_(
        list(out.split_with_sizes([piece.numel() for piece in pieces])), list(pieces)
    )
    return out


def scatter_(flat: Tensor, pieces: Sequence[Tensor]) -> None:
    """Copy a flat tensor back to where its pieces lie, in one multi-tensor operation."""
    torch._foreach_copy_(
        list(pieces), list(flat.split_with_sizes([piece.numel() for piece in pieces]))
    )


@dataclass
class ScoredLine:
    """All tensors of a choice as one line of entries, in this process alone.

    Args:
        line: How they are cut into slabs.
        score: As for :class:`ScoredTensor`, of positions in the line; slices are slabs.
        masks: Their masks, cut as the line is.
        shapes: Of the tensors, by their names.
        signed: As for :class:`ScoredTensor`.
        scratch: For flags, in roles of its own; a new one by default.
    """

    line: Line
    score: Callable[[slice | Tensor], Tensor]
    masks: Sequence[Sequence[Tensor]]
    shapes: Mapping[str, torch.Size]
    signed: bool = True
    offset: int = 0
    scratch: Scratch = field(default_factory=Scratch)

    @property
    def numel(self) -> int:
        """Number of entries."""
        return self.line.numel

    @property
    def whole_numel(self) -> int:
        """The same: no other process holds any."""
        return self.line.numel

    @property
    def owned(self) -> slice:
        """All of it."""
        return slice(0, self.line.numel)

    @property
    def device(self) -> torch.device:
        """Where the scores are."""
        return self.line.device

    def pieces(self, within: slice | None = None) -> Iterator[tuple[slice, Tensor]]:
        """The slabs with their scores; ``within`` is all of them."""
        for slab in self.line.slabs:
            yield slab, self.score(slab)

    def positions(self, local: Tensor) -> Tensor:
        """Global positions: the same."""
        return local

    def kept_at(self, piece: slice, positions: Tensor) -> Tensor:
        """Whether the entries at some positions of a slab are kept."""
        return self.kept(piece)[positions]

    def kept(self, piece: slice) -> Tensor:
        """The masks of a slab side by side; bool, valid until the next call."""
        return gather(self.masks_in(piece), self.flags(piece, "kept"))

    def keep_(self, piece: slice, mask: Tensor) -> None:
        """Write the masks of a slab."""
        scatter_(mask, self.masks_in(piece))

    def counts_since(self, before: Sequence[Tensor]) -> Tensor:
        """What changed in each tensor.

        Args:
            before: The masks of each slab as they were, packed.

        Returns:
            As :class:`~platon_prune.choice.selection.Chosen` has it.
        """
        # Counted by slabs as well, so that the work does not grow with the number of tensors.
        counters = [self.counter() for _ in range(3)]
        for number, (slab, bits) in enumerate(zip(self.line.slabs, before, strict=True)):
            then, now = self.flags(slab, "new"), self.kept(slab)
            unpack_bits_(then, bits)
            counters[0].add(number, slab.start, self.whole_rows(now))
            counters[2].add(number, slab.start, self.whole_rows(then))
            counters[1].add(number, slab.start, self.whole_rows(now.logical_and_(then)))
        return torch.stack([counter.totals() for counter in counters], 1)

    @property
    def num_replicas(self) -> int:
        """One: no other process holds any of it."""
        return 1

    def new_mask(self, piece: slice) -> Tensor:
        """Room for what the masks of a slab are to be; bool, valid until the next call."""
        return self.flags(piece, "new")

    def masks_in(self, piece: slice) -> Sequence[Tensor]:
        """The pieces of the masks that lie in a slab."""
        return self.masks[piece.start // self.line.slab_size]

    def counter(self) -> SegmentCounts:
        """Counts flags of the line by tensors."""
        return self.line.segments.counts()

    def whole_rows(self, flags: Tensor) -> Tensor:
        """Flags of a slab with those that fill up its last row, which are False."""
        # The flags are the front of a longer buffer, whose rest is False.
        return flags.as_strided((-(-flags.numel() // ROW) * ROW,), (1,))

    def flags(self, piece: slice, role: str) -> Tensor:
        """Room for flags of a slab; bool, valid until the next call with this role."""
        size = piece.stop - piece.start
        # Whole rows, which are counted word by word.
        rows = self.scratch.flat(-(-size // ROW) * ROW, torch.bool, self.device, role)
        rows[size:] = False
        return rows[:size]
