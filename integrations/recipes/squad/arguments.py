"""The flags of the squad recipe."""

from __future__ import annotations

from dataclasses import dataclass

from platon_prune.integrations.recipes.fields import setting
from platon_prune.integrations.recipes.squad.answers import AnswerSettings


@dataclass
class SquadArguments:
    """Which questions, how contexts are cut, and what counts as an answer."""

    _argument_group_name = "data"

    dataset_name: str | None = setting(
        "Data set with SQuAD's columns: a name on the Hub, such as squad or squad_v2, or a folder."
    )
    dataset_config_name: str | None = setting("Configuration of the data set, if it has several.")
    train_file: str | None = setting("SQuAD JSON (v1.1 or v2.0) to train on.")
    validation_file: str | None = setting("SQuAD JSON to evaluate on.")
    test_file: str | None = setting(
        "SQuAD JSON to predict from with --do_predict; it may lack answers."
    )
    version_2_with_negative: bool = setting(
        "Some questions have no answer, as in SQuAD v2.0.", False
    )
    max_seq_length: int = setting(
        "Most tokens that the model reads at once: question, context and special tokens.", 384
    )
    max_query_length: int | None = setting(
        "Most tokens of a question, of which the first are kept; a question is not cut without it."
    )
    doc_stride: int = setting(
        "Tokens that a window over a long context shares with the one before it.", 128
    )
    pad_to_max_length: bool = setting(
        "Pad every window to max_seq_length, not just to the longest of its batch; always so for "
        "a tokenizer that pads on the left.",
        False,
    )
    n_best_size: int = setting("Possible answers listed for each question.", 20)
    max_answer_length: int = setting("Most tokens of an answer.", 30)
    null_score_diff_threshold: float = setting(
        'How far the score of "no answer" must be above that of the best answer to win; with '
        "--version_2_with_negative.",
        0.0,
    )
    max_train_samples: int | None = setting("Train on the first so many questions only.")
    max_eval_samples: int | None = setting("Evaluate on the first so many questions only.")
    max_predict_samples: int | None = setting("Predict the first so many questions only.")
    preprocessing_num_workers: int | None = setting("Processes that tokenise.")
    overwrite_cache: bool = setting(
        "Tokenise a data set anew that has been tokenised before.", False
    )

    def __post_init__(self) -> None:
        if self.null_score_diff_threshold and not self.version_2_with_negative:
            raise ValueError(
                "--null_score_diff_threshold needs --version_2_with_negative, got "
                f"{self.null_score_diff_threshold} without it: leave one out or give both"
            )
        samples = ("max_train_samples", "max_eval_samples", "max_predict_samples")
        for name in (*samples, "max_query_length"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"--{name} must be at least 1, got {value}")
        self.answers()

    def answers(self) -> AnswerSettings:
        """What counts as an answer."""
        return AnswerSettings(
            self.n_best_size,
            self.max_answer_length,
            self.version_2_with_negative,
            self.null_score_diff_threshold,
        )
