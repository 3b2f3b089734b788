"""`semi_structured`: n of every m neighbours are kept, for kernels that skip the others."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import nn

from platon_prune.amounts import fraction
from platon_prune.choice.granularity import Scope
from platon_prune.choice.n_of_m import SemiStructured
from platon_prune.criteria import Criterion, CriterionName
from platon_prune.masks.input_dims import input_dim, reason_against_groups
from platon_prune.masks.method import Masking
from platon_prune.masks.targets import Pairs, Target, select
from platon_prune.pruning.setting_up import Plan, parameter_of, set_up
from platon_prune.pruning.settings import Settings
from platon_prune.reports.n_of_m_patterns import require_pattern
from platon_prune.schedule import RampSchedule, ScheduleName
from platon_prune.scheduling.scheduler import PlatonScheduler
from platon_prune.tensors.shards import shard_of


def semi_structured(
    model: nn.Module | Pairs,
    *,
    n: int = 2,
    m: int = 4,
    amount: float = 1.0,
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
    scope: Scope = "global",
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
    r"""Set a model up for n:m pruning while it is fine-tuned: n kept of every m along the inputs.

    Groups are m neighbours along the dimension over which a product with the inputs adds up: of a
    linear layer along a row, of a convolution along the input channels. The schedule ramps the
    share of groups that are constrained. Those that lose least are first: the sum of their m - n
    smallest scores, compared over all tensors together. A constrained group keeps exactly its n
    largest scores, any other all of its entries; until the end each choice may swap entries and
    release groups.

    Selected is what :func:`global_unstructured` selects. Of that, a tensor whose inputs m does not
    divide is left out with a warning; if it is named by ``include``, or given in pairs, it is
    refused.

    Args:
        model: A module, or an iterable of (module, tensor name) as torch's prune takes them.
        n: Entries that a constrained group keeps, at least 1.
        m: Neighbours in a group, more than n.
        amount: Share of the groups that are constrained in the end, in [0, 1]. Only at 1, the
            default, does every group have the pattern that kernels need.
        total_steps: Length of the run in optimizer steps, T.
        warmup_steps: Steps before pruning starts, t_i: a count, or a fraction of the run in [0, 1).
        cooldown_steps: Steps at the end with the final share, t_f: a count, or a fraction of the
            run in [0, 1).
        initial_amount: Share of the groups that are constrained when the ramp starts.
        beta1: As for :func:`global_unstructured`, and so are all others.
        beta2: Likewise.
        window: Likewise.
        schedule: Likewise.
        criterion: Likewise.
        masking: Likewise.
        include: Likewise.
        exclude: Likewise.
        scope: Likewise, of groups: with ``amount=1`` it decides which ones are first.
        history: Likewise.
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
        the share of groups, its ``threshold`` the largest sum of m - n smallest scores that a
        choice gave up; ``sparsity()`` is the fraction of zeros, 1 - n/m in the end.

    Raises:
        ValueError: If a setting is out of range, nothing is selected, a tensor can't be pruned, or
            processes differ in a setting or in the model. The model is untouched then.
        TypeError: If ``model``, n, m or a number of steps is of the wrong type.
        RuntimeError: If it failed in another process.

    Example:
        >>> scheduler = semi_structured(model, n=2, m=4, total_steps=1000)

    Source:
        Scores and schedule: Zhang et al., PLATON, ICML 2022 (arXiv:2206.12562). The pattern: Mishra
        et al., Accelerating Sparse Deep Neural Networks, 2021 (arXiv:2104.08378).
    """
    settings = Settings.of(locals())

    def plan(given: nn.Module | Pairs) -> Plan:
        targets = select(given, include, exclude, own_keys)
        require_pattern(n, m)
        reasons = {target.name: _reason_against(target, m) for target in targets}
        left_out = {name: reason for name, reason in reasons.items() if reason}
        named = include is not None or not isinstance(given, nn.Module)
        kept = [target for target in targets if target.name not in left_out]
        if left_out and (named or not kept):
            raise ValueError(
                f"each selected tensor must have inputs in groups of m={m}, but "
                f"{_listed(left_out)}: use another m, or leave it out with exclude=[...]"
            )
        dims = {target.name: _dim(target) for target in kept}
        granularity = SemiStructured(n, m, dims, scope)
        for target in kept:
            granularity.require_shard(target.name, shard_of(parameter_of(target)))
        final, first = _share("amount", amount), _share("initial_amount", initial_amount)
        return Plan(kept, granularity, final, first, notes=_notes(n, m, left_out))

    return set_up("semi_structured", model, settings, plan)


def _notes(n: int, m: int, left_out: dict[str, str]) -> list[str]:
    if not left_out:
        return []
    return [
        f"left out of {n}:{m} pruning: {_listed(left_out)}; name it in exclude=[...] if that is as "
        "it should be"
    ]


def _share(argument: str, amount: float) -> float:
    meaning = "the share of the groups that are constrained, not of the weights"
    return fraction(argument, amount, kind="a share of the groups", meaning=meaning, closed=True)


def _dim(target: Target) -> int:
    return input_dim(target.sites[0][0], parameter_of(target))


def _reason_against(target: Target, m: int) -> str | None:
    weight = parameter_of(target)
    reasons = [reason_against_groups(module, weight, m) for module, _ in target.sites]
    for reason in reasons:
        if reason:
            return reason
    dims = {input_dim(module, weight) for module, _ in target.sites}
    if len(dims) > 1:
        return f"is shared by modules whose inputs are its dimensions {sorted(dims)}"
    return None


def _listed(reasons: dict[str, str]) -> str:
    return "; ".join(f"{name} {reason}" for name, reason in reasons.items())
