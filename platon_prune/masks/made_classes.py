"""Classes that are made from others, once, and are freed with them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary, WeakValueDictionary


def made_once(make: Callable[..., Any]) -> Callable[..., Any]:
    """Have a function that makes a class of another one make it once, for as long as it is used.

    Args:
        make: Takes the class, and what else decides about the new one; all hashable.

    Returns:
        The same function. It returns the class that it made before, while a module or anything
        else is of it.
    """
    # Both weak: a class that was made holds the one that it was made from, so that a strong
    # reference to either would keep what users define in a notebook or a test for ever.
    made: WeakKeyDictionary[Any, WeakValueDictionary[Any, Any]] = WeakKeyDictionary()

    @functools.wraps(make)
    def once(base: Any, *arguments: Any) -> Any:
        of_base = made.setdefault(base, WeakValueDictionary())
        cls = of_base.get(arguments)
        return of_base.setdefault(arguments, make(base, *arguments)) if cls is None else cls

    return once
