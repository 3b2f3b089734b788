"""What can be removed from a model: the coupled groups of which nothing is left, and what stays."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from platon_prune.groups import experts
from platon_prune.groups.blocks import KIND as BLOCKS
from platon_prune.groups.coupled import CoupledGroups, Member
from platon_prune.masks.masked import forms_of, mask_of
from platon_prune.shrinking.holders import has_fixed_width
from platon_prune.shrinking.named import find, tensor_at
from platon_prune.shrinking.resize import refusal
from platon_prune.spellings import EXPERTS_STEP, EXPERTS_WRITE
from platon_prune.tensors.shards import is_sharded


@dataclass(frozen=True)
class Place:
    """The groups of one place and which of them stay.

    Args:
        groups: The coupled groups.
        kept: For each of them, whether it stays; bool.
        note: Why groups of which nothing is left stay, if some do.
    """

    groups: CoupledGroups
    kept: Tensor
    note: str = ""

    @property
    def after(self) -> int:
        """How many groups stay."""
        return int(self.kept.sum())

    def keeping(self, kept: Tensor, note: str = "") -> Place:
        """The same place with other groups kept."""
        return dataclasses.replace(self, kept=kept, note=note or self.note)

    def keeping_all(self, note: str) -> Place:
        """The same place with nothing removed."""
        return self.keeping(torch.ones_like(self.kept), note)


def find_places(model: nn.Module, every: Iterable[CoupledGroups]) -> list[Place]:
    """Which groups of each place stay: those of which something is left, and at least one.

    Args:
        model: With masks of ours, which decide where there are any; elsewhere exact zeros do.
        every: The coupled groups of the model.

    Raises:
        ValueError: If the model lacks a tensor of a group, or one can't be read.
    """
    owners = _owners(model)
    places = []
    for groups in every:
        kept = what_is_left(model, groups)
        place = Place(groups, kept)
        # Asked only where something could go: elsewhere a reason would be no news.
        if not kept.all() and (reason := _refusal(model, groups, owners)):
            place = place.keeping_all(reason)
        elif not kept.any():
            kept[0] = True
            place = place.keeping(kept, "one must stay")
        place = experts_in_sets(in_whole_steps(place))
        places.append(place)
    return places


def what_is_left(model: nn.Module, groups: CoupledGroups) -> Tensor:
    """For each group of a place, whether something is left of it; bool."""
    kept = torch.zeros(groups.size, dtype=torch.bool)
    if groups.kind == experts.KIND:
        # One of zeros that tokens still go to is no empty place: the others share its weights.
        kept = ~experts.passed_over(model, groups)
    for member in groups.members:
        kept |= _groups_left(model, groups, member)
    return kept


def step_of(groups: CoupledGroups) -> int:
    """In how many groups at once a place is cut: more than one only of experts."""
    is_of_experts = groups.members[-1].name.rpartition(".")[2] == EXPERTS_WRITE
    is_of_neurons = is_of_experts and groups.kind == "neurons"
    return EXPERTS_STEP if is_of_neurons and groups.size % EXPERTS_STEP == 0 else 1


def in_whole_steps(place: Place) -> Place:
    """The place with a few more groups kept, where it can't be cut to any count."""
    missing = -place.after % step_of(place.groups)
    if not missing:
        return place
    kept = place.kept.clone()
    kept[(~kept).nonzero().flatten()[:missing]] = True
    return place.keeping(kept, f"experts keep a multiple of {EXPERTS_STEP}")


