"""The scheduler's file in a transformers checkpoint: written whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from transformers.trainer_callback import TrainerState

STATE_FILE = "platon_scheduler.pt"


def exported_by_a_platon_callback(state: TrainerState) -> dict[str, Any] | None:
    """What this callback, or one derived from it, left in the trainer's state."""
    exports: Any = state.stateful_callbacks or {}
    for export in exports.values():
        for each in export if isinstance(export, list) else [export]:
            if "checkpoint" in each.get("attributes", {}):
                return dict(each)
    return None


def read_state(folder: str | os.PathLike[str] | None) -> dict[str, Any] | None:
    """What was saved in a checkpoint's folder, or None."""
    path = Path(folder or "", STATE_FILE)
    if folder is None or not path.is_file():
        return None
    content: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu")
    return content


def save_atomically(content: dict[str, Any], path: Path) -> None:
    """Write beside, then replace: a kill leaves a complete file or none."""
    partial = path.with_suffix(".new")
    with open(partial, "wb") as file:
        torch.save(content, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
