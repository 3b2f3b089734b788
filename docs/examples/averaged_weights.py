"""Keep a moving average of the weights (EMA) while the model is pruned, and make it as sparse."""

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import platon_prune

torch.manual_seed(0)

# Your model and your data.
model = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 4))
inputs = torch.randn(1024, 16)
labels = inputs[:, :4].argmax(1)

num_steps = 100
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
scheduler = platon_prune.global_unstructured(
    model, amount=0.8, total_steps=num_steps, warmup_steps=10, cooldown_steps=40, window=5
)
averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))

for _ in range(num_steps):
    batch = torch.randint(len(inputs), (32,))
    nn.functional.cross_entropy(model(inputs[batch]), labels[batch]).backward()
    optimizer.step()
    scheduler.step()  # before the average: it takes in what is pruned
    averaged.update_parameters(model)
    optimizer.zero_grad()

# A weight that was pruned a while ago still has an average: the masks take it away. Do so whenever
# you evaluate or save the average.
platon_prune.apply_masks(averaged, scheduler)  # the EMA of timm or ema-pytorch, too
ema = platon_prune.remove(averaged.module)
print(platon_prune.summary(ema))
print(f"accuracy of the average: {(ema(inputs).argmax(1) == labels).float().mean():.2f}")
assert platon_prune.summary(ema).total.kept == round(0.2 * (16 * 64 + 64 * 4))
torch.save(ema.state_dict(), "ema.pt")
