"""Small SQuAD files, fast tokenizers of three kinds, and a model folder, all made on the spot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertForQuestionAnswering, PreTrainedTokenizerFast

CONTEXT = (
    "  The river Elbe, 1,094 km long, rises in the Giant Mountains\tof Bohemia.\n"
    "Its naïve café-goers \N{EM DASH} some 7% \N{EM DASH} call it “Labe” (Czech). "
    "It passes  Hradec Králové, Dresden, Magdeburg and   Hamburg, then meets the North Sea "
    "\N{WATER WAVE} at Cuxhaven; ships go up to Prague. 易北河 is its Chinese name. "
    "An old bridge, the third of its kind, was built there in 1911 by the city.  "
)


def question(name: str, text: str, *answers: tuple[str, int]) -> dict[str, Any]:
    return {
        "id": name,
        "question": text,
        "answers": [{"text": answer, "answer_start": start} for answer, start in answers],
    }


def article(context: str, *questions: dict[str, Any]) -> dict[str, Any]:
    return {"title": "t", "paragraphs": [{"context": context, "qas": list(questions)}]}


def write_squad(path: Path, *articles: dict[str, Any]) -> str:
    path.write_text(json.dumps({"version": "1.1", "data": articles}), encoding="utf-8")
    return str(path)


def rivers(path: Path, number: int, *, unanswerable: int = 0, answers: bool = True) -> str:
    """Questions about the lengths of rivers, each with its own context and two gold answers."""
    articles = []
    for index in range(number):
        length = 100 + 7 * index
        context = f"The river number {index} is {length} km long and flows into the sea."
        found = str(length), context.index(str(length))
        also = f"{length} km", found[1]
        asked = f"How long is river {index}?"
        gold = (found, also) if answers and index >= unanswerable else ()
        articles.append(article(context, question(f"q{index}", asked, *gold)))
    return write_squad(path, *articles)


def word_tokenizer() -> PreTrainedTokenizerFast:
    """Lower case, no accents, some words and single letters, laid out as for BERT."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    letters = sorted(set("abcdefghijklmnopqrstuvwxyz0123456789.,?;%()-—“”"))
    vocabulary = [*special, *letters, *(f"##{letter}" for letter in letters)]
    words = "the river long km is in of how and flows into sea number".split()  # noqa: SIM905
    names = {token: index for index, token in enumerate([*vocabulary, *words])}
    tokenizer = Tokenizer(models.WordPiece(names, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=64,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Bytes as tokens, as GPT-2 splits them: spaces join words, and there is no special token."""
    names = {
        token: index for index, token in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))
    }
    tokenizer = Tokenizer(models.BPE(names | {"<pad>": len(names)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>")


def left_tokenizer() -> PreTrainedTokenizerFast:
    """The same laid out as for XLNet: CLS at the end, padded on the left."""
    tokenizer = word_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A [SEP] [CLS]",
        pair="$A [SEP] $B:1 [SEP]:1 [CLS]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    tokenizer.padding_side = "left"
    return tokenizer


TOKENIZERS = {"words": word_tokenizer, "bytes": byte_tokenizer, "left": left_tokenizer}


def write_model(folder: Path, seed: int = 0) -> str:
    """A BERT of two layers with its tokenizer, as save_pretrained writes them."""
    import torch

    torch.manual_seed(seed)
    tokenizer = word_tokenizer()
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    BertForQuestionAnswering(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)
