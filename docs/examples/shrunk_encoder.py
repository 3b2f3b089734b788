"""Half of the heads and neurons of a ModernBERT go at once; what is left is saved, to be measured.

With --base it has the sizes of ModernBERT-base, as on the page about deploying.
"""

import sys
import warnings

import torch
from transformers import ModernBertConfig, ModernBertForMaskedLM

import platon_prune

torch.manual_seed(0)

small = dict(
    vocab_size=128,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
    cls_token_id=1,
    sep_token_id=2,
)
# Your model: ModernBertForMaskedLM.from_pretrained("answerdotai/ModernBERT-base")
config = ModernBertConfig(**({} if "--base" in sys.argv else small))
model = ModernBertForMaskedLM(config)
tokens = torch.randint(3, config.vocab_size, (4, 16))

# That every layer ends at its limit is what is wanted here.
warnings.filterwarnings("ignore", "at their floor", platon_prune.PruningWarning)
# A few steps to learn the scores, one choice, and so on; you would train as long as for a task.
num_steps = 6
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
scheduler = platon_prune.global_structured(
    model,
    amount=0.5,
    total_steps=num_steps,
    schedule="once",
    window=2,
    # As much of every layer as of all of them.
    max_amount=0.5,
)
for _ in range(num_steps):
    model(input_ids=tokens, labels=tokens).loss.backward()
    optimizer.step()
    scheduler.step()
    optimizer.zero_grad()

report = platon_prune.shrink(model)
print(f"{report.parameters_before:,} parameters, {report.parameters_after:,} left")
for kind in ("heads", "neurons"):
    rows = [row for row in report.places if row.kind == kind]
    print(f"{kind}: {sum(row.before for row in rows)}, {sum(row.after for row in rows)} left")
platon_prune.save(model, "modernbert-half")
assert all(row.after == row.before // 2 for row in report.places)
