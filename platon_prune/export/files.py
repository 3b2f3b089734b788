"""`save` and `load`: a file for any model, a folder for one that transformers can build again."""

from __future__ import annotations

import copy
import os
from collections import OrderedDict
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from platon_prune.export.codec import require_zstd
from platon_prune.export.effective import tensors_of, versions_of
from platon_prune.export.model_folder import (
    WEIGHTS,
    check_shapes,
    how_to_load_another,
    is_rebuildable,
    load_folder,
    save_folder,
)
from platon_prune.export.size_record import (
    SizeRecord,
    apply_sizes_,
    read_sizes,
    record_of_sizes,
)
from platon_prune.export.sparse_file import SparseStateDict, write_tensors
from platon_prune.groups.experts import pass_over_zeros_
from platon_prune.masks.masked import pruned_tensors
from platon_prune.shrinking.attention.own_heads import own_heads
from platon_prune.writing import replacing

# A folder of such a name would be taken for the file that it is not.
_FILES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")
M = TypeVar("M", bound=nn.Module)


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
            (or its name) where a file belongs or the other way round. Nothing is written then.
        OSError: If it can't be written, on a full disk for example; what was there stays whole.
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
        if target.suffix in _FILES and not target.exists():
            raise ValueError(
                f"path must be the name of a folder for a {type(model).__name__}, got a file's, "
                f"{target}: drop {target.suffix}, or save a file with its state dict: "
                'save(torch.nn.ModuleDict({"model": model}), path)'
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
        sizes = SizeRecord(own_heads=own_heads(model)).to_json()
        write_tensors(file, tensors, compression, versions_of(model), sizes)


def load(path: str | os.PathLike[str]) -> Any:
    """Load what :func:`save` wrote, bit by bit the same.

    Args:
        path: A folder or a file.

    Returns:
        For a folder, the transformers model, in evaluation mode, built without initialising
        weights. For a file, its state dict: a mapping that reads a tensor when it is asked for
        and goes into ``model.load_state_dict``. It is typed ``Any``, as that of ``torch.load`` is:
        what comes back depends on what lies at the path.

    Raises:
        ValueError: If it is something else, or damaged; a damaged tensor raises it when it is
            read. No model is touched before.
    """
    if os.path.isdir(path):
        return load_folder(Path(path))
    return SparseStateDict(path)


def load_into(model: M, path: str | os.PathLike[str]) -> M:
    """Load a file that :func:`save` wrote of a shrunk model, into one of the original size.

    Layers that are smaller in the file are cut to its sizes; parameters stay the same objects. It
    also loads a file of a model that was not shrunk.

    Args:
        model: What the model's code builds, without masks; changed in place.
        path: A file. A folder is loaded with :func:`load`, which builds the model.

    Returns:
        The same model.

    Raises:
        ValueError: If the file has other tensors than the model, larger ones, or is damaged. The
            model is untouched then.

    Example:
        >>> model = platon_prune.load_into(MyModel(), "model.safetensors")
    """
    if os.path.isdir(path):
        is_ours = (Path(path) / WEIGHTS).is_file()
        how = "load it with platon_prune.load, which builds the model"
        raise ValueError(
            f"path must be a file, got the folder {os.fspath(path)}: "
            f"{how if is_ours else how_to_load_another(Path(path))}"
        )
    if any(True for _ in pruned_tensors(model)):
        raise ValueError(
            "model must be without masks, got some of platon_prune: finalize it first with "
            "platon_prune.remove, or load into a new one"
        )
    tensors = SparseStateDict(path)
    shapes = tensors.index.shapes()
    sizes = SizeRecord(
        record_of_sizes(model, shapes, model).shapes,
        read_sizes(tensors.sizes, tensors.path).own_heads,
    )
    trial = copy.deepcopy(model).to("meta")
    apply_sizes_(trial, sizes, tensors.path)
    check_shapes(
        trial, shapes, tensors.path, "model", "build it with the sizes it had before it was shrunk"
    )
    values = OrderedDict(tensors)
    values._metadata = tensors._metadata  # type: ignore[attr-defined]
    apply_sizes_(model, sizes, tensors.path)
    model.load_state_dict(values)
    pass_over_zeros_(model)
    return model
