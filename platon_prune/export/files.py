"""`save` and `load`: a file for any model, a folder for one that transformers can build again."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from torch import nn

from platon_prune.export.codec import require_zstd
from platon_prune.export.effective import tensors_of, versions_of
from platon_prune.export.model_folder import is_rebuildable, load_folder, save_folder
from platon_prune.export.sparse_file import SparseStateDict, write_tensors


def save(model: nn.Module, path: str | os.PathLike[str], *, compression: str | None = None) -> None:
    """Save a model with its zeros as bits: at 90 % sparsity, about an eighth of the dense file.

    A tensor with enough zeros is stored as one bit per entry and the values that are not zero,
    every other one as it is; tied tensors once. What is stored are the weights that finalizing
    would leave, whether the model still carries masks, of ours or of torch's methods, or not. The
    model is not changed. The file is a safetensors file; nothing in it is ever unpickled.

    Args:
        model: A model of the transformers library: ``path`` becomes a folder with its config and
            the sparse file. Any other module: ``path`` becomes a file with its state dict.
        path: Where to save. What is there already is replaced when the new files are complete.
        compression: "zstd" compresses each tensor, too (package zstandard), or None.

    Raises:
        ValueError: If something in the state dict is not a plain tensor, or ``path`` is a folder
            where a file belongs or the other way round. Nothing is written then.
        ImportError: If the package for the compression is missing.

    Example:
        >>> platon_prune.save(model, "model.safetensors")
        >>> model.load_state_dict(platon_prune.load("model.safetensors"))
    """
    if compression not in (None, "zstd"):
        raise ValueError(f'compression must be None or "zstd", got {compression!r}')
    if compression == "zstd":
        require_zstd()
    model = getattr(model, "_orig_mod", model)  # what torch.compile wraps
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be an nn.Module, got {type(model).__name__}")
    target = Path(path)
    if is_rebuildable(model):
        if target.exists() and not target.is_dir():
            raise ValueError(
                f"path must be a folder for a {type(model).__name__}, got the file {target}: give "
                "a new name, or one of a folder"
            )
        save_folder(model, target, compression)
        return
    if target.is_dir():
        raise ValueError(
            f"path must be a file for a {type(model).__name__}, got the folder {target}: give the "
            'name of a file in it, such as "model.safetensors"'
        )
    tensors = tensors_of(model)
    with replacing(target) as file:
        write_tensors(file, tensors, compression, versions_of(model))


def load(path: str | os.PathLike[str]) -> SparseStateDict | nn.Module:
    """Load what :func:`save` wrote, bit by bit the same.

    Args:
        path: A folder or a file.

    Returns:
        For a folder, the transformers model, in evaluation mode, built without initialising
        weights. For a file, its state dict: a mapping that reads a tensor when it is asked for
        and goes into ``model.load_state_dict``.

    Raises:
        ValueError: If it is something else, or damaged; a damaged tensor raises it when it is
            read. No model is touched before.
    """
    if os.path.isdir(path):
        return load_folder(Path(path))
    return SparseStateDict(path)


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A new file that takes the place of ``path`` when it is complete and on the disk."""
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with open(beside, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
