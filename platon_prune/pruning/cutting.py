"""`GroupCutter`: what is pruned is cut out of a model while its training goes on."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from platon_prune.amounts import is_count
from platon_prune.groups.blocks import KIND as BLOCKS
from platon_prune.groups.coupled import CoupledGroups
from platon_prune.groups.coupled_choice import Structured
from platon_prune.groups.experts import KIND as EXPERTS
from platon_prune.groups.noted import note_groups_
from platon_prune.masks.targets import select
from platon_prune.pruning.setting_up import parameter_of
from platon_prune.pruning.sharded import refuse_cut_of_shards
from platon_prune.scheduling.scheduler import PlatonScheduler
from platon_prune.shrinking.attention.norms_over_heads import is_over_heads
from platon_prune.shrinking.carrying_out import carry_out_, check_optimizer
from platon_prune.shrinking.cut_out import Cut, plan_cut
from platon_prune.shrinking.fewer_blocks import Gone, is_gone, renamed
from platon_prune.shrinking.named import find
from platon_prune.shrinking.removable import Place, in_whole_steps
from platon_prune.shrinking.resize import take
from platon_prune.shrinking.shrink import ShrinkReport, num_parameters, report_rows
from platon_prune.tensors.collectives import Processes

_VALUES = ("set_aside", "refilled")  # of a tensor's state, those that are weights


class GroupCutter:
    """Cuts groups out of the model of one scheduler, which goes on with what is left.

    Each place was tried at set-up, so nothing is run here.

    Args:
        scheduler: Of ``global_structured``.
        model: The model, without wrappers.
        cut_after: For how many choices a group must have stayed out to be cut by itself; None to
            cut by hand alone.
    """

    def __init__(self, scheduler: PlatonScheduler, model: nn.Module, cut_after: int | None) -> None:
        self.cut_after = cut_after
        # Weak: the scheduler holds this, and the model must not be kept alive for its history.
        self._scheduler = weakref.ref(scheduler)
        self._model = weakref.ref(model)

    def __reduce__(self) -> Any:
        return _nothing, ()  # a copy of the scheduler has tensors of another model

    def cut(self, optimizer: torch.optim.Optimizer | None) -> ShrinkReport:
        """Take out all groups that are pruned now; see :meth:`PlatonScheduler.cut`."""
        model = self._model()
        assert model is not None
        refuse_cut_of_shards(model)
        kept = self._granularity.kept(self._alive()._tensors.masks())
        return self._cut_to([each.clone() for each in kept], optimizer)

    def cut_after_choice(self, optimizer: torch.optim.Optimizer) -> None:
        """Take out the groups that stayed out for so many choices."""
        assert self.cut_after is not None
        granularity = self._granularity
        stays = granularity.num_choices_out < self.cut_after
        if not stays.all():
            self._cut_to([each.clone() for each in granularity.per_place(stays)], optimizer)

    def repeat(
        self, cuts: Sequence[Mapping[str, list[int]]], optimizer: torch.optim.Optimizer | None
    ) -> None:
        """Take out again what the cuts of a saved state took out, one after another."""
        model = self._model()
        assert model is not None
        refuse_cut_of_shards(model, repeats=True)
        for stayed in cuts:
            places = self._granularity.groups
            kept = [torch.zeros(place.size, dtype=torch.bool) for place in places]
            for place, flags in zip(places, kept, strict=True):
                numbers = stayed.get(_key(place), [])
                if not all(type(i) is int and 0 <= i < place.size for i in numbers):
                    raise ValueError(
                        f"state must be of a cut of this model, got other groups of {place.name}: "
                        "set pruning up as it was for the run that saved it"
                    )
                flags[numbers] = True
            self._cut_to(kept, optimizer)

    # --- one cut ------------------------------------------------------------------------------

    @property
    def _granularity(self) -> Structured:
        granularity = self._alive().granularity
        assert isinstance(granularity, Structured)
        return granularity

    def _alive(self) -> PlatonScheduler:
        scheduler = self._scheduler()
        assert scheduler is not None  # it is what calls this
        return scheduler

    def _cut_to(
        self, kept: Sequence[Tensor], optimizer: torch.optim.Optimizer | None
    ) -> ShrinkReport:
        model, granularity = self._model(), self._granularity
        assert model is not None
        refuse_experts_in_cuts(granularity.groups)
        granularity.refuse_cut()
        before = num_parameters(model)
        planned = [
            _planned(place, flags) for place, flags in zip(granularity.groups, kept, strict=True)
        ]
        if not any(place.kept.any() for place in planned):
            # A scheduler must have something to go on with; `shrink` takes it out in the end.
            planned[0].kept[0] = True
        blocks = [place for place in planned if place.groups.kind == BLOCKS]
        places = [place for place in planned if place.groups.kind != BLOCKS]
        cut = plan_cut(model, planned)
        rows = report_rows(places, blocks, cut.layers)
        if all(place.kept.all() for place in planned):
            return ShrinkReport(rows, before, before)
        check_optimizer(model, cut, optimizer)
        # Nothing was changed up to here, and nothing is refused from here on.
        scheduler = self._alive()
        own_keys = {tensor.target.own_keys for tensor in scheduler._tensors}
        states = _cut_states(model, scheduler._let_go(), cut)
        left = carry_out_(model, cut, places, blocks, optimizer)
        groups = _in_order(granularity.groups, [*left.places, *left.blocks], cut.layers)
        names = {member.name for place in groups for member in place.members}
        targets = select(model, None, None, own_keys.pop() if len(own_keys) == 1 else None, names)
        shapes = {target.name: parameter_of(target).shape for target in targets}
        called = {str(renamed(old, cut.layers)): old for old in states}
        stays = torch.cat([_stays(place, cut.layers) for place in planned])
        anew = granularity.after_cut(groups, shapes, stays, {name: called[name] for name in shapes})
        scheduler._go_on(
            targets,
            anew,
            {name: states[called[name]] for name in shapes},
            {_key(p.groups): p.kept.nonzero().flatten().tolist() for p in planned},
            {name: called[name] for name in shapes},
        )
        note_groups_(model, groups)
        return ShrinkReport(rows, before, num_parameters(model), left.in_config)


def _nothing() -> None:
    return None


def _key(place: CoupledGroups) -> str:
    return f"{place.kind} of {place.name}"


def _planned(place: CoupledGroups, kept: Tensor) -> Place:
    """What a place is left with: something, since what is empty goes with its layer alone."""
    if place.kind != BLOCKS and not kept.any():
        kept[0] = True
        return Place(place, kept, "one must stay")
    return Place(place, kept) if place.kind == BLOCKS else in_whole_steps(Place(place, kept))


def _stays(place: Place, layers: Gone) -> Tensor:
    """Which groups of a place are there after a cut."""
    if place.groups.kind != BLOCKS and _is_gone(place.groups, layers):
        return torch.zeros_like(place.kept)
    return place.kept


def _is_gone(place: CoupledGroups, layers: Gone) -> bool:
    return all(is_gone(member.name, layers) for member in place.members)


def _in_order(
    before: Sequence[CoupledGroups], left: Sequence[CoupledGroups], layers: Gone
) -> list[CoupledGroups]:
    """The places that are left, as those stood that they were."""
    found = {(place.kind, place.name): place for place in left}
    keys = [
        (place.kind, renamed(place.name, layers) or place.name)
        for place in before
        if place.kind == BLOCKS or not _is_gone(place, layers)
    ]
    return [found[kind, name] for kind, name in keys if (kind, name) in found]


def _cut_states(
    model: nn.Module, states: Mapping[str, dict[str, Any]], cut: Cut
) -> dict[str, dict[str, Any]]:
    """What was remembered of each tensor that is left, cut as the tensor is; by its old name."""
    found = {}
    for name, state in states.items():
        if is_gone(name, cut.layers):
            continue
        kept = cut.kept.get(name, {})
        found[name] = {
            key: take(value, kept) if isinstance(value, Tensor) else value
            for key, value in state.items()
        }
        if kept and is_over_heads(find(model, name)[0], name):
            # The weight itself is scaled by the cut; see `norms_over_heads`.
            share = states[name]["mask"].shape[0] / found[name]["mask"].shape[0]
            for key in _VALUES:
                if key in found[name]:
                    found[name][key] *= share**0.5
    return found


def refuse_experts_in_cuts(places: Sequence[CoupledGroups]) -> None:
    """Raise a ValueError if a place is of experts, which are cut out in the end alone."""
    found = [place.name for place in places if place.kind == EXPERTS]
    if found:
        raise ValueError(
            f"experts can't be cut out during training, whose routers pass over them, got "
            f"{found[0]}: take them out with shrink in the end, or leave them out of kinds"
        )


def check_cutting(
    cut_after: Any,
    optimizer: Any,
    mask_history: Any,
    capturable: bool,
    process_group: dist.ProcessGroup | None,
    max_drop: Any = None,
) -> None:
    """Raise an error if a run can't cut by itself as it is asked to; arguments of the door.

    Raises:
        ValueError: If ``cut_after`` is no count, masks are to be recorded, steps are to be
            captured, several processes train together, or the run may have to go back.
        TypeError: If ``optimizer`` is none.
    """
    if optimizer is not None and not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(
            f"optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}: pass the "
            "one that steps the pruned model"
        )
    if cut_after is None:
        return
    if not is_count(cut_after) or cut_after < 1:
        raise ValueError(f"cut_after must be a count of choices of at least 1, got {cut_after!r}")
    if mask_history is not None:
        raise ValueError(
            "mask_history must be None with cut_after, got both: masks are recorded of tensors "
            "that keep their shape"
        )
    if capturable:
        raise ValueError(
            "cut_after must be None with capturable=True, got both: a captured graph keeps the "
            "tensors that it was captured with"
        )
    if max_drop is not None:
        raise ValueError(
            "cut_after must be None with max_drop, got both: where the metric falls, the run goes "
            "back to states of the whole model; shrink at the end"
        )
    if Processes(process_group).size > 1:
        raise ValueError(
            "cut_after must be None where several processes train together, which wrap the model "
            "by its sizes, got it: call scheduler.cut() in all of them, and wrap the model again"
        )
