"""Reading SQuAD files, and windows in which every answer is found again to the character."""

from __future__ import annotations

import json
import logging
import re

import datasets
import numpy as np
import pytest
import squad_files
from squad_files import CONTEXT, TOKENIZERS, article, question, write_squad

from platon_prune.integrations.recipes.squad.data import (
    FEATURES,
    answer_span,
    load_squad,
    locate,
    read_squad,
    training_questions,
)
from platon_prune.integrations.recipes.squad.windows import (
    check_lengths,
    cut_questions,
    make_windows,
    null_position,
    token_span,
)

LENGTHS = [(40, 0), (40, 5), (64, 31), (150, 100)]


@pytest.fixture(autouse=True)
def _no_bars():
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


def _rows(*answers, context=CONTEXT, text="which?"):
    """A question for each (text, start); one without an answer for None."""
    rows = [
        {
            "id": str(number),
            "question": text,
            "context": context,
            "answers": {
                "text": [answer[0]] if answer else [],
                "answer_start": [answer[1]] if answer else [],
            },
        }
        for number, answer in enumerate(answers)
    ]
    return datasets.Dataset.from_list(rows, features=FEATURES)


def _runs_of_words(context=CONTEXT, longest=3):
    """Every run of one to three words, with where it begins."""
    words = [(found.start(), found.end()) for found in re.finditer(r"\S+", context)]
    for first in range(len(words)):
        for last in range(first, min(first + longest, len(words))):
            yield context[words[first][0] : words[last][1]], words[first][0]


def _windows(kind, rows, length, stride):
    tokenizer = TOKENIZERS[kind]()
    return tokenizer, make_windows(
        rows, tokenizer, max_seq_length=length, doc_stride=stride, with_offsets=True
    )


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize(("length", "stride"), LENGTHS)
def test_every_answer_that_fits_is_found_again_to_the_character(kind, length, stride):
    rows = _rows(*_runs_of_words())
    _, windows = _windows(kind, rows, length, stride)
    found, longest_miss = set(), 0
    for window in windows:
        text = rows[window["question"]]["answers"]["text"][0]
        begin = rows[window["question"]]["answers"]["answer_start"][0]
        first, last = window["start_positions"], window["end_positions"]
        seen = [(s, e) for s, e in zip(window["starts"], window["ends"], strict=True) if s >= 0]
        fits = seen[0][0] <= begin and begin + len(text) <= seen[-1][1]
        if fits:
            assert CONTEXT[window["starts"][first] : window["ends"][last]] == text
            found.add(window["question"])
        else:
            assert first == last == window["null"]
    for number in set(range(len(rows))) - found:
        text = rows[number]["answers"]["text"][0]
        longest_miss = max(longest_miss, len(text.encode()))
        # Windows that share n tokens hold every answer of up to n; a token is a byte or more.
        assert len(text.encode()) > stride
    assert found


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize(("length", "stride"), LENGTHS)
def test_windows_cover_the_context_in_order_and_keep_to_their_length(kind, length, stride):
    tokenizer, windows = _windows(kind, _rows(None), length, stride)
    covered = np.zeros(len(CONTEXT), bool)
    ends = []
    for window in windows:
        assert len(window["input_ids"]) <= length
        for start, end in zip(window["starts"], window["ends"], strict=True):
            assert (start < 0) == (end < 0)
            if start >= 0:
                assert CONTEXT[start:end] == CONTEXT[start:end].strip() != ""
                covered[start:end] = True
        ends.append(max(window["ends"]))
        asked = [
            token
            for token, start, seen in zip(
                window["input_ids"], window["starts"], window["attention_mask"], strict=True
            )
            if start < 0 and seen
        ]
        assert "which?" in tokenizer.decode(asked).replace(" ", "").replace("##", "")
    assert ends == sorted(ends)

    assert all(seen or char.isspace() for seen, char in zip(covered, CONTEXT, strict=True))


def test_padding_on_the_left_puts_the_context_first_and_fills_every_window():
    tokenizer, windows = _windows("left", _rows(("Prague", CONTEXT.index("Prague"))), 40, 5)
    answered = 0
    for window in windows:
        assert len(window["input_ids"]) == 40
        assert window["null"] == 39
        assert window["input_ids"][39] == tokenizer.cls_token_id
        held = np.flatnonzero(np.array(window["starts"]) >= 0)
        padding = window["attention_mask"].count(0)
        assert held[0] == padding
        answered += window["start_positions"] != 39
    assert answered
    assert windows[-1]["attention_mask"][0] == 0


