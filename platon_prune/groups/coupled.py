"""Coupled groups: entries of several tensors that live or die together, as plain data.

A neuron is its row in the first matrix, its bias and its column in the second; a head its rows of
the query, key and value matrices and its columns of the output matrix.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Member:
    """What the groups of one place hold of one tensor: whole slices along one dimension.

    Args:
        name: The tensor's name in the model before pruning, such as ``layer.0.weight``.
        dim: Dimension that is cut, from 0.
        group_of: For each index along ``dim``, the number of its group; -1 for none. int64, on the
            CPU.
    """

    name: str
    dim: int
    group_of: Tensor


@dataclass(frozen=True)
class CoupledGroups:
    """All groups of one place in a model, such as the heads of one attention layer.

    Args:
        name: The place: the name of the module that holds it.
        kind: "heads", "neurons", "channels", "experts" or "blocks".
        size: How many groups there are, numbered from 0.
        members: What they hold; a tensor may be a member of several places.
        least: How many groups the model can't run without, whatever floor is asked for.
        num_sets: Into how many equal sets of neighbours the groups are divided, which must keep
            equal numbers of them, as routing groups of experts.
    """

    name: str
    kind: str
    size: int
    members: tuple[Member, ...]
    least: int = 1
    num_sets: int = 1

    def indices(self, member: Member, groups: Sequence[int] | Tensor) -> Tensor:
        """Indices along the member's dimension that belong to one of ``groups``; int64, sorted."""
        wanted = torch.zeros(self.size + 1, dtype=torch.bool)
        wanted[torch.as_tensor(groups, dtype=torch.int64)] = True
        wanted[-1] = False  # what belongs to no group
        return wanted[member.group_of].nonzero().flatten()

    def left(self, member: Member, kept: Tensor) -> Tensor:
        """Which groups one of the tensors leaves: those of which it keeps any entry.

        One entry is enough, since another place may have taken the others.

        Args:
            member: What the groups hold of the tensor.
            kept: Of the tensor's shape, bool: its mask, or where it is not zero.

        Returns:
            Bool, one for each group, on the CPU.
        """
        others = [dim for dim in range(kept.ndim) if dim != member.dim]
        along = (kept.any(dim=others) if others else kept).cpu()
        found = torch.zeros(self.size + 1, dtype=torch.bool)
        found[member.group_of[along]] = True
        return found[:-1]  # what is in no group, -1, was noted behind the last one


def telling(place: CoupledGroups) -> list[Member]:
    """The first members that together hold something of every group: of slices a single one."""
    untold = torch.ones(place.size + 1, dtype=torch.bool)
    untold[-1] = False  # what belongs to no group
    found = []
    for member in place.members:
        if untold[member.group_of].any():
            untold[member.group_of] = False
            found.append(member)
    return found


@dataclass(frozen=True)
class Missed:
    """A layer that has no groups, though it is spelled or connected as if it had.

    Args:
        name: The module that holds it.
        kind: "heads", "neurons", "channels" or "experts".
        why: What it has that is not understood or can't be cut.
    """

    name: str
    kind: str
    why: str

    def __str__(self) -> str:
        return f"{self.name or 'the model'} ({self.kind}: {self.why})"


def first_that_fits(
    name: str, kind: str, looked: Iterable[CoupledGroups | str | None]
) -> CoupledGroups | Missed | None:
    """What a module has by the first spelling that fits it.

    Args:
        name: The module that holds the layers.
        kind: "heads", "neurons", "channels" or "experts".
        looked: By each spelling in turn the groups, why there are none, or None if layers are
            missing; what comes after the first groups is not asked for.

    Returns:
        The groups; else the reason of the first spelling whose layers are there; None if none are.
    """
    missed = None
    for found in looked:
        if isinstance(found, CoupledGroups):
            return found
        if found is not None and missed is None:
            missed = Missed(name, kind, found)
    return missed
