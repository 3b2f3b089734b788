"""The flags of the text recipe."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from platon_prune.integrations.recipes.fields import setting
from platon_prune.integrations.recipes.tables import FORMATS


@dataclass
class TextArguments:
    """Where the examples are, which columns they have, and what is to be predicted."""

    _argument_group_name = "data"

    train_file: str | None = setting(f"File to train on, {FORMATS}.")
    validation_file: str | None = setting("File to evaluate on, of any of these kinds.")
    test_file: str | None = setting("File for --do_predict, with or without labels.")
    dataset_name: str | None = setting("Data set on the Hub, or its folder, instead of files.")
    dataset_config_name: str | None = setting("Its configuration, if it has several.")
    train_val_split: float | None = setting(
        "Share of the training examples to evaluate on where there are no others, in (0, 1)."
    )
    text_columns: list[str] | None = setting(
        "One or two columns of text; found by their names and contents without."
    )
    label_column: list[str] | None = setting(
        "Column of the label; several columns of 0 and 1 are one label each. Found without."
    )
    label_separator: str | None = setting(
        "What separates the labels of an example that may have several, such as | in a|b."
    )
    task: Literal["classification", "multi_label", "regression"] | None = setting(
        "What the label is: a class, any number of labels, or a number. Found without."
    )
    max_seq_length: int = setting("Tokens of an input; longer ones are cut.", 128)
    pad_to_max_length: bool = setting(
        "Pad to that length instead of to the longest of a batch.", False
    )
    max_train_samples: int | None = setting("Train on this many examples only.")
    max_eval_samples: int | None = setting("Evaluate on this many examples only.")
    max_predict_samples: int | None = setting("Predict this many examples only.")
    preprocessing_num_workers: int | None = setting("Processes that tokenise.")

    def __post_init__(self) -> None:
        if self.dataset_name is not None and self.files:
            raise ValueError(
                "the examples must be given by --dataset_name or by files, got both: leave one out"
            )
        if self.text_columns is not None and len(self.text_columns) > 2:
            raise ValueError(
                f"--text_columns must be one or two columns, got {len(self.text_columns)}: join "
                "some of them in the file"
            )
        if self.train_val_split is not None and not 0 < self.train_val_split < 1:
            raise ValueError(f"--train_val_split must be in (0, 1), got {self.train_val_split}")

    @property
    def files(self) -> dict[str, str]:
        """Split to file, of those that are given."""
        named = {
            "train": self.train_file,
            "validation": self.validation_file,
            "test": self.test_file,
        }
        return {split: file for split, file in named.items() if file is not None}
