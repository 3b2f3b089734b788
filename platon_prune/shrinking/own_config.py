"""Attention that reads its number of heads from the config needs one of its own for fewer."""

from __future__ import annotations

import copy
import functools
import inspect
import re
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

from platon_prune.spellings import KEY_VALUE_COUNTS, NUM_HEADS

_READ = re.compile(rf"self\.config\.({'|'.join((*NUM_HEADS, *KEY_VALUE_COUNTS))})\b")
# Read once for each class, and forgotten with it.
_NAMES: WeakKeyDictionary[Any, frozenset[str]] = WeakKeyDictionary()


def counts_in_config(module: nn.Module) -> dict[str, int]:
    """The numbers of heads that a module's forward reads from its config, by their names."""
    cls: Any = type(module)
    if cls not in _NAMES:
        # The source tells it alone, as of `holders.has_fixed_width`.
        try:
            source = inspect.getsource(cls.forward)
        except (OSError, TypeError):
            source = ""
        _NAMES[cls] = frozenset(_READ.findall(source))
    config = getattr(module, "config", None)
    counts = {name: getattr(config, name, None) for name in sorted(_NAMES[cls])}
    return {name: count for name, count in counts.items() if type(count) is int}


def set_in_own_config_(module: Any, counts: dict[str, int]) -> None:
    """Give a module a config of its own, with other numbers of heads than the model's."""
    config = module.config
    if hasattr(config, "_attn_implementation"):
        module.config = _following(config, counts)
        return
    module.config = copy.copy(config)
    for name, count in counts.items():
        setattr(module.config, name, count)


def _following(config: Any, counts: dict[str, int]) -> Any:
    """A config of transformers with its own counts, and all else as another has it at any time."""
    counts = {**getattr(config, "_own_counts", {}), **counts}  # it may be one already
    config = getattr(config, "_followed", config)
    cls: Any = type(config)
    own: Any = object.__new__(_class_with(cls, frozenset(counts)))
    # The very dict: the mask is made by the model's config, so a kernel of attention that is set
    # there later must be set here, or the one is not made for the other.
    own.__dict__ = config.__dict__
    object.__setattr__(own, "_followed", config)
    object.__setattr__(own, "_own_counts", counts)
    return own


@functools.cache
def _class_with(cls: Any, names: frozenset[str]) -> Any:
    """A subclass of a config's class whose counts stand beside the dict that instances share."""
    members = {
        "__module__": cls.__module__,
        "__slots__": ("_followed", "_own_counts"),
        # A copy of the model has a copy of the config, which this one must follow there.
        "__reduce__": lambda self: (_following, (self._followed, self._own_counts)),
    }
    own = type(cls.__name__, (cls,), members)
    other_names = getattr(cls, "attribute_map", {})
    for name in names:
        # Under the name that reading it ends at.
        setattr(own, other_names.get(name, name), property(_reader(name)))
    return own


def _reader(name: str) -> Callable[[Any], int]:
    return lambda self: self._own_counts[name]