def experts_in_sets(place: Place) -> Place:
    """The place with a few more experts kept, where routing groups would differ or be too small."""
    groups = place.groups
    if groups.kind != experts.KIND or place.kept.all():
        return place
    kept = place.kept.view(groups.num_sets, -1).clone()
    wanted = max(int(kept.sum(dim=1).max()), groups.least // groups.num_sets)
    for row in kept:
        row[(~row).nonzero().flatten()[: wanted - int(row.sum())]] = True
    if torch.equal(kept.flatten(), place.kept):
        return place
    return place.keeping(kept.flatten(), "as many experts stay as tokens are routed among")


def refusals(model: nn.Module, every: Iterable[CoupledGroups]) -> list[str]:
    """Why each place can't be cut, told by its layers alone; empty for those that can.

    Args:
        model: The model.
        every: The coupled groups.
    """
    owners = _owners(model)
    return [_refusal(model, groups, owners) or "" for groups in every]


def kept_indices(places: Sequence[Place]) -> dict[str, dict[int, Tensor]]:
    """For each tensor that is cut, along which dimensions, and which indices stay; int64."""
    removed: dict[str, dict[int, Tensor]] = {}
    for place in places:
        if place.kept.all():
            continue
        gone = torch.cat([~place.kept, torch.zeros(1, dtype=torch.bool)])  # -1: in no group
        for member in place.groups.members:
            along = removed.setdefault(member.name, {})
            before = along.get(member.dim, torch.zeros_like(member.group_of, dtype=torch.bool))
            along[member.dim] = before | gone[member.group_of]
    return {
        name: {dim: (~gone).nonzero().flatten() for dim, gone in along.items() if gone.any()}
        for name, along in removed.items()
        if any(gone.any() for gone in along.values())
    }


def groups_left(model: nn.Module, places: Sequence[Place]) -> list[CoupledGroups]:
    """The groups of each place that stayed, numbered anew, as they lie in the model now.

    Args:
        model: Once it was cut.
        places: What each place was left with.

    Returns:
        One entry for each place whose tensors have the sizes that the plan says.
    """
    stayed = kept_indices(places)
    found = []
    for place in places:
        # Behind the last group stands what is in none, as -1 is in a tensor's index.
        number = torch.full((place.groups.size + 1,), -1)
        number[:-1][place.kept] = torch.arange(place.after)
        members = []
        for member in place.groups.members:
            indices = stayed.get(member.name, {}).get(member.dim, slice(None))
            members.append(dataclasses.replace(member, group_of=number[member.group_of[indices]]))
        if all(_has_size(model, member) for member in members):
            found.append(
                dataclasses.replace(place.groups, size=place.after, members=tuple(members))
            )
    return found


def _has_size(model: nn.Module, member: Member) -> bool:
    # A table of position biases is cut to the heads of all layers that share it.
    tensor = tensor_at(*find(model, member.name))
    return tensor.shape[member.dim : member.dim + 1] == member.group_of.shape


def _groups_left(model: nn.Module, groups: CoupledGroups, member: Member) -> Tensor:
    """For each group, whether something is left of it in one tensor."""
    module, key = find(model, member.name)
    # A mask decides where there is one: in masking "window" its weights are refilled meanwhile.
    masked = any(form.name == key for form in forms_of(module))
    tensor = mask_of(module, key) if masked else tensor_at(module, key)
    if tensor.is_meta or is_sharded(tensor):
        raise ValueError(
            f"{member.name} must be a plain tensor with values, got one that is "
            f"{'on the meta device' if tensor.is_meta else 'sharded'}: shrink the whole model in "
            "one process, of a sharded one a model that was loaded with what get_model_state_dict "
            "gathers with StateDictOptions(full_state_dict=True)"
        )
    if tensor.shape[member.dim : member.dim + 1] != member.group_of.shape:
        raise ValueError(
            f"{member.name} must have {member.group_of.numel()} entries along dimension "
            f"{member.dim} as its groups say, got shape {tuple(tensor.shape)}: set pruning up anew"
        )
    return groups.left(member, tensor.detach().ne(0))


def _owners(model: nn.Module) -> dict[int, dict[int, str]]:
    """The modules that hold each parameter, by identity, and what they call it."""
    owners: dict[int, dict[int, str]] = {}
    for path, module in model.named_modules():
        for key, parameter in module._parameters.items():
            names = owners.setdefault(id(parameter), {})
            names[id(module)] = f"{path}.{key}".removesuffix("_orig").lstrip(".")
    return owners


def _refusal(
    model: nn.Module, groups: CoupledGroups, owners: dict[int, dict[int, str]]
) -> str | None:
    """Why groups of a place can't be cut out; None if they can."""
    if groups.kind == BLOCKS:
        return None  # whole modules, no tensor of which is cut
    holder = groups.members[0].name.rpartition(".")[0].rpartition(".")[0]
    attention: Any = type(model.get_submodule(holder))
    if groups.kind == "heads" and has_fixed_width(attention):
        return f"{holder} can't run with fewer heads, which it puts together to a fixed width"
    # Shared within the place is well: its layers are cut alike, and the tensor once.
    modules = {id(find(model, member.name)[0]) for member in groups.members}
    for member in groups.members:
        module, key = find(model, member.name)
        if reason := refusal(module, key, member.dim, member.name):
            return f"{member.name}: {reason}"
        parameter = module._parameters.get(key, module._parameters.get(f"{key}_orig"))
        others = owners.get(id(parameter), {})
        if shared := sorted(name for owner, name in others.items() if owner not in modules):
            return f"{member.name} is shared with {shared[0]}"
    return None
