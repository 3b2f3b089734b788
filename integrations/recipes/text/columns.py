"""Which columns of a table are text, and which one is the label."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from platon_prune.integrations.recipes.files import shown_names

# Names that decide, whatever the columns hold; those of labels in the order in which they win.
LABEL_NAMES = (
    "label", "labels", "class", "category", "target", "sentiment", "emotion", "intent", "topic",
    "score", "rating", "stars", "y",
)  # fmt: skip
TEXT_NAMES = (
    "text", "text1", "text2", "text_a", "text_b", "sentence", "sentence1", "sentence2", "content",
    "review", "comment", "body", "message", "tweet", "title", "headline", "premise", "hypothesis",
    "question", "question1", "question2", "query", "passage", "utterance",
)  # fmt: skip
_ID_NAMES = ("", "id", "idx", "index", "guid", "uuid", "uid", "key", "row", "unnamed: 0")
_SAMPLE = 2000  # rows that are looked at to find out what a column is


@dataclass(frozen=True)
class Columns:
    """The columns that are used.

    Args:
        text: One or two.
        label: None, one, or several of one label each.
        unused: All others.
    """

    text: tuple[str, ...]
    label: tuple[str, ...]
    unused: tuple[str, ...]


def find_columns(
    where: str,
    names: Sequence[str],
    read: Callable[[str], Sequence[Any]],
    text: Sequence[str] | None,
    label: Sequence[str] | None,
    labelled: bool,
) -> Columns:
    """Find the columns of text and the label, as far as they are not given.

    Args:
        where: The file, for errors.
        names: All columns.
        read: From a name to the column's values.
        text: ``--text_columns``.
        label: ``--label_column``.
        labelled: Whether there has to be a label.

    Raises:
        ValueError: If a given column is missing, or it is not clear which to take.
    """
    for flag, given in (("--text_columns", text), ("--label_column", label)):
        missing = [name for name in given or () if name not in names]
        if missing:
            raise ValueError(
                f"{flag} must name columns of {where}, which has {shown_names(names)}, got "
                f"{shown_names(missing)}: correct it"
            )
    looks = {name: _look(name, read(name)[:_SAMPLE]) for name in names if _is_open(name, label)}
    found_label = tuple(label) if label else _find_label(where, looks, text or (), labelled)
    found_text = tuple(text) if text else _find_text(where, looks, found_label)
    used = (*found_text, *found_label)
    return Columns(found_text, found_label, tuple(name for name in names if name not in used))


def _is_open(name: str, label: Sequence[str] | None) -> bool:
    return name not in (label or ())


@dataclass(frozen=True)
class _Look:
    """What the first rows of a column look like.

    Args:
        is_text: Whether all values are text, and not numbers.
        words: How many words they have on average.
        num_values: How many different values there are.
        num_rows: Of how many.
        is_id: Whether the name says that the column numbers the rows.
    """

    is_text: bool
    words: float
    num_values: int
    num_rows: int
    is_id: bool


def _look(name: str, values: Sequence[Any]) -> _Look:
    values = [value for value in values if not is_missing(value)]
    texts = [value for value in values if isinstance(value, str)]
    # Dates, prices and addresses have spaces too, but few letters.
    letters = sum(sum(map(str.isalpha, text)) for text in texts)
    signs = sum(sum(not c.isspace() for c in text) for text in texts)
    lower = name.lower().strip()
    return _Look(
        is_text=bool(texts) and len(texts) == len(values) and 2 * letters > signs,
        words=sum(map(_count_words, texts)) / max(1, len(texts)),
        num_values=len(set(map(repr, values))),
        num_rows=len(values),
        is_id=lower in _ID_NAMES or lower.endswith(("_id", " id")),
    )


def _count_words(text: str) -> float:
    # Some languages write no spaces; three of their signs make about a word and a half.
    wide = sum(character >= "\u2e80" for character in text)
    return len(text.split()) + wide / 2


def _find_label(
    where: str, looks: Mapping[str, _Look], text: Sequence[str], labelled: bool
) -> tuple[str, ...]:
    by_name = {name.lower().strip(): name for name in looks if name not in text}
    for name in LABEL_NAMES:
        if name in by_name:
            return (by_name[name],)
    candidates = [
        name
        for name, look in looks.items()
        if name not in text
        and not look.is_id
        and name.lower() not in TEXT_NAMES
        and not (look.is_text and look.words >= 3)
        and 2 <= look.num_values <= max(20, look.num_rows // 10)
    ]
    if len(candidates) == 1:
        return (candidates[0],)
    if not labelled:
        return ()
    raise ValueError(
        f"{where} must have a column label, or one other that can be the label, got "
        f"{shown_names(candidates or looks)}: name it with --label_column"
    )


def _find_text(where: str, looks: Mapping[str, _Look], label: Sequence[str]) -> tuple[str, ...]:
    texts = [
        name
        for name, look in looks.items()
        if name not in label and look.is_text and not look.is_id
    ]
    named = [name for name in texts if name.lower().strip() in TEXT_NAMES]
    long = [name for name in texts if looks[name].words >= 3]
    # Names and cities are two words: they count only where nothing is longer.
    short = [name for name in texts if looks[name].words >= 1.5]
    found = list(dict.fromkeys((*named, *long))) or short
    found = named if len(found) > 2 and named else found
    if not 1 <= len(found) <= 2:
        raise ValueError(
            f"{where} must have one or two columns of text, got {shown_names(found or looks)}: "
            "name them with --text_columns"
        )
    return tuple(name for name in looks if name in found)


def is_missing(value: Any) -> bool:
    """Whether a cell is empty: nothing, not a number, or text of spaces."""
    if isinstance(value, str):
        return not value.strip()
    return value is None or (isinstance(value, float) and math.isnan(value))
