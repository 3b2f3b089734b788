"""What a run goes back to: the weights, and what an optimizer and learning rates were at.

Of a sharded model each process keeps its own shards, and all processes go back together.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from platon_prune.tensors.shards import (
    are_alike,
    as_placed,
    is_sharded,
    local_of,
    placed_like,
    registered,
)


def taken(model: nn.Module, optimizer: Any, scores: Mapping[str, Any]) -> dict[str, Any]:
    """Copies, in host memory, of all that training has changed.

    Args:
        model: The pruned model.
        optimizer: Anything with the ``state_dict()`` of an optimizer.
        scores: What the scheduler knows.
    """
    of_parameters = optimizer.state_dict()["state"]
    return {
        "weights": on_host(_weights(model, optimizer)),
        # Names as in other dicts: torch.distributed.checkpoint would make some of numbers.
        "optimizer": {str(number): on_host(each) for number, each in of_parameters.items()},
        "scores": on_host(scores),
    }


@torch.no_grad()
def put_back_(model: nn.Module, optimizer: Any, state: Mapping[str, Any]) -> None:
    """Bring a model and its optimizer back to what they were; collective if placed otherwise.

    The options of the optimizer, such as learning rates, stay as they are.

    Args:
        model: The pruned model; changed in place.
        optimizer: Its optimizer; changed in place.
        state: What :func:`taken` returned.

    Raises:
        RuntimeError: If something is trained that was not when the state was taken.
    """
    saved, trained = state["weights"], _weights(model, optimizer)
    for name in trained:
        if name not in saved:
            raise RuntimeError(
                f"{name} must be trained since the ramp began in a run with max_drop, got one that "
                "was frozen and outside of the optimizer when the state to go back to was kept: "
                "unfreeze all of it before, or give it to the optimizer from the start"
            )
    everything = _everything(model)
    # By the names that were saved: what has been frozen since goes back too.
    for name, value in saved.items():
        tensor = everything[name]
        local_of(tensor.detach()).copy_(local_of(brought_to(value, tensor)))
    now = optimizer.state_dict()
    parameters = [each for group in optimizer.param_groups for each in group["params"]]
    back = {}
    for number, entries in state["optimizer"].items():
        here, parameter = now["state"].get(int(number), {}), parameters[int(number)]
        back[int(number)] = {
            name: _as_in_use(value, here.get(name), parameter) for name, value in entries.items()
        }
    optimizer.load_state_dict({"state": back, "param_groups": now["param_groups"]})


def brought_to(saved: Tensor, tensor: Tensor) -> Tensor:
    """A saved tensor as another of its shape lies over processes; collective if it lies otherwise.

    Args:
        saved: In host memory.
        tensor: The one that is in use.

    Returns:
        Placed as ``tensor`` is; in whatever memory.
    """
    if is_sharded(saved) and not are_alike(saved, tensor):
        # Processes exchange what is on their devices.
        saved = as_placed(local_of(saved).to(saved.device_mesh.device_type), saved)  # type: ignore[attr-defined]
    return placed_like(saved, tensor)


def _as_in_use(value: Any, here: Any, parameter: Tensor) -> Any:
    """A copy of an entry of an optimizer's state, placed as what is there now or its parameter."""
    if not isinstance(value, Tensor):
        return copy.deepcopy(value)
    like = here if isinstance(here, Tensor) and here.shape == value.shape else None
    if like is None and value.shape == parameter.shape:
        like = parameter
    if like is None:
        like = value
    # A copy: an optimizer goes on with the very tensors that it loads, in place.
    local = local_of(brought_to(value, like)).to(local_of(like).device, copy=True)
    return as_placed(local, like)


def require_whole(model: nn.Module, optimizer: Any) -> None:
    """Raise a ValueError if an optimizer trains something that is not in the model.

    Args:
        model: The pruned model.
        optimizer: Its optimizer.
    """
    known = {id(tensor) for tensor in _everything(model).values()}
    given = [each for group in optimizer.param_groups for each in group["params"]]
    outside = [each for each in given if each.requires_grad and id(each) not in known]
    if outside:
        # Its moments would go back and its weights not: a model that there never was.
        raise ValueError(
            "all that the optimizer trains must be in the model that was set up for pruning, since "
            f"it goes back as a whole with max_drop, got {len(outside)} parameters outside, the "
            f"first of shape {tuple(outside[0].shape)}: hand the whole model over, with "
            "include=[...] for what is to be pruned"
        )


