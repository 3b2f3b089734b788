"""The scheduler's state in a transformers checkpoint: complete or not there."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers.trainer_callback import TrainerState

from platon_prune import PlatonScheduler
from platon_prune.integrations.hf_models import is_sharded, load_renamed
from platon_prune.integrations.hf_seals import is_torn
from platon_prune.integrations.writing import replacing

STATE_FILE = "platon_scheduler.pt"
# Of a sharded model: its tensors as torch.distributed.checkpoint writes them, and this file.
STATE_FOLDER = "platon_scheduler"
_OUTLINE = "outline.pt"


@dataclass(frozen=True)
class SavedState:
    """What a checkpoint holds of a scheduler.

    Args:
        run: Identifies the run that wrote it, in hexadecimal digits.
        folder: The checkpoint's.
        scheduler: The scheduler's state; its tensors are on the meta device where ``shards`` is
            given.
        shards: Folder with the values of the tensors; None if the state has them.
        written: When it was written, in seconds since 1970.
    """

    run: str
    folder: Path
    scheduler: dict[str, Any]
    shards: Path | None
    written: float

    def load_into(
        self, scheduler: PlatonScheduler, model: nn.Module, optimizer: Any = None
    ) -> None:
        """Load the state into a scheduler; collective if it is in shards or the model is sharded.

        Args:
            scheduler: The one that goes on; changed in place.
            model: The scheduler's model. The trainer has loaded its weights from the same
                checkpoint, if it could.
            optimizer: Likewise its optimizer; needed for a run with ``max_drop``.

        Raises:
            ValueError: If it is of another version, model or configuration.
        """
        if not is_sharded(model):
            load_renamed(model, self.folder)
        if self.shards is None:
            scheduler.load_state_dict(self.scheduler)
            return
        import torch.distributed.checkpoint as sharded_files

        # torch reads in place, each process its shards: so the scheduler's own tensors, of which
        # these are copies, say what is to be read here, however many processes wrote it.
        own = scheduler.state_dict()
        if "goal" in self.scheduler:
            own["goal"] = scheduler.room_for(self.scheduler, optimizer)["goal"]
        room, wanted = _sharded(own), _sharded(self.scheduler)
        missing = next((name for name in wanted if name not in room), None)
        if missing is not None:
            raise ValueError(
                f"model and optimizer must have what the checkpoint holds, got none for {missing}: "
                "build the model that was saved, and train it with the same optimizer"
            )
        flat = {name: room[name] for name in wanted}
        reader = sharded_files.FileSystemReader(self.shards)  # type: ignore[attr-defined]
        sharded_files.load(  # type: ignore[attr-defined]
            flat, storage_reader=reader, no_dist=not dist.is_initialized()
        )
        scheduler.load_state_dict(_with_sharded(self.scheduler, flat))


def exported_by_a_platon_callback(state: TrainerState) -> dict[str, Any] | None:
    """What a PlatonCallback, or one derived from it, left in a trainer's state, if one did."""
    exports: Any = state.stateful_callbacks or {}
    for export in exports.values():
        for each in export if isinstance(export, list) else [export]:
            if "checkpoint" in each.get("attributes", {}):
                return dict(each)
    return None


def saved_states(folder: str | os.PathLike[str] | None) -> list[SavedState]:
    """The states of schedulers in a checkpoint's folder, the newest first.

    There are two where a run on one process and a sharded one wrote the same checkpoint.

    Args:
        folder: The checkpoint's; None, or one that is not there, has none.
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
    """Find the scheduler's state in the checkpoint that the trainer has just loaded.

    Args:
        state: The trainer's state, as the checkpoint has it.
        folders: Where the checkpoint may be; it may also be where it was written.

    Raises:
        ValueError: If the checkpoint is of a run without a PlatonCallback, has no such state, or
            was cut off while it was written over an earlier one.
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
                _refuse_torn(saved.folder)
                return saved
    raise ValueError(
        f"the checkpoint of step {state.global_step} must hold {STATE_FILE} (or {STATE_FOLDER} of "
        f"a sharded model), found none of this run in {[str(c) for c in candidates if c]}: a "
        "checkpoint written with save_only_model, or cut off, can't be resumed; for one that was "
        "moved, call PlatonCallback.install(trainer) before "
        "trainer.train(resume_from_checkpoint=...)"
    )


