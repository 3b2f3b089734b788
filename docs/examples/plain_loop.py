"""Write the loop yourself: accumulated gradients, mixed precision with a GradScaler, clipping."""

import torch
from torch import nn

import platon_prune

torch.manual_seed(0)
device = "cuda" if torch.cuda.is_available() else "cpu"

# Your model and your loader.
model = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 4)).to(device)
inputs = torch.randn(1024, 16)
data = torch.utils.data.TensorDataset(inputs, inputs[:, :4].argmax(1))
loader = torch.utils.data.DataLoader(data, batch_size=16, shuffle=True)

num_epochs, accumulate = 6, 4
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
scaler = torch.amp.GradScaler(device)
scheduler = platon_prune.global_unstructured(
    model,
    amount=0.8,
    # Optimizer steps, not batches: four batches make a step.
    total_steps=num_epochs * (len(loader) // accumulate),
    warmup_steps=10,
    cooldown_steps=30,
    window=5,  # short, as the run is
)

for _ in range(num_epochs):
    for i, (inputs, labels) in enumerate(loader, start=1):
        with torch.autocast(device, dtype=torch.float16 if device == "cuda" else torch.bfloat16):
            outputs = model(inputs.to(device))
            loss = nn.functional.cross_entropy(outputs, labels.to(device)) / accumulate
        scaler.scale(loss).backward()
        if i % accumulate:
            continue  # the gradients of this batch wait for those of the next ones
        scaler.unscale_(optimizer)  # scores need gradients in their own scale, and so does clipping
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scale = scaler.get_scale()
        scaler.step(optimizer)
        scaler.update()
        # A scale that went down says that the scaler skipped this step.
        scheduler.step(skipped=scaler.get_scale() < scale)
        optimizer.zero_grad()

platon_prune.remove(model)  # ordinary parameters again, with their zeros
print(f"loss of the last batch: {loss.item() * accumulate:.2f}")
print(platon_prune.summary(model))
assert platon_prune.summary(model).total.kept == round(0.2 * (16 * 64 + 64 * 4))
