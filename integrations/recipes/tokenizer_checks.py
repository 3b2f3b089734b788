"""Checks of a tokenizer and a model against each other, before anything is trained."""

from __future__ import annotations

from typing import Any

# Tokenizers that know no limit give a number of this size.
_NO_LIMIT = 10**9
_POSITIONS = ("max_position_embeddings", "max_seq_len")  # MPT has the latter


def prepare_padding(tokenizer: Any, model: Any) -> None:
    """See to it that sentences of different lengths can share a batch.

    A tokenizer without a pad token (GPT-2's, Llama's) pads with its end token from here on.

    Raises:
        ValueError: If it has neither, or has more tokens than the model.
    """
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise ValueError(
                "the tokenizer must have a pad token, got one with neither a pad token nor an end "
                'token: add "pad_token" to its tokenizer_config.json'
            )
        print(f"the tokenizer has no pad token: padding with its end token {tokenizer.eos_token}")
        tokenizer.pad_token = tokenizer.eos_token
    check_vocabulary(tokenizer, model)
    # Classifiers that read the last token find it by this number.
    if model.config.pad_token_id is None:
        model.config.pad_token_id = tokenizer.pad_token_id


def check_vocabulary(tokenizer: Any, model: Any) -> None:
    """Compare the tokens of the tokenizer with those that the model has an embedding for.

    Raises:
        ValueError: If the tokenizer has more.
    """
    num_embeddings = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > num_embeddings:
        raise ValueError(
            f"the model must have an embedding for each of the tokenizer's {len(tokenizer)} "
            f"tokens, got {num_embeddings}: use the tokenizer that the model was trained with"
        )


def longest_input(tokenizer: Any, model: Any) -> int | None:
    """How many tokens the model can read; None if nothing limits them."""
    limits = []
    if tokenizer.model_max_length < _NO_LIMIT:
        limits.append(tokenizer.model_max_length)
    # DeBERTa's positions are relative unless its config says otherwise.
    counts = (getattr(model.config, name, None) for name in _POSITIONS)
    positions = next((count for count in counts if count), None)
    # XLNet says -1: nothing limits it.
    if positions and positions > 0 and getattr(model.config, "position_biased_input", True):
        limits.append(positions - _reserved_positions(model))
    return min(limits, default=None)


def fit_length(arguments: Any, tokenizer: Any, model: Any) -> None:
    """Lower a ``--max_seq_length`` that nobody gave to what the model can read."""
    longest = longest_input(tokenizer, model)
    # Zero and less are left to check_length, whose message says what is wrong.
    if "max_seq_length" in arguments.given or not longest or longest < 1:
        return
    arguments.data.max_seq_length = min(arguments.data.max_seq_length, longest)


def check_length(max_seq_length: int, tokenizer: Any, model: Any) -> None:
    """Compare ``--max_seq_length`` with what the model can read.

    Raises:
        ValueError: If it is longer, or leaves no room for a token beside the special ones.
    """
    longest = longest_input(tokenizer, model)
    if longest is not None and max_seq_length > longest:
        raise ValueError(
            f"--max_seq_length must be at most {longest}, the longest input of this model, got "
            f"{max_seq_length}: give --max_seq_length {longest} or less"
        )
    special = tokenizer.num_special_tokens_to_add(pair=True)
    if max_seq_length <= special:
        raise ValueError(
            f"--max_seq_length must be above {special}, the special tokens of a pair, got "
            f"{max_seq_length}"
        )


def _reserved_positions(model: Any) -> int:
    """Rows of the position embedding that no token uses: RoBERTa counts from its pad token on."""
    for name, module in model.named_modules():
        padding_index = getattr(module, "padding_idx", None)
        if name.endswith("position_embeddings") and padding_index is not None:
            return int(padding_index) + 1
    return 0
