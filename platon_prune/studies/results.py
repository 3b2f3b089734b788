"""What a study remembers: one line for each finished cell, and claims on those that run."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from platon_prune.writing import refusing

RESULTS = "results.jsonl"
CLAIMS = "claims"

CellRecord = dict[str, Any]


def read(folder: Path) -> dict[str, CellRecord]:
    """Every finished cell by its key; of a cell that is there twice, the first.

    A last line that was torn by a crash is left out: its cell is missing, and will run again.

    Raises:
        ValueError: If any other line is not a record.
    """
    path = folder / RESULTS
    if not path.exists():
        return {}
    lines = path.read_bytes().split(b"\n")
    records: dict[str, CellRecord] = {}
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        record = _record(line)
        if record is not None:
            records.setdefault(record["key"], record)
        elif number != len(lines):
            raise ValueError(
                f"line {number} of {path} must be a JSON object with a key, got {line[:40]!r}: "
                "delete that line, and its cell will run again"
            )
    return records


def append(folder: Path, record: Mapping[str, Any]) -> None:
    """Write one finished cell to the disk: all of it, or a torn line that the next one mends."""
    line = json.dumps(record, sort_keys=True, allow_nan=False).encode() + b"\n"
    path = folder / RESULTS
    with (
        refusing(path),
        locked(folder / f"{RESULTS}.lock", wait=True),
        path.open("a+b", buffering=0) as file,
    ):
        _mend(file)
        if file.write(line) != len(line):  # where a disk becomes full in the middle of it
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.fsync(file.fileno())


@contextlib.contextmanager
def claim(folder: Path, key: str) -> Iterator[bool]:
    """Hold a cell, so that no other process runs it; yields False where one holds it already.

    The system frees the claim of a process that ended, however it ended, so none goes stale. Who
    gets a claim must look whether the cell is finished by now.
    """
    path = folder / CLAIMS / key
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path, wait=False) as mine:
        yield mine
        # Only of a finished cell: who opened the file before finds its result and leaves it alone.
        if mine and key in read(folder):
            with contextlib.suppress(OSError):
                path.unlink()


def is_claimed(folder: Path, key: str) -> bool:
    """Whether a process holds a cell now."""
    path = folder / CLAIMS / key
    if not path.exists():
        return False
    with locked(path, wait=False) as free:
        return not free


@contextlib.contextmanager
def locked(path: Path, *, wait: bool) -> Iterator[bool]:
    """Hold a lock on a file; yields False if another process has it and ``wait`` is off."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        yield _lock(file, wait)  # given back when the file is closed


def _lock(file: IO[bytes], wait: bool) -> bool:
    try:
        if sys.platform == "win32":
            import msvcrt

            file.seek(0)
            msvcrt.locking(file.fileno(), msvcrt.LK_LOCK if wait else msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        if wait:
            raise
        return False
    return True


def _record(line: bytes) -> CellRecord | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) and "key" in record else None


def _mend(file: IO[bytes]) -> None:
    """Bring the file to the end of a line: end a whole last one, cut a torn one off."""
    file.seek(0)
    content = file.read()
    start = content.rfind(b"\n") + 1
    if start == len(content):
        return
    if _record(content[start:]) is None:
        file.truncate(start)
    else:
        file.write(b"\n")
