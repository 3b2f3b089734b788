"""A row of the table of architectures: each cell is tried on a tiny model, none is written down."""

from __future__ import annotations

import copy
import re
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple, dataclass
from typing import Any

import torch
from torch import Tensor, nn

import platon_prune
from platon_prune.commands.architectures.configs import Tiny
from platon_prune.example_inputs import guessed_inputs
from platon_prune.groups import experts
from platon_prune.groups.coupled import CoupledGroups
from platon_prune.groups.find import KINDS, Found, find
from platon_prune.masks.default_selection import OWN_MATRIX, passed_over
from platon_prune.shrinking.named import named_parameter
from platon_prune.shrinking.proof import Proof, prove
from platon_prune.shrinking.twin import difference, outputs_of

HEADER = (
    *("architecture", "single weights", "2:4", "heads", "neurons", "channels", "experts"),
    *("`from_pretrained` tells", "what stays whole, and why"),
)
YES, PART, NO, NONE = "yes", "in part", "no", "–"
# A module with less than this share of the weights of all layers is not worth a word (routers).
_WORTH_NAMING = 0.1
_KINDS = (*KINDS, experts.KIND)


@dataclass(frozen=True)
class Row:
    """What can be pruned of an architecture.

    Args:
        name: What it is called.
        single: Whether single weights of all matrices can be.
        two_four: Whether 2 of 4 weights can be.
        heads: Whether all, some or no attention layers can lose heads.
        neurons: Likewise for neurons of feed-forward layers.
        channels: Likewise for channels of convolutions.
        experts: Likewise for experts of mixtures.
        loads: What of a model that is shrunk alike in all layers ``from_pretrained`` builds again.
        notes: What stays whole, and why.
    """

    name: str
    single: str
    two_four: str
    heads: str
    neurons: str
    channels: str
    experts: str
    loads: str
    notes: str


def row_of(name: str, tiny: Tiny) -> Row:
    """Try an architecture."""
    model = tiny.build()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found, proof = tried(model)
        cells = {kind: _cell(kind, found, proof) for kind in _KINDS}
        return Row(
            name,
            _single_weights(model),
            _whether(lambda: platon_prune.semi_structured(copy.deepcopy(model), total_steps=40)),
            cells["heads"],
            cells["neurons"],
            cells["channels"],
            cells["experts"],
            _loads(model, proof.groups),
            _notes(model, found, proof),
        )


def tried(model: nn.Module) -> tuple[Found, Proof]:
    """What is found in a model, and which of it can be cut."""
    inputs = guessed_inputs(model)
    try:
        found = find(model, inputs, kinds=_KINDS)
    except (ValueError, TimeoutError):  # nothing is known by its name, nor can it be traced
        found = Found([], [])
    return found, prove(model, found.groups, inputs)


