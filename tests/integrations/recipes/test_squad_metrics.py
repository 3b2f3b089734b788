"""Exact match and F1 against values worked out by hand, and answers against a plain search."""

from __future__ import annotations

import math

import datasets
import numpy as np
import pytest

from platon_prune.integrations.recipes.squad.answers import AnswerSettings, find_answers
from platon_prune.integrations.recipes.squad.metrics import (
    exact_match,
    f1,
    normalise,
    squad_v1_scores,
    squad_v2_scores,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The  Elbe", "elbe"),
        ("an apple, a day", "apple day"),
        ("theatre another Banana", "theatre another banana"),
        ("U.S.A.", "usa"),
        # Punctuation goes before articles do, so this article is not a word of its own.
        ("the-end", "theend"),
        ("\tA\nB ", "b"),
        ("the", ""),
        ("“quoted”", "“quoted”"),  # Only ASCII punctuation is removed.
        ("", ""),
    ],
)
def test_normalisation_drops_case_punctuation_articles_and_spaces(text, expected):
    assert normalise(text) == expected


@pytest.mark.parametrize(
    ("prediction", "gold", "exact", "overlap"),
    [
        ("The Elbe.", "elbe", 1, 1),
        ("river Elbe", "Elbe", 0, 2 / 3),  # precision 1/2, recall 1
        ("in the north sea", "the North Sea", 0, 4 / 5),  # precision 2/3, recall 1
        ("to be to be", "to be", 0, 2 / 3),  # shared 2 of 4 and of 2: words count as often as said
        ("to to", "to be to", 0, 4 / 5),  # precision 1, recall 2/3
        ("Rhine", "Elbe", 0, 0),
        ("", "Elbe", 0, 0),
        ("the", "a", 1, 0),  # nothing is left of either: v1.1 gives an exact match without overlap
    ],
)
def test_scores_of_one_answer(prediction, gold, exact, overlap):
    assert exact_match(prediction, gold) == exact
    assert f1(prediction, gold) == pytest.approx(overlap)


def test_two_texts_without_words_agree_in_version_2():
    assert f1("", "", no_answer_matches=True) == 1
    assert f1("the", "", no_answer_matches=True) == 1
    assert f1("Elbe", "", no_answer_matches=True) == 0
    assert f1("", "Elbe", no_answer_matches=True) == 0


def test_version_1_takes_the_best_of_several_gold_answers_and_counts_missing_predictions_as_wrong():
    golds = {
        "a": ["Giant Mountains", "the Giant Mountains of Bohemia"],
        "b": ["1911", "in 1911"],
        "c": ["Prague"],
        "d": ["Dresden"],
    }
    predictions = {"a": "mountains of Bohemia", "b": "in 1911", "c": ""}
    # a: against the second of 4 words, 3 shared of 3 and 4: 6/7; against the first 1 of 3 and 2.
    scores = squad_v1_scores(predictions, golds)
    assert scores == {
        "exact_match": pytest.approx(100 / 4),
        "f1": pytest.approx(100 * (6 / 7 + 1) / 4),
    }


def test_version_2_splits_questions_with_and_without_an_answer():
    golds = {"a": ["Elbe"], "b": ["North Sea"], "c": [], "d": [], "e": ["the"]}
    predictions = {"a": "the Elbe", "b": "Sea", "c": "", "d": "Rhine", "e": ""}
    scores = squad_v2_scores(predictions, golds)
    # e has an answer, but nothing is left of it: "no answer" is right there.
    assert scores == {
        "exact": pytest.approx(100 * 3 / 5),
        "f1": pytest.approx(100 * (1 + 2 / 3 + 1 + 0 + 1) / 5),
        "total": 5,
        "HasAns_exact": pytest.approx(100 * 2 / 3),
        "HasAns_f1": pytest.approx(100 * (1 + 2 / 3 + 1) / 3),
        "HasAns_total": 3,
        "NoAns_exact": pytest.approx(50),
        "NoAns_f1": pytest.approx(50),
        "NoAns_total": 2,
    }


def test_version_2_leaves_out_groups_and_questions_that_are_not_there():
    scores = squad_v2_scores({"a": "Elbe"}, {"a": ["Elbe"], "b": ["Rhine"]})
    assert scores["exact"] == 100
    assert scores["total"] == 1
    assert "NoAns_exact" not in scores


def test_the_best_threshold_is_the_best_of_all_thresholds():
    generator = np.random.default_rng(0)
    golds, predictions, odds = {}, {}, {}
    for number in range(60):
        name = str(number)
        golds[name] = ["x y"] if generator.random() < 0.6 else []
        predictions[name] = str(generator.choice(["x y", "x", "z", ""]))
        odds[name] = float(generator.normal() + (0.5 if not golds[name] else -0.5))
    scores = squad_v2_scores(predictions, golds, odds)
    for key in ("exact", "f1"):
        tried = {}
        for threshold in [min(odds.values()) - 1, *odds.values()]:
            cut = {n: "" if odds[n] > threshold else predictions[n] for n in predictions}
            tried[threshold] = squad_v2_scores(cut, golds)[key]
        assert scores[f"best_{key}"] == pytest.approx(max(tried.values()))
        assert tried[scores[f"best_{key}_thresh"]] == pytest.approx(max(tried.values()))


def test_without_any_right_answer_the_best_threshold_answers_nothing():
    scores = squad_v2_scores({"a": "x", "b": "y"}, {"a": ["z"], "b": []}, {"a": 1.0, "b": 2.0})
    assert scores["best_exact"] == 50
    assert scores["best_exact_thresh"] == 0


