"""Prune a network for handwritten digits as far as one point of accuracy allows, and draw it.

The run is evaluated on its ramp. Where the accuracy has fallen further below the dense model's than
one point, it goes back to the last state that held, holds that amount and goes through a cool-down.
"""

import matplotlib
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn

import platon_prune

matplotlib.use("Agg")
torch.manual_seed(0)
scans = load_digits()
parts = train_test_split(
    torch.tensor(scans.data, dtype=torch.float32) / 16, torch.tensor(scans.target), random_state=0
)
inputs, held_out, labels, expected = parts


def accuracy(model):
    """Share of the held-out digits that the model gets right."""
    with torch.no_grad():
        return float((model(held_out).argmax(1) == expected).float().mean())


def train(model, steps, learning_rate, scheduler=None):
    """Train, and report to a scheduler; returns step, sparsity and accuracy at each report."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate)
    rates = torch.optim.lr_scheduler.LinearLR(optimizer, 1, 0.01, total_iters=steps)
    points = []
    for step in range(1, steps + 1):
        batch = torch.randint(len(labels), (64,))
        nn.functional.cross_entropy(model(inputs[batch]), labels[batch]).backward()
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
        optimizer.zero_grad()
        rates.step()
        if scheduler is not None and (scheduler.goal.is_due or step % 20 == 0):
            points.append((step, scheduler.sparsity(), accuracy(model)))
            if scheduler.report(points[-1][2], optimizer, rates):
                break
    return points


model = nn.Sequential(
    nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10)
)
train(model, 400, 3e-3)
scheduler = platon_prune.global_unstructured(
    model, amount=0.99, total_steps=1000, window=5, max_drop=0.01
)
scheduler.goal.label = "accuracy"
points = train(model, 1000, 3e-3, scheduler)
platon_prune.remove(model)

goal = scheduler.goal
print(goal)
assert goal.is_held and accuracy(model) >= goal.baseline - 0.01 - 1e-9
assert platon_prune.summary(model).total.sparsity > 0.5

from matplotlib import pyplot  # noqa: E402

figure, (upper, lower) = pyplot.subplots(2, sharex=True, figsize=(7, 4.5), layout="constrained")
steps, sparsities, accuracies = zip(*points, strict=True)
upper.plot(steps, [100 * each for each in accuracies], marker=".")
upper.axhline(100 * goal.baseline, linestyle=":", label="dense")
upper.axhline(100 * (goal.baseline - 0.01), linestyle="--", color="tab:red", label="max_drop")
upper.set_ylabel("accuracy, %")
upper.legend()
lower.plot(steps, [100 * each for each in sparsities], marker=".")
lower.set_ylabel("pruned, %")
lower.set_xlabel("step")
figure.suptitle(str(goal))
figure.savefig("metric.png", dpi=110)