def _refuse_torn(folder: Path) -> None:
    if is_torn(folder):
        raise ValueError(
            f"{folder} must hold the files of one save, got some of another: it was cut off while "
            "it was written over an earlier one, or changed since; resume from the checkpoint "
            "before it, or with resume_from_checkpoint=True"
        )


def folder_written_last(output_dir: str, step: int) -> Path | None:
    """The folder of a step's checkpoint; of several trials, the one that was written last."""
    # Trials of a hyperparameter search write one folder deeper.
    root, name = Path(output_dir), f"checkpoint-{step}"
    folders = [folder for folder in (root / name, *root.glob(f"*/{name}")) if folder.is_dir()]
    return max(folders, key=lambda folder: folder.stat().st_mtime, default=None)


def save_whole(run: str, scheduler: PlatonScheduler, folder: Path) -> None:
    """Write the state of a scheduler whose tensors are whole, as one file of a checkpoint.

    Args:
        run: Identifies the run.
        scheduler: Its scheduler.
        folder: The checkpoint's, which exists.
    """
    _save({"run": run, "scheduler": scheduler.state_dict()}, folder / STATE_FILE)


def save_shards(run: str, scheduler: PlatonScheduler, folder: Path) -> None:
    """Write the state of a scheduler whose tensors are sharded; collective.

    Args:
        run: Identifies the run.
        scheduler: Its scheduler.
        folder: The checkpoint's, which exists in the first process.
    """
    import torch.distributed.checkpoint as sharded_files

    folder, state = folder / STATE_FOLDER, scheduler.state_dict()
    outline = folder / _OUTLINE
    if dist.get_rank() == 0:
        folder.mkdir(exist_ok=True)
        # What has no outline does not count as saved, so the outline goes first and comes last.
        outline.unlink(missing_ok=True)
    # torch has all processes agree before any writes, and returns when all have written.
    writer = sharded_files.FileSystemWriter(folder)  # type: ignore[attr-defined]
    tensors = _sharded(state)
    sharded_files.save(tensors, storage_writer=writer)  # type: ignore[attr-defined]
    if dist.get_rank() == 0:
        outline_of = {name: _outline_of(tensor) for name, tensor in tensors.items()}
        _save({"run": run, "scheduler": _with_sharded(state, outline_of)}, outline)


def _outline_of(tensor: Tensor) -> Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")


def _sharded(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors in the state of a scheduler that lie as the weights do, by names in the files."""
    return _flat(state["tensors"]) | _flat(state.get("goal"), "goal")


def _with_sharded(state: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The state with others in the places of those that :func:`_sharded` found."""
    goal = {"goal": _filled(state["goal"], tensors, "goal")} if "goal" in state else {}
    return {**state, "tensors": _filled(state["tensors"], tensors), **goal}


def _flat(value: Any, path: str = "") -> dict[str, Tensor]:
    """The tensors in nested dicts and lists, by the way to them."""
    if isinstance(value, Tensor):
        return {path: value}
    found: dict[str, Tensor] = {}
    for key, each in _entries(value):
        found |= _flat(each, f"{path}/{key}" if path else f"{key}")
    return found


def _filled(value: Any, tensors: Mapping[str, Tensor], path: str = "") -> Any:
    """Nested dicts and lists with other tensors in the places of those that :func:`_flat` found."""
    if path in tensors:
        return tensors[path]
    filled = {
        key: _filled(each, tensors, f"{path}/{key}" if path else f"{key}")
        for key, each in _entries(value)
    }
    if isinstance(value, Mapping):
        return filled
    return list(filled.values()) if isinstance(value, list) else value


def _entries(value: Any) -> Iterable[tuple[Any, Any]]:
    if isinstance(value, Mapping):
        return value.items()
    return enumerate(value) if isinstance(value, list) else ()


def _save(content: dict[str, Any], path: Path) -> None:
    with replacing(path) as file:
        torch.save(content, file)
