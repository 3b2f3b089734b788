"""Tiny models, tokenizers and data that the tests of the recipes save into folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageColor
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    ViTConfig,
    ViTForImageClassification,
)

from platon_prune import cli

WORDS = ["good", "fine", "great", "bad", "poor", "awful", "film", "plot", "a", "the", "very", "is"]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
# Two layers: attention has 4 matrices of 16 x 16, the feed-forward part 2 of 16 x 32.
SELECTED = 2 * (4 * 16 * 16 + 2 * 16 * 32)


def save_tokenizer(folder: Path, *, pad: bool = True, end: bool = False) -> None:
    vocabulary = {word: number for number, word in enumerate(SPECIAL + WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    tokens = {"unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    tokens |= {"pad_token": "[PAD]"} if pad else {}
    tokens |= {"eos_token": "[SEP]"} if end else {}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **tokens).save_pretrained(folder)


def save_bert(folder: Path, *, pad: bool = True, end: bool = False, **changes: Any) -> str:
    torch.manual_seed(0)
    settings: dict[str, Any] = dict(
        vocab_size=len(SPECIAL + WORDS), hidden_size=16, num_hidden_layers=2,
        num_attention_heads=2, intermediate_size=32, max_position_embeddings=32,
    )  # fmt: skip
    BertForSequenceClassification(BertConfig(**settings | changes)).save_pretrained(folder)
    save_tokenizer(folder, pad=pad, end=end)
    return str(folder)


CHAT_WORDS = [
    "user", "assistant", "hello", "who", "are", "you", "i", "am", "a", "cat", ".", "the", "dog",
    "sat", "on", "mat", "<", ">", "end",
]  # fmt: skip
CHAT_TEMPLATE = (
    "{% for m in messages %}< {{ m['role'] }} > {{ m['content'] }} end\n{% endfor %}"
    "{% if add_generation_prompt %}< assistant > {% endif %}"
)


def chat_tokenizer() -> PreTrainedTokenizerFast:
    """A word is a token; there is no pad token, as Llama's has none."""
    vocabulary = {word: number for number, word in enumerate(["[UNK]", "</s>", *CHAT_WORDS])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="[UNK]", eos_token="</s>")
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def save_llama(folder: Path) -> str:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(CHAT_WORDS) + 2, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, intermediate_size=32, max_position_embeddings=64,
        bos_token_id=None, eos_token_id=1, pad_token_id=None,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    chat_tokenizer().save_pretrained(folder)
    return str(folder)


def sentences(count: int) -> list[tuple[str, int]]:
    """Sentences whose adjective says their label."""
    adjectives = WORDS[:6]
    return [
        (f"the {WORDS[6 + i % 2]} is very {adjectives[i % 6]}", int(i % 6 < 3))
        for i in range(count)
    ]


def save_sst2(folder: Path) -> list[str]:
    """Files of sentences, and the flags that name them."""
    flags = []
    for split, count in (("train", 48), ("validation", 12)):
        lines = [f"{text}\t{label}" for text, label in sentences(count)]
        (folder / f"{split}.tsv").write_text("\n".join(["sentence\tlabel", *lines]) + "\n")
        flags += [f"--{split}_file", str(folder / f"{split}.tsv")]
    return flags


PROCESSOR = {
    "image_processor_type": "ViTImageProcessor",
    "size": {"height": 8, "width": 8},
    "image_mean": [0.5] * 3,
    "image_std": [0.5] * 3,
}


def save_vit(folder: Path, **changes: Any) -> str:
    torch.manual_seed(0)
    settings: dict[str, Any] = dict(
        image_size=8, patch_size=4, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=32,
    )  # fmt: skip
    ViTForImageClassification(ViTConfig(**settings | changes)).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    return str(folder)


def save_images(folder: Path, classes: tuple[str, ...] = ("blue", "red"), count: int = 8) -> Path:
    """One folder per class, with images of its colour."""
    for name in classes:
        (folder / name).mkdir(parents=True)
        for number in range(count):
            colour = ImageColor.getrgb(name)
            Image.new("RGB", (10 + number, 12), colour).save(folder / name / f"{number}.png")
    return folder


def run(recipe: str, *flags: object) -> int:
    """The command line, in this process, on the CPU and without progress bars."""
    return cli.main([recipe, *map(str, flags), "--use_cpu", "--disable_tqdm", "true"])


def results(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "results.json").read_text())
    return content
