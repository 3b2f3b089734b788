"""The scheduler's state in a transformers checkpoint: complete or not there."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import TrainerState

from platon_prune import PlatonScheduler
from platon_prune.integrations.hf_models import is_sharded, load_renamed

logger = logging.getLogger(__name__)

STATE_FILE = "platon_scheduler.pt"
# Of a sharded model: its tensors as torch.distributed.checkpoint writes them, and this file.
STATE_FOLDER = "platon_scheduler"
_OUTLINE = "outline.pt"


@dataclass(frozen=True)
class SavedState:
    """What a checkpoint holds of a scheduler.

    Args:
        run: Which run wrote it.
        folder: The checkpoint's.
        scheduler: The state; where ``shards`` is given its tensors are on the meta device.
        shards: Folder with the tensors; None if they are in the state.
        written: When, in seconds.
    """

    run: str
    folder: Path
    scheduler: dict[str, Any]
    shards: Path | None
    written: float

    def load_into(self, scheduler: PlatonScheduler, model: nn.Module) -> None:
        """Load it; collective if it is in shards or the model is sharded.

        Args:
            scheduler: To go on.
            model: Whose weights the trainer has loaded from the same checkpoint, if it could.

        Raises:
            ValueError: If it is of another version, model or configuration.
        """
        if not is_sharded(model):
            load_renamed(model, self.folder)
        if self.shards is None:
            scheduler.load_state_dict(self.scheduler)
            return
        own = scheduler.state_dict()
        import torch.distributed.checkpoint as sharded_files

        # Read into tensors sharded as the scheduler's own are, whatever ranks wrote the files.
        flat = _flat(own["tensors"])
        reader = sharded_files.FileSystemReader(self.shards)  # type: ignore[attr-defined]
        sharded_files.load(  # type: ignore[attr-defined]
            flat, storage_reader=reader, no_dist=not dist.is_initialized()
        )
        state = self.scheduler | {
            "tensors": {
                name: entries | {key: flat[f"{name}/{key}"] for key in _tensors_of(entries)}
                for name, entries in self.scheduler["tensors"].items()
            }
        }
        scheduler.load_state_dict(state)


def exported_by_a_platon_callback(state: TrainerState) -> dict[str, Any] | None:
    """What this callback, or one derived from it, left in the trainer's state."""
    exports: Any = state.stateful_callbacks or {}
    for export in exports.values():
        for each in export if isinstance(export, list) else [export]:
            if "checkpoint" in each.get("attributes", {}):
                return dict(each)
    return None


def saved_states(folder: str | os.PathLike[str] | None) -> list[SavedState]:
    """What was saved in a checkpoint's folder, the newest first.

    There are two where a run on one process and a sharded one wrote the same checkpoint.
    """
    found = []
    for name, shards in ((STATE_FILE, None), (f"{STATE_FOLDER}/{_OUTLINE}", STATE_FOLDER)):
        path = Path(folder or "", name)
        if folder is not None and path.is_file():
            content = torch.load(path, weights_only=True, map_location=None if shards else "cpu")
            where = None if shards is None else path.parent
            written = path.stat().st_mtime
            state = content["scheduler"]
            found.append(SavedState(content["run"], Path(folder), state, where, written))
    return sorted(found, key=lambda saved: saved.written, reverse=True)


def state_to_resume(
    state: TrainerState, folders: Sequence[str | os.PathLike[str] | None]
) -> SavedState:
    """The scheduler's state of the checkpoint that the trainer has just loaded.

    Args:
        state: The trainer's, as it was in the checkpoint.
        folders: Where the checkpoint may be, besides where it was written.

    Raises:
        ValueError: If it is of a run without a PlatonCallback, or is not there.
    """
    exported = exported_by_a_platon_callback(state)
    if exported is None:
        raise ValueError(
            f"the checkpoint of step {state.global_step} must be of a run with PlatonCallback, got "
            "one without: it was trained dense; load its weights with from_pretrained and start a "
            "new run instead of resuming"
        )
    recorded = exported["attributes"]["checkpoint"]
    candidates = [*folders, recorded["folder"]]
    for candidate in candidates:
        for saved in saved_states(candidate):
            if saved.run == recorded["run"] and saved.scheduler["last_step"] == state.global_step:
                return saved
    raise ValueError(
        f"the checkpoint of step {state.global_step} must hold {STATE_FILE} (or {STATE_FOLDER} of "
        f"a sharded model), found none of this run in {[str(c) for c in candidates if c]}: a "
        "checkpoint written with save_only_model, or cut off, can't be resumed; for one that was "
        "moved, call PlatonCallback.install(trainer) before "
        "trainer.train(resume_from_checkpoint=...)"
    )


