"""The one way in which the package writes a file: aside, onto the disk, then renamed.

Whatever stops it (a full disk, a kill, an error of who writes), the path holds the earlier file
whole or the new one whole. Nothing else is overwritten, and a link is replaced, not followed.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import secrets
import stat
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

_SYSTEM_ERROR = re.compile(r"\(os error (\d+)\)")  # as libraries in Rust tell of one


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A new file, open for writing, that takes the place of ``path`` once it is on the disk.

    Args:
        path: Where the file belongs. A device or a pipe is written to as it is.

    Raises:
        OSError: If it can't be written, with what to do; the earlier file is whole then.
    """
    path = Path(path)
    if is_stream(path):
        with open(path, "wb") as stream:
            yield stream
        return
    # A name that nobody can guess, and that must be free: no other file is ever opened.
    beside = path.with_name(f".{path.name[:200]}.{secrets.token_hex(4)}")
    raw: _Raw | None = None
    try:
        with refusing(path):
            raw = _Raw(beside, "xb")
        with io.BufferedWriter(raw) as file:
            yield file
            with refusing(path):
                file.flush()
                os.fsync(file.fileno())
        with refusing(path):
            _move(beside, path)
    except BaseException:
        beside.unlink(missing_ok=True)
        if raw is not None and raw.error is not None:
            raise _refusal(path, raw.error) from raw.error
        raise


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text file in UTF-8 by :func:`replacing`."""
    with replacing(path) as file:
        file.write(text.encode("utf-8"))


@contextlib.contextmanager
def replacing_in(folder: Path, last: Sequence[str] = ()) -> Iterator[Path]:
    """An empty folder whose files take their places in ``folder`` once all are on the disk.

    Args:
        folder: Where they belong; made if it is not there.
        last: Names of files that are moved at the end, in this order: whoever finds the last one
            finds the others.

    Raises:
        OSError: If they can't be written, with what to do; none has been moved then.
    """
    is_new = not folder.exists()
    try:
        with refusing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        with (
            tempfile.TemporaryDirectory(dir=folder, prefix=".platon_prune-") as beside,
            refusing(folder, inside=folder),
        ):
            yield Path(beside)
            names = sorted(os.listdir(beside))
            for name in names:
                with open(Path(beside, name), "rb+") as file:
                    os.fsync(file.fileno())
            for name in sorted(names, key=lambda each: each in last and 1 + last.index(each)):
                _move(Path(beside, name), folder / name)
    except BaseException:
        if is_new:
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise


def move_to_free_name(path: Path, names: Iterator[Path]) -> Path:
    """Move a file to the first of the names that nothing has, not even a link to nowhere.

    Returns:
        The name that it has now.
    """
    for name in names:
        with contextlib.suppress(FileExistsError):
            # Taken first: between a look and the move another process could take it.
            open(name, "xb").close()
            os.replace(path, name)
            return name
    raise AssertionError("names must not end")


class _Raw(io.FileIO):
    """A file that remembers why it could not be written.

    torch and other libraries that are handed a file raise errors of their own in its place.
    """

    error: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            self.error = error
            raise


def is_stream(path: Path) -> bool:
    """Whether it is no place for a file: a device, a pipe, or a link to one in /dev."""
    if path.absolute().parent == Path("/dev"):
        return path.exists()
    try:
        mode = path.lstat().st_mode
    except OSError:
        return False
    return not any(is_kind(mode) for is_kind in (stat.S_ISREG, stat.S_ISDIR, stat.S_ISLNK))


def _move(beside: Path, path: Path) -> None:
    """Rename, and have the disk remember the name, which is the folder's, not the file's."""
    with contextlib.suppress(OSError):
        if not path.is_symlink():
            os.chmod(beside, stat.S_IMODE(path.stat().st_mode))  # as who made it wanted it
    os.replace(beside, path)
    with contextlib.suppress(OSError):  # not every system opens folders
        descriptor = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def refusing(path: Path, inside: Path | None = None) -> Iterator[None]:
    """Say of an error of the system what to do, also where a library has wrapped it.

    Args:
        path: What is written.
        inside: The folder in which it is, by default that of ``path``; errors of files elsewhere,
            which are read, pass as they are.
    """
    try:
        yield
    except OSError as error:
        name = error.filename
        if isinstance(name, str) and not Path(name).is_relative_to(inside or path.parent):
            raise  # of a file that is read
        raise _refusal(path, error) from error
    except Exception as error:
        found = _SYSTEM_ERROR.search(str(error))
        if found is None:
            raise
        number = int(found[1])
        raise _refusal(path, OSError(number, os.strerror(number))) from error


def _refusal(path: Path, error: OSError) -> OSError:
    return OSError(
        error.errno,
        f"{path} must be where a file can be written, got {error.strerror or str(error)!r}; what "
        "was there is as it was: make room, or give another path",
    )
