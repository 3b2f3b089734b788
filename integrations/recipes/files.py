"""Files that a user names: found, read as text, or refused in one short sentence."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_NOT_UTF8 = "convert it, for example with iconv -f {name} -t UTF-8 OLD > NEW"


def shown(value: Any, most: int = 40) -> str:
    """A value as it goes into an error: its ``repr``, cut to ``most`` characters.

    Files hold texts of any length, and an error that repeats one can't be read.
    """
    text = repr(value[: 4 * most] if isinstance(value, (str, bytes)) else value)
    return text if len(text) <= most else text[: most - 3] + "..."


def shown_path(file: str | Path, most: int = 60) -> str:
    """A path as it goes into an error: its end, which tells files apart."""
    text = str(file)
    return text if len(text) <= most else "..." + text[3 - most :]


def shown_names(names: Any, most: int = 80) -> str:
    """Names in a row, as many as fit, and how many more there are."""
    names, text = [str(name) for name in names], ""
    for number, name in enumerate(names):
        longer = f"{text}, {name}" if text else shown_path(name, most)
        if len(longer) > most:
            return f"{text} and {len(names) - number} more"
        text = longer
    return text


def existing_file(flag: str, file: str) -> Path:
    """The file that a flag names.

    Args:
        flag: For errors, such as ``--train_file``.
        file: A path; ``~`` is the user's folder.

    Raises:
        ValueError: If there is no such file, or it is a folder.
    """
    path = Path(file).expanduser()
    if path.is_dir():
        raise ValueError(
            f"{flag} must be a file, got the folder {shown_path(file)}: name a file in it"
        )
    if not path.is_file():
        raise ValueError(
            f"{flag} must be a file, got {shown_path(file)!r}, which does not exist: check it"
        )
    return path


def lines_of(path: Path) -> Iterator[str]:
    """The lines of a UTF-8 file with or without a byte-order mark, with their ends.

    Line ends are left as they are, so that quoted fields keep theirs.

    Raises:
        ValueError: If it is in another encoding; names the line and what to do.
    """
    _refuse_utf16(path)
    try:
        # "utf-8-sig" drops the mark that Excel and Notepad put in front.
        with path.open(encoding="utf-8-sig", newline="") as file:
            yield from file
    except UnicodeDecodeError:
        # The decoder counts bytes of a chunk: only a second look finds the line.
        raise ValueError(_where_not_utf8(path)) from None


def read_text(path: Path) -> str:
    """All of a file, as :func:`lines_of` reads it."""
    return "".join(lines_of(path))


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        ValueError: If it is not JSON, or no UTF-8; says where.
    """
    return parse_json(read_text(path))


def parse_json(text: str) -> Any:
    """What a JSON text says, with one kind of error for all that can be wrong with it."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{error.msg} in line {error.lineno}, column {error.colno}") from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _refuse_utf16(path: Path) -> None:
    with path.open("rb") as file:
        start = file.read(1024)
    if start[:2] in (b"\xff\xfe", b"\xfe\xff") or b"\0" in start:
        raise ValueError(f"it is no UTF-8 text but UTF-16: {_NOT_UTF8.format(name='UTF-16')}")


def _where_not_utf8(path: Path) -> str:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                return (
                    f"'utf-8' codec can't read byte 0x{line[error.start]:02x} in line {number}, "
                    f"which may be Windows-1252: {_NOT_UTF8.format(name='CP1252')}"
                )
    return "'utf-8' codec can't read it"
