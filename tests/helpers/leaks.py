"""Steps and set-ups that must leave nothing behind: no tensor, no class, no object.

``python tests/helpers/leaks.py [--steps 5000] [--set-ups 500]`` counts what is alive after a
fifth and after all of them, for every granularity. The usual test run has a short version of it.
"""

from __future__ import annotations

import argparse
import gc
import json
import weakref

import torch
from torch import nn

import platon_prune

GRANULARITIES = ("unstructured", "semi_structured", "structured")


def made(granularity: str, total_steps: int) -> tuple[nn.Module, platon_prune.PlatonScheduler]:
    """A model of a class of its own, as a notebook's cell defines it each time it is run."""

    class Layer(nn.Linear):
        pass

    torch.manual_seed(0)
    model = nn.Sequential(Layer(8, 16), nn.ReLU(), Layer(16, 4))
    settings = {"total_steps": total_steps, "window": 2, "cooldown_steps": 2}
    if granularity == "semi_structured":
        return model, platon_prune.semi_structured(
            model, **dict(warmup_steps=0, cooldown_steps=0) | settings
        )
    if granularity == "structured":
        inputs = torch.randn(2, 8)
        return model, platon_prune.global_structured(
            model, inputs, amount=0.5, **dict(warmup_steps=0, cooldown_steps=0) | settings
        )
    return model, platon_prune.global_unstructured(
        model, amount=0.5, **dict(warmup_steps=0, cooldown_steps=0) | settings
    )


def step(model: nn.Module, scheduler: platon_prune.PlatonScheduler) -> None:
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    scheduler.step()


def alive() -> tuple[int, int]:
    """Tensors, and all objects that are tracked."""
    gc.collect()
    objects = gc.get_objects()
    # By type: isinstance would ask lazy modules of other libraries, which import more then.
    tensors = sum(issubclass(type(each), torch.Tensor) for each in objects)
    return tensors, len(objects)


def of_set_ups(granularity: str, count: int) -> dict:
    """What stays after so many set-ups, with steps and ``remove``."""
    classes, seen = [], []
    for number in range(count):
        model, scheduler = made(granularity, 12)
        for _ in range(4):
            step(model, scheduler)
        scheduler.remove()
        classes.append(weakref.ref(type(model[0])))
        del model, scheduler
        if number + 1 in (count // 5, count):
            seen.append(alive())
    return {
        "what": "set-ups", "granularity": granularity, "count": count,
        "classes": sum(ref() is not None for ref in classes), **_growth(seen),
    }  # fmt: skip


def of_steps(granularity: str, count: int) -> dict:
    """What so many steps add, the records of choices aside, which are numbers."""
    model, scheduler = made(granularity, count)
    seen = []
    for number in range(count):
        step(model, scheduler)
        if number + 1 in (count // 5, count):
            seen.append(alive())
    return {"what": "steps", "granularity": granularity, "count": count, **_growth(seen)}


def _growth(seen: list[tuple[int, int]]) -> dict:
    first, last = seen  # the first fifth fills what is kept once
    return {"tensors": last[0] - first[0], "objects": last[1] - first[1]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--steps", type=int, default=5_000)
    parser.add_argument("--set-ups", type=int, default=500)
    arguments = parser.parse_args()
    for granularity in GRANULARITIES:
        print(json.dumps(of_steps(granularity, arguments.steps)), flush=True)
        print(json.dumps(of_set_ups(granularity, arguments.set_ups)), flush=True)


if __name__ == "__main__":
    main()
