"""The trainer of causal language models, perplexity, and texts that are generated meanwhile."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812
from transformers import (
    EvalPrediction,
    PreTrainedTokenizerBase,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from platon_prune.integrations.recipes.clm.chat import IGNORED
from platon_prune.integrations.recipes.distillation import RecipeTrainer, distillation_loss
from platon_prune.integrations.recipes.report import write_json
from platon_prune.integrations.recipes.tokenizer_checks import longest_input

BEFORE = "before"
_BEFORE_FILE = "before.json"


class ClmTrainer(RecipeTrainer):
    """A trainer whose teacher is heard at the tokens that are predicted, and at no others."""

    def distance(
        self, student: Mapping[str, Any], teacher: Mapping[str, Any], inputs: Mapping[str, Any]
    ) -> Tensor:
        """:func:`distillation_loss` over the tokens that have a label."""
        wanted = inputs["labels"][:, 1:] != IGNORED
        predicted, target = (
            {"logits": each["logits"][:, :-1][wanted]} for each in (student, teacher)
        )
        temperature = self.distillation.distillation_temperature
        return distillation_loss(predicted, target, temperature)


def collate(examples: Sequence[Mapping[str, Sequence[int]]]) -> dict[str, Tensor]:
    """Pad to the longest example, on the right; no pad token is needed, as padding is masked."""
    longest = max(len(example["input_ids"]) for example in examples)

    def padded(name: str, value: int) -> Tensor:
        rows = [[*example[name], *[value] * (longest - len(example[name]))] for example in examples]
        return torch.tensor(rows)

    ids = padded("input_ids", 0)
    lengths = torch.tensor([len(example["input_ids"]) for example in examples])
    return {
        "input_ids": ids,
        "attention_mask": (torch.arange(longest) < lengths[:, None]).long(),
        "labels": padded("labels", IGNORED),
    }


def losses_of(logits: Any, labels: Tensor) -> Tensor:
    """For each example the sum of the losses of its tokens, and how many these are.

    Logits are reduced at once: of a whole evaluation they would fill the memory.

    Returns:
        (examples, 2), float32.
    """
    logits = logits[0] if isinstance(logits, tuple) else logits
    rows = []
    # Row by row, since float32 copies of a batch's logits are gigabytes.
    for scores, wanted in zip(logits[:, :-1], labels[:, 1:], strict=True):
        total = F.cross_entropy(scores.float(), wanted, ignore_index=IGNORED, reduction="sum")
        rows.append(torch.stack([total, (wanted != IGNORED).sum().float()]))
    return torch.stack(rows)


def perplexity(outcome: EvalPrediction) -> dict[str, float]:
    """The exponential of the mean loss over all tokens that are predicted, each counted once."""
    totals, counts = np.asarray(outcome.predictions, dtype=float).sum(0)
    mean = totals / counts
    return {"perplexity": math.exp(mean) if mean < 700 else math.inf, "tokens": int(counts)}


@torch.no_grad()
def generate(
    model: Any, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], num_tokens: int
) -> list[str]:
    """What the model goes on with after each prompt: always its likeliest token."""
    was_training = model.training
    model.eval()
    end, longest = tokenizer.eos_token_id, longest_input(tokenizer, model)
    texts = []
    for prompt in prompts:
        # A template has put its special tokens into the text already.
        special = not (tokenizer.bos_token and prompt.startswith(tokenizer.bos_token))
        inputs = tokenizer(prompt, return_tensors="pt", add_special_tokens=special)
        # A tokenizer that ends every text with an end token would end the prompt as well.
        ids = inputs["input_ids"]
        ids = ids[:, :-1] if end is not None and ids.shape[1] > 1 and ids[0, -1] == end else ids
        # The end of the prompt, and as much behind it as the model has positions for.
        ids = ids.to(model.device) if longest is None else ids[:, 1 - longest :].to(model.device)
        room = num_tokens if longest is None else longest - ids.shape[1]
        found = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=min(num_tokens, room),
            do_sample=False,
            pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else end or 0,
        )
        texts.append(str(tokenizer.decode(found[0, ids.shape[1] :], skip_special_tokens=True)))
    model.train(was_training)
    return texts


class MeasureBefore(TrainerCallback):
    """Measures the model when training begins, once it is where and as it will be trained.

    A run that goes on finds what was measured in the file that its beginning wrote.

    Args:
        prompts: What to go on from.
        num_tokens: Most tokens to generate for each.
        evaluates: Whether there is something to evaluate on.
    """

    def __init__(self, prompts: Sequence[str], num_tokens: int, evaluates: bool) -> None:
        self.prompts = prompts
        self.num_tokens = num_tokens
        self.evaluates = evaluates
        self.trainer: ClmTrainer | None = None
        self.metrics: dict[str, float] = {}
        self.texts: list[str] = []

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Evaluate and generate, or read what was found before."""
        path = Path(args.output_dir or ".", _BEFORE_FILE)
        if state.global_step:
            # A checkpoint of another folder has its run's file beside it.
            beside = Path(args.resume_from_checkpoint or ".").parent / _BEFORE_FILE
            found = next((each for each in (path, beside) if each.is_file()), None)
            content = json.loads(found.read_text(encoding="utf-8")) if found else {}
            self.metrics, self.texts = content.get("metrics", {}), content.get("texts", [])
            return
        trainer = self.trainer
        assert trainer is not None
        if self.evaluates:
            measured = trainer.evaluate(metric_key_prefix=BEFORE)
            names = (f"{BEFORE}_loss", f"{BEFORE}_perplexity")
            self.metrics = {name: measured[name] for name in names}
        tokenizer: Any = trainer.processing_class
        self.texts = generate(trainer.model, tokenizer, self.prompts, self.num_tokens)
        if trainer.is_world_process_zero():
            write_json({"metrics": self.metrics, "texts": self.texts}, path)
