"""A small training run that can be stopped, killed and resumed; also a script for fresh processes.

``python training_job.py run FILE MASKING`` trains to the end, saving to FILE after every step and
resuming from it if it is there; with ``STEP`` after that, it stops half-way through the save of
that step, says "saving" and waits to be killed. ``python training_job.py finish OUT FILE...``
resumes from each checkpoint and writes the final states to OUT.
"""

import os
import sys
import time

import torch
from on_device import VARIABLE, OnDevice
from torch import nn
from torch.nn import functional as F  # noqa: N812

import platon_prune

TOTAL_STEPS = 32
SETTINGS = dict(amount=0.8, total_steps=TOTAL_STEPS, warmup_steps=4, cooldown_steps=9, window=6)


class Job:
    """Model with dropout, AdamW and scheduler, all from seed 0."""

    def __init__(self, masking, **settings):
        torch.manual_seed(0)
        self.masking = masking
        self.model = nn.Sequential(nn.Linear(12, 24), nn.ReLU(), nn.Dropout(0.3), nn.Linear(24, 3))
        self.scheduler = platon_prune.global_unstructured(
            self.model,
            masking=masking,
            **dict(warmup_steps=0, cooldown_steps=0) | SETTINGS | settings,
        )
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.02)

    def train(self, until):
        while self.scheduler.last_step < until:
            generator = torch.Generator().manual_seed(self.scheduler.last_step)
            inputs = torch.randn(16, 12, generator=generator)
            labels = inputs[:, :3].argmax(1)
            F.cross_entropy(self.model(inputs), labels).backward()
            self.optimizer.step()
            self.scheduler.step()
            self.optimizer.zero_grad()
            yield self.scheduler.last_step

    def checkpoint(self):
        return {
            "masking": self.masking,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "rng": torch.get_rng_state(),
        }

    def load(self, checkpoint):
        self.model.load_state_dict(checkpoint["model"])
        self.optimizer.load_state_dict(checkpoint["optimizer"])
        self.scheduler.load_state_dict(checkpoint["scheduler"])
        torch.set_rng_state(checkpoint["rng"])


def save_atomically(checkpoint, path, die_here=False):
    """Write beside the old file, then replace it in one move: a kill leaves one or the other."""
    with open(f"{path}.new", "wb") as file:
        torch.save(checkpoint, file)
        if die_here:
            file.truncate(file.tell() // 2)
            print("saving", flush=True)
            time.sleep(600)
        file.flush()
        os.fsync(file.fileno())
    os.replace(f"{path}.new", path)


def resumed(path):
    checkpoint = torch.load(path, weights_only=True)
    job = Job(checkpoint["masking"])
    job.load(checkpoint)
    return job


def main():
    torch.set_num_threads(1)
    if VARIABLE in os.environ:  # of a suite that runs on another device
        torch.use_deterministic_algorithms(True, warn_only=True)
        OnDevice(os.environ[VARIABLE]).__enter__()
    command, path, *rest = sys.argv[1:]
    if command == "run":
        job = resumed(path) if os.path.exists(path) else Job(rest[0])
        print("started", flush=True)
        for step in job.train(TOTAL_STEPS):
            save_atomically(job.checkpoint(), path, die_here=rest[1:] == [str(step)])
    else:
        final = []
        for checkpoint in rest:
            job = resumed(checkpoint)
            for _ in job.train(TOTAL_STEPS):
                pass
            final.append(job.checkpoint())
        torch.save(final, path)


if __name__ == "__main__":
    main()
