"""Settings and states of schedulers: what two must have in common to go on as one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from platon_prune.amounts import ZEROS
from platon_prune.criteria import Criterion
from platon_prune.history.history import check_rows
from platon_prune.schedule import CubicSchedule, Schedule

STATE_VERSION = 3
# What a setting is where it is not named, because there was nothing else when the state was saved.
_DEFAULTS = {"schedule": CubicSchedule.name}
COUNTERS = (
    "last_step",
    "skipped_steps",
    "threshold",
    "window_steps",
    "has_scores",
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
    """
    # The version first: another one may lack anything that is looked at below.
    version = state.get("version") if isinstance(state, Mapping) else type(state).__name__
    if version != STATE_VERSION:
        raise ValueError(
            f"state must be a PlatonScheduler's, version {STATE_VERSION}, got version {version}: "
            "load what scheduler.state_dict() returned with this release of platon_prune"
        )
    _require_keys(state, ("settings", "tensors", *COUNTERS), "state")
    require_equal_settings(settings, state["settings"], "here", "in the state")
    adopted = state["adopted"]
    if adopted is not None and not (isinstance(adopted, float) and 0 <= adopted <= 1):
        raise ValueError(f"adopted in the state must be a fraction or None, got {adopted!r}")
    if state["history"] is not None:
        check_rows(state["history"], len(shapes))
    saved = {name: _shape(tensor.get("mask")) for name, tensor in state["tensors"].items()}
    for name in [*shapes, *saved]:
        if saved.get(name) != shapes.get(name):
            raise ValueError(
                f"state must be of the same model: {name} has shape {shapes.get(name, 'absent')} "
                f"here and {saved.get(name, 'absent')} in the state; build the model that was saved"
            )
    for name, shape in shapes.items():
        tensor = state["tensors"][name]
        _require_keys(tensor, (*entries, "had_gradient"), f"state of {name}")
        for entry in entries:
            if _shape(tensor[entry]) != shape:
                got = _shape(tensor[entry]) or type(tensor[entry]).__name__
                raise ValueError(
                    f"{entry} of {name} must have shape {shape} in the state, got {got}"
                )


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
        if own != other:
            raise ValueError(
                f"settings must be of the same configuration: {name} is {own!r} {here} and "
                f"{other!r} {there}; set pruning up alike"
            )


def _shape(value: Any) -> tuple[int, ...] | None:
    return tuple(value.shape) if isinstance(value, Tensor) else None


def _require_keys(mapping: Mapping[str, Any], keys: Sequence[str], what: str) -> None:
    missing = [key for key in keys if key not in mapping]
    if missing:
        raise ValueError(
            f"{what} must hold {', '.join(keys)}; it lacks {', '.join(missing)}: load what "
            "scheduler.state_dict() returned, whole"
        )
