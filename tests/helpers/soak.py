"""A long run that is killed again and again must end as one that never was, in flat memory.

``python tests/helpers/soak.py [--steps 20000] [--kills 40] [--seed 0]`` trains a small model in a
process of its own, kills that at random moments, also in the middle of a save, starts it again from
its last checkpoint, and compares the end with an uninterrupted run's. The usual test run has a
short version of it.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

import platon_prune

MASKINGS = ("step", "window")
SAVE_EVERY = 50


class Run:
    """Model with dropout, AdamW and scheduler, all from seed 0."""

    def __init__(self, steps: int, masking: str) -> None:
        torch.manual_seed(0)
        self.steps = steps
        self.model = nn.Sequential(nn.Linear(12, 64), nn.ReLU(), nn.Dropout(0.2), nn.Linear(64, 3))
        self.scheduler = platon_prune.global_unstructured(
            self.model,
            amount=0.8,
            total_steps=steps,
            warmup_steps=steps // 20,
            cooldown_steps=steps // 5,
            window=7,
            masking=masking,
        )
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.003)

    def state(self) -> dict:
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "rng": torch.get_rng_state(),
        }

    def load(self, path: Path) -> None:
        state = torch.load(path, weights_only=True)
        for name in ("model", "optimizer", "scheduler"):
            getattr(self, name).load_state_dict(state[name])
        torch.set_rng_state(state["rng"])

    def step(self) -> None:
        generator = torch.Generator().manual_seed(self.scheduler.last_step)
        inputs = torch.randn(16, 12, generator=generator)
        F.cross_entropy(self.model(inputs), inputs[:, :3].argmax(1)).backward()
        self.optimizer.step()
        self.scheduler.step()
        self.optimizer.zero_grad()


def work(folder: Path, steps: int, masking: str) -> None:
    """Train to the end from the last checkpoint, if any; note the memory at every save."""
    torch.set_num_threads(1)
    run, path = Run(steps, masking), folder / "checkpoint.pt"
    if path.exists():
        run.load(path)
    while run.scheduler.last_step < steps:
        run.step()
        if run.scheduler.last_step % SAVE_EVERY == 0:
            torch.save(run.state(), folder / "checkpoint.new")
            os.replace(folder / "checkpoint.new", path)
            with open(folder / "memory.jsonl", "a") as file:
                record = [os.getpid(), run.scheduler.last_step, resident_bytes()]
                file.write(json.dumps(record) + "\n")
    torch.save(run.state(), folder / "final.pt")


def resident_bytes() -> int:
    """Memory of this process now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def start(folder: Path, steps: int, masking: str) -> subprocess.Popen:
    command = [sys.executable, __file__, "--work", str(folder), "--steps", str(steps)]
    return subprocess.Popen([*command, "--masking", masking])


def soak(steps: int, kills: int, seed: int, masking: str) -> dict:
    """Kill a run at random moments; what was seen, or an AssertionError."""
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as name:
        killed, whole = Path(name, "killed"), Path(name, "whole")
        killed.mkdir()
        whole.mkdir()
        assert start(whole, steps, masking).wait() == 0
        for step in sorted(rng.randrange(steps - SAVE_EVERY) for _ in range(kills)):
            process = start(killed, steps, masking)
            if rng.random() < 0.2:
                time.sleep(rng.uniform(0, 3))  # while Python starts, or the run resumes
            else:
                wait_for(process, killed, step)
                time.sleep(rng.uniform(0, 0.1))
            process.kill()
            process.wait()
        assert start(killed, steps, masking).wait() == 0
        ends = [torch.load(folder / "final.pt", weights_only=True) for folder in (killed, whole)]
        require_equal(*ends, "state")
        growth = memory_growth(whole)
        assert growth < 8 << 20, f"memory grew by {growth} bytes"
        return {"masking": masking, "steps": steps, "kills": kills, "grew_bytes": growth}


def wait_for(process: subprocess.Popen, folder: Path, step: int) -> None:
    """Until the run has saved what it had at that step, or one later."""
    while last_saved(folder) < step:
        assert process.poll() is None, "the run must not end by itself"
        time.sleep(0.01)


def last_saved(folder: Path) -> int:
    path = folder / "memory.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    # The last line may be half written.
    return max((json.loads(line)[1] for line in lines if line.endswith("]")), default=0)


def memory_growth(folder: Path) -> int:
    """Bytes that the one process of an uninterrupted run grew by after its first tenth."""
    sizes = [json.loads(line)[2] for line in (folder / "memory.jsonl").read_text().splitlines()]
    settled = sizes[len(sizes) // 10 :]
    return settled[-1] - settled[0]


def require_equal(one: object, other: object, where: str) -> None:
    """Equal in every bit, or an AssertionError that says where."""
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), where
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            require_equal(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other), where
        for i, (a, b) in enumerate(zip(one, other, strict=True)):
            require_equal(a, b, f"{where}.{i}")
    else:
        assert one == other, where


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--kills", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--masking", choices=MASKINGS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        work(arguments.work, arguments.steps, arguments.masking)
        return
    for masking in [arguments.masking] if arguments.masking else MASKINGS:
        print(json.dumps(soak(arguments.steps, arguments.kills, arguments.seed, masking)))


if __name__ == "__main__":
    main()