def test_padding_on_the_right_is_left_to_the_batch_unless_asked_for():
    tokenizer = squad_files.word_tokenizer()
    rows = _rows(None, context="in the sea")
    short = make_windows(rows, tokenizer, max_seq_length=40, doc_stride=5)
    padded = make_windows(rows, tokenizer, max_seq_length=40, doc_stride=5, pad_to_max_length=True)
    assert len(short[0]["input_ids"]) < 40
    assert len(padded[0]["input_ids"]) == 40
    assert set(short.column_names) == {
        "input_ids", "token_type_ids", "attention_mask", "start_positions", "end_positions",
    }  # fmt: skip


def test_an_answer_inside_a_word_gives_the_tokens_that_hold_it():
    tokenizer = squad_files.word_tokenizer()
    rows = _rows(("iver", 5), context="The river flows")
    window = make_windows(rows, tokenizer, max_seq_length=40, doc_stride=5, with_offsets=True)[0]
    first, last = window["start_positions"], window["end_positions"]
    assert "The river flows"[window["starts"][first] : window["ends"][last]] == "river"


@pytest.mark.parametrize(
    ("begin", "end", "expected"),
    [
        (0, 3, (2, 2)),
        (0, 7, (2, 3)),
        (4, 12, (3, 4)),
        (5, 9, (3, 4)),
        (3, 4, None),  # only the space between two tokens
        (8, 13, None),  # ends beyond the window
    ],
)
def test_token_spans(begin, end, expected):
    starts = np.array([-1, -1, 0, 4, 8, -1])
    ends = np.array([-1, -1, 3, 7, 12, -1])
    assert token_span(starts, ends, begin, end) == expected


@pytest.mark.parametrize(
    ("ids", "mask", "cls", "expected"),
    [
        ([2, 5, 3], [1, 1, 1], 2, 0),
        ([0, 0, 5, 2], [0, 0, 1, 1], 2, 3),
        ([5, 6, 0], [1, 1, 0], None, 0),
        ([2, 2, 5, 6], [0, 0, 1, 1], 2, 2),  # padded with a token that is also CLS
    ],
)
def test_no_answer_is_the_cls_token_or_the_first_that_is_not_padding(ids, mask, cls, expected):
    assert null_position(ids, mask, cls) == expected


# --- lengths ------------------------------------------------------------------------------------


def test_the_largest_stride_that_is_allowed_works_and_one_more_is_refused():
    tokenizer = squad_files.word_tokenizer()
    rows = _rows(None, text="how long?")  # 3 tokens, and 3 special ones: 20 - 6 leaves 14
    check_lengths(rows, tokenizer, 20, 13)
    windows = make_windows(rows, tokenizer, max_seq_length=20, doc_stride=13, with_offsets=True)
    assert max(windows[-1]["ends"]) == len(CONTEXT.rstrip())
    with pytest.raises(
        ValueError, match=r"20 - 3 - 3 = 14, got 14 \(question 0\): raise --max_seq_length"
    ):
        check_lengths(rows, tokenizer, 20, 14)
    with pytest.raises(ValueError, match="doc_stride must be 0 or more, got -1"):
        check_lengths(rows, tokenizer, 20, -1)


def test_a_slow_tokenizer_is_refused():
    class Slow:
        is_fast = False

    with pytest.raises(ValueError, match="must be a fast one.* got Slow"):
        check_lengths(_rows(None), Slow(), 20, 5)


# --- answers ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "start", "expected"),
    [("ab", 0, 0), ("ab", 6, 6), ("ab", 5, 6), ("ab", 1, 0), ("ab", -3, 0), ("xy", 0, None)],
)
def test_a_wrong_answer_start_gives_the_nearest_place(text, start, expected):
    assert locate("ab cd ab", text, start) == expected


def test_spaces_around_an_answer_are_not_part_of_it():
    assert answer_span("in  Prague now", [" Prague "], [3]) == (4, 10)
    assert answer_span("in Prague", [" "], [2]) is None
    assert answer_span("in Prague", ["Rome", "Prague"], [3, 3]) == (3, 9)


def test_answers_that_moved_or_are_lost_are_reported(caplog):
    rows = _rows(("Prague", 0), ("Prague", CONTEXT.index("Prague")), ("Rome", 3), None)
    with caplog.at_level(logging.WARNING):
        kept = training_questions(rows, "--train_file")
    assert list(kept["id"]) == ["0", "1", "3"]
    assert "1 answers are not where answer_start says" in caplog.text
    assert "1 of 4 questions are left out" in caplog.text


def test_a_training_file_without_answers_is_refused():
    with pytest.raises(ValueError, match="--train_file must hold answers .* got 2 questions"):
        training_questions(_rows(None, ("Rome", 3)), "--train_file")


# --- files --------------------------------------------------------------------------------------


