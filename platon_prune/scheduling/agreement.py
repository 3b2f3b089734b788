"""What the processes that prune together must agree on, and how they find out that they do not."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from platon_prune.scheduling.gradients import StepGradients, all_finite
from platon_prune.scheduling.states import require_equal_settings
from platon_prune.scheduling.tracked import TrackedTensor
from platon_prune.tensors.collectives import Processes
from platon_prune.tensors.shards import is_sharded

SKIPS, FAILED = 1, 2  # what a process votes for; the larger wins


class Decision(NamedTuple):
    """What a vote decided, the same in every process.

    Args:
        skip: No process learns from this step.
        settle: The processes exchange anew which shards they hold.
        redistribute: The gradients are brought to the placements of their tensors.
    """

    skip: bool
    settle: bool
    redistribute: bool


def vote(
    processes: Processes,
    step: int,
    *,
    error: Exception | None,
    gradients: Sequence[Tensor | None] | None,
    settle: bool = False,
) -> Decision:
    """Exchange a few numbers before a step, so that all processes do the same in it.

    It comes before anything else that takes several processes: one that is in an error would be
    waited for.

    Args:
        processes: Those that prune together.
        step: Number of the step that this process is about to take.
        error: What stands in the way here.
        gradients: Of each tensor; None if there are no finite ones here.
        settle: Whether placements of tensors changed here, so that :func:`settle` is due.

    Returns:
        Whether any process has to skip, any has to settle, and any has gradients that lie otherwise
        than their tensors, so that :func:`redistribute_gradients` is due.

    Raises:
        RuntimeError: If anything stands in the way anywhere, or the steps differ.
        Exception: ``error``, here.
    """
    state = FAILED if error is not None else SKIPS if gradients is None else 0
    lies_apart = any(is_sharded(gradient) for gradient in gradients or ())
    # The step with both signs: the maxima are then its largest and its smallest value.
    votes = [state, int(settle), int(lies_apart), step, -step]
    worst, any_settle, any_apart, last, minus_first = processes.maximum(votes)
    require_agreed(error, worst, last, minus_first, step)
    return Decision(worst == SKIPS, bool(any_settle), bool(any_apart))


def require_agreed(
    error: Exception | None, worst: int, last: int, minus_first: int, step: int
) -> None:
    """Raise what a vote found: its own error here, with its own traceback, and that it failed else.

    Args:
        error: What stands in the way in this process.
        worst: What any process voted for.
        last: The largest step that one is about to take.
        minus_first: The smallest, with its sign turned.
        step: That of this process.
    """
    if error is not None:
        raise error
    if worst == FAILED:
        raise RuntimeError(
            f"scheduler.step() must succeed in every process, but failed in another at step {step}:"
            " see its own error"
        )
    if last != -minus_first:
        raise RuntimeError(
            f"processes must take the same step, got step {step} here and steps {-minus_first} to "
            f"{last} in all: resume all of them from one checkpoint, and call scheduler.step() "
            "equally often in each"
        )


def agree(
    processes: Processes,
    step: int,
    found: StepGradients,
    *,
    error: Exception | None,
    settle: bool,
) -> tuple[Decision, StepGradients]:
    """:func:`vote`, with the gradients of this process; reads its flag.

    Returns:
        What was decided, and the gradients without a flag; none if any process has to skip.
    """
    gradients = found.each
    # Reads the device: all processes must know before they exchange anything else.
    if found.flag is not None and float(found.flag):
        gradients = None
        found.flag.zero_()  # the next step uses it again
    decision = vote(processes, step, error=error, gradients=gradients, settle=settle)
    return decision, StepGradients(None if decision.skip else gradients)


def redistribute_gradients(
    processes: Processes,
    step: int,
    tensors: Sequence[TrackedTensor],
    gradients: Sequence[Tensor | None],
) -> list[Tensor | None] | None:
    """Redistribute the gradients that lie otherwise than their tensors; collective.

    Returns:
        The gradient of each tensor; None instead if one of them is not finite, in any process.

    Raises:
        RuntimeError: Everywhere, if a process of a tensor has no such gradient and another has.
    """
    # Redistribution is collective over a mesh: one process without its gradient would hang it.
    apart = [is_sharded(gradient) for gradient in gradients]
    lacks = [t.is_in_mesh and not here for t, here in zip(tensors, apart, strict=True)]
    anywhere = processes.maximum([int(flag) for flag in (*apart, *lacks)])
    for i, tensor in enumerate(tensors):
        if anywhere[i] and anywhere[len(tensors) + i]:
            raise RuntimeError(
                f"the gradient of {tensor.name} must be placed alike in all processes of its mesh, "
                "got one that is yet to be redistributed in some and none such in others: run "
                "the same backward in all of them"
            )
    redistributed: list[Tensor | None] = [
        tensor.redistributed(each) if each is not None and is_sharded(each) else each
        for tensor, each in zip(tensors, gradients, strict=True)
    ]
    finite = redistributed if all_finite(redistributed) else None
    # Voted on again: whether they are finite is known only now, and maybe in one process alone.
    decision = vote(processes, step, error=None, gradients=finite)
    return None if decision.skip else redistributed


def require_same_settings(
    processes: Processes, settings: Mapping[str, Any], tensors: Sequence[TrackedTensor]
) -> None:
    """Raise a ValueError everywhere, naming the first difference, if processes differ.

    Args:
        processes: Those that prune together.
        settings: Of this process.
        tensors: Which must be alike too, and in the same order.
    """
    here: dict[str, Any] = dict(settings)
    for tensor in tensors:
        here |= tensor.description
    here["order of tensors"] = [tensor.name for tensor in tensors]
    everyone = processes.gather(here)
    if not all(isinstance(others, dict) for others in everyone):  # such as measured times
        raise ValueError(
            "pruning must be set up by the same call in all processes, with the same budget, got "
            "another in one of them: set them up alike"
        )
    # All compare the same list in the same order, so all raise or none does.
    for rank, others in enumerate(everyone[1:], start=1):
        require_equal_settings(everyone[0], others, "in process 0", f"in process {rank}")


def zeros(
    processes: Processes, tensors: Sequence[TrackedTensor], require: Callable[[], None]
) -> list[int]:
    """Prune the zeros of all tensors, and count them over the processes.

    Args:
        processes: Those that prune together.
        tensors: Their tensors.
        require: Raises what stands in the way in this process.

    Returns:
        Of each tensor, how many there are.

    Raises:
        ValueError: If processes that hold the same shard have zeros at different positions.
    """

    def adopt() -> list[tuple[Any, int, bytes]]:
        require()
        return [tensor.adopt_zeros() for tensor in tensors]

    found_here = processes.all_or_none("adopt_zeros", adopt, lambda _: None)
    everyone = processes.gather(found_here)
    counts = []
    for i, tensor in enumerate(tensors):
        shards: dict[Any, tuple[int, bytes]] = {}
        for found in everyone:
            key, count, digest = found[i]
            # Replicas are counted once, and must agree.
            if shards.setdefault(key, (count, digest)) != (count, digest):
                raise ValueError(
                    f"processes that hold the same shard of {tensor.name} must have the same "
                    "zeros, got different ones: load the same model in all of them before pruning"
                )
        counts.append(sum(count for count, _ in shards.values()))
    return counts


def settle(processes: Processes, tensors: Sequence[TrackedTensor]) -> None:
    """Exchange which process holds which shard, and number the replicas; collective.

    Raises:
        RuntimeError: If some shard of a tensor is held by none of them.
    """
    keys_here = [tensor.shard.key for tensor in tensors if tensor.shard is not None]
    sizes = [tensor.weight.numel() for tensor in tensors]
    everyone = processes.gather((keys_here, sizes))
    for i, tensor in enumerate(tensors):
        holders: dict[Any, list[int]] = {}
        for rank, (keys, _) in enumerate(everyone):
            holders.setdefault(keys[i], []).append(rank)
        held = sum(everyone[ranks[0]][1][i] for ranks in holders.values())
        # An exact choice counts all entries: with some held by nobody here it would prune too few.
        if held != tensor.whole_numel:
            raise RuntimeError(
                f"{tensor.name} must be held completely by the processes that choose together, got "
                f"{held} of {tensor.whole_numel} entries: give global_unstructured the "
                "process_group of all that hold a shard of the model"
            )
        ranks = holders[keys_here[i]]
        tensor.settle(ranks.index(processes.rank), len(ranks))
