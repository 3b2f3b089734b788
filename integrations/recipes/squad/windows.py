"""The windows of tokens in which a model reads a long context."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import datasets
import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from platon_prune.integrations.recipes.squad.data import answer_span

NO_TEXT = -1


def require_fast(tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a tokenizer that does not know where in the text its tokens are.

    Raises:
        ValueError: If it is a slow one.
    """
    if not tokenizer.is_fast:
        raise ValueError(
            f"the tokenizer must be a fast one, which knows the characters of each token, got "
            f"{type(tokenizer).__name__}: give a model with a tokenizer.json, or convert it"
        )


def cut_questions(
    questions: datasets.Dataset, tokenizer: PreTrainedTokenizerBase, max_query_length: int
) -> datasets.Dataset:
    """Keep of each question the text of its first tokens.

    Args:
        questions: With a column question.
        tokenizer: A fast one.
        max_query_length: Most tokens of a question, without special tokens; at least 1.

    Returns:
        The same rows; shorter questions are as they were.

    Raises:
        ValueError: If the tokenizer is a slow one.
    """
    require_fast(tokenizer)
    asked = [question.strip() for question in questions["question"]]
    tokens = tokenizer(asked, add_special_tokens=False, return_offsets_mapping=True)
    cut = [
        # The text is cut, not the tokens: so windows are made and checked in one way only.
        text[: offsets[max_query_length - 1][1]] if len(offsets) > max_query_length else text
        for text, offsets in zip(asked, tokens["offset_mapping"], strict=True)
    ]
    feature = questions.features["question"]
    return questions.remove_columns("question").add_column("question", cut, feature=feature)


def check_lengths(
    questions: datasets.Dataset,
    tokenizer: PreTrainedTokenizerBase,
    max_seq_length: int,
    doc_stride: int,
) -> None:
    """Refuse windows that could not move on through a context.

    Raises:
        ValueError: A slow tokenizer, or too little room beside the longest question.
    """
    require_fast(tokenizer)
    if doc_stride < 0:
        raise ValueError(f"doc_stride must be 0 or more, got {doc_stride}")
    asked = [question.strip() for question in questions["question"]]
    lengths = [len(ids) for ids in tokenizer(asked, add_special_tokens=False)["input_ids"]]
    longest, special = max(lengths), tokenizer.num_special_tokens_to_add(pair=True)
    room = max_seq_length - longest - special
    if doc_stride >= room:
        raise ValueError(
            f"doc_stride must be less than max_seq_length minus the longest question and the "
            f"special tokens, {max_seq_length} - {longest} - {special} = {room}, got {doc_stride} "
            f"(question {questions[lengths.index(longest)]['id']}): raise --max_seq_length, or "
            "lower --doc_stride or --max_query_length"
        )


def make_windows(
    questions: datasets.Dataset,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_seq_length: int,
    doc_stride: int,
    pad_to_max_length: bool = False,
    with_offsets: bool = False,
    num_proc: int | None = None,
    use_cache: bool = True,
    description: str = "Tokenising",
) -> datasets.Dataset:
    """Every question with each stretch of its context that fits, as a model reads them.

    The question comes first, or last where the tokenizer pads on the left, as such models were
    trained.

    Args:
        questions: Columns id, question, context, answers.
        tokenizer: A fast one.
        max_seq_length: Most tokens of a window, with the question and the special tokens.
        doc_stride: Tokens that a window shares with the one before it.
        pad_to_max_length: Pad every window; always so on the left, where padding moves positions.
        with_offsets: Add what finds the text of a span again: ``question``, the row in
            ``questions``; ``starts`` and ``ends``, the characters of each context token without
            outer spaces, -1 for any other token; ``null``, the position that says "no answer".
        num_proc: Processes that share the work.
        use_cache: Whether what ``datasets`` kept of the same work may be used.
        description: Title of the progress bar.

    Returns:
        The tokenizer's columns and ``start_positions``, ``end_positions``: the first and last token
        of the answer, or ``null`` twice where there is none or the window does not hold all of it.
    """
    return questions.map(
        _windows_of_batch,
        batched=True,
        with_indices=True,
        remove_columns=questions.column_names,
        fn_kwargs={
            "tokenizer": tokenizer,
            "max_seq_length": max_seq_length,
            "doc_stride": doc_stride,
            "pad": pad_to_max_length or tokenizer.padding_side == "left",
            "with_offsets": with_offsets,
        },
        num_proc=num_proc,
        load_from_cache_file=use_cache,
        desc=description,
    )


