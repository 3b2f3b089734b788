"""What must hold of the data, the tokenizer and the model before the squad recipe trains."""

from __future__ import annotations

import datasets
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from platon_prune.integrations.recipes.common import load
from platon_prune.integrations.recipes.parsing import Arguments
from platon_prune.integrations.recipes.squad.arguments import SquadArguments
from platon_prune.integrations.recipes.squad.windows import check_lengths
from platon_prune.integrations.recipes.tokenizer_checks import check_length, prepare_padding


def refuse_settings_that_hide_logits(arguments: Arguments[SquadArguments]) -> None:
    """Refuse what keeps logits from reaching the search for answers.

    Raises:
        ValueError: If the trainer is told to return less than the logits of all windows.
    """
    training = arguments.training
    # Windows of one question may be in different batches, so all logits have to be there at once.
    for name, wanted in (
        ("prediction_loss_only", False),
        ("batch_eval_metrics", False),
        ("eval_do_concat_batches", True),
    ):
        if getattr(training, name) != wanted and (training.do_eval or training.do_predict):
            raise ValueError(
                f"--{name} must be {wanted} to find answers, which takes the logits of all "
                f"windows, got {not wanted}: leave it out"
            )


def refuse_unanswered(questions: datasets.Dataset, argument: str) -> None:
    """Refuse questions without an answer, as SQuAD v1.1 has none.

    Raises:
        ValueError: If there is such a question.
    """
    empty = [row["id"] for row in questions if not row["answers"]["text"]]
    if empty:
        raise ValueError(
            f"{argument} must give every question an answer without --version_2_with_negative, got "
            f"{len(questions)} questions of which {len(empty)} have none (the first is "
            f"{empty[0]}): add the flag, or use --do_predict and --test_file for questions "
            "whose answers are not known"
        )


def load_tokenizer(arguments: Arguments[SquadArguments]) -> PreTrainedTokenizerBase:
    """Load the tokenizer that the model came with, or the one that was named.

    Raises:
        ValueError: If it can't be loaded.
    """
    model = arguments.model
    tokenizer: PreTrainedTokenizerBase = load(
        "--tokenizer_name must be a tokenizer"
        if model.tokenizer_name
        else "--model_name_or_path must have a tokenizer",
        AutoTokenizer.from_pretrained,
        model.tokenizer_name or model.model_name_or_path or "",
        use_fast=True,
        **model.loading(),
    )
    return tokenizer


def check_sizes(
    questions: dict[str, datasets.Dataset],
    tokenizer: PreTrainedTokenizerBase,
    model: PreTrainedModel,
    data: SquadArguments,
) -> None:
    """Refuse lengths and a vocabulary that the model can't take.

    Raises:
        ValueError: If windows are longer than the model, can't move on through a context, or hold
            tokens that the model does not know; if the tokenizer is a slow one.
    """
    prepare_padding(tokenizer, model)
    check_length(data.max_seq_length, tokenizer, model)
    for rows in questions.values():
        check_lengths(rows, tokenizer, data.max_seq_length, data.doc_stride)
