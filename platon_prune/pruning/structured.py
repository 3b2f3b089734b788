"""`global_structured`: whole heads, neurons and channels are pruned while a model is fine-tuned."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import nn

from platon_prune.amounts import fraction
from platon_prune.choice.limits import MaxAmount, caps_of, checked
from platon_prune.criteria import Criterion, CriterionName
from platon_prune.example_inputs import guessed_inputs, moved_to
from platon_prune.groups.costs import BUDGETS, Budget, mac_prices, parameter_prices
from platon_prune.groups.coupled import CoupledGroups
from platon_prune.groups.coupled_choice import Structured
from platon_prune.groups.experts import pass_over_pruned_experts_, refuse_experts
from platon_prune.groups.find import KINDS, Found, find
from platon_prune.groups.group_scores import AGGREGATES, NORMALIZERS, Aggregate, Normalizer
from platon_prune.groups.latency import LatencyTable, StructuredByLatency, refuse_cuts
from platon_prune.groups.noted import note_groups_, note_inputs_
from platon_prune.masks.method import Masking
from platon_prune.masks.targets import Pairs, Target, bare, select
from platon_prune.name_patterns import NamePatterns
from platon_prune.pruning.cutting import GroupCutter, check_cutting, refuse_experts_in_cuts
from platon_prune.pruning.floors import Floors
from platon_prune.pruning.latency import (
    asked_amount,
    notes_on,
    of_first_process,
    refuse_blocks_beside_others,
    refuse_unreachable,
)
from platon_prune.pruning.setting_up import Plan, parameter_of, set_up
from platon_prune.pruning.settings import Settings
from platon_prune.pruning.sharded import first_sharded, require_known_layers, require_run
from platon_prune.schedule import RampSchedule, ScheduleName
from platon_prune.scheduling.scheduler import PlatonScheduler
from platon_prune.shrinking.latency import measure_latency
from platon_prune.shrinking.proof import CannotRun, prove


def global_structured(
    model: nn.Module,
    example_inputs: Any = None,
    *,
    amount: float | None = None,
    speedup: float | None = None,
    total_steps: int,
    warmup_steps: int | float = 0.1,
    cooldown_steps: int | float = 0.3,
    initial_amount: float = 0.0,
    beta1: float = 0.85,
    beta2: float = 0.95,
    window: int = 10,
    schedule: ScheduleName | type[RampSchedule] = "cubic",
    criterion: CriterionName | Criterion = "platon",
    masking: Masking = "step",
    include: str | Sequence[str] | None = None,
    exclude: str | Sequence[str] | None = None,
    max_amount: float | Mapping[str, float] | None = None,
    aggregate: Aggregate = "mean",
    budget: Budget = "parameters",
    normalizer: Normalizer = "auto",
    min_heads: int = 1,
    min_neurons: float = 0.05,
    min_channels: float = 0.05,
    min_experts: int = 1,
    min_blocks: int = 1,
    kinds: str | Sequence[str] = KINDS,
    cut_after: int | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    time_limit: float = 120.0,
    history: bool = True,
    mask_history: str | os.PathLike[str] | None = None,
    own_keys: bool | None = None,
    state_dtype: torch.dtype = torch.float32,
    offload_averages: bool = False,
    capturable: bool = False,
    process_group: dist.ProcessGroup | None = None,
    max_drop: float | None = None,
    baseline: float | None = None,
    greater_is_better: bool = True,
    patience: int = 1,
) -> PlatonScheduler:
    r"""Set a model up for pruning whole heads, neurons and channels while it is fine-tuned.

    What can go as a whole is found by :func:`find_groups`. A group's score is made of the scores of
    all its entries, weights and biases, in all its tensors. At each choice groups go in ascending
    order of their scores, those of all layers together, until they are as near to the amount as it
    gets: a head that would go far beyond it is passed over, and neurons fill it up. All entries of
    a pruned group are zero, and the next choices may bring it back. ``platon_prune.remove(model)``
    finalizes.

    Each place is tried on a twin, on the example inputs: what :func:`shrink` could not cut out is
    left out, with a warning that names it.

    Args:
        model: The model; where it is wrapped for data parallelism or compiled, what is inside.
        example_inputs: A batch as the model takes it: a tensor, a tuple of arguments or a dict of
            them. Needed where layers are not known by their names, and for ``budget="macs"`` and
            ``"latency"``.
        amount: What goes in the end, in [0, 1): of the parameters of all groups, of their
            multiply-adds, or of the time of the whole forward.
        speedup: Instead of ``amount``, how many times as fast the forward is to be, above 1; for
            ``budget="latency"``.
        total_steps: Length of the run in optimizer steps, T.
        warmup_steps: Steps before pruning starts, t_i: a count, or a fraction of the run in [0, 1).
        cooldown_steps: Steps at the end with the final amount, t_f: a count, or a fraction of the
            run in [0, 1).
        initial_amount: What goes when the ramp starts, in [0, 1).
        beta1: As for :func:`global_unstructured`.
        beta2: Likewise.
        window: Likewise.
        schedule: Likewise.
        criterion: Likewise.
        masking: Likewise.
        include: Substrings of names; only places with a tensor whose name has one are pruned.
        exclude: Substrings of names; places with a tensor whose name has one are left out.
        max_amount: The largest fraction of its groups that a place may lose, in [0, 1]: one number
            for every place, or substrings of tensor names to limits; where several match, all
            hold. It adds to the floors below: whichever keeps more holds.
        aggregate: How a group's score is made of those of its entries: "mean", "sum", "max" or
            "l2", the root of the sum of squares.
        budget: What the amount counts: "parameters"; "macs", multiply-adds of one forward over
            ``example_inputs``; or "latency", its time, measured on this machine layer by layer: a
            group costs what its place takes at full width, less what it takes at its floor, over
            the groups that go between the two.
        normalizer: How the scores of different places are made comparable: "none"; "mean", each
            divided by the mean over its place, so that no place is emptied for its scale alone;
            "cost", by what one group of the place costs of the budget: with ``aggregate="sum"``
            and ``budget="macs"`` a score per multiply-add; or "auto", which is "mean" for a model
            with channels and "none" for one of heads and neurons.
        min_heads: Heads (with grouped queries, key-value heads) that each attention layer keeps.
        min_neurons: Share of its neurons that each feed-forward layer keeps, in [0, 1]; one at
            least. It may be 0, as ``min_heads`` may, where a layer without heads and neurons hands
            on what it is given, and so can go.
        min_channels: Likewise for channels, one at least.
        min_experts: Experts that each mixture keeps; at least as many as a token is routed to.
        min_blocks: Layers that each list of them keeps, at least 1.
        kinds: Which of "heads", "neurons", "channels", "experts" and "blocks" to prune; the last
            two only if they are named. Blocks are whole layers; see :func:`find_groups`.
        cut_after: For how many choices a group must have stayed out to be cut out of the model
            while it is trained, at least 1, so that training gets faster as it prunes; what was
            cut can't come back. None to cut nothing: see :meth:`PlatonScheduler.cut` and
            :func:`shrink`. In one process only.
        optimizer: The optimizer of the model, whose state is cut along; needed for ``cut_after``
            unless it is set later (``scheduler.optimizer``, ``step_with``).
        time_limit: Seconds that tracing a model of unknown layers may take.
        history: As for :func:`global_unstructured`, and so are all others.
        mask_history: Likewise.
        own_keys: Likewise.
        state_dtype: Likewise.
        offload_averages: Likewise.
        capturable: Likewise.
        process_group: Likewise.
        max_drop: Likewise.
        baseline: Likewise.
        greater_is_better: Likewise.
        patience: Likewise.

    Returns:
        The scheduler, whose ``step()`` belongs after every ``optimizer.step()``. Its ``amount`` is
        of the budget, and its ``threshold`` the largest score of a group that the last choice
        pruned. The groups are its ``granularity.groups``, and the times of ``budget="latency"``
        its ``granularity.latency``, which prints as a table.

    Raises:
        ValueError: If a setting is out of range, there are no groups, a tensor of one can't be
            pruned, the model must run for this and is sharded, the floors leave less than the
            amount, or processes differ. The model is untouched then.
        TypeError: If ``model`` or a number is of the wrong type, or there is no amount.
        ImportError: If torch-pruning is needed and not installed.
        TimeoutError: If tracing took longer than ``time_limit``.
        RuntimeError: If it failed in another process.

    Example:
        >>> scheduler = global_structured(model, amount=0.5, total_steps=1000)

    Source:
        Scores and schedule: Zhang et al., PLATON, ICML 2022 (arXiv:2206.12562).
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be an nn.Module, got {type(model).__name__}")
    settings = Settings.of(locals())
    check_cutting(cut_after, optimizer, mask_history, capturable, process_group, max_drop)

    @functools.cache  # for a latency it is asked twice, and a model is traced for it
    def look(given: nn.Module) -> _Looked:
        _check_choices(aggregate, budget, normalizer)
        if budget != "parameters":
            require_run(given, example_inputs, budget)
        require_known_layers(given, "blocks" in kinds or min_heads == 0)
        everything = find(given, example_inputs, kinds=kinds, time_limit=time_limit)
        places, notes = _removable(
            given, _selected(given, everything, include, exclude), example_inputs
        )
        if cut_after is not None:
            refuse_experts_in_cuts(places)
            refuse_cuts(budget)
        names = {member.name for place in places for member in place.members}
        # The patterns are of places: a place is taken whole, biases too.
        targets = select(given, None, None, own_keys, names)
        if budget != "parameters":
            refuse_experts(places, budget)
        if budget == "latency":
            refuse_blocks_beside_others(places)
        least = Floors(min_heads, min_neurons, min_channels, min_experts, min_blocks)
        least.require_empty_layers_can_go(given, places, example_inputs)
        floors = [
            max(least.of(given, place), kept)
            for place, kept in zip(places, _kept_by_limits(places, max_amount), strict=True)
        ]
        return _Looked(places, targets, floors, notes)

    def plan(given: nn.Module | Pairs) -> Plan:
        assert isinstance(given, nn.Module)
        goal = asked_amount(amount, speedup, budget)
        places, targets, floors, notes = look(given)
        shapes = {target.name: parameter_of(target).shape for target in targets}
        granularity: Structured
        if latency is not None:
            timed = StructuredByLatency(places, shapes, latency, floors, aggregate, normalizer)
            granularity, notes = timed, [*notes, *notes_on(timed)]
        else:
            prices = parameter_prices(places)
            if budget == "macs":
                prices = mac_prices(given, places, example_inputs)
            granularity = Structured(places, shapes, prices, floors, aggregate, budget, normalizer)
        final, first = _of_budget("amount", goal), _of_budget("initial_amount", initial_amount)
        _require_room(granularity, max(final, first), speedup)
        if 0 < final < granularity.smallest / 2:
            notes = [*notes, _too_little(final, granularity.smallest)]
        return Plan(targets, granularity, final, first, notes=notes, is_found=True)

    def to_measure() -> Callable[[], LatencyTable]:
        # All that can be refused is, before it takes the time.
        settings.check(asked_amount(amount, speedup, budget), initial_amount)
        found = look(bare(model))
        return lambda: measure_latency(bare(model), found.places, found.floors, example_inputs)

    latency: LatencyTable | None = None
    if budget == "latency":
        # In a step of its own, before masks are on: whoever fails tells the others.
        latency = of_first_process(process_group, to_measure)
    scheduler = set_up("global_structured", model, settings, plan)
    assert isinstance(scheduler.granularity, Structured)
    note_groups_(bare(model), scheduler.granularity.groups)
    pass_over_pruned_experts_(bare(model), scheduler.granularity.groups)
    scheduler.optimizer = optimizer
    scheduler._cutter = GroupCutter(scheduler, bare(model), cut_after)
    if example_inputs is not None:
        note_inputs_(bare(model), example_inputs)
    return scheduler


