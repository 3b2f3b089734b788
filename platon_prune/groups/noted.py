"""The coupled groups that a model was pruned by, noted on the model itself.

They are an attribute of the module, and not in a table beside it, because they must go where the
model goes: into a deepcopy, a pickle, a model that is finalized. A weak dictionary would lose them
there, and a traced model could then not be shrunk without its example inputs.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from platon_prune.groups.coupled import CoupledGroups

_KEY = "_platon_groups"  # promised in docs/structured.md


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
