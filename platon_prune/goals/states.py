"""What a run goes back to: the weights, and what an optimizer and learning rates were at."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from platon_prune.tensors.shards import is_sharded


def taken(model: nn.Module, optimizer: Any, scores: Mapping[str, Any]) -> dict[str, Any]:
    """Copies, in host memory, of all that training has changed.

    Args:
        model: The pruned model.
        optimizer: Anything with the ``state_dict()`` of an optimizer.
        scores: What the scheduler knows.
    """
    return {
        "weights": on_host(_weights(model)),
        "optimizer": on_host(optimizer.state_dict()["state"]),
        "scores": on_host(scores),
    }


@torch.no_grad()
def put_back_(model: nn.Module, optimizer: Any, state: Mapping[str, Any]) -> None:
    """Bring a model and its optimizer back to what they were.

    The options of the optimizer, such as learning rates, stay as they are.

    Args:
        model: The pruned model; changed in place.
        optimizer: Its optimizer; changed in place.
        state: What :func:`taken` returned.
    """
    for name, tensor in _weights(model).items():
        tensor.copy_(state["weights"][name])
    # Copies: an optimizer goes on with the very tensors that it loads, in place.
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": on_host(state["optimizer"]), "param_groups": groups})


def to_cooldown_(
    lr_scheduler: Any, optimizer: Any, num_steps: int, start: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Give an optimizer the learning rates that the planned cool-down begins with.

    Args:
        lr_scheduler: One that steps once for each optimizer step.
        optimizer: Its optimizer.
        num_steps: How many steps are left until the cool-down as it was planned.
        start: What was returned the first time; then it goes back to that.

    Returns:
        The learning rates, and what their scheduler was at.
    """
    if start is None:
        for _ in range(num_steps):
            lr_scheduler.step()
        return {"lr_scheduler": on_host(lr_scheduler.state_dict()), "options": _options(optimizer)}
    lr_scheduler.load_state_dict(on_host(start["lr_scheduler"]))
    for group, options in zip(optimizer.param_groups, start["options"], strict=True):
        group.update(on_host(options))
    return dict(start)


def follows_steps(lr_scheduler: Any) -> bool:
    """Whether there is one, and steps alone decide its learning rates."""
    # One that waits for a metric to stand still (ReduceLROnPlateau) has no planned cool-down.
    step = getattr(lr_scheduler, "step", None)
    return step is not None and "metrics" not in inspect.signature(step).parameters


def require_whole(model: nn.Module) -> None:
    """Raise a ValueError if a process holds but a shard of a parameter."""
    for name, parameter in model.named_parameters():
        if is_sharded(parameter):
            raise ValueError(
                f"max_drop must find whole tensors in each process, got {name} sharded: use DDP, "
                "or prune without max_drop"
            )


def on_host(value: Any) -> Any:
    """A copy of nested dicts and lists whose tensors are in host memory."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, Mapping):
        return {key: on_host(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(on_host(each) for each in value)
    return copy.deepcopy(value)


def _options(optimizer: Any) -> list[dict[str, Any]]:
    return [
        on_host({name: value for name, value in group.items() if name != "params"})
        for group in optimizer.param_groups
    ]


def _weights(model: nn.Module) -> dict[str, Tensor]:
    """What training changes: parameters that it trains, and buffers but the masks."""
    names = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    buffers = {
        name: buffer
        for name, buffer in model.named_buffers()
        # The scheduler keeps the masks, and puts them back.
        if name.removesuffix("_mask") + "_orig" not in names
    }
    trained = {name: each for name, each in model.named_parameters() if each.requires_grad}
    return trained | buffers
