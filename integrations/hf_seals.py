"""The seal of a checkpoint: a file that is written last, and says which files belong together.

A checkpoint without a seal was cut off. One whose files are not those that its seal names was
written over and cut off in the middle: some of its files are new, some old.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from platon_prune.integrations.writing import write_text

logger = logging.getLogger(__name__)

SEAL = "platon_complete.json"
# What a run is resumed from; configs and tokenizers may be corrected by hand.
_SUFFIXES = {".safetensors", ".bin", ".pt", ".pth", ".distcp"}
_NAMES = {"trainer_state.json", ".metadata"}


def seal(run: str, step: int, folder: Path) -> None:
    """Write the seal of a checkpoint, of which every other file is complete.

    Args:
        run: Identifies the run.
        step: At which the checkpoint was written.
        folder: The checkpoint's.

    Raises:
        OSError: If it can't be written: the checkpoint counts as cut off then.
    """
    files = {name: list(_measure(folder / name)) for name in _files_in(folder)}
    content = {"run": run, "step": step, "files": files}
    write_text(folder / SEAL, json.dumps(content, indent=1) + "\n")


def break_seal(folder: Path) -> None:
    """Take a seal away before the files are written anew."""
    (folder / SEAL).unlink(missing_ok=True)


def is_sealed(folder: Path) -> bool:
    """Whether a checkpoint has a seal, and every file that it names, as it was."""
    files = _named_in(folder)
    if files is None:
        return False
    # Sizes first: it may be gigabytes that are read for the digests.
    return all(_has_size(folder / name, entry) for name, entry in files.items()) and all(
        _is_as_it_was(folder / name, entry) for name, entry in files.items()
    )


def is_torn(folder: Path) -> bool:
    """Whether a checkpoint has a seal, but not the files that it names."""
    return (folder / SEAL).is_file() and not is_sealed(folder)


def newest_if_true(output_dir: str | None, path: str | bool | None) -> str | bool | None:
    """For ``True`` the newest checkpoint that can be resumed from; anything else as it is.

    A trainer itself would take one that was cut off while it was written.
    """
    if path is not True:
        return path
    return last_complete_checkpoint(output_dir or ".") or True


def last_complete_checkpoint(output_dir: str | os.PathLike[str]) -> str | None:
    """The newest ``checkpoint-N`` that is sealed; each that is newer is named in a log entry."""
    folders = [folder for folder in Path(output_dir).glob("checkpoint-*") if folder.is_dir()]
    numbered = [folder for folder in folders if folder.name.split("-")[1].isdecimal()]
    for folder in sorted(numbered, key=lambda each: int(each.name.split("-")[1]), reverse=True):
        if is_sealed(folder):
            return str(folder)
        logger.warning(
            "%s is passed over: it was cut off while it was written, or is of no pruned run", folder
        )
    return None


def _files_in(folder: Path) -> Iterator[str]:
    for path in sorted(folder.rglob("*")):
        is_read = path.suffix in _SUFFIXES or path.name in _NAMES
        if path.is_file() and (is_read or path.name.endswith(".index.json")):
            yield path.relative_to(folder).as_posix()


def _measure(path: Path) -> tuple[int, str]:
    """Size and digest."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return file.tell(), digest


def _named_in(folder: Path) -> dict[str, Any] | None:
    """What a seal says; None if there is none, or half of one."""
    try:
        files = json.loads((folder / SEAL).read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None
    return files if isinstance(files, dict) and files else None


def _has_size(path: Path, entry: Any) -> bool:
    return isinstance(entry, list) and path.is_file() and path.stat().st_size == entry[0]


def _is_as_it_was(path: Path, entry: list[Any]) -> bool:
    try:
        return list(_measure(path)) == entry
    except OSError:
        return False