def _windows_of_batch(
    batch: dict[str, list[Any]],
    rows: list[int],
    tokenizer: PreTrainedTokenizerBase,
    max_seq_length: int,
    doc_stride: int,
    pad: bool,
    with_offsets: bool,
) -> dict[str, Any]:
    asked = [question.strip() for question in batch["question"]]
    contexts = batch["context"]
    context_side = 1 if tokenizer.padding_side == "right" else 0
    encoded = tokenizer(
        *((asked, contexts) if context_side else (contexts, asked)),
        truncation="only_second" if context_side else "only_first",
        max_length=max_seq_length,
        stride=doc_stride,
        padding="max_length" if pad else False,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
        return_attention_mask=True,
    )
    sources, offsets = encoded["overflow_to_sample_mapping"], encoded["offset_mapping"]
    columns: dict[str, Any] = {
        key: value
        for key, value in encoded.items()
        if key not in ("overflow_to_sample_mapping", "offset_mapping")
    }
    columns |= {"start_positions": [], "end_positions": []}
    if with_offsets:
        columns |= {"question": [], "starts": [], "ends": [], "null": []}
    edges = [_text_edges(context) for context in contexts]
    spans = [
        answer_span(context, answers["text"], answers["answer_start"])
        for context, answers in zip(contexts, batch["answers"], strict=True)
    ]
    for window, source in enumerate(sources):
        in_context = np.array([side == context_side for side in encoded.sequence_ids(window)])
        starts, ends = _context_offsets(offsets[window], in_context, *edges[source])
        null = null_position(
            encoded["input_ids"][window],
            encoded["attention_mask"][window],
            tokenizer.cls_token_id,
        )
        span = spans[source]
        found = token_span(starts, ends, *span) if span else None
        first, last = found or (null, null)
        columns["start_positions"].append(first)
        columns["end_positions"].append(last)
        if with_offsets:
            columns["question"].append(rows[source])
            columns["starts"].append(starts)
            columns["ends"].append(ends)
            columns["null"].append(null)
    return columns


def _text_edges(context: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """For each boundary of characters: where text begins after it, and where text ended before."""
    size = len(context)
    places = np.arange(size)
    blank = np.fromiter(map(str.isspace, context), bool, size)
    after = np.append(np.where(blank, size, places), size)
    before = np.append(0, np.where(blank, 0, places + 1))
    return np.minimum.accumulate(after[::-1])[::-1], np.maximum.accumulate(before)


def _context_offsets(
    offsets: list[tuple[int, int]],
    in_context: NDArray[np.bool_],
    after: NDArray[np.int64],
    before: NDArray[np.int64],
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    spans = np.array(offsets).reshape(-1, 2)
    # Offsets of the question index another string: 0 stands in until they are blanked.
    starts, ends = (
        after[np.where(in_context, spans[:, 0], 0)],
        before[np.where(in_context, spans[:, 1], 0)],
    )
    text = in_context & (starts < ends)
    return np.where(text, starts, NO_TEXT), np.where(text, ends, NO_TEXT)


def token_span(
    starts: NDArray[np.int64], ends: NDArray[np.int64], begin: int, end: int
) -> tuple[int, int] | None:
    """First and last token of the characters [begin, end); None where the window lacks some.

    Args:
        starts: First character of each token, -1 for tokens that are not of the context.
        ends: One past the last character of each token, -1 likewise.
        begin: First character of the answer.
        end: One past its last character.
    """
    held = np.flatnonzero(starts != NO_TEXT)
    if not held.size or starts[held[0]] > begin or ends[held[-1]] < end:
        return None
    first = int(np.searchsorted(ends[held], begin, side="right"))
    last = int(np.searchsorted(starts[held], end, side="left")) - 1
    # A tokenizer may drop every character of an answer.
    return (int(held[first]), int(held[last])) if first <= last else None


def null_position(
    input_ids: Sequence[int], attention_mask: Sequence[int], cls_token_id: int | None
) -> int:
    """The token that stands for "no answer": the CLS token, or the first that is not padding."""
    real = [place for place, seen in enumerate(attention_mask) if seen]
    return next((place for place in real if input_ids[place] == cls_token_id), real[0])
