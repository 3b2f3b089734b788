"""Prune a BERT-like classifier to 90 % with transformers' Trainer, and load it elsewhere."""

import torch
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

import platon_prune
from platon_prune.integrations.hf_trainer import PlatonCallback

torch.manual_seed(0)

# Your model: AutoModelForSequenceClassification.from_pretrained("bert-base-uncased", num_labels=2)
model = BertForSequenceClassification(
    BertConfig(
        vocab_size=100,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
    )
)
# Your data: a tokenized data set. Here the class of a sentence is told by its first word.
sentences = torch.randint(1, 100, (320, 12))
dataset = [{"input_ids": words, "labels": (words[0] > 50).long()} for words in sentences]

callback = PlatonCallback(
    amount=0.9,  # the fraction of the weights that is zero in the end
    warmup_steps=0.1,  # fractions of the run
    cooldown_steps=0.4,
    max_amount=0.97,  # no layer loses everything
)
trainer = Trainer(
    model=model,
    args=TrainingArguments(
        output_dir="out",
        num_train_epochs=5,
        per_device_train_batch_size=16,
        learning_rate=1e-3,
        save_strategy="no",
        report_to="none",
        use_cpu=True,  # leave it out where there is a GPU
    ),
    train_dataset=dataset,
    callbacks=[callback],
)
trainer.train()
trainer.save_model("bert-10")

# Elsewhere: an ordinary folder, which needs no platon_prune to be read.
bert = BertForSequenceClassification.from_pretrained("bert-10")
print(platon_prune.summary(bert))
assert round(platon_prune.summary(bert).total.sparsity, 3) == 0.9
