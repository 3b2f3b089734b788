"""Norms over what all heads have, as OLMo 2's of queries and keys: fewer heads change the mean.

The mean square of n entries, of which only n' are not zero, is that of the n' left times n' / n. A
weight times the root of n / n' and an epsilon times n / n' give the same products, up to rounding.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from platon_prune.spellings import NORM_EPS, OVER_ALL_HEADS, RMS_NORM


def is_over_heads(module: nn.Module, name: str) -> bool:
    """Whether a tensor is the weight of a norm by the mean square of what all heads have.

    Args:
        module: What holds it.
        name: The tensor's path in the model.
    """
    path, _, key = name.rpartition(".")
    return (
        key == "weight"
        and path.rpartition(".")[2] in OVER_ALL_HEADS
        and RMS_NORM in type(module).__name__
    )


@torch.no_grad()
def spread_(module: Any, before: int) -> None:
    """Make a norm whose weight had ``before`` entries compute what it did for those left."""
    weight = module._parameters["weight"]
    share = before / weight.shape[0]
    weight.mul_(share**0.5)
    if weight.grad is not None:
        weight.grad.div_(share**0.5)
    for name in NORM_EPS:
        if type(getattr(module, name, None)) is float:
            setattr(module, name, getattr(module, name) * share)


def added_to_sums(model: nn.Module, names: Iterable[str]) -> dict[str, float]:
    """What norms over heads add to a sum of squares, by name: their epsilon times their entries.

    It is the same for norms of other sizes that compute the same.
    """
    found = {}
    for name in names:
        module: Any = model.get_submodule(name.rpartition(".")[0])
        if is_over_heads(module, name):
            eps = next(e for key in NORM_EPS if type(e := getattr(module, key, None)) is float)
            weight = module._parameters.get("weight", module._parameters.get("weight_orig"))
            found[name] = eps * weight.shape[0]
    return found
