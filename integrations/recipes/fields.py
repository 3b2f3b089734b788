"""A setting of a recipe: a field of the dataclasses of its command line, and numbers in them."""

from __future__ import annotations

import math
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


def initial_amount(text: str) -> int | float:
    """The value of ``--pruning_initial_amount``, where it is no word.

    Raises:
        ValueError: If it is no number, or one that can't be meant.
    """
    try:
        number = float(text)
    except ValueError as error:
        raise ValueError(
            "--pruning_initial_amount must be a fraction of the weights in [0, 1), a whole number "
            f"or zeros, got {text!r}"
        ) from error
    return count_or_fraction("pruning_initial_amount", number, "of the weights")


def count_or_fraction(name: str, value: float, of: str) -> int | float:
    """A whole number from 1 on is a count, anything from 0 to below 1 a fraction.

    Raises:
        ValueError: If it is neither; calls the flag by its name.
    """
    # int() of infinity raises, and NaN would pass every comparison.
    if not math.isfinite(value) or value < 0 or (value >= 1 and value != int(value)):
        raise ValueError(
            f"--{name} must be a fraction {of} in [0, 1) or a whole number, got {value}"
        )
    return int(value) if value >= 1 or value == 0 else float(value)
