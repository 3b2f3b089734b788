"""SQuAD questions from files or by name, and where their answers are."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets

from platon_prune.integrations.recipes.files import read_json, shown_names, shown_path

logger = logging.getLogger(__name__)

FEATURES = datasets.Features(
    {
        "id": datasets.Value("string"),
        "question": datasets.Value("string"),
        "context": datasets.Value("string"),
        "answers": {
            "text": datasets.Sequence(datasets.Value("string")),
            "answer_start": datasets.Sequence(datasets.Value("int32")),
        },
    }
)


def read_squad(path: str, argument: str = "path") -> datasets.Dataset:
    """Questions of a file in the published SQuAD form, v1.1 or v2.0.

    ``data`` may also be a flat list of questions as ``datasets`` holds them, each with its own
    ``context`` and ``answers`` as lists of ``text`` and ``answer_start``.

    Args:
        path: A JSON file.
        argument: What the user called the file, for messages.

    Returns:
        Columns id, question, context, answers; a question without ``answers`` has none.

    Raises:
        ValueError: No such file, not JSON, JSON of another shape, no questions, an id twice.
    """
    name = shown_path(path)
    if not Path(path).is_file():
        what = "that is a folder" if Path(path).is_dir() else "there is no such file"
        raise ValueError(f"{argument} must be a SQuAD JSON file, got {name}: {what}")
    try:
        content = read_json(Path(path))
    except ValueError as error:
        raise ValueError(
            f"{argument} must be a SQuAD JSON file, got {name}, which is not JSON: {error}"
        ) from None
    try:
        rows = list(_questions(content))
    except _ShapeError as error:
        raise ValueError(
            f"{argument} must be SQuAD JSON (data, paragraphs, context and qas), got {name}, "
            f"where {error}: convert the file, or give the one that the SQuAD site publishes"
        ) from None
    if not rows:
        raise ValueError(f"{argument} must hold questions, got {name} with none")
    questions = datasets.Dataset.from_list(rows, features=FEATURES)
    _refuse_repeated_ids(questions, argument, name)
    return questions


def load_squad(name: str, config: str | None, split: str, **options: Any) -> datasets.Dataset:
    """Questions of a data set by name, through ``datasets.load_dataset``.

    Args:
        name: Of the data set: on the Hub, or a folder.
        config: One of its configurations, if it has several.
        split: Such as ``train``.
        options: Further arguments of ``load_dataset``.

    Returns:
        Columns id, question, context, answers.

    Raises:
        ValueError: It can't be loaded, has no such split or other columns than SQuAD's, or gives
            an id twice.
    """
    try:
        questions = datasets.load_dataset(name, config, split=split, **options)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"--dataset_name must be a data set with a split {split!r} that can be loaded, got "
            f"{name!r} ({error}): check both names, or use --train_file and --validation_file"
        ) from error
    missing = sorted(set(FEATURES) - set(questions.column_names))
    if missing:
        raise ValueError(
            f"--dataset_name must have the columns {', '.join(FEATURES)}, got {name} with "
            f"{shown_names(questions.column_names)}: convert it, or use --train_file and "
            "--validation_file"
        )
    questions = questions.select_columns(list(FEATURES))
    _refuse_repeated_ids(questions, "--dataset_name", name)
    return questions


class _ShapeError(ValueError):
    """Where the JSON is not SQuAD's, and what is there."""


def _questions(content: Any) -> Iterator[dict[str, Any]]:
    for number, entry in enumerate(_member(content, "data", list, "the file")):
        where = f"data[{number}]"
        if isinstance(entry, dict) and "context" in entry:
            yield _flat(entry, where)
            continue
        for count, paragraph in enumerate(_member(entry, "paragraphs", list, where)):
            yield from _paragraph(paragraph, f"{where}.paragraphs[{count}]")


def _paragraph(paragraph: Any, where: str) -> Iterator[dict[str, Any]]:
    context = _member(paragraph, "context", str, where)
    for number, entry in enumerate(_member(paragraph, "qas", list, where)):
        place = f"{where}.qas[{number}]"
        question = _member(entry, "question", str, place)
        # A file to predict from has none.
        answers = _member(entry, "answers", list, place) if "answers" in entry else []
        texts, starts = [], []
        for count, answer in enumerate(answers):
            texts.append(_member(answer, "text", str, f"{place}.answers[{count}]"))
            starts.append(_member(answer, "answer_start", int, f"{place}.answers[{count}]"))
        yield {
            "id": str(_member(entry, "id", (str, int), place)),
            "question": question,
            "context": context,
            "answers": {"text": texts, "answer_start": starts},
        }