# --- from logits to answers ---------------------------------------------------------------------

CONTEXTS = ["one two three four five six seven eight", "nine ten", "   "]


def _windows(num_special=2):
    """Two overlapping windows over the first context, one over each other; tokens are words."""
    rows = []
    for question, words in [(0, range(0, 5)), (0, range(3, 8)), (1, range(0, 2)), (2, range(0))]:
        context = CONTEXTS[question]
        places = [context.index(word) for word in context.split()]
        starts = [-1] * num_special + [places[word] for word in words] + [-1]
        sizes = [len(word) for word in context.split()]
        ends = [-1] * num_special + [places[word] + sizes[word] for word in words] + [-1]
        rows.append({"question": question, "starts": starts, "ends": ends, "null": 0})
    return datasets.Dataset.from_list(rows)


def _questions():
    return datasets.Dataset.from_list(
        [{"id": f"q{number}", "context": context} for number, context in enumerate(CONTEXTS)]
    )


def _logits(seed, rows, size=10):
    generator = np.random.default_rng(seed)
    return tuple(generator.normal(size=(rows, size)).astype(np.float32) for _ in range(2))


def _plain_search(question, windows, logits, longest):
    """Every span of every window, best score first; and the lowest score of "no answer"."""
    spans, nulls = {}, []
    for row, window in enumerate(windows):
        if window["question"] != question:
            continue
        start, end = logits[0][row].tolist(), logits[1][row].tolist()
        nulls.append(start[window["null"]] + end[window["null"]])
        for first in range(len(window["starts"])):
            for last in range(first, min(first + longest, len(window["starts"]))):
                if window["starts"][first] < 0 or window["starts"][last] < 0:
                    continue
                text = CONTEXTS[question][window["starts"][first] : window["ends"][last]]
                spans[text] = max(spans.get(text, -math.inf), start[first] + end[last])
    return sorted(spans.items(), key=lambda span: -span[1]), min(nulls)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("n_best_size", "longest"), [(1, 1), (3, 2), (20, 30), (5, 8)])
def test_answers_are_those_of_a_plain_search_over_all_spans(seed, n_best_size, longest):
    windows = _windows()
    logits = _logits(seed, len(windows))
    settings = AnswerSettings(n_best_size=n_best_size, max_answer_length=longest)
    answers = find_answers(_questions(), windows, logits, settings, show_progress=False)
    for question in (0, 1):
        wanted = _plain_search(question, windows, logits, longest)[0][:n_best_size]
        found = answers.nbest[f"q{question}"]
        assert [entry["text"] for entry in found] == [text for text, _ in wanted]
        total = sum(math.exp(score) for _, score in wanted)
        for entry, (_, score) in zip(found, wanted, strict=True):
            assert entry["start_logit"] + entry["end_logit"] == pytest.approx(score)
            assert entry["probability"] == pytest.approx(math.exp(score) / total)
        assert answers.predictions[f"q{question}"] == wanted[0][0]
    assert answers.null_odds is None


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("threshold", [-2.0, 0.0, 1.5])
def test_no_answer_wins_by_more_than_the_threshold(seed, threshold):
    windows = _windows()
    logits = _logits(seed, len(windows))
    settings = AnswerSettings(
        n_best_size=3, version_2_with_negative=True, null_score_diff_threshold=threshold
    )
    answers = find_answers(_questions(), windows, logits, settings, show_progress=False)
    for question in (0, 1):
        spans, null = _plain_search(question, windows, logits, 30)
        odds = null - spans[0][1]
        assert answers.null_odds[f"q{question}"] == pytest.approx(odds)
        expected = "" if odds > threshold else spans[0][0]
        assert answers.predictions[f"q{question}"] == expected
        wanted = sorted([*spans[:3], ("", null)], key=lambda span: -span[1])
        found = answers.nbest[f"q{question}"]
        assert [entry["text"] for entry in found] == [text for text, _ in wanted]
        assert sum(entry["probability"] for entry in found) == pytest.approx(1)


def test_a_context_without_text_has_no_answer():
    windows = _windows()
    logits = _logits(0, len(windows))
    plain = find_answers(_questions(), windows, logits, AnswerSettings(), show_progress=False)
    assert plain.predictions["q2"] == ""
    assert plain.nbest["q2"] == []
    settings = AnswerSettings(version_2_with_negative=True)
    answers = find_answers(_questions(), windows, logits, settings, show_progress=False)
    assert answers.predictions["q2"] == ""
    assert [entry["text"] for entry in answers.nbest["q2"]] == [""]


def test_equal_scores_give_the_earlier_and_shorter_answer():
    windows = _windows()
    logits = (np.zeros((4, 10), np.float32), np.zeros((4, 10), np.float32))
    settings = AnswerSettings(n_best_size=3)
    answers = find_answers(_questions(), windows, logits, settings, show_progress=False)
    assert [entry["text"] for entry in answers.nbest["q0"]] == ["one", "one two", "one two three"]


def test_logits_that_are_not_numbers_are_an_error():
    windows = _windows()
    logits = _logits(0, len(windows))
    logits[0][1, 2] = np.nan
    with pytest.raises(RuntimeError, match="NaN for question q0: the training diverged"):
        find_answers(_questions(), windows, logits, AnswerSettings(), show_progress=False)


@pytest.mark.parametrize("name", ["n_best_size", "max_answer_length"])
def test_settings_below_one_are_refused(name):
    with pytest.raises(ValueError, match=f"--{name} must be at least 1, got 0"):
        AnswerSettings(**{name: 0})
