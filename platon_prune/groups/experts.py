"""Experts of mixtures as groups: their slices of fused matrices, and their rows of the router."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from platon_prune.groups.coupled import CoupledGroups, Member, Missed
from platon_prune.groups.layouts import own_parameters
from platon_prune.masks.default_selection import is_named
from platon_prune.masks.routers import (
    known_router,
    pass_over_pruned_,
    pruned_experts,
    warn_when_saved_,
)
from platon_prune.mixtures import BEST_OF_GROUP, ROUTER_PATHS
from platon_prune.spellings import EXPERTS, EXPERTS_WRITE

KIND = "experts"


@dataclass(frozen=True)
class Mixture:
    """A module that holds experts with fused matrices, and maybe a router that is known.

    Args:
        path: Its name in the model.
        holder: The module itself.
        experts_path: Where its experts are.
        router_path: Where its router is; None if there is none that is known, or several.
    """

    path: str
    holder: nn.Module
    experts_path: str
    router_path: str | None

    @property
    def size(self) -> int:
        """How many experts it has."""
        experts = self.holder.get_submodule(self.experts_path.rpartition(".")[2])
        return int(own_parameters(experts)[EXPERTS_WRITE].shape[0])


def mixtures(model: nn.Module) -> Iterator[Mixture]:
    """Every mixture of a model, in the order of its modules."""
    modules = dict(model.named_modules())
    for path, module in modules.items():
        if not path or not is_named(module, "", EXPERTS):
            continue
        matrix = own_parameters(module).get(EXPERTS_WRITE)
        if matrix is None or matrix.ndim != 3:
            continue
        holder = path.rpartition(".")[0]
        routers = [
            f"{holder}.{name}" if holder else name
            for name, child in modules[holder].named_children()
            if known_router(child) is not None
        ]
        yield Mixture(holder, modules[holder], path, routers[0] if len(routers) == 1 else None)


def expert_places(model: nn.Module) -> Iterator[CoupledGroups | Missed]:
    """The experts of every mixture whose router is known, or why a mixture has none that can go.

    Args:
        model: With masks or without.

    Yields:
        Places in the order of the mixtures, called by their paths.
    """
    for mixture in mixtures(model):
        yield _place(model, mixture)


def router_path(place: CoupledGroups) -> str:
    """Where the router of a place of experts is."""
    return next(
        member.name for member in place.members if member.name.endswith(".weight")
    ).removesuffix(".weight")


def passed_over(model: nn.Module, place: CoupledGroups) -> torch.Tensor:
    """Which experts of a place its router never picks; bool, on the CPU."""
    out = pruned_experts(model.get_submodule(router_path(place)))
    return torch.zeros(place.size, dtype=torch.bool) if out is None else out.cpu()


def pass_over_pruned_experts_(model: nn.Module, places: Iterable[CoupledGroups]) -> None:
    """Make routers pass over the experts that are pruned, whatever masks say from now on.

    Args:
        model: The model of the places, whose routers have masks.
        places: Of any kind.
    """
    paths = [router_path(place) for place in places if place.kind == KIND]
    for path in paths:
        pass_over_pruned_(model.get_submodule(path))
    if paths:
        warn_when_saved_(model)


def pass_over_(model: nn.Module, place: CoupledGroups, out: torch.Tensor) -> None:
    """Make the router of a place pass over some experts, and over those that it does already.

    Args:
        model: Without masks on the router; changed in place.
        place: The experts.
        out: Which of them stay out; bool.
    """
    router = model.get_submodule(router_path(place))
    pass_over_pruned_(router, out | passed_over(model, place))


def pass_over_zeros_(model: nn.Module) -> None:
    """Make routers without masks pass over the experts of which nothing but zeros is left.

    Args:
        model: One that was pruned, and came from a file or is a copy; changed in place.
    """
    for place in expert_places(model):
        if not isinstance(place, CoupledGroups):
            continue
        router = model.get_submodule(router_path(place))
        left = router.weight.detach().ne(0).any(dim=1)  # type: ignore[operator,union-attr]
        # Its rows first, which are few: of a dense model nothing else is read.
        if hasattr(router, "weight_mask") or left.all():
            continue
        for member in place.members:
            tensor = model.get_parameter(member.name).detach()
            left |= tensor.ne(0).flatten(1).any(dim=1) if tensor.ndim > 1 else tensor.ne(0)
        if not left.all():
            pass_over_pruned_(router, ~left)
            warn_when_saved_(model)


def refuse_experts(places: Iterable[CoupledGroups], budget: str) -> None:
    """Raise a ValueError if there are experts among places of which a forward is counted."""
    if named := next((place.name for place in places if place.kind == KIND), None):
        raise ValueError(
            f'budget must be "parameters" for kinds with "experts", got "{budget}": each token '
            f"runs through as many experts of {named} as before, so that none of them costs "
            "multiply-adds"
        )


def _place(model: nn.Module, mixture: Mixture) -> CoupledGroups | Missed:
    def missed(why: str) -> Missed:
        return Missed(mixture.path, KIND, why)

    if mixture.router_path is None:
        return missed(f"how {_router_named(mixture.holder)} chooses is not known")
    size = mixture.size
    rows = {
        f"{path}.{key}": parameter.shape[0]
        for path in (mixture.experts_path, mixture.router_path)
        for key, parameter in own_parameters(model.get_submodule(path)).items()
    }
    if unfit := [name for name, count in rows.items() if count != size]:
        return missed(f"{unfit[0]} has no row for each expert")
    router = model.get_submodule(mixture.router_path)
    least, num_sets = _least(router), _num_sets(router)
    if size % num_sets or least >= size:
        return missed(f"each token needs {least} of its {size} experts")
    each = torch.arange(size)
    members = tuple(Member(name, 0, each) for name in rows)
    return CoupledGroups(mixture.path, KIND, size, members, least, num_sets)


def _router_named(holder: nn.Module) -> str:
    names = [type(m).__name__ for name, m in holder.named_children() if name in ROUTER_PATHS]
    return f"its {names[0]}" if names else "its router"


def _num_sets(router: Any) -> int:
    is_grouped = getattr(known_router(router), "rule", None) == "sigmoid"
    return int(router.num_group) if is_grouped else 1


def _least(router: Any) -> int:
    """As many experts as a token goes to; with routing groups, as the best groups must have."""
    if getattr(known_router(router), "rule", None) != "sigmoid":
        return int(router.top_k)
    of_group = max(BEST_OF_GROUP, math.ceil(router.top_k / router.topk_group))
    return int(of_group * router.num_group)
