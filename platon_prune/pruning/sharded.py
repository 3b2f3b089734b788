"""Models that are sharded before pruning is set up: what can be told of them without running."""

from __future__ import annotations

from typing import Any

from torch import nn

from platon_prune.groups.layouts import layout_groups
from platon_prune.tensors.shards import is_sharded


def first_sharded(model: nn.Module) -> str | None:
    """The name of a parameter of which each process holds a shard; None if there is none."""
    return next((name for name, each in model.named_parameters() if is_sharded(each)), None)


def require_run(model: nn.Module, inputs: Any, budget: str) -> None:
    """Raise a ValueError unless the model can be run in this process, as a budget needs.

    Args:
        model: The model.
        inputs: Example inputs.
        budget: What the amount counts.
    """
    if inputs is None:
        raise ValueError(
            f'example_inputs must be given for budget="{budget}", got none: pass a batch as the '
            "model takes it"
        )
    if name := first_sharded(model):
        raise ValueError(
            f'{name} must be whole in every process for budget="{budget}", for which the model '
            "runs, got a sharded tensor: set pruning up before sharding"
        )
    meta = next((name for name, each in model.named_parameters() if each.is_meta), None)
    if meta and budget == "latency":
        raise ValueError(
            f'{meta} must have values for budget="latency", got a tensor on the meta device: load '
            "the model before it is measured"
        )


def refuse_cut_of_shards(model: nn.Module, *, repeats: bool = False) -> None:
    """Raise a ValueError if groups would be cut out of shards.

    Args:
        model: The model.
        repeats: Whether it is to be cut as a saved state was, and not by what is pruned now.
    """
    remedy = (
        "call scheduler.cut_like(state) before fully_shard"
        if repeats
        # torch can't undo fully_shard; docs/scale.md has these steps as code, which a test runs.
        else "in every process load full states of the model and optimizer, and "
        "scheduler.state_dict(), into a whole model that pruning is set up on anew, cut that, and "
        'shard it again, as "Cutting while it trains" in docs/scale.md does'
    )
    if name := first_sharded(model):
        raise ValueError(
            f"{name} must be whole in every process to be cut, got a sharded tensor: {remedy}"
        )


def require_known_layers(model: nn.Module, may_empty_layers: bool) -> None:
    """Raise a ValueError for a sharded model that has to run for its groups to be found.

    Args:
        model: The model.
        may_empty_layers: Whether whole layers may go, which are tried by running them.
    """
    name = first_sharded(model)
    if name and may_empty_layers:
        raise ValueError(
            f"{name} must be whole in every process where whole layers may go, which are tried by "
            "running the model, got a sharded tensor: set pruning up before sharding"
        )
    if name and next(layout_groups(model), None) is None:
        raise ValueError(
            f"{name} must be whole in every process where layers are not known by their names and "
            "the model is traced, got a sharded tensor: set pruning up before sharding"
        )
