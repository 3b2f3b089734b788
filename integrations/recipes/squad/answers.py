"""From the logits of windows to the text of answers, with the n best of each question."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from platon_prune.integrations.recipes.squad.windows import NO_TEXT
from platon_prune.integrations.writing import write_text


@dataclass(frozen=True)
class AnswerSettings:
    """What counts as an answer.

    Args:
        n_best_size: Answers listed for a question; at least 1.
        max_answer_length: Most tokens of an answer; at least 1.
        version_2_with_negative: Whether a question may have no answer.
        null_score_diff_threshold: How far the score of "no answer" must be above that of the best
            answer to win.
    """

    n_best_size: int = 20
    max_answer_length: int = 30
    version_2_with_negative: bool = False
    null_score_diff_threshold: float = 0.0

    def __post_init__(self) -> None:
        for name in ("n_best_size", "max_answer_length"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name} must be at least 1, got {getattr(self, name)}")


class Candidate(NamedTuple):
    """One possible answer: the characters [begin, end) of the context, or none of it."""

    begin: int
    end: int
    start_logit: float
    end_logit: float

    @property
    def score(self) -> float:
        """Sum of both logits."""
        return self.start_logit + self.end_logit


@dataclass
class Answers:
    """What a model answers, by the question's id.

    Args:
        predictions: The answer; empty for "no answer".
        nbest: Possible answers, best first: text, probability, start_logit, end_logit.
        null_odds: Score of "no answer" minus that of the best answer; None without such questions.
    """

    predictions: dict[str, str] = field(default_factory=dict)
    nbest: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    null_odds: dict[str, float] | None = None

    def save(self, folder: str, prefix: str = "") -> list[Path]:
        """Write predictions.json, nbest_predictions.json and, if there are any, null_odds.json."""
        contents: dict[str, Any] = {
            "predictions": self.predictions,
            "nbest_predictions": self.nbest,
        }
        if self.null_odds is not None:
            contents["null_odds"] = self.null_odds
        paths = []
        Path(folder).mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():
            path = Path(folder) / f"{prefix}{name}.json"
            text = json.dumps(content, indent=2, ensure_ascii=False)
            write_text(path, text + "\n")
            paths.append(path)
        return paths


def best_spans(
    start_logits: NDArray[np.floating],
    end_logits: NDArray[np.floating],
    starts: NDArray[np.integer],
    ends: NDArray[np.integer],
    settings: AnswerSettings,
) -> list[Candidate]:
    """The n spans of a window's context with the highest sums of logits, among all that fit.

    Args:
        start_logits: One a token.
        end_logits: Likewise.
        starts: First character of each context token, -1 for any other token.
        ends: One past the last character, -1 likewise.
        settings: How many, and how long.

    Returns:
        Best first; of equal ones the earlier and then the shorter first.
    """
    held = np.flatnonzero(starts != NO_TEXT)
    if not held.size:
        return []
    place = slice(held[0], held[-1] + 1)
    text = starts[place] != NO_TEXT
    # In float64, so that sums of float32 logits are exact enough to compare.
    first = np.where(text, start_logits[place].astype(np.float64), -np.inf)
    last = np.where(text, end_logits[place].astype(np.float64), -np.inf)
    longest = min(settings.max_answer_length, len(first))
    beyond = np.full(longest - 1, -np.inf)
    # Row: first token; column: how many tokens follow it.
    sums = first[:, None] + np.lib.stride_tricks.sliding_window_view(
        np.concatenate([last, beyond]), longest
    )
    flat = sums.ravel()
    size = min(settings.n_best_size, flat.size)
    least = np.partition(flat, flat.size - size)[flat.size - size]
    at = np.flatnonzero((flat >= least) & np.isfinite(flat))
    at = at[np.argsort(-flat[at], kind="stable")][:size]
    return [
        Candidate(
            int(starts[held[0] + token]),
            int(ends[held[0] + token + more]),
            float(first[token]),
            float(last[token + more]),
        )
        for token, more in zip(*np.unravel_index(at, sums.shape), strict=True)
    ]


def find_answers(
    questions: datasets.Dataset,
    windows: datasets.Dataset,
    logits: tuple[NDArray[np.floating], NDArray[np.floating]],
    settings: AnswerSettings,
    *,
    show_progress: bool = True,
) -> Answers:
    """Answer every question from the logits of its windows.

    A span that several windows hold is counted once, with its highest score. "No answer" has the
    score of its token in the window that believes in it least.

    Args:
        questions: Columns id and context.
        windows: Columns question, starts, ends, null, as ``make_windows`` gives them.
        logits: Of starts and of ends, each [windows, tokens].
        settings: What counts as an answer.
        show_progress: Whether a bar is drawn.

    Raises:
        RuntimeError: A logit is not a number, or there are not as many rows as windows.
    """
    if len(logits[0]) != len(windows):
        raise RuntimeError(f"logits must have a row a window, {len(windows)}, got {len(logits[0])}")
    rows_of: list[list[int]] = [[] for _ in range(len(questions))]
    for row, question in enumerate(windows["question"]):
        rows_of[question].append(row)
    arrays = windows.select_columns(["starts", "ends", "null"]).with_format("numpy")
    answers = Answers(null_odds={} if settings.version_2_with_negative else None)
    bar = tqdm(rows_of, desc="Finding answers", disable=not show_progress)
    for question, rows in zip(questions, bar, strict=True):
        spans: dict[tuple[int, int], Candidate] = {}
        nulls = []
        for row in rows:
            window, start_logits, end_logits = arrays[row], logits[0][row], logits[1][row]
            size = len(window["starts"])
            if np.isnan(start_logits[:size]).any() or np.isnan(end_logits[:size]).any():
                raise RuntimeError(
                    f"logits must be numbers, got NaN for question {question['id']}: the training "
                    "diverged; lower --learning_rate or leave out --fp16"
                )
            for span in best_spans(
                start_logits, end_logits, window["starts"], window["ends"], settings
            ):
                seen = spans.setdefault((span.begin, span.end), span)
                if span.score > seen.score:
                    spans[span.begin, span.end] = span
            at = int(window["null"])
            nulls.append(Candidate(0, 0, float(start_logits[at]), float(end_logits[at])))
        best = sorted(spans.values(), key=_rank)[: settings.n_best_size]
        null = min(nulls, key=lambda candidate: candidate.score)
        _add(answers, question, best, null, settings)
    return answers


def _rank(candidate: Candidate) -> tuple[float, int, int]:
    return -candidate.score, candidate.begin, candidate.end


def _add(
    answers: Answers,
    question: dict[str, Any],
    best: Sequence[Candidate],
    null: Candidate,
    settings: AnswerSettings,
) -> None:
    name, context = question["id"], question["context"]
    text = context[best[0].begin : best[0].end] if best else ""
    entries = list(best)
    if answers.null_odds is not None:
        # A context without any token of text leaves only "no answer".
        odds = null.score - best[0].score if best else max(null.score, 0.0)
        answers.null_odds[name] = odds
        if odds > settings.null_score_diff_threshold:
            text = ""
        entries = sorted([*best, null], key=_rank)
    answers.predictions[name] = text
    weights = np.exp([entry.score - max(e.score for e in entries) for entry in entries])
    answers.nbest[name] = [
        {
            "text": context[entry.begin : entry.end],
            "probability": float(weight / weights.sum()),
            "start_logit": entry.start_logit,
            "end_logit": entry.end_logit,
        }
        for entry, weight in zip(entries, weights, strict=True)
    ]
