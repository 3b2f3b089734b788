"""A coverage-guided fuzzer over everything that reads JSON or a header of somebody else's file.

``pip install atheris`` first, which no other test needs. ``python tests/helpers/fuzz_json.py
[container masks index config table ...] [--seconds 600]`` starts a process for each, with the files
of a good one to begin with. A reader must return, or raise a ValueError; anything else is printed
with the input, and the status is 1.
"""

from __future__ import annotations

import argparse
import json
import logging
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from sparse_forgery import MAGIC, write_with_checksum


def _container(path: Path, data: bytes) -> None:
    """The header of a sparse file, whose checksum is put right, and all that it lists."""
    from platon_prune.export.sparse_file import SparseStateDict

    header, _, rest = data.partition(b"\xff\xff\xff\xff")
    write_with_checksum(path, MAGIC + b"00000000" + header, rest)
    dict(SparseStateDict(path))


def _masks(path: Path, data: bytes) -> None:
    """The header and the records of a file of masks; the header's checksum is put right."""
    import struct
    import zlib

    from platon_prune import MaskHistory

    header, _, rest = data.partition(b"\xff\xff\xff\xff")
    path.write_bytes(b"PLATONM1" + struct.pack("<II", len(header), zlib.crc32(header)) + header)
    with path.open("ab") as file:
        file.write(rest)
    history = MaskHistory(path)
    for step in history.steps:
        history.masks(step)


def _index(path: Path, data: bytes) -> None:
    """The index of a sharded folder."""
    from platon_prune.export.inspection import inspect_path

    path.mkdir(exist_ok=True)
    (path / "model.safetensors.index.json").write_bytes(data)
    inspect_path(path)


def _config(path: Path, data: bytes) -> None:
    """The config beside a good file, as inspect and load see it."""
    from platon_prune.deploy.models import read_model
    from platon_prune.export.inspection import inspect_path

    (path / "config.json").write_bytes(data)
    inspect_path(path)
    read_model(path)


def _table(path: Path, data: bytes) -> None:
    """JSON lines and CSV, as the recipes read them."""
    from platon_prune.integrations.recipes.tables import read_table

    for ending in (".jsonl", ".csv"):
        file = path.with_suffix(ending)
        file.write_bytes(data)
        read_table("--train_file", str(file))


READERS: dict[str, Callable[[Path, bytes], None]] = {
    "container": _container,
    "masks": _masks,
    "index": _index,
    "config": _config,
    "table": _table,
}


def _good(name: str, folder: Path) -> tuple[Path, list[bytes]]:
    """Where a reader reads, and what it reads of good files."""
    import fuzz_files

    from platon_prune import save

    path = folder / "read"
    if name == "container":
        content = fuzz_files._sparse_file(None)(folder).read_bytes()
        end = 8 + int.from_bytes(content[:8], "little")
        return path, [content[8 + len(MAGIC) + 8 : end] + b"\xff\xff\xff\xff" + content[end:]]
    if name == "masks":
        content = fuzz_files._mask_history(folder).read_bytes()
        end = 16 + int.from_bytes(content[8:12], "little")
        return path, [content[16:end] + b"\xff\xff\xff\xff" + content[end:]]
    if name == "config":
        from tiny_transformers import bert

        save(bert(), path)
        return path, [(path / "config.json").read_bytes()]
    if name == "index":
        return path, [b'{"metadata": {}, "weight_map": {"w": "model-00001-of-00002.safetensors"}}']
    return path, [b'{"sentence": "good", "label": 1}\n', b"sentence,label\ngood,1\n"]


def _fuzz(name: str, folder: Path, seconds: int) -> None:
    """Fuzz in this process; libFuzzer ends it."""
    import atheris

    with atheris.instrument_imports(include=["platon_prune", "json"]):
        import platon_prune.export.inspection
        import platon_prune.history.mask_history  # noqa: F401

        if name == "config":
            import platon_prune.deploy.models
        elif name == "table":
            import platon_prune.integrations.recipes.tables  # noqa: F401
    logging.disable(logging.CRITICAL)
    torch.set_num_threads(1)
    path, examples = _good(name, folder)
    corpus = folder / "corpus"
    corpus.mkdir()
    for number, example in enumerate(examples):
        (corpus / str(number)).write_bytes(example)

    def once(data: bytes) -> None:
        try:
            READERS[name](path, data)
        except ValueError as error:
            if "\n" in str(error):
                raise AssertionError("an error of several lines") from error

    limits = [f"-max_total_time={seconds}", "-rss_limit_mb=6000", "-timeout=60"]
    settings = [*limits, "-print_final_stats=1"]
    atheris.Setup([sys.argv[0], *settings, f"-artifact_prefix={folder}/", str(corpus)], once)
    atheris.Fuzz()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("readers", nargs="*", default=[*READERS])
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.work:
        with tempfile.TemporaryDirectory() as folder:
            _fuzz(given.readers[0], Path(folder), given.seconds)
        return 0
    status = 0
    for name in given.readers:
        command = [sys.executable, __file__, name, "--seconds", str(given.seconds), "--work"]
        done = subprocess.run(command, capture_output=True, text=True)
        ran = [line.split()[-1] for line in done.stderr.splitlines() if "executed_units" in line]
        print(json.dumps({"reader": name, "inputs": ran, "status": done.returncode}), flush=True)
        if done.returncode:
            print(done.stderr[-4000:])
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())
