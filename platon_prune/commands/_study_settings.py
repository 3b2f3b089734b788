"""The settings of a cell as they are named and shown: without the folders of one machine."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def without_folders(value: Any) -> Any:
    """Settings with only the last part of a path, in ``--flag=path`` as well.

    So a cell is the same wherever its model and files lie, and two of one name are one cell.
    """
    if isinstance(value, Mapping):
        return {name: without_folders(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_folders(item) for item in value]
    if isinstance(value, str) and (os.sep in value or "/" in value):
        flag, equals, path = value.partition("=") if value.startswith("--") else ("", "", value)
        return f"{flag}{equals}{Path(path).name}"
    return value
