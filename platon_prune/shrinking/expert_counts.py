"""How many experts a mixture is left with: what must agree, and who counts them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from platon_prune.groups.coupled import CoupledGroups
from platon_prune.groups.experts import KIND, expert_places, mixtures
from platon_prune.mixtures import WANTS_LOGITS
from platon_prune.shrinking.config_sizes import config_of
from platon_prune.spellings import COUNTS
from platon_prune.warning import PruningWarning

Kept = Mapping[str, Mapping[int, Tensor]]


def check_experts(model: nn.Module, kept: Kept) -> None:
    """Raise a ValueError if a mixture would be left with parts that do not fit each other.

    Args:
        model: Not changed.
        kept: What stays, by names of tensors.
    """
    cut = _cut_along_experts(model, kept)
    for place in expert_places(model) if cut else ():
        if not isinstance(place, CoupledGroups):
            continue
        rows = {kept[m.name][0].numel() if m.name in cut else place.size for m in place.members}
        count = min(rows)
        if len(rows) > 1 or count < place.least or count % place.num_sets:
            raise ValueError(
                f"{place.name} must be left with as many experts in its router as matrices, at "
                f"least {place.least} and a multiple of {place.num_sets}, got "
                f"{' and '.join(map(str, sorted(rows)))} of {place.size}: cut whole experts"
            )
        cut -= {member.name for member in place.members}
    if cut:
        raise ValueError(
            f"{min(cut)} must keep all of its experts, which can't go from this mixture, got what "
            "leaves fewer: cut other groups"
        )


def count_experts_(model: nn.Module, kept: Kept) -> None:
    """Set what modules note of the number of experts, once some were cut.

    Args:
        model: Changed in place.
        kept: What stayed, by names of tensors.
    """
    if not _cut_along_experts(model, kept):
        return
    counts, inside = set(), set()
    for mixture in mixtures(model):
        count = mixture.size
        counts.add(count)
        for module in mixture.holder.modules():
            inside.add(id(module))
            _set_counts_(module, count)
    # The whole model counts them for the loss that balances them, all layers alike.
    if len(counts) == 1:
        for module in model.modules():
            if id(module) not in inside:
                _set_counts_(module, next(iter(counts)))


def _set_counts_(module: Any, count: int) -> None:
    for name in COUNTS[KIND].in_modules:
        if type(getattr(module, name, None)) is int:
            setattr(module, name, count)


def _cut_along_experts(model: nn.Module, kept: Kept) -> set[str]:
    """The names of those tensors of mixtures that lose rows of experts."""
    wanted = {name for name, dims in kept.items() if 0 in dims}
    paths = [(m.experts_path, m.router_path) for m in mixtures(model)] if wanted else []
    holders = {path for pair in paths for path in pair if path is not None}
    return {name for name in wanted if name.rpartition(".")[0] in holders}


# --- losses that balance experts ----------------------------------------------------------------


def without_router_logits_(model: nn.Module) -> bool:
    """Make a model give no logits of its routers, and no loss of them, unless it is asked to.

    Returns:
        Whether its config said that it does.
    """
    configs = {id(c): c for module in model.modules() if (c := config_of(module)) is not None}
    wanting = [config for config in configs.values() if getattr(config, WANTS_LOGITS, False)]
    for config in wanting:
        setattr(config, WANTS_LOGITS, False)
    return bool(wanting)


def say_what_balancing_is_left_(model: nn.Module) -> None:
    """Warn if layers have different numbers of experts, of which no loss can be made together."""
    if len({mixture.size for mixture in mixtures(model)}) > 1 and without_router_logits_(model):
        PruningWarning.warn(
            "layers are left with different numbers of experts, so that the auxiliary loss that "
            "balances them is not to be had: the config's output_router_logits is False now"
        )
