"""Prune whole channels of a CNN, cut them out, export what is left to ONNX and run it there."""

import onnxruntime
import torch
from torch import nn

import platon_prune

torch.manual_seed(0)

# Your model and your images.
model = nn.Sequential(
    nn.Conv2d(1, 16, 3, padding=1),
    nn.BatchNorm2d(16),
    nn.ReLU(),
    nn.MaxPool2d(2),
    nn.Conv2d(16, 32, 3, padding=1),
    nn.BatchNorm2d(32),
    nn.ReLU(),
    nn.AdaptiveAvgPool2d(1),
    nn.Flatten(),
    nn.Linear(32, 2),
)
images = torch.randn(512, 1, 8, 8)
labels = (images[..., :4].mean((1, 2, 3)) > images[..., 4:].mean((1, 2, 3))).long()

num_steps = 80
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
scheduler = platon_prune.global_structured(
    model,
    images[:2],  # an example, from which it finds what belongs to a channel
    amount=0.5,
    total_steps=num_steps,
    warmup_steps=10,
    cooldown_steps=30,
)
for _ in range(num_steps):
    batch = torch.randint(len(images), (32,))
    nn.functional.cross_entropy(model(images[batch]), labels[batch]).backward()
    optimizer.step()
    scheduler.step()
    optimizer.zero_grad()

# So far the channels are zero; this takes them out. The outputs stay the same.
print(platon_prune.shrink(model, optimizer))

# Train on here if accuracy has suffered: the optimizer was cut along with the model.

model.eval()
batch = torch.export.Dim("batch")
torch.onnx.export(
    model,
    (images[:2],),
    "small.onnx",
    dynamic_shapes=({0: batch},),
    dynamo=True,
    external_data=False,  # one file; otherwise the weights lie in small.onnx.data
    verbose=False,
)
session = onnxruntime.InferenceSession("small.onnx")
(outputs,) = session.run(None, {session.get_inputs()[0].name: images[:8].numpy()})
print(f"accuracy: {(model(images).argmax(1) == labels).float().mean():.2f}")
assert torch.allclose(torch.from_numpy(outputs), model(images[:8]), atol=1e-4)
