"""What an optimizer remembers of a parameter, cut as the parameter is."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from platon_prune.shrinking.holders import Kept
from platon_prune.shrinking.resize import take


def check_states(
    optimizer: torch.optim.Optimizer, cut: dict[Tensor, Kept], names: dict[Tensor, str]
) -> None:
    """Raise a ValueError if a state can't be cut.

    Args:
        optimizer: Not changed.
        cut: What stays of each parameter that is to be cut.
        names: Their names.
    """
    for state in optimizer.state.values():
        for key, value in state.items():
            if isinstance(value, (list, tuple, dict)):
                raise ValueError(
                    f"optimizer must keep tensors and numbers of each parameter, got {key} of a "
                    f"{type(optimizer).__name__}: shrink without optimizer and make a new one"
                )
    # Tried in full before anything is changed: half a cut could not be taken back.
    for parameter, kept in cut.items():
        for key, value in optimizer.state.get(parameter, {}).items():
            _cut(key, value, parameter.shape, kept, names[parameter])


def cut_states_(optimizer: torch.optim.Optimizer, parameter: Tensor, kept: Kept) -> None:
    """Cut what an optimizer remembers of a parameter; call it before the parameter is cut."""
    state = optimizer.state.get(parameter, {})
    for key, value in state.items():
        state[key] = _cut(key, value, parameter.shape, kept, "a parameter")


def forget_(optimizer: torch.optim.Optimizer, parameters: Iterable[Tensor]) -> None:
    """Take parameters that are gone from the model out of an optimizer, and what it remembers."""
    gone = set(map(id, parameters))
    for group in optimizer.param_groups:
        # In place: some wrappers of optimizers hold the very list.
        group["params"][:] = [each for each in group["params"] if id(each) not in gone]
    for parameter in [each for each in optimizer.state if id(each) in gone]:
        del optimizer.state[parameter]


def _cut(key: str, value: Any, shape: torch.Size, kept: Kept, name: str) -> Any:
    if not isinstance(value, Tensor) or value.numel() == 1:  # a number, such as the step
        return value
    dims = _dims_of(key, value.shape, shape)
    if dims is None:
        raise ValueError(
            f"the optimizer's {key} of {name} must be a number or have its shape {tuple(shape)}, "
            f"got {tuple(value.shape)}: shrink without optimizer and make a new one"
        )
    return take(value, {dims[dim]: index for dim, index in kept.items() if dim in dims})


def _dims_of(key: str, have: torch.Size, shape: torch.Size) -> dict[int, int] | None:
    """For each dimension of a parameter that a state has, which one it is there.

    Besides states of the parameter's shape there are means over one of its last two dimensions,
    which is left out or has size 1 (Adafactor): by rows over the last one, by columns over the
    other.
    """
    # Before the means: those of a square matrix are told from it by their dimensions.
    if have == shape:
        return {dim: dim for dim in range(len(shape))}
    last = len(shape) - 1
    for word, gone in (("row", last), ("col", last - 1)):
        if word in key and gone >= 0:
            stay = [dim for dim in range(len(shape)) if dim != gone]
            if have == shape[:gone] + shape[gone + 1 :]:
                return {dim: i for i, dim in enumerate(stay)}
            if have == shape[:gone] + (1,) + shape[gone + 1 :]:
                return {dim: dim for dim in stay}
    return None
