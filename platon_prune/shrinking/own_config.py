"""Attention that reads its number of heads from the config needs one of its own for fewer."""

from __future__ import annotations

import copy
import inspect
import re
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
        # The source tells it alone, as of `resize.has_fixed_width`.
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
    # Shallow: what is set on the model's config later, such as another kernel of attention, must
    # be set on this one as well; what both refer to is the same.
    config = copy.copy(module.config)
    for name, count in counts.items():
        setattr(config, name, count)
    module.config = config