def test_both_versions_and_flat_lists_read_alike(tmp_path):
    first = question("a", "where?", ("Prague", 3), ("Prague now", 3))
    none = {"id": "b", "question": "who?", "is_impossible": True, "answers": [],
            "plausible_answers": [{"text": "now", "answer_start": 10}]}  # fmt: skip
    unknown = {"id": 7, "question": "when?"}
    path = write_squad(tmp_path / "nested.json", article("in Prague now", first, none, unknown))
    rows = list(read_squad(path))
    assert rows == [
        {
            "id": "a",
            "question": "where?",
            "context": "in Prague now",
            "answers": {"text": ["Prague", "Prague now"], "answer_start": [3, 3]},
        },
        {
            "id": "b",
            "question": "who?",
            "context": "in Prague now",
            "answers": {"text": [], "answer_start": []},
        },
        {
            "id": "7",
            "question": "when?",
            "context": "in Prague now",
            "answers": {"text": [], "answer_start": []},
        },
    ]
    flat = tmp_path / "flat.json"
    flat.write_text(json.dumps({"data": rows}), encoding="utf-8-sig")
    assert list(read_squad(str(flat))) == rows


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "which is not JSON: Expecting property name"),
        ("\xff", "which is not JSON: 'utf-8' codec"),
        ("[1, 2]", "where the file is a list of 2 instead of an object with 'data'"),
        ('{"rows": []}', "where the file is an object with 'rows' and has no 'data'"),
        ('{"data": {"a": 1}}', "where 'data' of the file is an object with 'a'"),
        ('{"data": [{"title": "t"}]}', r"where data\[0\] is an object with 'title' and has no"),
        ('{"data": [{"paragraphs": [{"context": "c"}]}]}',
         r"data\[0\].paragraphs\[0\] is an object with 'context' and has no 'qas'"),
        ('{"data": [{"paragraphs": [{"context": "c", "qas": [{"question": null}]}]}]}',
         r"'question' of data\[0\].paragraphs\[0\].qas\[0\] is null"),
        ('{"data": [{"paragraphs": [{"context": "c", "qas": [{"question": "q", "id": "i", '
         '"answers": [{"text": "c", "answer_start": "0"}]}]}]}]}',
         r"'answer_start' of data\[0\].paragraphs\[0\].qas\[0\].answers\[0\] is str '0'"),
        ('{"data": [{"context": "c", "question": "q", "id": "i", '
         '"answers": {"text": ["c"], "answer_start": []}}]}',
         r"data\[0\].answers has 1 text and 0 answer_start"),
        ('{"data": []}', "--train_file must hold questions, got .* with none"),
        ('{"data": [{"context": "c", "question": "q", "id": "i"}, '
         '{"context": "c", "question": "q", "id": "i"}]}', "got 'i' twice"),
    ],
)  # fmt: skip
def test_another_shape_is_named(tmp_path, content, message):
    path = tmp_path / "squad.json"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(ValueError, match=message):
        read_squad(str(path), "--train_file")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"--train_file must be .* there is no such file"):
        read_squad(str(tmp_path / "none.json"), "--train_file")


def test_a_data_set_by_name_has_the_same_columns(tmp_path):
    path = squad_files.rivers(tmp_path / "squad.json", 3)
    rows = read_squad(path)
    folder = tmp_path / "named"
    folder.mkdir()
    rows.add_column("title", ["t"] * 3).to_json(folder / "train.jsonl")
    named = load_squad(str(folder), None, "train", cache_dir=str(tmp_path / "cache"))
    assert list(named) == list(rows)
    with pytest.raises(ValueError, match="--dataset_name must be a data set with a split 'test'"):
        load_squad(str(folder), None, "test", cache_dir=str(tmp_path / "cache"))
    other = tmp_path / "other"
    other.mkdir()
    rows.remove_columns("context").to_json(other / "train.jsonl")
    with pytest.raises(ValueError, match="must have the columns id, question, context, answers"):
        load_squad(str(other), None, "train", cache_dir=str(tmp_path / "cache"))


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_a_question_is_cut_to_its_first_tokens_and_no_shorter_one_is(kind):
    tokenizer = TOKENIZERS[kind]()
    asked = ["  How long is the river, and why? ", "How?", "Labe naïve"]
    rows = datasets.concatenate_datasets([_rows(None, text=text) for text in asked])

    def tokens(text):
        return tokenizer(text.strip(), add_special_tokens=False)["input_ids"]

    for most in (1, 3, 6, 100):
        cut = cut_questions(rows, tokenizer, most)
        assert [tokens(text) for text in cut["question"]] == [tokens(text)[:most] for text in asked]
        assert cut.features == rows.features
        assert cut["context"] == rows["context"] and cut["answers"] == rows["answers"]


def test_questions_are_cut_by_a_fast_tokenizer_only():
    class Slow:
        is_fast = False

    with pytest.raises(ValueError, match="the tokenizer must be a fast one"):
        cut_questions(_rows(None), Slow(), 5)