def _flat(entry: dict[str, Any], where: str) -> dict[str, Any]:
    answers = _member(entry, "answers", dict, where) if "answers" in entry else {}
    texts = _member(answers, "text", list, f"{where}.answers") if answers else []
    starts = _member(answers, "answer_start", list, f"{where}.answers") if answers else []
    if len(texts) != len(starts):
        raise _ShapeError(f"{where}.answers has {len(texts)} text and {len(starts)} answer_start")
    return {
        "id": str(_member(entry, "id", (str, int), where)),
        "question": _member(entry, "question", str, where),
        "context": _member(entry, "context", str, where),
        "answers": {"text": texts, "answer_start": starts},
    }


def _member(value: Any, key: str, kind: type | tuple[type, ...], where: str) -> Any:
    if not isinstance(value, dict):
        raise _ShapeError(f"{where} is {_describe(value)} instead of an object with {key!r}")
    if key not in value:
        raise _ShapeError(f"{where} is {_describe(value)} and has no {key!r}")
    if not isinstance(value[key], kind):
        raise _ShapeError(f"{key!r} of {where} is {_describe(value[key])}")
    return value[key]


def _describe(value: Any) -> str:
    if isinstance(value, dict):
        names = ", ".join(repr(key) for key in list(value)[:6])
        return f"an object with {names or 'nothing in it'}{', ...' if len(value) > 6 else ''}"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    return f"{type(value).__name__} {str(value)[:40]!r}" if value is not None else "null"


def _refuse_repeated_ids(questions: datasets.Dataset, argument: str, path: str) -> None:
    seen: set[str] = set()
    for name in questions["id"]:
        if name in seen:
            raise ValueError(
                f"{argument} must give every question its own id, got {name!r} twice in {path}: "
                "predictions are kept by id"
            )
        seen.add(name)


def locate(context: str, text: str, start: int) -> int | None:
    """First character of an answer: ``start`` where the text is there, else the nearest place.

    Returns:
        None where the context does not hold the text.
    """
    # Repeated words make the text alone ambiguous, so its recorded start comes first.
    if start >= 0 and context.startswith(text, start):
        return start
    places = (found.start() for found in re.finditer(f"(?={re.escape(text)})", context))
    return min(places, key=lambda place: abs(place - start), default=None)


def answer_span(
    context: str, texts: Sequence[str], starts: Sequence[int]
) -> tuple[int, int] | None:
    """Characters [begin, end) of the first answer that the context holds, without outer spaces."""
    for text, start in zip(texts, starts, strict=True):
        inner = text.strip()
        if not inner:
            continue
        begin = locate(context, inner, start + text.index(inner))
        if begin is not None:
            return begin, begin + len(inner)
    return None


def training_questions(questions: datasets.Dataset, argument: str) -> datasets.Dataset:
    """The questions without those whose answers are not in their context, which can teach nothing.

    Raises:
        ValueError: No question has an answer that its context holds.
    """
    kept, moved, num_answered = [], 0, 0
    for index, row in enumerate(questions):
        texts, starts = row["answers"]["text"], row["answers"]["answer_start"]
        span = answer_span(row["context"], texts, starts)
        if not texts or span:
            kept.append(index)
        if span:
            num_answered += 1
            moved += not row["context"].startswith(texts[0], starts[0])
    if not num_answered:
        raise ValueError(
            f"{argument} must hold answers to learn from, got {len(questions)} questions of which "
            "none has an answer that its context holds: is it a file of a test set?"
        )
    if moved:
        logger.warning(
            "%d answers are not where answer_start says: the nearest place that has their text is "
            "used",
            moved,
        )
    if len(kept) < len(questions):
        logger.warning(
            "%d of %d questions are left out of training: their contexts do not hold their answers",
            len(questions) - len(kept),
            len(questions),
        )
        return questions.select(kept)
    return questions
