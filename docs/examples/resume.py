"""Go on with an interrupted run, bit by bit, from a checkpoint that is never half written."""

import os

import torch
from torch import nn

import platon_prune

CHECKPOINT = "checkpoint.pt"
TOTAL_STEPS = 100


def make():
    """Make everything that a run needs, the same way each time."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Dropout(0.1), nn.Linear(64, 2))  # yours
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    scheduler = platon_prune.global_unstructured(
        model, amount=0.8, total_steps=TOTAL_STEPS, warmup_steps=10, cooldown_steps=30, window=5
    )
    # In this order: the scheduler's masks are the ones that count, so they are loaded last.
    return {"model": model, "optimizer": optimizer, "scheduler": scheduler}


def save(run):
    """Write beside the last checkpoint, then replace it: a crash leaves one of the two whole."""
    state = {name: part.state_dict() for name, part in run.items()}
    state["random"] = torch.get_rng_state()  # dropout and the order of batches go on as well
    torch.save(state, CHECKPOINT + ".new")
    os.replace(CHECKPOINT + ".new", CHECKPOINT)


def resume(run):
    """Load the last checkpoint, if there is one."""
    if not os.path.exists(CHECKPOINT):
        return
    state = torch.load(CHECKPOINT, weights_only=True)
    for name, part in run.items():
        part.load_state_dict(state[name])
    torch.set_rng_state(state["random"])


def train(crash_at=None):
    """Train from the last checkpoint, or from the start, to the end."""
    run = make()
    resume(run)
    model, optimizer, scheduler = run.values()
    print(f"starts after step {scheduler.last_step}")
    while scheduler.last_step < TOTAL_STEPS:
        inputs = torch.randn(32, 16)  # your batch
        nn.functional.cross_entropy(model(inputs), (inputs[:, 0] > 0).long()).backward()
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        if scheduler.last_step % 20 == 0:
            save(run)
        if scheduler.last_step == crash_at:
            raise KeyboardInterrupt
    return platon_prune.remove(model)


undisturbed = train()
os.remove(CHECKPOINT)

try:
    train(crash_at=53)
except KeyboardInterrupt:
    print("interrupted")
resumed = train()  # what you call again in a new process
assert all(map(torch.equal, resumed.parameters(), undisturbed.parameters()))
