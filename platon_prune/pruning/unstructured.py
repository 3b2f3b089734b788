"""`global_unstructured` and `adopt_zeros`: set single weights of a model up for pruning."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from numbers import Integral

import torch
import torch.distributed as dist
from torch import nn

from platon_prune.amounts import ZEROS, fraction_of_weights
from platon_prune.choice.granularity import Scope, Unstructured
from platon_prune.criteria import Criterion, CriterionName
from platon_prune.masks.method import Masking
from platon_prune.masks.targets import Pairs, select
from platon_prune.pruning.capturable import require_capturable
from platon_prune.pruning.setting_up import Made, Plan, parameter_of, put_on, set_up
from platon_prune.pruning.settings import Settings
from platon_prune.schedule import RampSchedule, ScheduleName
from platon_prune.scheduling.fixed import FixedSchedule, Unscored
from platon_prune.scheduling.scheduler import PlatonScheduler
from platon_prune.tensors.collectives import Processes


def global_unstructured(
    model: nn.Module | Pairs,
    *,
    amount: float | int,
    total_steps: int,
    warmup_steps: int | float = 0.1,
    cooldown_steps: int | float = 0.3,
    initial_amount: float | int | str = 0.0,
    beta1: float = 0.85,
    beta2: float = 0.95,
    window: int = 10,
    schedule: ScheduleName | type[RampSchedule] = "cubic",
    criterion: CriterionName | Criterion = "platon",
    masking: Masking = "step",
    include: str | Sequence[str] | None = None,
    exclude: str | Sequence[str] | None = None,
    max_amount: float | Mapping[str, float] | None = None,
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
    r"""Set a model up for pruning while it is fine-tuned; the smallest scores of all tensors go.

    Selected are, of a model without ``include``, the weights of linear and convolution layers
    (transformers' Conv1D too), of MultiheadAttention, and the fused expert tensors of mixtures of
    experts; never embeddings or what is tied to them, norms or biases; of a transformers model
    nothing outside its base model and no pooler. A layer whose weight is computed by a
    parametrization, or quantised, is passed over with a warning. A tensor shared by several modules
    counts once.

    Args:
        model: A module, or an iterable of (module, tensor name) as torch's prune takes them.
        amount: What is pruned in the end: a fraction in [0, 1), or a count of entries (a whole
            number). A count from 2 to 99 looks like a percentage: it is refused below 1 % of
            the entries, where a fraction says the same, and warned about from there on.
        total_steps: Length of the run in optimizer steps, T.
        warmup_steps: Steps before pruning starts, t_i: a count, or a fraction of the run in [0, 1).
        cooldown_steps: Steps at the end with the final amount, t_f: a count, or a fraction of the
            run in [0, 1).
        initial_amount: What is pruned when the ramp starts: a fraction in [0, 1), or a count; or
            "zeros" to begin with masks of what is zero in the model already, however it was pruned,
            and to prune further from there. See :func:`adopt_zeros` to prune no further.
        beta1: Share of the old sensitivity that a window keeps, in [0, 1); above 0 for
            "platon", whose scores would all be 0.
        beta2: Share of the old uncertainty that a window keeps, in [0, 1).
        window: Steps per window, and between choices of the mask, ΔT.
        schedule: How the amount grows between the two: "cubic", "linear", "exponential", or
            "once" for one choice of the final amount; or a class derived from
            :class:`~platon_prune.RampSchedule`.
        criterion: "platon", "sensitivity", "magnitude", "movement", "random", "fisher",
            "scaled_magnitude", or a :class:`~platon_prune.Criterion`.
        masking: "step" keeps pruned weights at zero between choices; "window" lets them train
            until the next choice, as the authors' code does, except in the final phase.
        include: Substrings of parameter names; what matches one is selected instead of the above.
        exclude: Substrings of names to leave out.
        max_amount: The largest fraction that a tensor may lose, in [0, 1]: one number for every
            tensor, or one for each substring of names (where several match, all of them hold). What
            exceeds it is pruned in the other tensors, so that the total is as exact as without.
        scope: "global" ranks the scores of all tensors together; "layer" those of each tensor by
            itself, so that all lose the same fraction, but for rounding and ``max_amount``. The
            total is exact either way.
        history: Whether ``scheduler.history`` records what each choice did.
        mask_history: A file to which the masks of every choice are appended, so that
            ``scheduler.masks(step)`` returns them; see :meth:`PlatonScheduler.record_masks`.
        own_keys: Whether the model's state dict keeps its own keys while it is pruned (``weight``
            with its zeros, no mask) instead of torch's ``weight_orig`` and ``weight_mask``. By
            default only where transformers saves it (anything with ``save_pretrained``). What calls
            ``save_pretrained`` gets its own keys in any case.
        state_dtype: What the window and the averages are kept in: float32, or bfloat16 for half the
            memory and slightly other masks.
        offload_averages: Whether the averages are kept in host memory, where a window's end and a
            choice fetch them block by block.
        capturable: Whether a step can be captured in a CUDA graph, in one process: counters stay on
            the device, and ``scheduler.before_replay()`` and ``after_replay()`` do around each
            replay what a graph can't.
        process_group: The processes that hold replicas or shards of the model, and choose
            together; by default all, if ``torch.distributed`` is initialised. Each of them has to
            call this, and whatever of the scheduler is said to be collective.
        max_drop: How much worse than the dense model's a metric may get, at least 0, in its own
            unit: ``amount`` is then the most that is pruned, and the run needs
            :meth:`PlatonScheduler.report`.
        baseline: The dense model's metric; by default what is reported before the ramp.
        greater_is_better: Whether a larger value of the metric is a better one.
        patience: How many reports in a row must be too bad before the run goes back.

    Returns:
        The scheduler, whose ``step()`` belongs after every ``optimizer.step()``.

    Raises:
        ValueError: If a setting is out of range, nothing is selected, a tensor can't be pruned, or
            processes differ in a setting or in the model. The model is untouched then.
        TypeError: If ``model`` or a number of steps is of the wrong type.
        RuntimeError: If it failed in another process.

    Example:
        >>> scheduler = global_unstructured(model, amount=0.9, total_steps=1000)
        >>> for batch in loader:
        ...     model(**batch).loss.backward()
        ...     optimizer.step()
        ...     scheduler.step()
        ...     optimizer.zero_grad()
        >>> remove(model)

    Source:
        Zhang et al., PLATON, ICML 2022 (arXiv:2206.12562).
    """
    settings = Settings.of(locals())

    def plan(model: nn.Module | Pairs) -> Plan:
        targets = select(model, include, exclude, own_keys)
        adopts_zeros = isinstance(initial_amount, str) and initial_amount == ZEROS
        if adopts_zeros and masking != "step":
            raise ValueError(
                'masking must be "step" for initial_amount="zeros", got "window", which would let '
                "the zeros train until the first choice"
            )
        sizes = [(target.name, parameter_of(target).numel()) for target in targets]
        num_weights = sum(size for _, size in sizes)
        final, first = fraction_of_weights("amount", amount, num_weights), 0.0
        granularity = Unstructured(max_amount, scope)
        granularity.require_room(sizes, final)
        if not adopts_zeros:  # else it is the share of zeros, once they are counted
            first = fraction_of_weights("initial_amount", initial_amount, num_weights)
        _refuse_percentages(num_weights, amount=amount, initial_amount=initial_amount)
        notes = _doubtful_counts(num_weights, amount=amount, initial_amount=initial_amount)
        return Plan(targets, granularity, final, first, adopts_zeros, notes)

    return set_up("global_unstructured", model, settings, plan)


def adopt_zeros(
    model: nn.Module | Pairs,
    *,
    include: str | Sequence[str] | None = None,
    exclude: str | Sequence[str] | None = None,
    own_keys: bool | None = None,
    capturable: bool = False,
    process_group: dist.ProcessGroup | None = None,
) -> PlatonScheduler:
    """Keep the zeros that a model has, whatever pruned it, exactly while it is fine-tuned.

    The masks are what is zero now, and stay: the scheduler needs no gradients, keeps no scores and
    never chooses; its ``step()`` zeroes again what the optimizer moved (gradients, momentum, weight
    decay). To prune such a model further, call :func:`global_unstructured` with
    ``initial_amount="zeros"`` instead.

    Args:
        model: As for :func:`global_unstructured`; with its pruned weights loaded.
        include: Likewise. A pruned task head has to be named here.
        exclude: Likewise. What is zero only because it is initialised so belongs here.
        own_keys: Likewise.
        capturable: Likewise.
        process_group: Likewise.

    Returns:
        The scheduler, whose ``step()`` belongs after every ``optimizer.step()``.

    Raises:
        ValueError: If the selected tensors have no zeros, a tensor can't be masked, or processes
            differ in the model. The model is untouched then.
        TypeError: If ``model`` is of the wrong type.

    Example:
        >>> scheduler = adopt_zeros(model)
        >>> handle = scheduler.step_with(optimizer)
        >>> train(model, optimizer)
        >>> remove(model)
    """

    def make(model: nn.Module | Pairs, processes: Processes) -> Made:
        targets = select(model, include, exclude, own_keys)
        fixed, unscored = FixedSchedule(), Unscored()
        if capturable:
            require_capturable(targets, unscored, processes)
        return Made(
            PlatonScheduler(
                targets,
                fixed,
                unscored,
                processes=processes,
                history=False,
                adopts_zeros=True,
                model=model,
                capturable=capturable,
            )  # fmt: skip
        )

    return put_on("adopt_zeros", model, process_group, make, include=include, exclude=exclude)


def _counts(amounts: Mapping[str, float | int | str]) -> dict[str, int]:
    return {name: int(count) for name, count in amounts.items() if isinstance(count, Integral)}


def _refuse_percentages(num_weights: int, **amounts: float | int | str) -> None:
    """Refuse counts that would leave the model dense where a percentage was surely meant."""
    for argument, count in _counts(amounts).items():
        if 2 <= count <= 99 and 100 * count < num_weights:
            raise ValueError(
                f"{argument} must be at least 1 % of the {num_weights} selected weights if it is a "
                f"count from 2 to 99, got {count}, which is {100 * count / num_weights:.2g} %: for "
                f"{count} % give {count / 100:g}, and for {count} weights the fraction "
                f"{count / num_weights:.6g}"
            )


def _doubtful_counts(num_weights: int, **amounts: float | int | str) -> list[str]:
    """Counts, by their argument, that would make sense as percentages, or prune next to nothing."""
    return [
        f"{argument}={count} prunes {count} of the {num_weights} selected weights "
        f"({100 * count / num_weights:.2g} %), as a whole number is a count: if a share was meant, "
        f"give {argument} as a fraction below 1, such as {min(count, 99) / 100:g}"
        for argument, count in _counts(amounts).items()
        # Of a hundred weights a count and a percentage are the same.
        if (2 <= count <= 99 and count < num_weights and num_weights != 100)
        or (count in (1, 100) and count < num_weights / 100)
    ]
