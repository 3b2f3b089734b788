"""States and folders in which something is changed at random: refused, or harmless.

``python tests/helpers/mutate.py [states folders] [--examples 2500] [--seed 0]`` changes one to
three entries of a scheduler's state, or of the JSON files in a model's folder, and loads what comes
of it. Either a ValueError says so in one line and nothing has changed, or the run goes on. The
usual test run has a short version of it.
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import random
import shutil
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import soak
import torch
from torch import nn

import platon_prune
from platon_prune.deploy.models import read_model
from platon_prune.export.inspection import inspect_path

PLAIN: list[Any] = [
    None,
    True,
    -1,
    0,
    1,
    3,
    1 << 31,
    1 << 62,
    1 << 70,
    0.5,
    float("nan"),
    float("inf"),
    "",
    "x",
    "org/name",
    [],
    [1],
    {},
    {"a": 1},
    "../x",
    "\0",
]


def values_for_states() -> list[Any]:
    tensors = [torch.ones(3), torch.tensor(float("nan")), torch.ones(3, 8, device="meta"),
               torch.ones(3, 8).to_sparse(), torch.full((3, 8), float("nan")),
               torch.ones(3, 8, dtype=torch.int64), torch.zeros(3, 8, dtype=torch.bool),
               torch.full((3, 8), float("inf")), -torch.ones(3, 8)]  # fmt: skip
    return [*PLAIN, *tensors]


def places(content: Any) -> Iterator[tuple[Any, Any]]:
    """Every container and key in it."""
    keys = content.keys() if isinstance(content, dict) else range(len(content))
    for key in list(keys):
        yield content, key
        if isinstance(content[key], (dict, list)):
            yield from places(content[key])


def mutate(content: Any, rng: random.Random, values: list[Any]) -> None:
    for _ in range(rng.choice([1, 1, 2, 3])):
        found = list(places(content))
        if not found:
            return
        inner, key = rng.choice(found)
        kind = rng.choice(["value", "value", "drop", "add", "swap"])
        if kind == "value":
            inner[key] = copy.deepcopy(rng.choice(values))
        elif kind == "drop":
            del inner[key]
        elif kind == "swap":
            other, other_key = rng.choice(found)
            inner[key], other[other_key] = copy.deepcopy(other[other_key]), inner[key]
        elif isinstance(inner, dict):
            inner[rng.choice(["x", "", "attn_implementation", "auto_map"])] = rng.choice(values)


def _run(steps: int) -> tuple[nn.Module, platon_prune.PlatonScheduler]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    scheduler = platon_prune.global_unstructured(
        model,
        amount=0.5,
        total_steps=40,
        window=2,
        masking="window",
        warmup_steps=0,
        cooldown_steps=0,
    )
    for _ in range(steps):
        _step(model, scheduler)
    return model, scheduler


def _step(model: nn.Module, scheduler: platon_prune.PlatonScheduler) -> None:
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    scheduler.step()


def states(examples: int, seed: int) -> Counter:
    """How many changed states were refused, and how many taken."""
    rng, seen, values = random.Random(seed), Counter(), values_for_states()
    good = _run(9)[1].state_dict()
    for number in range(examples):
        state = copy.deepcopy(good)
        mutate(state, rng, values)
        model, scheduler = _run(4)
        before = copy.deepcopy([model.state_dict(), scheduler.state_dict()])
        try:
            scheduler.load_state_dict(state)
        except ValueError as error:
            assert "\n" not in str(error), (number, error)
            soak.require_equal([model.state_dict(), scheduler.state_dict()], before, "state")
            seen["refused"] += 1
            continue
        for _ in range(3):
            _step(model, scheduler)
        scheduler.state_dict()
        seen["taken"] += 1
    return seen


def folders(examples: int, seed: int) -> Counter:
    """How many changed folders were refused, and how many read."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    logging.disable(logging.WARNING)
    rng, seen = random.Random(seed), Counter()
    with tempfile.TemporaryDirectory() as name:
        made = [Path(name, kind) for kind in ("sparse", "ordinary", "sharded")]
        _make(*made)
        path = Path(name, "changed")
        for _ in range(examples):
            shutil.rmtree(path, ignore_errors=True)
            shutil.copytree(rng.choice(made), path)
            file = rng.choice(sorted(path.glob("*.json")))
            content = json.loads(file.read_text())
            mutate(content, rng, PLAIN)
            file.write_text(_damaged(json.dumps(content), rng))
            for read in (read_model, inspect_path):
                try:
                    read(path)
                    seen[f"{read.__name__} read"] += 1
                except ValueError as error:
                    assert "\n" not in str(error), error
                    seen[f"{read.__name__} refused"] += 1
    return seen


def _make(sparse: Path, ordinary: Path, sharded: Path) -> None:
    from tiny_transformers import gpt2

    platon_prune.save(gpt2(), sparse)
    gpt2().save_pretrained(ordinary)
    gpt2().save_pretrained(sharded, max_shard_size="2KB")


def _damaged(text: str, rng: random.Random) -> str:
    """Now and then no JSON any more."""
    kind = rng.random()
    if kind < 0.05:
        return text[: rng.randrange(len(text))]
    if kind < 0.1:
        return rng.choice(["[", '{"a":', "[[],"]) * rng.randrange(1, 200_000)
    return text


WHAT = {"states": states, "folders": folders}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("what", nargs="*", choices=[*WHAT, []], default=[*WHAT])
    parser.add_argument("--examples", type=int, default=2_500)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    for what in arguments.what:
        print(json.dumps({"what": what, **WHAT[what](arguments.examples, arguments.seed)}))


if __name__ == "__main__":
    main()
