"""What the state dict of a scheduler must look like before any of it is taken over."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

STATE_VERSION = 1
COUNTERS = ("last_step", "skipped_steps", "threshold", "window_steps", "has_scores")


def check_state(
    state: Any,
    settings: Mapping[str, Any],
    tensors: Mapping[str, Mapping[str, tuple[int, ...] | None]],
) -> None:
    """Raise a ValueError that names the first difference between a state and a scheduler.

    Args:
        state: What is to be loaded.
        settings: The scheduler's own settings.
        tensors: For each tensor, the entries its state must have with their shapes; None for an
            entry that may have any.
    """
    version = state.get("version") if isinstance(state, Mapping) else type(state).__name__
    if version != STATE_VERSION:
        raise ValueError(
            f"state must be a PlatonScheduler's, version {STATE_VERSION}, got version {version}: "
            "load what scheduler.state_dict() returned with this release of platon_prune"
        )
    _require_keys(state, ("settings", "tensors", *COUNTERS), "state")
    for name in [*settings, *state["settings"]]:
        here, there = (each.get(name, "absent") for each in (settings, state["settings"]))
        if here != there:
            raise ValueError(
                f"state must be of the same configuration: {name} is {here!r} here and {there!r} "
                "in the state; set pruning up as it was saved"
            )
    shapes = {name: entries["mask"] for name, entries in tensors.items()}
    saved = {name: tuple(entries.get("shape", ())) for name, entries in state["tensors"].items()}
    for name in [*shapes, *saved]:
        if saved.get(name) != shapes.get(name):
            raise ValueError(
                f"state must be of the same model: {name} has shape {shapes.get(name, 'absent')} "
                f"here and {saved.get(name, 'absent')} in the state; build the model that was saved"
            )
    for name, entries in tensors.items():
        _check_tensor(name, state["tensors"][name], entries)


def _check_tensor(
    name: str, saved: Mapping[str, Any], entries: Mapping[str, tuple[int, ...] | None]
) -> None:
    _require_keys(saved, entries, f"state of {name}")
    for entry, shape in entries.items():
        value = saved[entry]
        if (
            entry != "mask"
            and shape is not None
            and (not isinstance(value, Tensor) or tuple(value.shape) != shape)
        ):
            got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"{entry} of {name} must have shape {shape} in the state, got {got}")


def _require_keys(mapping: Mapping[str, Any], keys: Any, what: str) -> None:
    missing = [key for key in keys if key not in mapping]
    if missing:
        raise ValueError(
            f"{what} must hold {', '.join(keys)}; it lacks {', '.join(missing)}: load what "
            "scheduler.state_dict() returned, whole"
        )
