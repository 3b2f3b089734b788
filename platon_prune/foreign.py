"""What files of others say, before it is believed: JSON, sizes, and links out of their folder.

Nothing here costs much more than the file that it is found in.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

_MAX_DIMENSIONS = 64  # as torch has it
# What json.loads makes of each of these characters at the most, in bytes.
_COSTS = {"{": 240, "[": 90, ",": 40}
_FREE = 16 << 20
_MAX_JSON = 100_000_000


def read_json(text: bytes | str, file_size: int | None = None, kind: type = dict) -> Any:
    """A JSON object, or list, that takes no more memory than four times its file and 16 MiB.

    Args:
        text: In UTF-8.
        file_size: Bytes of the file that it is from; by default those of the text.
        kind: dict or list.

    Raises:
        ValueError: If it is something else, nested too deeply, larger, or repeats a name; with the
            reason alone, as the caller knows the file.
    """
    cost = len(text)
    for sign, price in _COSTS.items():
        found = text.count(sign.encode()) if isinstance(text, bytes) else text.count(sign)
        cost += price * found
    if cost > 4 * (file_size or len(text)) + _FREE:
        raise ValueError("too many entries for its size")
    try:
        content = json.loads(text, object_pairs_hook=_without_repeats)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(content, kind):
        belongs = "an object" if kind is dict else "a list"
        raise ValueError(f"a {type(content).__name__} where {belongs} belongs")
    return content


def read_json_file(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty if there is no file.

    Raises:
        ValueError: If it is something else.
    """
    if not path.is_file():
        return {}
    try:
        if path.stat().st_size > _MAX_JSON:
            raise ValueError(f"more than {_MAX_JSON:,} bytes")
        content: dict[str, Any] = read_json(path.read_bytes())
        return content
    except ValueError as error:
        raise ValueError(
            f"{path} must be JSON, an object, got a file that can't be read ({error}): fetch "
            "another copy, or save the model again"
        ) from error


def is_size(value: Any) -> bool:
    """Whether it is a whole number that can be a length."""
    return type(value) is int and 0 <= value < 1 << 63


def is_shape(value: Any) -> bool:
    """Whether it is a shape whose entries can be counted, in bytes, too."""
    return (
        isinstance(value, list)
        and len(value) <= _MAX_DIMENSIONS
        and all(map(is_size, value))
        # Strides are products of sizes, even where one of them is 0.
        and is_size(math.prod(max(size, 1) for size in value) * 8)
    )


def require_no_way_out(folder: Path) -> None:
    """Raise a ValueError if a link in a folder leads out of it: it could lead to any file.

    The links of the Hub's cache lead from a snapshot to the blobs beside it, and may.
    """
    real = folder.resolve()
    allowed = [real]
    if real.parent.name == "snapshots":
        allowed.append(real.parent.parent / "blobs")
    for path in folder.iterdir():
        if path.is_symlink() and not any(path.resolve().is_relative_to(each) for each in allowed):
            raise ValueError(
                f"{path} must be a file in its folder, got a link out of it, to {path.resolve()}: "
                "put the file itself there if you trust it"
            )


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        raise ValueError("a name twice")
    return content
