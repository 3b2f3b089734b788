"""The flags of the clm recipe."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from platon_prune.integrations.recipes.fields import setting


@dataclass
class ClmArguments:
    """Where the texts or chats are, how they are cut, and what is generated."""

    _argument_group_name = "data"

    train_file: str | None = setting(
        "File to train on: plain text, or .jsonl, .json, .csv, .tsv or .parquet with a column of "
        "texts or of chats (messages, each with a role and a content)."
    )
    validation_file: str | None = setting("File to evaluate on, of any of these kinds.")
    dataset_name: str | None = setting("Data set on the Hub, or its folder, instead of files.")
    dataset_config_name: str | None = setting("Its configuration, if it has several.")
    train_val_split: float | None = setting(
        "Share of the training examples to evaluate on where there are no others, in (0, 1)."
    )
    text_column: str | None = setting("Column of the texts or chats; messages or text without.")
    example: Literal["line", "passage"] = setting(
        "What an example of a plain text is: a line, or a passage that ends at a blank line.",
        "line",
    )
    chat_template_file: str | None = setting(
        "File with the Jinja template of chats, if the tokenizer has none or another is wanted."
    )
    block_size: int | None = setting(
        "Tokens of a training example; 512, or what the model can read if that is less, without."
    )
    packing: bool = setting(
        "Join examples and cut them into blocks of that size; false keeps each on its own.", True
    )
    num_generations: int = setting(
        "How many texts to generate before and after, from the beginnings of what is evaluated.", 3
    )
    prompts: list[str] | None = setting("Texts to go on from instead.")
    generation_tokens: int = setting("Most tokens to generate for each.", 40)
    max_train_samples: int | None = setting("Train on this many examples only.")
    max_eval_samples: int | None = setting("Evaluate on this many examples only.")
    preprocessing_num_workers: int | None = setting("Processes that tokenise.")

    def __post_init__(self) -> None:
        if self.dataset_name is not None and self.files:
            raise ValueError(
                "the texts must be given by --dataset_name or by files, got both: leave one out"
            )
        if self.train_val_split is not None and not 0 < self.train_val_split < 1:
            raise ValueError(f"--train_val_split must be in (0, 1), got {self.train_val_split}")
        if self.block_size is not None and self.block_size < 2:
            raise ValueError(
                f"--block_size must be at least 2, a token to see and one to predict, got "
                f"{self.block_size}"
            )

    @property
    def files(self) -> dict[str, str]:
        """Split to file, of those that are given."""
        named = {"train": self.train_file, "validation": self.validation_file}
        return {split: file for split, file in named.items() if file is not None}
