"""Files written aside, onto the disk, then renamed: whatever stops it, the earlier file is whole.

The package does the same within its walls; this is what integrations have of their own.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A new file, open for writing, that takes the place of ``path`` once it is on the disk.

    Args:
        path: Where the file belongs; a link is replaced, not followed.

    Raises:
        OSError: If it can't be written, with what to do; the earlier file is whole then.
    """
    path = Path(path)
    # A name that must be free: no other file is ever opened.
    beside = path.with_name(f".{path.name[:200]}.{secrets.token_hex(4)}")
    try:
        with open(beside, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            beside.unlink()
        number = _number_of(error)
        if number is None:
            raise
        raise OSError(
            number,
            f"{path} must be where a file can be written, got {os.strerror(number)!r}; what was "
            "there is as it was: make room, or give another path",
        ) from error


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text file in UTF-8 by :func:`replacing`."""
    with replacing(path) as file:
        file.write(text.encode("utf-8"))


def require_folder(flag: str, folder: str | os.PathLike[str]) -> None:
    """Raise a ValueError unless files can be written into a folder; none is made.

    Args:
        flag: Which names the folder.
        folder: A path, that need not be there yet.
    """
    there = Path(folder).absolute()
    while not there.exists() and there != there.parent:
        there = there.parent
    try:
        # Permissions alone do not tell: of a read-only disk, or who may do anything.
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        reason = error.strerror or "no file can be made there"
        raise ValueError(
            f"{flag} must be a folder that can be written to, got {folder} ({reason}): give "
            "another path"
        ) from error


def _number_of(error: BaseException | None) -> int | None:
    """The system's number of an error, also where torch has put one of its own in its place."""
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    return error.errno if isinstance(error, OSError) else None
