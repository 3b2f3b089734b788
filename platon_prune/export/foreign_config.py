"""A config of somebody else: what it may not ask for, and how many modules may come of it."""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from torch import nn
from torch.nn.modules import module as hooks

from platon_prune.foreign import read_json_file

# What torch itself computes attention and experts with: for any other name, transformers may fetch
# code of the Hub and import it where the package kernels is installed.
_IMPLEMENTATIONS = ("eager", "sdpa", "flex_attention", "grouped_mm", "batched_mm")
_IMPLEMENTATION = re.compile(r"(attn|attention|experts)_implementation")
# Numbers that code counts up to, and those that tensors are as long as.
_COUNT = re.compile(r"layer|depth|stage|block|label|expert|head")
_SIZE = re.compile(r"size|dim|position|length|window|seq|width|height|channel|bucket|bins|feature")
_FEW = 10_000
_LARGE = 1 << 24
_OURS = "platon_prune"  # settings of a run, which nothing is built from


class _TooManyError(Exception):
    """A model that is being built has more parameters than its file has tensors."""


def check_config(path: Path, num_tensors: int, longest: int = 0) -> dict[str, Any]:
    """Read a config, and refuse what would fetch code or cost more than the files beside it.

    Args:
        path: The file; nothing is refused where there is none.
        num_tensors: How many tensors the folder's files have.
        longest: The longest dimension of these.

    Returns:
        Its content.

    Raises:
        ValueError: With the entry that is refused.
    """
    content = read_json_file(path)
    few = max(_FEW, num_tensors, longest)
    for key, value in _entries(content):
        if _IMPLEMENTATION.search(key) and isinstance(value, str) and value not in _IMPLEMENTATIONS:
            _refuse(path, key, value, "an implementation that torch has, " + _listed())
        if key == "use_pretrained_backbone" and value:
            _refuse(path, key, value, "false, as its weights are to be in the folder")
        most = few if _COUNT.search(key) else max(_LARGE, longest) if _SIZE.search(key) else None
        if most is not None and isinstance(value, (int, float)) and abs(value) > most:
            _refuse(path, key, value, f"at most {most:,}, by what the files beside it hold")
    return content


@contextlib.contextmanager
def at_most(num_tensors: int) -> Iterator[None]:
    """Stop what builds a model in this thread as soon as it has far more parameters than a file.

    Args:
        num_tensors: Of the file. Some parameters are made twice, as those that are tied later.

    Raises:
        ValueError: Then; little more has been built by then.
    """
    left, own = 4 * num_tensors + 1_000, threading.get_ident()
    modules = 8 * left

    def count_parameter(module: nn.Module, name: str, value: Any) -> None:
        nonlocal left
        left -= threading.get_ident() == own and value is not None
        if left < 0:
            raise _TooManyError

    def count_module(module: nn.Module, name: str, value: Any) -> None:
        nonlocal modules
        modules -= threading.get_ident() == own
        if modules < 0:
            raise _TooManyError

    handles = (
        hooks.register_module_parameter_registration_hook(count_parameter),
        hooks.register_module_module_registration_hook(count_module),
    )
    try:
        yield
    except _TooManyError:
        raise ValueError(
            f"its config must describe a model of the {num_tensors:,} tensors that are there, got "
            "one of far more: correct the config, or save the model again"
        ) from None
    finally:
        for handle in handles:
            handle.remove()


def _entries(content: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Every value in a config that is no container, with the name under which it stands."""
    if isinstance(content, dict):
        for name, value in content.items():
            if name != _OURS:
                # An entry of a dict without a name that is known here stands for the dict's.
                known = _COUNT.search(name) or _SIZE.search(name) or _IMPLEMENTATION.search(name)
                yield from _entries(value, name if known or not key else f"{key}.{name}")
    elif isinstance(content, list):
        for value in content:
            yield from _entries(value, key)
    else:
        yield key, content


def _listed() -> str:
    return ", ".join(_IMPLEMENTATIONS)


def _refuse(path: Path, key: str, value: Any, must: str) -> NoReturn:
    raise ValueError(
        f"{key} in {path} must be {must}, got {str(value)[:80]!r}: correct the entry or delete it"
    )