class _Looked(NamedTuple):
    """What is to be pruned of a model.

    Args:
        places: Its coupled groups.
        targets: Their tensors.
        floors: How many groups each place keeps at least.
        notes: What to warn about.
    """

    places: list[CoupledGroups]
    targets: list[Target]
    floors: list[int]
    notes: list[str]


def _check_choices(aggregate: str, budget: str, normalizer: str) -> None:
    for argument, value, choices in (
        ("aggregate", aggregate, AGGREGATES),
        ("budget", budget, BUDGETS),
        ("normalizer", normalizer, NORMALIZERS),
    ):
        if value not in choices:
            raise ValueError(f"{argument} must be one of {', '.join(choices)}; got {value!r}")


def _holders(model: nn.Module) -> str:
    """The classes whose layers were looked at in vain."""
    layers = (nn.Linear, nn.modules.conv._ConvNd)
    found = {
        type(module).__name__: None
        for module in model.modules()
        if any(isinstance(child, layers) for child in module.children())
    }
    return f" in its {', '.join(list(found)[:5])}" if found else ""


def _selected(
    model: nn.Module,
    found: Found,
    include: str | Sequence[str] | None,
    exclude: str | Sequence[str] | None,
) -> list[CoupledGroups]:
    """Those that the patterns leave."""
    groups = found.groups
    kept = list(groups)
    reasons = found.reasons()
    holders = "" if groups else _holders(model) + f" ({reasons})" * bool(reasons)
    for argument, given, wanted in (("include", include, True), ("exclude", exclude, False)):
        if given is None:
            continue
        patterns = NamePatterns.of(argument, given)
        names = [name for place in groups for name in _names(place)]
        patterns.require_matches(names, "tensors in groups")
        kept = [place for place in kept if patterns.matches(*_names(place)) == wanted]
    if not kept:
        raise ValueError(
            "model must have heads, neurons, channels, experts or blocks that can be removed, "
            "got "
            + ("none that include, exclude and kinds leave" if groups else f"none{holders}")
            + ": change what the reasons name, or prune single weights with global_unstructured "
            "instead"
        )
    return kept


