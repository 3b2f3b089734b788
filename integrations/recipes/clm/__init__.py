"""``platon-prune clm``: fine-tune and prune a causal language model on texts or chats."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM, AutoTokenizer

from platon_prune.integrations.recipes.clm.arguments import ClmArguments
from platon_prune.integrations.recipes.clm.data import make_blocks, prompts_of, read_examples
from platon_prune.integrations.recipes.clm.training import (
    ClmTrainer,
    MeasureBefore,
    collate,
    generate,
    losses_of,
    perplexity,
)
from platon_prune.integrations.recipes.common import (
    begin,
    load,
    load_model,
    load_teacher,
    run,
    say,
    title_of,
)
from platon_prune.integrations.recipes.parsing import Arguments, parse_arguments
from platon_prune.integrations.recipes.tokenizer_checks import check_vocabulary, longest_input

DESCRIPTION = """Fine-tune a causal language model and prune it meanwhile (PLATON).

Needs a model and texts: a plain text file (an example is a line, or a passage that ends at a blank
line), a table with a column text, or chats as JSON lines, of which the answers are learnt
({"messages": [{"role": "user", "content": "..."}, ...]}). The pruned model, report.png, and
results.json with the perplexity and a few generations before and after go to --output_dir."""
EXAMPLES = """  platon-prune clm --model_name_or_path gpt2 --train_file book.txt \\
      --example passage --train_val_split 0.1 --amount 0.5 --do_train --do_eval \\
      --output_dir book-50
  platon-prune clm --model_name_or_path Qwen/Qwen2.5-0.5B-Instruct --train_file chats.jsonl \\
      --validation_file dev.jsonl --pruning_granularity semi_structured --bf16 \\
      --gradient_checkpointing --do_train --do_eval --output_dir chats-2-4
  platon-prune clm settings.yaml --seed 1"""
_BLOCK = 512
# How the flags of other training programs begin that ask for adapters.
_LORA = ("--lora", "--use_lora", "--use_peft", "--peft", "--qlora")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the recipe with these flags (those of the process by default).

    Returns:
        The exit status, 0.

    Raises:
        ValueError: If flags, texts, model and tokenizer do not go together; before any training.
    """
    # Before the parser, which could only say that it knows no such flag.
    _refuse_lora_flags(sys.argv[1:] if argv is None else argv)
    arguments = parse_arguments(
        argv, "clm", ClmArguments, description=DESCRIPTION, examples=EXAMPLES
    )
    if arguments.training.do_predict:
        raise ValueError("clm knows no --do_predict: give --do_eval, and --prompts to generate")
    _refuse_adapter(arguments)
    if not begin(arguments):
        return 0
    examples = read_examples(arguments)
    tokenizer = load(
        "--tokenizer_name must be a tokenizer"
        if arguments.model.tokenizer_name
        else "--model_name_or_path must be a model with a tokenizer",
        AutoTokenizer.from_pretrained,
        arguments.model.tokenizer_name or arguments.model.model_name_or_path or "",
        **arguments.model.loading(),
    )
    model = load_model(arguments, AutoModelForCausalLM)
    check_vocabulary(tokenizer, model)
    block_size = _block_size(arguments, tokenizer, model)
    blocks = make_blocks(arguments, examples, tokenizer, block_size)
    for split, rows in blocks.items():
        say(arguments, f"{split}: {len(examples[split]):,} examples, {len(rows):,} blocks")
    prompts = prompts_of(arguments, examples, tokenizer)
    before = MeasureBefore(prompts, arguments.data.generation_tokens, "validation" in blocks)
    trainer = ClmTrainer(
        model=model,
        args=arguments.training,
        train_dataset=blocks.get("train"),
        eval_dataset=blocks.get("validation"),
        processing_class=tokenizer,
        data_collator=collate,
        compute_metrics=perplexity,
        preprocess_logits_for_metrics=losses_of,
        callbacks=[before],
        teacher=load_teacher(arguments, AutoModelForCausalLM, model),
        distillation=arguments.distillation,
    )
    before.trainer = trainer

    def evaluate() -> dict[str, float]:
        return {**before.metrics, **trainer.evaluate()}

    def details() -> dict[str, Any]:
        after = generate(trainer.model, tokenizer, prompts, arguments.data.generation_tokens)
        told = _generations(prompts, before.texts, after)
        for each in told:
            for name, text in each.items():
                say(arguments, f"{name:<7} {text!r}")
        return {"block_size": block_size, "generations": told}

    name = arguments.data.dataset_name or next(iter(arguments.data.files.values()), "texts")
    title = title_of(arguments, Path(name).name)
    run(trainer, arguments, evaluate, title=title, metric="eval_perplexity", details=details)
    return 0


def _generations(
    prompts: Sequence[str], before: Sequence[str], after: Sequence[str]
) -> list[dict[str, str]]:
    """Prompt, and what followed it before and after; nothing before where nothing was trained."""
    earlier = [{"before": text} for text in before] or [{} for _ in prompts]
    return [
        {"prompt": prompt, **old, "after": new}
        for prompt, old, new in zip(prompts, earlier, after, strict=False)
    ]


def _block_size(arguments: Arguments[ClmArguments], tokenizer: Any, model: Any) -> int:
    longest, given = longest_input(tokenizer, model), arguments.data.block_size
    if given is None:
        return min(_BLOCK, longest or _BLOCK)
    if longest is not None and given > longest:
        raise ValueError(
            f"--block_size must be at most {longest}, the longest input of this model, got {given}"
        )
    return given


_WHY_NO_LORA = (
    "LoRA trains small matrices beside frozen weights, and PLATON prunes weights while they are "
    "trained, by their gradients"
)


def _refuse_lora_flags(flags: Sequence[str]) -> None:
    named = [flag for flag in flags if flag.replace("-", "_").startswith(_named(_LORA))]
    if named:
        raise ValueError(
            f"the whole model must be trained, got {named[0]}: {_WHY_NO_LORA}; leave the flag out"
        )


def _named(flags: Sequence[str]) -> tuple[str, ...]:
    return tuple(flag.replace("-", "_") for flag in flags)


def _refuse_adapter(arguments: Arguments[ClmArguments]) -> None:
    name = arguments.model.model_name_or_path or ""
    if Path(name, "adapter_config.json").is_file():
        raise ValueError(
            f"--model_name_or_path must be a whole model, got an adapter in {name!r}: "
            f"{_WHY_NO_LORA}; merge it first (merge_and_unload of peft) and save the model"
        )
