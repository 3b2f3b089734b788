"""Studies and Lightning's runs that are killed at random moments must end as ones that never were.

``python tests/helpers/soak_kills.py [study lightning] [--kills 40] [--seed 0]`` starts a process,
kills it after a random while, starts it again, and compares the end with an uninterrupted one's.
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
from typing import Any

import soak
import torch

STEPS = 400


def study(kills: int, seed: int) -> dict[str, Any]:
    """Cells that take a tenth of a second each, written by a process that is killed."""
    program = Path(__file__).with_name("study_job.py")
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as name:
        ends = []
        for kind, times in (("whole", 0), ("killed", kills)):
            folder = Path(name, kind, "study")
            folder.parent.mkdir()
            command = [sys.executable, str(program), "--recipe", "fake", "--output-dir",
                       str(folder), "--criteria", "platon", "magnitude", "--amounts", "0.5", "0.9",
                       "--seeds", *map(str, range(5))]  # fmt: skip
            _kill_again_and_again(command, times, rng, most=6.0, environment={"SLEEP": "0.1"})
            lines = (folder / "results.jsonl").read_text().splitlines()
            records = {json.loads(line)["key"]: json.loads(line)["metrics"] for line in lines}
            assert len(records) == len(lines), "a cell is there twice"
            ends.append(records)
        assert ends[0] == ends[1], "a killed study must end with the same numbers"
        return {"what": "study", "cells": len(ends[0]), "kills": kills}


def lightning(kills: int, seed: int) -> dict[str, Any]:
    """A run that goes on from Lightning's last checkpoint, which holds the callback's state."""
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as name:
        ends = []
        for kind, times in (("whole", 0), ("killed", kills)):
            folder = Path(name, kind)
            folder.mkdir()
            command = [sys.executable, __file__, "--work", str(folder)]
            _kill_again_and_again(command, times, rng, most=25.0)
            ends.append(torch.load(folder / "final.pt", weights_only=True))
        soak.require_equal(*ends, "weights")
        return {"what": "lightning", "steps": STEPS, "kills": kills}


def _kill_again_and_again(
    command: list[str], kills: int, rng: random.Random, most: float, environment: Any = None
) -> None:
    """Start and kill so many times, then once more to the end."""
    for _ in range(kills):
        process = _start(command, environment)
        time.sleep(rng.uniform(0, most))
        process.kill()
        process.wait()
    process = _start(command, environment)
    assert process.wait() == 0, process.args


def _start(command: list[str], environment: Any) -> subprocess.Popen:
    quiet = subprocess.DEVNULL
    return subprocess.Popen(command, env=os.environ | (environment or {}), stdout=quiet)


def work(folder: Path) -> None:
    """Train to the end, from the last checkpoint if there is one."""
    import lightning as pl
    from torch import nn

    from platon_prune.integrations.lightning_callback import PlatonLightningCallback

    class Net(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 2))

        def training_step(self, batch: Any, index: int) -> Any:
            # By the step alone: Lightning saves no random numbers and no position in the data.
            generator = torch.Generator().manual_seed(self.global_step)
            inputs = torch.randn(8, 12, generator=generator)
            return nn.functional.cross_entropy(self.net(inputs), (inputs[:, 0] > 0).long())

        def configure_optimizers(self) -> Any:
            return torch.optim.AdamW(self.parameters(), lr=1e-2)

    torch.set_num_threads(1)
    pl.seed_everything(0)
    saving = pl.pytorch.callbacks.ModelCheckpoint(
        folder, filename="{step}", every_n_train_steps=20, save_top_k=-1, save_last=False
    )
    trainer = pl.Trainer(
        max_steps=STEPS, max_epochs=-1, accelerator="cpu", logger=False, enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[PlatonLightningCallback(amount=0.8, cooldown_steps=0.4, window=5), saving],
    )  # fmt: skip
    found = sorted(folder.glob("step=*.ckpt"), key=lambda path: int(path.stem[5:].split("-")[0]))
    module = Net()
    data = torch.utils.data.DataLoader(torch.zeros(STEPS, 1))
    trainer.fit(module, data, ckpt_path=found[-1] if found else None)
    torch.save(module.state_dict(), folder / "final.new")
    os.replace(folder / "final.new", folder / "final.pt")


WHAT = {"study": study, "lightning": lightning}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("what", nargs="*", default=[*WHAT])
    parser.add_argument("--kills", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        work(arguments.work)
        return
    for what in arguments.what:
        print(json.dumps(WHAT[what](arguments.kills, arguments.seed)), flush=True)


if __name__ == "__main__":
    main()