def markdown(rows: Sequence[Row]) -> str:
    """Rows as a table in Markdown."""
    lines = [HEADER, tuple("---" for _ in HEADER), *(astuple(row) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


# --- cells --------------------------------------------------------------------------------------


def _whether(work: Callable[[], Any]) -> str:
    try:
        work()
    except ValueError:
        return NO
    return YES


def _single_weights(model: nn.Module) -> str:
    said = _whether(
        lambda: platon_prune.global_unstructured(copy.deepcopy(model), amount=0.5, total_steps=40)
    )
    return PART if said == YES and OWN_MATRIX in passed_over(model).values() else said


def _cell(kind: str, found: Found, proof: Proof) -> str:
    able = sum(place.kind == kind and place.size > 1 for place in proof.groups)
    places = sum(place.kind == kind for place in found.groups)
    places += sum(place.kind == kind for place in found.missed)
    return NONE if not places else NO if not able else YES if able == places else PART


@torch.no_grad()
def _loads(model: Any, groups: Sequence[CoupledGroups]) -> str:
    """The kinds of which a model shrunk with ``uniform=True`` comes back smaller."""
    inputs = guessed_inputs(model)
    if not groups:
        return NONE
    zero_(model, groups)
    expected = outputs_of(model, inputs)
    report = platon_prune.shrink(model, uniform=True, example_inputs=inputs)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        loaded = type(model).from_pretrained(folder).eval()
    if differs := difference(outputs_of(loaded, inputs), expected):
        raise RuntimeError(f"a shrunk {type(model).__name__} must load as it was, but {differs}")
    return ", ".join(report.in_config) or NO


def half_of(number: int, place: CoupledGroups) -> list[int]:
    """Half of the groups of a place, or as many as it can lose, as many of each of its sets."""
    per_set = place.size // place.num_sets
    count = min(per_set // 2, (place.size - place.least) // place.num_sets)
    ranks = [(number + k) % per_set for k in range(count)]
    return [first + rank for first in range(0, place.size, per_set) for rank in ranks]


def zero_(model: nn.Module, groups: Sequence[CoupledGroups]) -> None:
    """Zero some groups of each place, other ones in each."""
    for i, place in enumerate(groups):
        gone = torch.tensor(half_of(i, place))
        if place.kind == experts.KIND:
            flags = torch.zeros(place.size, dtype=torch.bool)
            experts.pass_over_(model, place, flags.index_fill_(0, gone, True))
        for member in place.members:
            path, _, key = member.name.rpartition(".")
            weight: Tensor = named_parameter(model.get_submodule(path), key).data
            weight.index_fill_(member.dim, place.indices(member, gone), 0)


# --- notes --------------------------------------------------------------------------------------


def _notes(model: nn.Module, found: Found, proof: Proof) -> str:
    """Why places stay whole, each reason once, and which modules no place holds."""
    reasons: dict[str, set[str]] = {}
    for place in found.missed:
        reasons.setdefault(_plain(place.why, place.name), set()).add(place.kind)
    kinds = {place.name: place.kind for place in found.groups}
    for name, why in proof.left_out.items():
        reasons.setdefault(_plain(why, name), set()).add(kinds[name])
    if any(place.size == 1 for place in found.groups):
        reasons.setdefault("there is one, which stays", set()).add("heads")
    notes = [f"{', '.join(sorted(kinds))}: {why}" for why, kinds in reasons.items()]
    if whole := list(_held_by_none(model, found)):
        notes.append(f"{', '.join(whole)}: no spelling of its layers is known")
    return "; ".join(notes)


def _plain(why: str, place: str) -> str:
    """A reason without paths, which differ from place to place."""
    why = re.sub(r" such as \S+| in \S+\.\S+", "", why)
    return why.replace(f"{place}.", "").replace(f"{place} ", "")


def _held_by_none(model: nn.Module, found: Found) -> Iterator[str]:
    """Classes of modules inside a model's layers of whose matrices no place holds anything."""
    named = {member.name for place in found.groups for member in place.members}
    told = tuple(f"{place.name}." for place in found.missed)
    sizes: dict[str, int] = {}
    total = 0
    for path, module in model.named_modules():
        if not any(part.isdecimal() for part in path.split(".")):
            continue
        own = {f"{path}.{key}": p.numel() for key, p in module._parameters.items() if p is not None}
        total += sum(own.values())
        if not isinstance(module, nn.Linear | nn.modules.conv._ConvNd):
            # A list of layers says nothing; what holds it does.
            is_list = isinstance(module, nn.ModuleList | nn.Sequential)
            named_by = model.get_submodule(path.rpartition(".")[0]) if is_list else module
            name = type(named_by).__name__
            parts = [
                f"{path}.{child}.weight" for child, layer in module.named_children()
                if isinstance(layer, nn.Linear | nn.modules.conv._ConvNd)
            ]  # fmt: skip
            parts += [key for key in own if key not in named and own[key] > 1]
            if not named.intersection(parts) and not f"{path}.".startswith(told):
                held = sum(model.get_parameter(key).numel() for key in parts)
                sizes[name] = sizes.get(name, 0) + held
    return (name for name, size in sizes.items() if size > _WORTH_NAMING * total)