def _removable(
    model: nn.Module, groups: Sequence[CoupledGroups], example_inputs: Any
) -> tuple[list[CoupledGroups], list[str]]:
    """Those that :func:`shrink` can cut out, and what to warn about the others."""
    inputs = None if first_sharded(model) else example_inputs
    if inputs is None and (guess := guessed_inputs(model)) is not None:
        inputs = moved_to(guess, next(model.parameters()).device)
    try:
        proof = prove(model, groups, inputs)
    except CannotRun:
        if example_inputs is not None:
            raise
        proof = prove(model, groups, None)  # the guess was wrong; the layers still tell a lot
    reasons = "; ".join(f"{name} ({why})" for name, why in proof.left_out.items())
    if not proof.groups:
        raise ValueError(
            "model must have heads, neurons, channels or blocks that shrink can cut out, got none "
            f"that it can: {reasons}: change what the reasons name, or prune single weights with "
            "global_unstructured instead"
        )
    notes = [f"left out of pruning, for shrink could not cut it out: {reasons}"] if reasons else []
    return proof.groups, notes


def _names(place: CoupledGroups) -> list[str]:
    return [member.name for member in place.members]


def _kept_by_limits(places: Sequence[CoupledGroups], max_amount: MaxAmount | None) -> list[int]:
    """How many groups of each place the limits keep."""
    if max_amount is None:
        return [0] * len(places)
    # A place is limited by the names of all its tensors, as it is included and excluded by them.
    sizes = [(" ".join(_names(place)), place.size) for place in places]
    caps = caps_of(checked(max_amount), sizes)
    return [place.size - cap for place, cap in zip(places, caps, strict=True)]


def _of_budget(argument: str, amount: float) -> float:
    meaning = "the fraction of the budget of all groups that goes, such as 0.5"
    return fraction(argument, amount, meaning=meaning)


def _too_little(amount: float, smallest: float) -> str:
    return (
        f"nothing will be pruned: amount={amount} is less than half of what the smallest group "
        f"costs, {smallest:.4f} of the budget; prune more, or single weights"
    )


def _require_room(granularity: Structured, amount: float, speedup: float | None) -> None:
    if isinstance(granularity, StructuredByLatency):
        refuse_unreachable(granularity, amount, speedup)
        return
    largest = granularity.largest_amount
    if amount > largest:
        raise ValueError(
            f"amount must be at most {math.floor(largest * 1e4) / 1e4} with these floors, got "
            f"{amount}: prune less, lower min_heads, min_neurons, min_channels or min_experts, or "
            "raise max_amount"
        )
