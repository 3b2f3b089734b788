"""The folder that a command writes to."""

from __future__ import annotations

from pathlib import Path


def make_folder(folder: Path) -> Path:
    """Make the folder of ``--output-dir``, if it is not there.

    Raises:
        ValueError: If it can't be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"--output-dir must be a folder that can be made, got {folder} ({error.strerror}): "
            "give another path"
        ) from error
    return folder
