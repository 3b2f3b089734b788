"""Reads a model from a folder: one of transformers, or one that `platon_prune.save` wrote."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from torch import nn

from platon_prune.export.files import load
from platon_prune.export.foreign_config import at_most, check_config
from platon_prune.export.model_folder import (
    CONFIG,
    GENERATION_CONFIG,
    WEIGHTS,
    class_named,
    first_line,
)
from platon_prune.export.tensor_files import open_tensors
from platon_prune.foreign import require_no_way_out

# What a folder may hold beside weights and config that a user of the model needs, too.
COMPANIONS = (
    "tokenizer*",
    "vocab*",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "*.model",
    "chat_template*",
    "preprocessor_config.json",
    "processor_config.json",
)


def read_model(path: Path) -> nn.Module:
    """Build the model of a folder, in evaluation mode.

    Args:
        path: A folder of transformers, or one that :func:`platon_prune.save` wrote.

    Raises:
        ValueError: If there is no such model, with what to do.
    """
    if path.is_file():
        raise ValueError(
            f"MODEL must be a folder with a config.json, got the file {path}, which holds tensors "
            "but not what to do with them: call platon_prune.deploy_report(model) from Python"
        )
    if not path.is_dir():
        raise ValueError(
            f"MODEL must be a folder on this machine, got {path}, which does not exist: save the "
            "model with model.save_pretrained(folder) or platon_prune.save(model, folder)"
        )
    if (path / WEIGHTS).is_file():
        model = load(path)
        assert isinstance(model, nn.Module)
        return model
    if not (path / CONFIG).is_file():
        raise ValueError(
            f"MODEL must be a folder with a {CONFIG}, got {path} without one: save the model with "
            "model.save_pretrained(folder) or platon_prune.save(model, folder)"
        )
    return _from_pretrained(path)


def _from_pretrained(folder: Path) -> nn.Module:
    transformers = importlib.import_module("transformers")
    # A command that measures must not download, nor run code that came with a folder.
    options = {"local_files_only": True, "trust_remote_code": False}
    num_tensors = _check(folder)
    try:
        config = transformers.AutoConfig.from_pretrained(folder, **options)
        names = config.architectures or []
        # The class that was saved, with its head; AutoModel alone would leave that out.
        cls: Any = class_named(names[0]) if names else transformers.AutoModel
        if cls is None:
            raise ValueError(f"its class {names[0]} is not in transformers")
        with at_most(num_tensors):
            model, info = cls.from_pretrained(folder, output_loading_info=True, **options)
    # transformers raises errors of many kinds for folders that it can't read.
    except Exception as error:
        raise ValueError(
            f"MODEL must be a folder that from_pretrained can read, got {folder}, of which "
            f"transformers {transformers.__version__} says: {first_line(error)}"
        ) from error
    # from_pretrained fills what is missing with random numbers, and only logs it.
    missing = sorted(info["missing_keys"])
    if missing:
        raise ValueError(
            f"MODEL must hold every weight of its {type(model).__name__}, got {folder} without "
            f"{missing[0]} and {len(missing) - 1} more: save the whole model again"
        )
    return model.eval()  # type: ignore[no-any-return]


def _check(folder: Path) -> int:
    """Refuse what would lead out of a folder, or to the Hub; the number of its tensors."""
    require_no_way_out(folder)
    if (folder / "adapter_config.json").exists():
        raise ValueError(
            f"MODEL must be a whole model, got {folder} with an adapter, which names the place of "
            "its base: merge it (merge_and_unload), and save the result"
        )
    pickles = [path.stat().st_size for path in folder.glob("*.bin")]
    if pickles and not any(folder.glob("*.safetensors")):
        # transformers reads a pickle's tensors alone; each takes some bytes in it.
        num_tensors, longest = sum(pickles) // 64, 0
    else:
        shapes = [tensor.shape for tensor in open_tensors(folder).tensors]
        num_tensors = len(shapes)
        longest = max((size for shape in shapes for size in shape), default=0)
    content = check_config(folder / CONFIG, num_tensors, longest)
    if "quantization_config" in content:
        raise ValueError(
            f"MODEL must have weights as they are, got {folder} with quantised ones: dequantise "
            "the model, and save that"
        )
    check_config(folder / GENERATION_CONFIG, num_tensors, longest)
    return num_tensors
