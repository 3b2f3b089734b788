"""Packages that are not needed to import this one: what pip calls them, and that one is missing."""

from __future__ import annotations

import importlib
from typing import Any

# What to install where that is not called like the module.
_DISTRIBUTIONS = {
    "PIL": "pillow",
    "sklearn": "scikit-learn",
    "torch_pruning": "torch-pruning",
    "yaml": "PyYAML",
}


def how_to_install(module: str | None, extra: str = "") -> str:
    """Commands that bring a missing module.

    Args:
        module: Its name, or that of a part of it.
        extra: Of this package, which brings it with what goes along.
    """
    # The first works wherever this package came from; an extra has to be known to an index.
    package = (module or "").partition(".")[0]
    alone = f"pip install {_DISTRIBUTIONS.get(package, package)}"
    return f"{alone}, or pip install 'platon-prune[{extra}]'" if extra else alone


def need(module: str, *, who: str, extra: str) -> Any:
    """Import a module that may not be installed.

    Args:
        module: Its name.
        who: What needs it, as its user knows that.
        extra: Of this package, which brings it.

    Raises:
        ModuleNotFoundError: If it is not installed, with a command that installs it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        # Something that the module itself lacks is told under its own name.
        raise ModuleNotFoundError(
            f"{who} needs {error.name}, which is not installed: "
            f"{how_to_install(error.name, extra)}",
            name=error.name,
        ) from error
