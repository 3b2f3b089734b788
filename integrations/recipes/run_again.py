"""A recipe that is started in a folder with another run: resumed, finished already, or refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers.trainer_utils import get_last_checkpoint

from platon_prune.integrations.hf_seals import last_complete_checkpoint
from platon_prune.integrations.recipes.files import shown, shown_path
from platon_prune.integrations.recipes.parsing import Arguments
from platon_prune.integrations.recipes.report import settings_of, write_json

SETTINGS_FILE = "run_settings.json"
RESULTS_FILE = "results.json"
# What of transformers' arguments changes no number of a run: where and how it shows and keeps what
# it does, and on what machine.
_SHOWN_OR_KEPT = (
    "output_dir", "run_name", "project", "trackio", "report_to", "disable_tqdm", "log", "save_",
    "hub_", "push_to_hub", "dataloader_num_workers", "dataloader_pin", "dataloader_persistent",
    "dataloader_prefetch", "resume_from_checkpoint", "local_rank", "ddp_", "use_cpu",
    "include_num_input", "skip_memory", "torch_empty", "enable_jit", "restore_callback",
)  # fmt: skip
_NO_NUMBERS = ("cache_dir", "preprocessing_num_workers", "overwrite_cache")


def deciding_settings(arguments: Arguments[Any]) -> dict[str, Any]:
    """The settings that decide a run's numbers, as plain values."""
    found: dict[str, Any] = {"recipe": arguments.recipe}
    for group in settings_of(arguments).values():
        found |= {
            name: value
            for name, value in group.items()
            if not name.startswith(_SHOWN_OR_KEPT) and name not in _NO_NUMBERS
        }
    # As a file would return them, so that tuples and paths compare equal to what was written.
    plain: dict[str, Any] = json.loads(json.dumps(found, default=str))
    return plain


def remember(settings: Mapping[str, Any], folder: Path) -> None:
    """Write the settings beside the checkpoints that the run will leave."""
    write_json(settings, folder / SETTINGS_FILE)


def last_checkpoint(arguments: Arguments[Any]) -> str | None:
    """The newest checkpoint in ``--output_dir`` that can be resumed from."""
    folder = arguments.training.output_dir or "."
    if not Path(folder).is_dir():
        return None
    if arguments.pruning.is_dense:
        found: str | None = get_last_checkpoint(folder)  # type: ignore[no-untyped-call]
        return found
    return last_complete_checkpoint(folder)


def look_for_a_run(arguments: Arguments[Any]) -> str | None:
    """What to do about a run that ``--output_dir`` holds.

    A run of equal settings that was interrupted is resumed: ``resume_from_checkpoint`` is set.

    Returns:
        What to tell the user; None where there is nothing. If the run is finished, ``do_train`` is
        off and there is nothing left to do.

    Raises:
        ValueError: If it is of other settings.
    """
    training = arguments.training
    folder = Path(training.output_dir or ".")
    held = _held(folder)
    if held is None:
        return None
    different = _differences(folder, deciding_settings(arguments))
    if different:
        raise ValueError(
            f"--output_dir must be the folder of a new run, or of one with equal settings, got "
            f"{shown_path(folder, 40)} with {held} of another ({different}): give another "
            "--output_dir, or go on with that run by --resume_from_checkpoint true"
        )
    if is_finished(folder):
        return f"the run in {folder} is resumed: it has ended, so nothing is left to do"
    checkpoint = last_checkpoint(arguments)
    if checkpoint is None:
        return f"the run in {folder} left no whole checkpoint: it starts from its beginning"
    training.resume_from_checkpoint = checkpoint
    return f"the run in {folder} is resumed from {Path(checkpoint).name}: its settings are equal"


def is_finished(folder: Path) -> bool:
    """Whether a run has written its model and, last of all, its results."""
    return (folder / RESULTS_FILE).is_file() and _has_model(folder)


def _held(folder: Path) -> str | None:
    if not folder.is_dir():
        return None
    if any(path.is_dir() for path in folder.glob("checkpoint-*")):
        return "checkpoints"
    return "a model" if _has_model(folder) else None


def _has_model(folder: Path) -> bool:
    patterns = ("*.safetensors", "*.safetensors.index.json", "pytorch_model*")
    return any(next(folder.glob(pattern), None) is not None for pattern in patterns)


def _differences(folder: Path, settings: Mapping[str, Any]) -> str:
    """The first settings that differ from those of the run in a folder; empty if none does."""
    try:
        before = json.loads((folder / SETTINGS_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return f"it has no {SETTINGS_FILE}"
    names = [
        name
        for name in dict.fromkeys((*settings, *before))
        if settings.get(name) != before.get(name)
    ]
    told = [
        f"{name} {shown(before.get(name), 16)}, now {shown(settings.get(name), 16)}"
        for name in names[:1]
    ]
    more = f" and {len(names) - 1} more settings" if len(names) > 1 else ""
    return ", ".join(told) + more
