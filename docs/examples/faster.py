"""Prune a small transformer until it is 1.5 times as fast here, and measure whether it is."""

import torch
from transformers import BertConfig, BertForSequenceClassification

import platon_prune
from platon_prune.timing import clock

torch.manual_seed(0)
torch.set_num_threads(1)  # as it will be deployed

# Your model: AutoModelForSequenceClassification.from_pretrained("bert-base-uncased")
model = BertForSequenceClassification(
    BertConfig(
        vocab_size=64,
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=512,
        max_position_embeddings=64,
    )
)
# Your data. Here a text is of class 1 if its first token is in the upper half.
tokens = torch.randint(64, (256, 32))
labels = (tokens[:, 0] >= 32).long()
# A batch as the model will be given when it is deployed: all that is measured is of this size.
served = {"input_ids": tokens[:16]}

num_steps = 30
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
scheduler = platon_prune.global_structured(
    model, served, budget="latency", speedup=1.5, total_steps=num_steps, window=3
)
print(scheduler.granularity.latency)  # what each layer takes, at full width and at its floor
for _ in range(num_steps):
    batch = torch.randint(256, (16,))
    model(input_ids=tokens[batch], labels=labels[batch]).loss.backward()
    optimizer.step()
    scheduler.step()
    optimizer.zero_grad()
platon_prune.remove(model)

# What it is worth, measured: the model with its zeros beside the model without them.
report = platon_prune.deploy_report(
    model,
    served,
    forms=["shrunk"],
    rounds=21,
    memory=False,
    # On one thread other programs are not counted; leave it out for the time that users wait.
    timed=clock("cpu", processor_time=True),
)
print(report)
dense, shrunk = (next(iter(row.times.values())).median for row in report.rows)
print(f"aimed at 1.5 times as fast, measured {dense / shrunk:.2f}")

platon_prune.shrink(model, example_inputs=served)  # for good
print(platon_prune.structure(model))
assert scheduler.schedule.amount == 1 - 1 / 1.5