def newest_if_true(output_dir: str | None, path: str | bool | None) -> str | bool | None:
    """For ``True`` the newest checkpoint that can be resumed from; anything else as it is.

    One that was cut off while it was written is passed over: a trainer would take it.
    """
    if path is not True:
        return path
    return last_complete_checkpoint(output_dir or ".") or True


def last_complete_checkpoint(output_dir: str | os.PathLike[str]) -> str | None:
    """The newest ``checkpoint-N`` in which all was written that a pruned run is resumed from."""
    folders = [folder for folder in Path(output_dir).glob("checkpoint-*") if folder.is_dir()]
    numbered = [folder for folder in folders if folder.name.split("-")[1].isdecimal()]
    # By number: checkpoint-1000 comes before checkpoint-200 in the alphabet.
    for folder in sorted(numbered, key=lambda each: int(each.name.split("-")[1]), reverse=True):
        if _is_complete(folder):
            return str(folder)
        logger.warning(
            "%s is passed over: it was cut off while it was written, or is of no pruned run", folder
        )
    return None


def _is_complete(folder: Path) -> bool:
    # Weights, optimizer, the scheduler if it is whole, the trainer's state, the scheduler's shards
    # and their outline: in this order, the two states of the scheduler in one move.
    names = (STATE_FILE, f"{STATE_FOLDER}/{_OUTLINE}")
    # A file that is there may be cut off in its middle, which only reading it shows.
    try:
        json.loads((folder / TRAINER_STATE_NAME).read_text())
    except (OSError, ValueError):
        return False
    return any((folder / name).is_file() for name in names)


def save_whole(run: str, scheduler: PlatonScheduler, folder: Path) -> None:
    """Write the state of a scheduler whose tensors are whole, as one file."""
    _save_atomically({"run": run, "scheduler": scheduler.state_dict()}, folder / STATE_FILE)


def save_shards(run: str, scheduler: PlatonScheduler, folder: Path) -> None:
    """Write the state of a scheduler whose tensors are sharded; collective."""
    import torch.distributed.checkpoint as sharded_files

    folder, state = folder / STATE_FOLDER, scheduler.state_dict()
    outline = folder / _OUTLINE
    if dist.get_rank() == 0:
        folder.mkdir(exist_ok=True)
        # Without it nothing counts as saved here, so it goes first and comes last.
        outline.unlink(missing_ok=True)
    # It has all processes agree before any writes, and returns when all have written.
    writer = sharded_files.FileSystemWriter(folder)  # type: ignore[attr-defined]
    sharded_files.save(_flat(state["tensors"]), storage_writer=writer)  # type: ignore[attr-defined]
    if dist.get_rank() == 0:
        tensors = {
            name: entries | {key: _outline_of(value) for key, value in _tensors_of(entries).items()}
            for name, entries in state["tensors"].items()
        }
        _save_atomically({"run": run, "scheduler": state | {"tensors": tensors}}, outline)


def _outline_of(tensor: Tensor) -> Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")


def _tensors_of(entries: Mapping[str, Any]) -> dict[str, Tensor]:
    return {key: value for key, value in entries.items() if isinstance(value, Tensor)}


def _flat(tensors: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    return {
        f"{name}/{key}": value
        for name, entries in tensors.items()
        for key, value in _tensors_of(entries).items()
    }


def _save_atomically(content: dict[str, Any], path: Path) -> None:
    """Write beside, then replace: a kill leaves a complete file or none."""
    partial = path.with_suffix(".new")
    with open(partial, "wb") as file:
        torch.save(content, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
