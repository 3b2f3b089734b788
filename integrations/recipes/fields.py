"""A setting of a recipe: a field of one of the dataclasses that its command line is made of."""

from __future__ import annotations

from dataclasses import field
from typing import Any


def setting(help: str, default: Any = None, **metadata: Any) -> Any:
    """A field with what ``--help`` says of it.

    Args:
        help: One or two sentences.
        default: Its value where the flag is not given.
        metadata: What else the parser is to know, such as ``choices``.
    """
    return field(default=default, metadata={"help": help, **metadata})
