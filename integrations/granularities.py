"""Which of the package's functions puts the masks on, for callbacks that are told by a name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from numbers import Integral
from typing import Any

from torch import nn

import platon_prune
from platon_prune import PlatonScheduler

# Masks are put on before the length is known; until then any length will do.
UNKNOWN_STEPS = 2**40
# By name, since a callback's settings go into JSON, which holds no functions.
_FUNCTIONS = {
    "unstructured": "global_unstructured",
    "semi_structured": "semi_structured",
    "structured": "global_structured",
}


def check_granularity(
    granularity: str, amount: float | int | None, settings: Mapping[str, Any] | None = None
) -> float | int | None:
    """The amount as a plain number, which goes into JSON.

    Args:
        granularity: "unstructured", "semi_structured", or what else the package can prune by.
        amount: What is pruned in the end; None for what the granularity prunes by default.
        settings: The other settings, one of which may say it instead.

    Raises:
        ValueError: If there is no such granularity.
        TypeError: If it has no default and ``amount`` is None.
    """
    # Asked of the function itself: only it knows whether it prunes without being told how much.
    default = inspect.signature(_function(granularity)).parameters["amount"].default
    is_required = default is inspect.Parameter.empty or default is None
    if amount is None and is_required and (settings or {}).get("speedup") is None:
        raise TypeError(f"amount must be given for {granularity} pruning, got None")
    if amount is None or isinstance(amount, bool):
        return amount
    return int(amount) if isinstance(amount, Integral) else float(amount)


def put_masks_on(
    model: nn.Module,
    granularity: str,
    amount: float | int | None,
    settings: Mapping[str, Any],
) -> PlatonScheduler:
    """Set a model up for a run whose length is not known yet; it keeps its own keys.

    Args:
        model: The model.
        granularity: See :func:`check_granularity`.
        amount: Likewise.
        settings: The other settings of the function that sets pruning up.
    """
    # Left out where it is None, so that the function's own default holds.
    amounts = {} if amount is None else {"amount": amount}
    scheduler: PlatonScheduler = _function(granularity)(
        model, total_steps=UNKNOWN_STEPS, own_keys=True, **amounts, **settings
    )
    return scheduler


def _function(granularity: str) -> Callable[..., PlatonScheduler]:
    there = {name: each for name, each in _FUNCTIONS.items() if hasattr(platon_prune, each)}
    if granularity not in there:
        raise ValueError(f"granularity must be one of {', '.join(there)}; got {granularity!r}")
    function: Callable[..., PlatonScheduler] = getattr(platon_prune, there[granularity])
    return function
