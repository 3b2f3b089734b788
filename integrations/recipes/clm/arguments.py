"""The flags of the clm recipe."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal


def _flag(help: str, default: Any = None) -> Any:
    return field(default=default, metadata={"help": help})


@dataclass
class ClmArguments:
    """Where the texts or chats are, how they are cut, and what is generated."""

    _argument_group_name = "data"

    train_file: str | None = _flag(
        "File to train on: plain text, or .jsonl, .json, .csv, .tsv or .parquet with a column of "
        "texts or of chats (messages, each with a role and a content)."
    )
    validation_file: str | None = _flag("File to evaluate on, of any of these kinds.")
    dataset_name: str | None = _flag("Data set on the Hub, or its folder, instead of files.")
    dataset_config_name: str | None = _flag("Its configuration, if it has several.")
    train_val_split: float | None = _flag(
        "Share of the training examples to evaluate on where there are no others, in (0, 1)."
    )
    text_column: str | None = _flag("Column of the texts or chats; messages or text without.")
    example: Literal["line", "passage"] = _flag(
        "What an example of a plain text is: a line, or a passage that ends at a blank line.",
        "line",
    )
    chat_template_file: str | None = _flag(
        "File with the Jinja template of chats, if the tokenizer has none or another is wanted."
    )
    block_size: int | None = _flag(
        "Tokens of a training example; 512, or what the model can read if that is less, without."
    )
    packing: bool = _flag(
        "Join examples and cut them into blocks of that size; false keeps each on its own.", True
    )
    num_generations: int = _flag(
        "How many texts to generate before and after, from the beginnings of what is evaluated.", 3
    )
    prompts: list[str] | None = _flag("Texts to go on from instead.")
    generation_tokens: int = _flag("Most tokens to generate for each.", 40)
    max_train_samples: int | None = _flag("Train on this many examples only.")
    max_eval_samples: int | None = _flag("Evaluate on this many examples only.")
    preprocessing_num_workers: int | None = _flag("Processes that tokenise.")

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
