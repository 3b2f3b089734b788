"""The settings of a cell as they are named and shown: what files hold, but not where they lie."""

from __future__ import annotations

import functools
import hashlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

_MODELS = ("--model_name_or_path", "--tokenizer_name", "--config_name")
_FILES = ("_file", "_config")  # what flags end with that may name a file
_FOLDERS = ("--train_dir", "--validation_dir")  # of images
_HUB_NAME = re.compile(r"\w[\w.-]*/[\w.-]+")
# What is read of a model's folder; optimizers, logs and reports beside it change no result.
_MODEL_FILES = (
    "*config.json", "*.safetensors", "*.index.json", "pytorch_model*.bin", "tokenizer*", "vocab*",
    "merges.txt", "*.model", "added_tokens.json", "special_tokens_map.json", "*.py",
)  # fmt: skip


def without_folders(value: Any) -> Any:
    """Settings with only the last part of a path, in ``--flag=path`` as well.

    Names of models on the Hub stay whole.
    """
    if isinstance(value, Mapping):
        return {name: without_folders(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)) and all(isinstance(item, str) for item in value):
        return [before + _last_part(flag, text) for flag, before, text in _parts(value)]
    if isinstance(value, (list, tuple)):
        return [without_folders(item) for item in value]
    return _last_part("", value) if isinstance(value, str) else value


def with_contents(flags: Sequence[str]) -> dict[str, list[str]]:
    """Flags as settings, with what the local files and folders among them hold.

    Cells are told apart by that, since two files of one name may lie in two places, and one file
    may lie in several.

    Args:
        flags: Of a recipe.

    Returns:
        ``flags``, with whole paths, and ``contents``, each as ``name:digest``; the latter only if
        there are any. Each file is read once.
    """
    found, contents = [], []
    # Weights of a model are named by several flags at times, and are large.
    digest = functools.cache(_digest)
    for flag, before, text in _parts(flags):
        if _is_read(flag, text):
            text = os.path.abspath(text)  # of which the last part is a name, whatever was typed
            found_digest = _listing(Path(text)) if flag in _FOLDERS else digest(Path(text))
            contents.append(f"{Path(text).name}:{found_digest}")
        found.append(before + text)
    return {"flags": found} | ({"contents": contents} if contents else {})


def _parts(flags: Sequence[str]) -> Iterator[tuple[str, str, str]]:
    """Of each part: its flag, with underscores; what comes before the value in it; the value."""
    flag = ""
    for part in flags:
        if not part.startswith("--"):
            yield flag, "", part
            continue
        name, equals, value = part.partition("=")
        flag = "--" + name.removeprefix("--").replace("-", "_")
        yield flag, name + equals, value


def _last_part(flag: str, text: str) -> str:
    is_path = os.sep in text or "/" in text
    if not is_path or (flag in _MODELS and _HUB_NAME.fullmatch(text)):
        return text
    return Path(text).name


def _is_read(flag: str, text: str) -> bool:
    if not text or not (flag in _MODELS or flag.endswith((*_FILES, *_FOLDERS))):
        return False
    return os.path.isfile(text) or (flag in (*_MODELS, *_FOLDERS) and os.path.isdir(text))


def _digest(path: Path) -> str:
    """Twelve hexadecimal digits of a file's bytes, or of what a model's folder is loaded from."""
    if not path.is_dir():
        return _sha256(path)[:12]
    files = {file for pattern in _MODEL_FILES for file in path.glob(pattern) if file.is_file()}
    listed = "".join(f"{_sha256(file)}  {file.name}\n" for file in sorted(files))
    return hashlib.sha256(listed.encode()).hexdigest()[:12]


def _listing(folder: Path) -> str:
    """Twelve hexadecimal digits of names and sizes of all files; images are too many to read."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    listed = "".join(f"{p.stat().st_size} {p.relative_to(folder).as_posix()}\n" for p in files)
    return hashlib.sha256(listed.encode()).hexdigest()[:12]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
