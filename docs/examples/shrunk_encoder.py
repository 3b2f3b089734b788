"""Half of the heads and neurons of a ModernBERT go at once; it is saved, measured and cut.

With --base it has the sizes of ModernBERT-base, as on the page about deploying.
"""

import sys
import warnings

import torch
from transformers import ModernBertConfig, ModernBertModel
from transformers.initialization import no_init_weights

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
# Your model: ModernBertModel.from_pretrained("answerdotai/ModernBERT-base")
config = ModernBertConfig(**({} if "--base" in sys.argv else small))
with no_init_weights():  # its own initialisation takes a minute at this size
    model = ModernBertModel(config)
for parameter in model.parameters():
    torch.nn.init.normal_(parameter, std=0.02)

# That every layer ends at its limit is what is wanted here.
warnings.filterwarnings("ignore", "at their floor", platon_prune.PruningWarning)
# One choice by magnitude; with PLATON's scores you train, and call step() after the optimizer's.
scheduler = platon_prune.global_structured(
    model, amount=0.5, max_amount=0.5, total_steps=1, criterion="magnitude"
)
scheduler.step()
platon_prune.remove(model)
# With its zeros: platon-prune deploy measures it with them and without.
platon_prune.save(model, "modernbert-half")

if "--base" not in sys.argv:
    report = platon_prune.shrink(model)
    print(report)
    assert all(row.after == row.before // 2 for row in report.places)
