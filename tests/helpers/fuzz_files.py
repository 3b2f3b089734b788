"""Damaged and forged files for everything that reads one: an error that says so, or the truth.

``python tests/helpers/fuzz_files.py [--examples 100000] [--seed 0]`` damages files at random and
reads them. A reader must raise a ValueError, or return what was saved or, where a format has no
checksums or is meant to end early, something of the same kind; never anything else. The usual test
run has a short version of it.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

import platon_prune
from platon_prune.export.inspection import inspect_path

# Lengths, offsets and shapes that code trips over, as a header may hold them.
NUMBERS = [b"0", b"1", b"-1", b"7", b"4096", b"65536", b"4294967296", b"9223372036854775807",
           b"18446744073709551616", b"1e9", b"null", b"[]", b'"x"', b"true"]  # fmt: skip


@dataclass(frozen=True)
class Reader:
    """Something that reads a file: how to make a good one, and how to read any."""

    make: Callable[[Path], Path]  # writes into a folder; returns the file that is damaged
    read: Callable[[Path], object]  # reads all of it; comparable with ``accepts``
    accepts: Callable[[object, object], bool]  # what was read from a damaged file, what was saved


def _model() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 9), nn.Linear(9, 4).bfloat16())
    with torch.no_grad():
        model[0].weight[model[0].weight.abs() < 0.15] = 0
    return model


def _sparse_file(compression: str | None) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        model = _model()
        path = folder / "model.safetensors"
        platon_prune.save(model, path, compression=compression)
        return path

    return make


def _read_state(path: Path) -> object:
    return {name: tensor.clone() for name, tensor in dict(platon_prune.load(path)).items()}


def _plain_file(folder: Path) -> Path:
    from safetensors.torch import save_file

    path = folder / "model.safetensors"
    save_file({name: t.clone() for name, t in _model().state_dict().items()}, path)
    return path


def _inspect(path: Path) -> object:
    return inspect_path(path)


def _mask_history(folder: Path) -> Path:
    model = nn.Sequential(nn.Linear(20, 9), nn.Linear(9, 4))
    path = folder / "masks"
    scheduler = platon_prune.global_unstructured(
        model,
        amount=0.9,
        total_steps=12,
        window=2,
        criterion="random",
        mask_history=path,
        warmup_steps=0,
        cooldown_steps=0,
    )
    for _ in range(12):
        scheduler.step()
    return path


def _read_masks(path: Path) -> object:
    history = platon_prune.MaskHistory(path)
    return {step: history.masks(step) for step in history.steps}


def _is_a_beginning(result: object, expected: object) -> bool:
    """Whether the masks of each step that is there are those that were recorded."""
    assert isinstance(result, dict) and isinstance(expected, dict)
    steps = list(expected)[: len(result)]
    return list(result) == steps and all(same(result[step], expected[step]) for step in steps)


READERS = {
    "sparse file": Reader(_sparse_file(None), _read_state, lambda one, other: same(one, other)),
    "sparse file with zstd": Reader(
        _sparse_file("zstd"), _read_state, lambda one, other: same(one, other)
    ),
    "masks of a run": Reader(_mask_history, _read_masks, _is_a_beginning),
    "file that is inspected": Reader(
        _plain_file, _inspect, lambda one, other: type(one) is type(other)
    ),
    "sparse file that is inspected": Reader(
        _sparse_file(None), _inspect, lambda one, other: type(one) is type(other)
    ),
}


def damaged(content: bytes, rng: random.Random) -> bytes:
    """The bytes of a file after one to four accidents, or somebody's tampering."""
    data = bytearray(content)
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        if not data:
            break
        at, other = rng.randrange(len(data)), rng.randrange(len(data))
        kind = rng.choice(["flip", "flip", "byte", "cut", "drop", "repeat", "swap", "number"])
        if kind == "flip":
            data[at] ^= 1 << rng.randrange(8)
        elif kind == "byte":
            data[at] = rng.choice([0, 255, rng.randrange(256)])
        elif kind == "cut":
            del data[at:]
        elif kind == "drop":
            del data[at : at + rng.choice([1, 8, 64])]
        elif kind == "repeat":
            data[at:at] = data[other : other + rng.choice([1, 8, 64])]
        elif kind == "swap":
            data[at], data[other] = data[other], data[at]
        else:
            _replace_number(data, rng)
    return bytes(data)


def _replace_number(data: bytearray, rng: random.Random) -> None:
    """Another number in the place of one in the file's header."""
    spans, begin = [], None
    for i, byte in enumerate(data[: 1 << 13]):
        if 48 <= byte <= 57:
            begin = i if begin is None else begin
        elif begin is not None:
            spans.append((begin, i))
            begin = None
    if spans:
        first, last = rng.choice(spans)
        data[first:last] = rng.choice(NUMBERS)


def fuzz(name: str, examples: int, seed: int) -> Counter:
    """How often damage was refused, and how often it was not.

    Raises:
        AssertionError: If a reader returned something else than what was saved.
        Exception: Whatever a reader raised that is not a ValueError.
    """
    reader, rng, seen = READERS[name], random.Random(seed), Counter()
    with tempfile.TemporaryDirectory() as folder:
        path = reader.make(Path(folder))
        content, expected = path.read_bytes(), reader.read(path)
        for _ in range(examples):
            path.write_bytes(damaged(content, rng))
            try:
                result = reader.read(path)
            except ValueError:
                seen["refused"] += 1
                continue
            assert reader.accepts(result, expected), path.read_bytes().hex()
            seen["read"] += 1
    return seen


def same(one: object, other: object) -> bool:
    """Equal, tensors in every entry."""
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    return one == other


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--examples", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    for name in READERS:
        print(json.dumps({"reader": name, **fuzz(name, arguments.examples, arguments.seed)}))


if __name__ == "__main__":
    main()
