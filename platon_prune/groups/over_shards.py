"""Coupled groups of tensors of which each process holds a shard: what it has of each group."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from platon_prune.choice.scored import ScoredTensor
from platon_prune.groups.coupled import CoupledGroups, Member
from platon_prune.tensors.collectives import Processes
from platon_prune.tensors.shards import Shard


def member_of_shard(member: Member, shard: Shard | None) -> Member:
    """What the groups hold of a tensor's shard: the member itself where that is all of it."""
    index = None if shard is None else shard.indices[member.dim]
    return member if index is None else replace(member, group_of=member.group_of[index.cpu()])


def whole_shape(tensor: ScoredTensor) -> torch.Size:
    """The shape of the whole tensor."""
    return tensor.mask.shape if tensor.shard is None else tensor.shard.shape


def is_whole_everywhere(tensor: ScoredTensor, processes: Processes) -> bool:
    """Whether each process holds all of a tensor; the same answer in every process."""
    # All replicas of one shard are all processes, and together they hold the whole tensor.
    return tensor.shard is None or tensor.num_replicas == processes.size


def kept_groups(
    groups: Sequence[CoupledGroups],
    telling: Sequence[Sequence[Member]],
    tensors: Sequence[ScoredTensor],
    processes: Processes,
) -> Tensor:
    """Which groups of all places the masks leave; collective if a tensor is sharded.

    Args:
        groups: All places.
        telling: Of each place the members that together hold something of every group.
        tensors: All of their tensors, or this process's shards.
        processes: Those that choose together.

    Returns:
        Bool, place after place, on the CPU.
    """
    by_name = {tensor.name: tensor for tensor in tensors}
    found = []
    for place, members in zip(groups, telling, strict=True):
        # A choice writes all members of a group alike, and a group whose rows are left is left,
        # though another place may have taken some of their entries.
        parts = [(member, by_name[member.name]) for member in members]
        left = [place.left(member_of_shard(m, tensor.shard), tensor.mask) for m, tensor in parts]
        found.append(torch.stack(left).any(dim=0))
    kept = torch.cat(found)
    if all(is_whole_everywhere(tensor, processes) for tensor in tensors):
        return kept
    # A group is left if any process has something of it.
    return processes.sum(kept.to(torch.int64)) > 0
