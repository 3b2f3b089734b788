"""The places that a command writes to: made, or refused, before any work."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from platon_prune.writing import is_stream


def make_folder(folder: Path) -> Path:
    """Make the folder of ``--output_dir`` if it is not there, and see that files can be made in it.

    Raises:
        ValueError: If it can't be made or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _try_writing(folder)
    except OSError as error:
        raise ValueError(
            f"--output_dir must be a folder that can be made, got {folder} "
            f"({_reason(error, folder)}): give another path"
        ) from error
    return folder


def require_file(flag: str, path: Path | None) -> None:
    """Raise a ValueError unless a file can be written at a path; None needs none.

    Args:
        flag: Which names the path.
        path: Of a file, or of a device such as /dev/stdout; nothing is left there.
    """
    if path is None or is_stream(path):
        return
    try:
        if path.is_dir():
            raise IsADirectoryError(0, "Is a directory")
        _try_writing(path.parent)
    except OSError as error:
        raise ValueError(
            f"{flag} must be where a file can be written, got {path} "
            f"({_reason(error, path.parent)}): give another path"
        ) from error


def require_place(flag: str, path: Path) -> None:
    """Raise a ValueError unless a folder or a file can be made at a path; none is made.

    Args:
        flag: Which names the path.
        path: May be there already.
    """
    there = path
    while not os.path.lexists(there) and there != there.parent:
        there = there.parent
    try:
        _try_writing(there.parent if there == path and not there.is_dir() else there)
    except OSError as error:
        raise ValueError(
            f"{flag} must be where something can be written, got {path} "
            f"({_reason(error, there)}): give another path"
        ) from error


def _try_writing(folder: Path) -> None:
    # Permissions alone do not tell: of a read-only disk, or who may do anything.
    with tempfile.TemporaryFile(dir=folder):
        pass


def _reason(error: OSError, folder: Path) -> str:
    # Python names the file that was to be made, which nobody knows.
    return error.strerror or f"{folder} can't be written to"
