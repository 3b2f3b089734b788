"""Texts and chats from files or by name, as blocks of tokens."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
from transformers import PreTrainedTokenizerBase

from platon_prune.integrations.recipes.clm.arguments import ClmArguments
from platon_prune.integrations.recipes.clm.chat import (
    IGNORED,
    check_chat,
    encode_chat,
    prepare_template,
    prompt_of,
)
from platon_prune.integrations.recipes.files import (
    existing_file,
    lines_of,
    shown_names,
    shown_path,
)
from platon_prune.integrations.recipes.loading import load_data_set
from platon_prune.integrations.recipes.parsing import Arguments
from platon_prune.integrations.recipes.tables import Table, read_table, texts_in

_TABLES = (".tsv", ".csv", ".json", ".jsonl", ".parquet")
_PROMPT_TOKENS = 16


def read_examples(arguments: Arguments[ClmArguments]) -> dict[str, datasets.Dataset]:
    """The texts or chats of each split that the run needs.

    Returns:
        Split to a data set with one column: ``text``, or ``chat``, of which each is JSON, since
        messages may hold anything.

    Raises:
        ValueError: If a file or a column is missing, or holds something else.
    """
    data, training = arguments.data, arguments.training
    found: dict[str, datasets.Dataset] = {}
    if data.dataset_name is not None:
        loaded = load_data_set(arguments, data.dataset_name, data.dataset_config_name)
        for split, wanted in (("train", training.do_train), ("validation", training.do_eval)):
            if wanted and split in loaded:
                where = f"{data.dataset_name}, {split}"
                found[split] = _from_table(where, loaded[split], data.text_column)
    for split, file in data.files.items():
        found[split] = _from_file(f"--{split}_file", file, data)
    if training.do_eval and "validation" not in found and data.train_val_split and "train" in found:
        halves = found["train"].train_test_split(data.train_val_split, seed=training.seed)
        found |= {"train": halves["train"], "validation": halves["test"]}
    limits = {"train": data.max_train_samples, "validation": data.max_eval_samples}
    wanted_splits = {"train": training.do_train, "validation": training.do_eval}
    for split, is_wanted in wanted_splits.items():
        if is_wanted and split not in found:
            more = ", or --train_val_split" if split == "validation" else ""
            raise ValueError(
                f"there must be texts for {split}, got none: give --{split}_file or a "
                f"--dataset_name that has them{more}"
            )
    return {
        split: rows.select(range(min(limits[split] or len(rows), len(rows))))
        for split, rows in found.items()
        if wanted_splits[split]
    }


def _from_file(flag: str, file: str, data: ClmArguments) -> datasets.Dataset:
    path = existing_file(flag, file)
    where = f"{flag} {shown_path(file, 40)}"
    if path.suffix.lower() in _TABLES:
        return _from_table(where, read_table(flag, file), data.text_column)
    try:
        texts = _lines(path) if data.example == "line" else _passages(path)
    except ValueError as error:
        raise ValueError(f"{flag} must be text, got {shown_path(file)!r}: {error}") from error
    if not texts:
        raise ValueError(f"{where} must hold text, got none")
    return datasets.Dataset.from_dict({"text": texts})


def _lines(path: Path) -> list[str]:
    return [line.strip("\r\n") for line in lines_of(path) if line.strip()]


def _passages(path: Path) -> list[str]:
    passages: list[list[str]] = [[]]
    for line in lines_of(path):
        if line.strip():
            passages[-1].append(line.rstrip("\r\n"))
        elif passages[-1]:
            passages.append([])
    return ["\n".join(passage) for passage in passages if passage]


def _from_table(where: str, table: Table | datasets.Dataset, column: str | None) -> Any:
    names = list(table.column_names)
    known = [name for name in ("messages", "text") if name in names]
    # A table of one column leaves no doubt, whatever it is called.
    if column is None and not known and len(names) == 1:
        known = names
    chosen = column if column is not None else next(iter(known), None)
    if chosen is None or chosen not in names:
        raise ValueError(
            f"{where} must have a column {column or 'messages or text'}, got {shown_names(names)}: "
            "name it with --text_column"
        )
    values = list(table[chosen])
    if values and isinstance(values[0], str):
        return datasets.Dataset.from_dict({"text": texts_in(where, chosen, values)})
    for row, chat in enumerate(values, start=1):
        check_chat(where, row, chat)
    return datasets.Dataset.from_dict({"chat": [json.dumps(chat) for chat in values]})


def prompts_of(
    arguments: Arguments[ClmArguments],
    examples: Mapping[str, datasets.Dataset],
    tokenizer: PreTrainedTokenizerBase,
) -> list[str]:
    """What is gone on from: the given prompts, or the beginnings of what is evaluated."""
    data = arguments.data
    if data.prompts is not None:
        return list(data.prompts)
    rows = examples.get("validation", examples.get("train"))
    if rows is None:
        return []
    prompts = []
    for row in rows.select(range(min(data.num_generations, len(rows)))):
        if "chat" in row:
            prompts.append(prompt_of(tokenizer, json.loads(row["chat"])))
            continue
        ids = tokenizer(row["text"], add_special_tokens=False)["input_ids"]
        few = ids[: max(1, min(_PROMPT_TOKENS, len(ids) // 2))]
        prompts.append(str(tokenizer.decode(few, skip_special_tokens=True)))
    return prompts


def make_blocks(
    arguments: Arguments[ClmArguments],
    examples: Mapping[str, datasets.Dataset],
    tokenizer: PreTrainedTokenizerBase,
    block_size: int,
) -> dict[str, datasets.Dataset]:
    """Tokens and labels in blocks of at most ``block_size``; shows a progress bar for each split.

    Raises:
        ValueError: If chats can't be rendered, or nothing is left to learn.
    """
    data = arguments.data
    if any("chat" in rows.column_names for rows in examples.values()):
        prepare_template(tokenizer, data.chat_template_file)
    blocks = {}
    with arguments.training.main_process_first(desc="tokenising"):
        for split, rows in examples.items():
            blocks[split] = rows.map(
                _blocks_of,
                batched=True,
                with_indices=True,
                remove_columns=rows.column_names,
                fn_kwargs={
                    "where": split,
                    "tokenizer": tokenizer,
                    "block_size": block_size,
                    "packing": data.packing,
                },
                num_proc=data.preprocessing_num_workers,
                desc=f"tokenising {split}",
            )
    for split, rows in blocks.items():
        if not len(rows):
            raise ValueError(
                f"there must be tokens to predict for {split}, got none in {len(examples[split])} "
                f"examples of blocks of {block_size}: give longer texts, or a larger --block_size"
            )
    return blocks


def _blocks_of(
    batch: Mapping[str, list[str]],
    rows: list[int],
    where: str,
    tokenizer: PreTrainedTokenizerBase,
    block_size: int,
    packing: bool,
) -> dict[str, list[list[int]]]:
    if "chat" in batch:
        encoded = [
            encode_chat(where, row + 1, tokenizer, json.loads(chat))
            for row, chat in zip(rows, batch["chat"], strict=True)
        ]
    else:
        encoded = [_encode_text(tokenizer, text) for text in batch["text"]]
    if packing:
        ids = [token for each in encoded for token in each["input_ids"]]
        labels = [label for each in encoded for label in each["labels"]]
        starts = range(0, len(ids), block_size)
        pairs = [(ids[i : i + block_size], labels[i : i + block_size]) for i in starts]
    else:
        pairs = [(e["input_ids"][:block_size], e["labels"][:block_size]) for e in encoded]
    # The first token of a block is predicted by nothing; a block without targets has no loss.
    kept = [pair for pair in pairs if any(label != IGNORED for label in pair[1][1:])]
    return {"input_ids": [ids for ids, _ in kept], "labels": [labels for _, labels in kept]}


def _encode_text(tokenizer: PreTrainedTokenizerBase, text: str) -> dict[str, list[int]]:
    ids = list(tokenizer(text)["input_ids"])
    end = tokenizer.eos_token_id
    if end is not None and ids[-1:] != [end]:
        ids.append(end)  # so that the model learns where an example ends
    return {"input_ids": ids, "labels": list(ids)}
