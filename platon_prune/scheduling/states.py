"""Settings and states of schedulers: what two must have in common to go on as one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, NoReturn

import torch
from torch import Tensor

from platon_prune.amounts import ZEROS
from platon_prune.criteria import Criterion
from platon_prune.history.history import check_rows
from platon_prune.schedule import CubicSchedule, Schedule
from platon_prune.scheduling.outcomes import Counters
from platon_prune.tensors.shards import local_of

STATE_VERSION = 3
# What a setting is where it is not named, because there was nothing else when the state was saved.
_DEFAULTS = {
    "schedule": CubicSchedule.name,
    "normalizer": "none",
    "scope": "global",
    "fades": False,
}
# Entries of a tensor's state that are weights, not scores.
_WEIGHTS = ("refilled", "set_aside")
# What a state must have beside its settings and tensors; a counter is saved because it is a field.
COUNTERS = (
    "last_step",
    "threshold",
    *(field.name for field in fields(Counters)),
    "adopted",
    "history",
)


def settings_of(
    criterion: Criterion,
    masking: str,
    schedule: Schedule,
    granularity: Mapping[str, Any],
    adopts_zeros: bool = False,
) -> dict[str, Any]:
    """What decides which weights are pruned, as plain numbers and strings.

    Args:
        criterion: How weights are scored.
        masking: "step" or "window".
        schedule: The amount at each step.
        granularity: The settings of the granularity.
        adopts_zeros: Whether the initial amount is what the model has of zeros.
    """
    settings = {
        "criterion": criterion.name,
        **criterion.settings,
        "masking": masking,
        **schedule.settings,
        **granularity,
    }
    # How many zeros were adopted is in the state: a model that was pruned further has more now.
    return settings | ({"initial_amount": ZEROS} if adopts_zeros else {})


def check_state(
    state: Any,
    settings: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    entries: Sequence[str],
) -> None:
    """Raise a ValueError that names the first difference between a state and a scheduler.

    Args:
        state: What is to be loaded.
        settings: The scheduler's own settings.
        shapes: The shape of each tensor.
        entries: What the state of each tensor must have of this shape; "mask" among it.

    Raises:
        ValueError: If an entry is missing, of another kind, or can't be used.
    """
    # The version first: another one may lack anything that is looked at below.
    version = state.get("version") if isinstance(state, Mapping) else type(state).__name__
    if type(version) is not int or version != STATE_VERSION:
        raise ValueError(
            f"state must be a PlatonScheduler's, version {STATE_VERSION}, got version "
            f"{_in_a_line(version, 40)}: load what scheduler.state_dict() returned with this "
            "release of platon_prune"
        )
    _require_keys(state, ("settings", "tensors", *COUNTERS), "state")
    for part in ("settings", "tensors"):
        _require_mapping(state[part], part)
    require_equal_settings(settings, state["settings"], "here", "in the state")
    _check_counters(state)
    if state["history"] is not None:
        check_rows(state["history"], len(shapes))
    for name, tensor in state["tensors"].items():
        _require_mapping(tensor, f"tensors of {name}")
    saved = {name: _shape(tensor.get("mask")) for name, tensor in state["tensors"].items()}
    for name in [*shapes, *saved]:
        if name not in shapes or saved.get(name) != shapes[name]:
            own, other = (each.get(name, "absent") for each in (shapes, saved))
            raise ValueError(
                f"state must be of the same model: {_in_a_line(name)} has shape {own} here and "
                f"{other} in the state; build the model that was saved"
            )
    for name, shape in shapes.items():
        tensor = state["tensors"][name]
        _require_keys(tensor, (*entries, "had_gradient"), f"state of {name}")
        for entry in entries:
            _check_tensor(tensor[entry], entry, name, shape)
        if type(tensor["had_gradient"]) is not bool:
            _refuse(f"had_gradient of {name}", "True or False", tensor["had_gradient"])


def _check_counters(state: Mapping[str, Any]) -> None:
    last_step = state["last_step"]
    if not _is_count(last_step):
        _refuse("last_step", "a number of steps", last_step)
    for name, default in ((field.name, field.default) for field in fields(Counters)):
        if isinstance(default, bool):
            if type(state[name]) is not bool:
                _refuse(name, "True or False", state[name])
        elif not _is_count(state[name]) or state[name] > last_step:
            _refuse(name, f"a number of steps, at most {last_step}", state[name])
    threshold, adopted = state["threshold"], state["adopted"]
    if threshold is not None and (type(threshold) is not float or math.isnan(threshold)):
        _refuse("threshold", "a score or None", threshold)
    if adopted is not None and not (isinstance(adopted, float) and 0 <= adopted <= 1):
        _refuse("adopted", "a fraction or None", adopted)


def _check_tensor(value: Any, entry: str, name: str, shape: tuple[int, ...]) -> None:
    """That a tensor can be copied from: of the shape, with values, and no NaN among the scores."""
    what = f"{entry} of {name}"
    if _shape(value) != shape:
        got = _shape(value) or type(value).__name__
        raise ValueError(
            f"{what} must have shape {shape} in the state, got {got}: load what "
            "scheduler.state_dict() returned, of a model of the same shapes"
        )
    local = local_of(value)
    if local.layout != torch.strided or local.is_meta:
        place = "on the meta device" if local.is_meta else f"of layout {local.layout}"
        _refuse(what, "a dense tensor with values", f"one {place}")
    if entry == "mask":
        if value.dtype != torch.bool:
            _refuse(what, "of dtype torch.bool", value.dtype)
    elif not value.is_floating_point():
        _refuse(what, "of a floating dtype", value.dtype)
    # The least entry is NaN if any is, and takes no memory to find. What a diverged model's own
    # weights are is not for a state to refuse.
    elif entry not in _WEIGHTS and local.numel() and local.min().isnan():
        _refuse(what, "free of NaN", "some: it would be pruned by no order at all")


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 63


def _refuse(what: str, must: str, got: Any) -> NoReturn:
    raise ValueError(
        f"{_in_a_line(what)} in the state must be {must}, got {_in_a_line(got)}: load what "
        "scheduler.state_dict() returned"
    )


def _in_a_line(value: Any, most: int = 80) -> str:
    """A value as it goes into an error: a tensor's text has many lines, a name any length."""
    return " ".join(str(value).split())[:most]


