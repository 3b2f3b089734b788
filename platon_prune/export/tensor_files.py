"""Tensors of any safetensors file, sparse file or folder, read one at a time without a model.

And the same tensors written to a file of the other form.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from platon_prune.export.container import FORMAT, MAX_HEADER
from platon_prune.export.effective import NamedTensor
from platon_prune.export.model_folder import CONFIG, WEIGHTS
from platon_prune.export.sparse_file import SparseStateDict, write_tensors
from platon_prune.foreign import read_json, read_json_file, require_no_way_out
from platon_prune.writing import replacing, replacing_in

_ONE_FILE = "model.safetensors"
_INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file: what is known of it, and a function that reads it."""

    name: str
    shape: tuple[int, ...]
    read: Callable[[], Tensor]


@dataclass(frozen=True)
class TensorSource:
    """All tensors of a path, and the config beside them (empty if there is none).

    Args:
        tensors: In the order of the files; tied ones once.
        config: What ``config.json`` says.
        kind: What the path is, in words.
    """

    tensors: tuple[StoredTensor, ...]
    config: dict[str, Any]
    kind: str


def open_tensors(path: Path) -> TensorSource:
    """Open a file or folder without reading its tensors.

    Args:
        path: A safetensors file, a file or folder that :func:`platon_prune.save` wrote, or a
            folder of transformers, sharded or not.

    Raises:
        ValueError: If it is something else, or damaged.
    """
    if path.is_file():
        return TensorSource(_tensors_of(path), {}, _kind(path))
    if not path.is_dir():
        raise ValueError(f"PATH must be a file or a folder, got {path}, which does not exist")
    require_no_way_out(path)
    files = _files_of(path)
    tensors = tuple(tensor for file in files for tensor in _tensors_of(file))
    kind = _kind(files[0]) if len(files) == 1 else f"{len(files)} safetensors files"
    return TensorSource(
        tensors, read_json_file(path / CONFIG), f"folder with {_with_article(kind)}"
    )


def is_sparse_file(path: Path) -> bool:
    """Whether :func:`platon_prune.save` wrote the file."""
    with open(path, "rb") as file:
        return FORMAT.encode() in file.read(128)


def _kind(path: Path) -> str:
    return "sparse file of platon_prune" if is_sparse_file(path) else "safetensors file"


def _with_article(kind: str) -> str:
    return kind if kind[0].isdigit() else f"a {kind}"


def _files_of(folder: Path) -> list[Path]:
    for name in (WEIGHTS, _ONE_FILE):
        if (folder / name).is_file():
            return [folder / name]
    if (folder / _INDEX).is_file():
        return _shards(folder)
    files = sorted(folder.glob("*.safetensors"))
    if files:
        return files
    pickles = sorted([*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.pth")])
    got = f"only {pickles[0].name}, a pickle, which is not opened" if pickles else "none"
    raise ValueError(
        f"PATH must hold safetensors files, got {folder} with {got}: save the model with "
        "save_pretrained or platon_prune.save"
    )


def _shards(folder: Path) -> list[Path]:
    names = read_json_file(folder / _INDEX).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise ValueError(f"{folder / _INDEX} must map tensors to files, got no weight_map")
    for shard in names.values():
        # A name with a folder in it could lead anywhere.
        if not isinstance(shard, str) or os.path.basename(shard) != shard:
            raise ValueError(
                f"{folder / _INDEX} must name files beside it, got {str(shard)[:80]!r}: fetch "
                "another copy"
            )
    shards = list(dict.fromkeys(names.values()))
    for shard in shards:
        if not os.path.isfile(folder / shard):  # of a name that no system allows, too
            raise ValueError(
                f"{folder} must hold every file of its index, got none named {shard[:80]}"
            )
    return [folder / shard for shard in shards]


def _tensors_of(path: Path) -> tuple[StoredTensor, ...]:
    return _sparse(path) if is_sparse_file(path) else _safetensors(path)


def _sparse(path: Path) -> tuple[StoredTensor, ...]:
    stored = SparseStateDict(path)
    return tuple(
        StoredTensor(name, record.shape, lambda name=name: stored.tensor(name))  # type: ignore[misc]
        for name, record in stored.index.records.items()
    )


def _safetensors(path: Path) -> tuple[StoredTensor, ...]:
    safetensors = importlib.import_module("safetensors")
    try:
        _check_header(path)
        file = safetensors.safe_open(path, framework="pt")
        names = list(file.keys())
        shapes = [tuple(file.get_slice(name).get_shape()) for name in names]
    except (safetensors.SafetensorError, ValueError, OverflowError) as error:
        raise ValueError(f"PATH must be a safetensors file, got {path} ({error})") from error
    return tuple(
        StoredTensor(name, shape, lambda name=name: file.get_tensor(name))  # type: ignore[misc]
        for name, shape in zip(names, shapes, strict=True)
    )


def _check_header(path: Path) -> None:
    """That the header is JSON which costs no more than the file can be expected to."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > min(size - 8, MAX_HEADER):
            raise ValueError(f"a header of {length:,} bytes in a file of {size:,}")
        read_json(file.read(length), size)


# --- written ------------------------------------------------------------------------------------


def write_dense(source: Path, path: Path) -> None:
    """Write all tensors of a file as an ordinary safetensors file.

    Tied tensors of a sparse file are written under each name, as safetensors files tie nothing.
    """
    safetensors = importlib.import_module("safetensors.torch")
    if is_sparse_file(source):
        tensors = {name: tensor.clone() for name, tensor in SparseStateDict(source).items()}
    else:
        tensors = {tensor.name: tensor.read() for tensor in _safetensors(source)}
    with replacing_in(path.parent) as beside:
        safetensors.save_file(tensors, beside / path.name, metadata={"format": "pt"})


def write_sparse(source: Path, path: Path, compression: str | None) -> None:
    """Write all tensors of a file as a sparse file; of a sparse one with all that it says."""
    versions, sizes, saved = {}, "", ""
    if is_sparse_file(source):
        stored = SparseStateDict(source)
        versions, sizes = stored.index.versions, stored.sizes
        saved = stored.saved
        left_out = set(stored.index.non_persistent)
        named = [
            NamedTensor(name, stored.tensor(name), persistent=name not in left_out)
            for name in stored.index.order
        ]
    else:
        named = [NamedTensor(tensor.name, tensor.read()) for tensor in _safetensors(source)]
    with replacing(path) as file:
        write_tensors(file, named, compression, versions, sizes, saved)
