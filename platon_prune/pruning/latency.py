"""Amounts as shares of a forward's time: how much is asked for, and the times that all go by."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch.distributed as dist

from platon_prune.amounts import is_number
from platon_prune.groups.blocks import KIND as BLOCKS
from platon_prune.groups.coupled import CoupledGroups
from platon_prune.groups.latency import LatencyTable, StructuredByLatency
from platon_prune.tensors.collectives import Processes


def asked_amount(amount: float | None, speedup: float | None, budget: str) -> float:
    """The amount, or the share of the time that a speedup saves.

    Args:
        amount: What goes in the end; None if ``speedup`` says it.
        speedup: How many times as fast the forward is to be; None if ``amount`` says it.
        budget: What the amount counts.

    Raises:
        ValueError: If both are given, or a speedup is out of range or none of a latency.
        TypeError: If neither is given.
    """
    if speedup is None:
        if amount is None:
            raise TypeError(
                'amount must be given, or speedup with budget="latency", got neither: pass what '
                "goes in the end, such as amount=0.5"
            )
        return amount
    if amount is not None:
        raise ValueError(
            f"speedup must stand instead of amount, got speedup={speedup!r} and amount={amount!r}: "
            "leave one of them out"
        )
    if budget != "latency":
        raise ValueError(
            f'speedup must go with budget="latency", got budget={budget!r}: only measured times '
            "tell how fast a model is"
        )
    if not is_number(speedup) or not 1 < speedup < math.inf:
        raise ValueError(
            f"speedup must be a number above 1, such as 1.5 for two thirds of the time, got "
            f"{speedup!r}"
        )
    return 1 - 1 / speedup


def of_first_process(
    process_group: dist.ProcessGroup | None, prepare: Callable[[], Callable[[], LatencyTable]]
) -> LatencyTable:
    """The times that the first process measures, in all of them; collective.

    Args:
        process_group: Those that prune together; None for all.
        prepare: Checks in each process, and returns what measures.

    Raises:
        RuntimeError: If it failed in another process.
        Exception: What it failed with in this one.
    """
    processes = Processes(process_group)

    def make() -> LatencyTable | None:
        measure = prepare()
        # The others wait meanwhile: on one machine they would be measured along.
        return measure() if processes.rank == 0 else None

    measured = processes.all_or_none("global_structured", make, lambda made: None)
    table, *others = processes.gather(measured)
    # Where a process set up something else, it is that which it exchanges at this point.
    if not isinstance(table, LatencyTable) or any(other is not None for other in others):
        raise ValueError(
            'budget must be "latency" in all processes, got another: set them up alike'
        )
    return table


def refuse_blocks_beside_others(places: Sequence[CoupledGroups]) -> None:
    """Raise a ValueError if blocks are among other places, whose time would count twice."""
    blocks = [place.name for place in places if place.kind == BLOCKS]
    if blocks and len(blocks) < len(places):
        raise ValueError(
            'kinds must be "blocks" alone or without it for budget="latency", got both with '
            f"{blocks[0]}: the time of a block has that of its heads and neurons in it"
        )


def notes_on(granularity: StructuredByLatency) -> list[str]:
    """What to warn about times that were measured."""
    whole = granularity.without_gain
    if not whole:
        return []
    return [
        f"left whole, for {'it was' if len(whole) == 1 else 'they were'} no faster at the floor: "
        f"{', '.join(whole)}"
    ]


# Times of one model differ by that much of a forward from one measurement to the next.
_MEASURED_WITHIN = 0.1


def refuse_unreachable(
    granularity: StructuredByLatency, amount: float, speedup: float | None
) -> None:
    """Refuse what the floors leave too little of the time for.

    What lies so near that it may have been reached by the times of a run that is resumed is refused
    only at the first step, unless a state is loaded before that.

    Args:
        granularity: With what was measured.
        amount: The share of the time that is asked for.
        speedup: What it was asked for as, if it was.

    Raises:
        ValueError: If it is far beyond what was measured.
    """
    largest = granularity.largest_amount
    if amount <= largest:
        return
    argument, most, got = "amount", math.floor(largest * 1e4) / 1e4, f"{amount}"
    if speedup is not None:
        reached = math.floor(100 / (1 - largest)) / 100  # the amount is above it, and below 1
        argument, most, got = "speedup", reached, f"{speedup}"
    said = (
        f"{argument} must be at most {most} with these floors, by what was measured on "
        f"example_inputs, got {got}: ask for less, lower min_heads, min_neurons or min_channels, "
        "raise max_amount, or pass a larger batch if that is how it is deployed"
    )
    if amount - largest > _MEASURED_WITHIN:
        raise ValueError(said)
    granularity.out_of_reach = said