def _require_mapping(value: Any, what: str) -> None:
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        _refuse(what, "a dict by names", type(value).__name__)


def require_equal_settings(
    settings: Mapping[str, Any], others: Mapping[str, Any], here: str, there: str
) -> None:
    """Raise a ValueError that names the first setting in which two schedulers differ.

    Args:
        settings: Of the one.
        others: Of the other.
        here: What to call the one, such as "in process 0".
        there: Likewise the other.
    """
    for name in [*settings, *others]:
        absent = _DEFAULTS.get(name, "absent")
        own, other = (each.get(name, absent) for each in (settings, others))
        if _differ(own, other):
            raise ValueError(
                f"settings must be of the same configuration: {_in_a_line(name)} is {own!r} {here} "
                f"and {_in_a_line(repr(other), 200)} {there}; set pruning up alike"
            )


def _differ(own: Any, other: Any) -> bool:
    try:
        return bool(own != other)
    except (RuntimeError, TypeError, ValueError):  # of tensors, which no setting is
        return True


def _shape(value: Any) -> tuple[int, ...] | None:
    return tuple(value.shape) if isinstance(value, Tensor) and not value.is_nested else None


def _require_keys(mapping: Mapping[str, Any], keys: Sequence[str], what: str) -> None:
    missing = [key for key in keys if key not in mapping]
    if missing:
        raise ValueError(
            f"{what} must hold {', '.join(keys)}; it lacks {', '.join(missing)}: load what "
            "scheduler.state_dict() returned, whole"
        )
