"""Measure what a pruned model is worth on this machine, form by form, and save a smaller file."""

import os

import torch
from torch import nn

import platon_prune

torch.manual_seed(0)


def build():
    """Your model."""
    return nn.Sequential(nn.Linear(256, 1024), nn.GELU(), nn.Linear(1024, 256)).eval()


# A finalized model, as training leaves it. Here the zeros are made at once instead.
model = build()
with torch.no_grad():
    for layer in (model[0], model[2]):
        smallest = layer.weight.abs() < layer.weight.abs().quantile(0.97)
        layer.weight.masked_fill_(smallest, 0)

report = platon_prune.deploy_report(
    model,
    lambda num_tokens: torch.randn(num_tokens, 256),  # inputs of your model
    num_tokens=(1, 32),  # the lengths that you will serve
    forms=["CSR"],  # leave it out for all forms that this machine can run
    rounds=5,  # leave it out for figures that you can rely on
    memory=False,
)
print(report)

# The file: a bit for each weight, and the values that are not zero.
platon_prune.save(model, "model.safetensors")
torch.save(model.state_dict(), "dense.pt")
print(f"{os.path.getsize('model.safetensors') / os.path.getsize('dense.pt'):.2f} of the dense file")

served = build()
served.load_state_dict(platon_prune.load("model.safetensors"))
assert torch.equal(served[0].weight, model[0].weight)

# Layers that skip their zeros, each one only if it was measured to be faster here.
print(platon_prune.to_sparse_inference(served, num_tokens=32))
