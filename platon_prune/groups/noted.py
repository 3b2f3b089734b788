"""The coupled groups that a model was pruned by, and its example inputs, noted on the model.

They are an attribute of the module, and not in a table beside it, because they must go where the
model goes: into a deepcopy, a pickle, a model that is finalized. A weak dictionary would lose them
there, and a traced model could then not be shrunk without its example inputs.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from platon_prune.groups.coupled import CoupledGroups

_KEY = "_platon_groups"  # promised in docs/structured.md
_LEFT_KEY = "_platon_groups_left"
_INPUTS_KEY = "_platon_example_inputs"


class _Inputs:
    """Example inputs that a pickle of their model leaves out: they are data of its user."""

    def __init__(self, inputs: Any = None) -> None:
        self.inputs = inputs

    def __deepcopy__(self, memo: Any) -> _Inputs:
        return self  # never changed

    def __reduce__(self) -> Any:
        return _Inputs, ()


def note_groups_(model: nn.Module, groups: Iterable[CoupledGroups]) -> None:
    """Note the places of a run on the model, without wrappers, that it prunes."""
    # A tuple is no parameter, buffer or module: the state dict stays what it is.
    model.__dict__[_KEY] = tuple(groups)


def noted_groups(model: nn.Module) -> tuple[CoupledGroups, ...]:
    """The places that were noted on a model; none if it was not pruned by groups."""
    return tuple(model.__dict__.get(_KEY, ()))


def forget_groups_(model: nn.Module) -> None:
    """Forget them, as must be when the model's tensors have other sizes."""
    model.__dict__.pop(_KEY, None)
    model.__dict__.pop(_LEFT_KEY, None)
    model.__dict__.pop(_INPUTS_KEY, None)


def note_left_(model: nn.Module, groups: Iterable[CoupledGroups]) -> None:
    """Note the places of a model that was cut, with the groups that they have left."""
    # Apart from those of a run: the next shrink looks for all groups that there are.
    model.__dict__[_LEFT_KEY] = tuple(groups)


def left_groups(model: nn.Module) -> tuple[CoupledGroups, ...]:
    """The places that a cut has noted on a model; none if it was not cut."""
    return tuple(model.__dict__.get(_LEFT_KEY, ()))


def note_inputs_(model: nn.Module, inputs: Any) -> None:
    """Note the example inputs of a run, copied to the CPU, to verify by when it is shrunk."""
    copied = pytree.tree_map(
        lambda leaf: leaf.detach().to("cpu", copy=True) if isinstance(leaf, Tensor) else leaf,
        dict(inputs) if hasattr(inputs, "keys") else inputs,
    )
    model.__dict__[_INPUTS_KEY] = _Inputs(copied)


def noted_inputs(model: nn.Module) -> Any | None:
    """The example inputs of a run, on the CPU; None if there were none."""
    return model.__dict__.get(_INPUTS_KEY, _Inputs()).inputs
