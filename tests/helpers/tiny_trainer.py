"""A small BERT under transformers' Trainer, with data that it can learn."""

import torch
from transformers import BertConfig, BertForSequenceClassification, TrainingArguments

from platon_prune.integrations.hf_trainer import PlatonCallback

SELECTED = 2 * (4 * 16 * 16 + 2 * 16 * 32)  # two layers: attention 4 matrices, feed-forward 2


def small_bert(dropout=0.1):
    torch.manual_seed(0)
    return BertForSequenceClassification(
        BertConfig(
            vocab_size=40,
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=16,
            hidden_dropout_prob=dropout,
        )
    )


class Examples(torch.utils.data.Dataset):
    """The label is whether the first token is in the upper half."""

    def __init__(self, size=64):
        self.tokens = torch.randint(1, 40, (size, 8), generator=torch.Generator().manual_seed(1))

    def __len__(self):
        return len(self.tokens)

    def __getitem__(self, index):
        tokens = self.tokens[index]
        return {"input_ids": tokens, "labels": (tokens[0] >= 20).long()}


def trainer_arguments(folder, **changes):
    settings = dict(
        output_dir=str(folder), max_steps=20, per_device_train_batch_size=8, learning_rate=1e-2,
        use_cpu=True, report_to=[], disable_tqdm=True, logging_steps=5, save_strategy="no", seed=3,
    )  # fmt: skip
    return TrainingArguments(**settings | changes)


def pruning_callback(**changes):
    return PlatonCallback(**dict(amount=0.8, warmup_steps=3, cooldown_steps=5, window=4) | changes)


def zeros_of(model):
    layers = model.bert.encoder.layer
    return sum(
        int((module.weight == 0).sum())
        for layer in layers
        for module in layer.modules()
        if isinstance(module, torch.nn.Linear)
    )