def check(state: Any, model: nn.Module) -> None:
    """Raise a ValueError unless a state has weights of a model, and an optimizer's state.

    Args:
        state: One of those that :func:`taken` returned.
        model: The pruned model.
    """
    parts = state if isinstance(state, Mapping) else {}
    if not all(isinstance(parts.get(name), Mapping) for name in ("weights", "optimizer", "scores")):
        _refuse("weights, optimizer and scores of each state", str(state))
    everything, found = _everything(model), parts["weights"]
    trained = {name for name, each in model.named_parameters() if each.requires_grad}
    for name in [*trained, *found]:
        wanted, got = (_shape_of(each.get(name)) for each in (everything, found))
        if wanted != got:
            _refuse(f"{name} with shape {wanted}", f"{got}")
    for number, entries in parts["optimizer"].items():
        if not str(number).isdecimal() or not isinstance(entries, Mapping):
            _refuse("the optimizer's state by numbers of parameters", str(number))


def _shape_of(value: Any) -> tuple[int, ...] | str:
    return tuple(value.shape) if isinstance(value, Tensor) else "absent"


def _refuse(must: str, got: str) -> None:
    raise ValueError(
        f"goal in the state must hold {must}, got {' '.join(got.split())[:80]}: load what "
        "scheduler.state_dict() returned, of the same model"
    )


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
    # As accelerate wraps it, its step says nothing of what it takes.
    inner = getattr(lr_scheduler, "scheduler", lr_scheduler)
    # One that waits for a metric to stand still (ReduceLROnPlateau) has no planned cool-down.
    step = getattr(inner, "step", None)
    return step is not None and "metrics" not in inspect.signature(step).parameters


def on_host(value: Any, copies: bool = True) -> Any:
    """Nested dicts and lists whose tensors, or this process's shards, are in host memory.

    Args:
        value: What there is.
        copies: Whether those that are there already are copied.
    """
    if isinstance(value, Tensor):
        value = value.detach()
        return as_placed(local_of(value).to("cpu", copy=copies), value)
    if isinstance(value, Mapping):
        return {key: on_host(each, copies) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(on_host(each, copies) for each in value)
    return copy.deepcopy(value) if copies else value


def _options(optimizer: Any) -> list[dict[str, Any]]:
    return [
        on_host({name: value for name, value in group.items() if name != "params"})
        for group in optimizer.param_groups
    ]


def _weights(model: nn.Module, optimizer: Any) -> dict[str, Tensor]:
    """What training changes: parameters that it trains, and buffers but the masks."""
    # What is frozen for a while counts as well: its turn may come on the ramp.
    given = {id(each) for group in optimizer.param_groups for each in group["params"]}
    return {
        name: tensor
        for name, tensor in _everything(model).items()
        if not isinstance(tensor, nn.Parameter) or tensor.requires_grad or id(tensor) in given
    }


def _everything(model: nn.Module) -> dict[str, Tensor]:
    """All parameters, and those buffers that a model is saved with, but the masks."""
    _give_up_gathered_(model.modules())
    parameters = dict(model.named_parameters())
    names = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    buffers = {
        f"{prefix}.{key}" if prefix else key: buffer
        for prefix, module in model.named_modules()
        for key, buffer in module._buffers.items()
        # The others are caches, which a forward may make anew in another size.
        if buffer is not None and key not in module._non_persistent_buffers_set
    }
    # The scheduler keeps the masks, and puts them back.
    masks = {name for name in buffers if name.removesuffix("_mask") + "_orig" in names}
    return parameters | {name: each for name, each in buffers.items() if name not in masks}


def _give_up_gathered_(modules: Iterable[nn.Module]) -> None:
    # After an evaluation FSDP2 may still have gathered parameters in place of the sharded ones,
    # and what is written to those is lost.
    for module in modules:
        for key, parameter in list(module._parameters.items()):
            if parameter is not None:
                registered(module, key)
