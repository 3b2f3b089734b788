"""Chats as tokens, by the tokenizer's template, of which only the answers are learnt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from platon_prune.integrations.recipes.files import existing_file, read_text, shown

IGNORED = -100  # the label of a token that no loss is taken of, as torch's cross entropy has it
Chat = Sequence[Mapping[str, Any]]


def prepare_template(tokenizer: PreTrainedTokenizerBase, file: str | None) -> None:
    """See to it that the tokenizer can render chats.

    Args:
        tokenizer: Gets the template of the file, if there is one.
        file: ``--chat_template_file``.

    Raises:
        ValueError: If there is no template, or the tokenizer can't tell where a token begins.
    """
    if file is not None:
        path: Path = existing_file("--chat_template_file", file)
        tokenizer.chat_template = read_text(path)
    if not tokenizer.chat_template:
        raise ValueError(
            "the tokenizer must have a chat template to read chats, got one without: give "
            "--chat_template_file, or texts in a column text"
        )
    if not tokenizer.is_fast:
        raise ValueError(
            f"the tokenizer must be a fast one to find the answers of a chat, got "
            f"{type(tokenizer).__name__}: give a model with a tokenizer.json"
        )


def check_chat(where: str, row: int, chat: Any) -> None:
    """Refuse what is no chat with an answer in it.

    Raises:
        ValueError: If a message lacks its role or content, or none is the assistant's.
    """
    is_chat = isinstance(chat, (list, tuple)) and all(
        isinstance(message, Mapping) and {"role", "content"} <= message.keys() for message in chat
    )
    if not is_chat:
        raise ValueError(
            f"{where}: a chat must be a list of messages with role and content, got {shown(chat)} "
            f"in row {row}: correct or remove it"
        )
    if not any(message["role"] == "assistant" for message in chat):
        raise ValueError(
            f"{where}: a chat must have an answer (role assistant) to learn, got none in row "
            f"{row}: correct or remove it"
        )


def prompt_of(tokenizer: PreTrainedTokenizerBase, chat: Chat) -> str:
    """What comes before the first answer, as the template renders it."""
    first = next(i for i, message in enumerate(chat) if message["role"] == "assistant")
    return _render(tokenizer, chat[:first], prompts=True)


def encode_chat(
    where: str, row: int, tokenizer: PreTrainedTokenizerBase, chat: Chat
) -> dict[str, list[int]]:
    """Tokens of a chat, and labels that leave out all but the answers.

    An answer is what the template adds from the prompt for it to the end of its message, its end
    token included, so that the model learns to stop.

    Raises:
        ValueError: If the template renders an earlier part otherwise once more follows, so that the
            answers can't be found.
    """
    text, spans = _render(tokenizer, chat), []
    # By text and not by tokens: tokens of a beginning need not be the beginning of the tokens.
    for number, message in enumerate(chat):
        if message["role"] != "assistant":
            continue
        before = _render(tokenizer, chat[:number], prompts=True)
        through = _render(tokenizer, chat[: number + 1])
        if not (through.startswith(before) and text.startswith(through)):
            raise ValueError(
                f"{where}: the chat template must render the beginning of a chat as it renders it "
                f"in the whole, got another text at message {number + 1} of row {row}: give "
                "another --chat_template_file, or one answer a chat"
            )
        spans.append((len(before), len(through)))
    # The template has written the special tokens as text already.
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids: list[int] = encoded["input_ids"]
    labels = [
        token if any(begin >= first and end <= last for first, last in spans) else IGNORED
        for token, (begin, end) in zip(ids, encoded["offset_mapping"], strict=True)
    ]
    return {"input_ids": ids, "labels": labels}


def _render(tokenizer: PreTrainedTokenizerBase, chat: Chat, prompts: bool = False) -> str:
    from jinja2.exceptions import TemplateError

    try:
        return str(
            tokenizer.apply_chat_template(
                [dict(message) for message in chat], tokenize=False, add_generation_prompt=prompts
            )
        )
    except TemplateError as error:
        raise ValueError(
            f"the chat template must take chats of these roles, got an error ({error}): give "
            "another --chat_template_file"
        ) from error
