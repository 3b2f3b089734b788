"""Exact match and F1 of answers, as the published SQuAD evaluations define them."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalise(text: str) -> str:
    """Lower case, without ASCII punctuation and the articles a, an, the; single spaces.

    Source: Rajpurkar et al. 2016 (arXiv:1606.05250), section 6.1.
    """
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(prediction: str, gold: str) -> float:
    """1 where both are the same once normalised, else 0."""
    return float(normalise(prediction) == normalise(gold))


def f1(prediction: str, gold: str, *, no_answer_matches: bool = False) -> float:
    """Harmonic mean of precision and recall over the words of both, as bags.

    Args:
        prediction: What the model says.
        gold: What a person said.
        no_answer_matches: Whether two texts without any word agree, as in v2.0. In v1.1 they have
            an F1 of 0, although their exact match is 1.

    Returns:
        In [0, 1].
    """
    predicted, wanted = normalise(prediction).split(), normalise(gold).split()
    if no_answer_matches and not (predicted and wanted):
        return float(predicted == wanted)
    shared = (Counter(predicted) & Counter(wanted)).total()
    return 2 * shared / (len(predicted) + len(wanted)) if shared else 0.0


def squad_v1_scores(
    predictions: Mapping[str, str], golds: Mapping[str, Sequence[str]]
) -> dict[str, float]:
    """Scores over all questions, each against the gold answer that suits it best.

    Args:
        predictions: Text by id; a question that is not there scores 0.
        golds: At least one answer by id.

    Returns:
        exact_match and f1, in percent.
    """
    exact = [
        max(exact_match(predictions[name], gold) for gold in answers)
        for name, answers in golds.items()
        if name in predictions
    ]
    overlap = [
        max(f1(predictions[name], gold) for gold in answers)
        for name, answers in golds.items()
        if name in predictions
    ]
    return {
        "exact_match": 100.0 * sum(exact) / len(golds),
        "f1": 100.0 * sum(overlap) / len(golds),
    }


def squad_v2_scores(
    predictions: Mapping[str, str],
    golds: Mapping[str, Sequence[str]],
    null_odds: Mapping[str, float] | None = None,
) -> dict[str, float]:
    """Scores over all questions and over those with and without an answer.

    Args:
        predictions: Text by id, empty for "no answer"; a question that is not there is left out.
        golds: Answers by id, none where the right answer is that there is none.
        null_odds: How strongly each question is thought to have no answer, by id.

    Returns:
        exact and f1 in percent and total, the number of questions; the same after ``HasAns_`` and
        ``NoAns_`` where there are such questions; with ``null_odds`` also best_exact and best_f1,
        the highest that one can get by turning every prediction with odds above a threshold to
        "no answer", and that threshold, best_exact_thresh and best_f1_thresh.
    """
    names = [name for name in golds if name in predictions]
    exact: dict[str, float] = {}
    overlap: dict[str, float] = {}
    for name in names:
        # An answer of nothing but articles and punctuation is no answer.
        wanted = [gold for gold in golds[name] if normalise(gold)] or [""]
        exact[name] = max(exact_match(predictions[name], gold) for gold in wanted)
        overlap[name] = max(f1(predictions[name], g, no_answer_matches=True) for g in wanted)
    scores = _means(exact, overlap, names, "")
    for prefix, answered in (("HasAns_", True), ("NoAns_", False)):
        group = [name for name in names if bool(golds[name]) == answered]
        if group:
            scores |= _means(exact, overlap, group, prefix)
    if null_odds is not None:
        for key, values in (("exact", exact), ("f1", overlap)):
            best, threshold = _best_threshold(values, predictions, golds, null_odds)
            scores |= {f"best_{key}": best, f"best_{key}_thresh": threshold}
    return scores


def _means(
    exact: Mapping[str, float], overlap: Mapping[str, float], names: Sequence[str], prefix: str
) -> dict[str, float]:
    return {
        f"{prefix}exact": 100.0 * sum(exact[name] for name in names) / max(len(names), 1),
        f"{prefix}f1": 100.0 * sum(overlap[name] for name in names) / max(len(names), 1),
        f"{prefix}total": len(names),
    }


def _best_threshold(
    scores: Mapping[str, float],
    predictions: Mapping[str, str],
    golds: Mapping[str, Sequence[str]],
    null_odds: Mapping[str, float],
) -> tuple[float, float]:
    """The highest mean score over thresholds of the odds, in percent, and the first such threshold.

    Below every odds all questions are left unanswered; passing a question's odds answers it, which
    gains its score where there is an answer and loses a point where there is none.
    """
    names = sorted((name for name in null_odds if name in scores), key=lambda n: null_odds[n])
    gains = [scores[n] if golds[n] else -float(bool(predictions[n])) for n in names]
    unanswered = float(sum(not golds[name] for name in golds))
    totals = np.cumsum([unanswered, *gains])
    best = int(np.argmax(totals))
    threshold = float(null_odds[names[best - 1]]) if best else 0.0
    return 100.0 * float(totals[best]) / max(len(scores), 1), threshold
