"""A function of the user's own that a flag names: FILE.py:function or package.module:function."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any


def load_function(flag: str, named: str, default: str) -> Callable[..., Any]:
    """Run a file or import a module, and take a function from it.

    Args:
        flag: Which names the function.
        named: Path of a file, or name of a module, with ``:name`` behind it or without.
        default: The function's name if none is given.

    Raises:
        ValueError: If there is no such file, module or function, it does not run, or the function
            can't be called with one argument.
    """
    place, name = _parts(named, default)
    try:
        module = _run_file(Path(place)) if place.endswith(".py") else _import(place)
    except FileNotFoundError as error:
        raise ValueError(f"{flag} must name a file that is there, got {place}") from error
    # What a user's file does is the user's: any error of it is told in a line.
    except Exception as error:
        raise ValueError(
            f"{flag} must name a file or module that runs, got {place}, which ends in "
            f"{type(error).__name__}: {error}"
        ) from error
    function = getattr(module, name, None)
    if not callable(function):
        found = [each for each, value in vars(module).items() if inspect.isfunction(value)]
        raise ValueError(
            f"{flag} must name a function of {place}, got {name}; it has "
            f"{', '.join(found) or 'none'}: write {place}:FUNCTION"
        )
    _require_one_argument(flag, name, function)
    return function  # type: ignore[no-any-return]


def _parts(named: str, default: str) -> tuple[str, str]:
    # The last colon: the first one is that of a drive on Windows.
    place, colon, name = named.rpartition(":")
    if not colon or name.endswith(".py") or "/" in name or "\\" in name:
        return named, default
    return place, name or default


def _run_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise FileNotFoundError(path)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # As python does for a script: files beside it can be imported.
    sys.path.insert(0, str(path.resolve().parent))
    spec.loader.exec_module(module)
    return module


def _import(name: str) -> ModuleType:
    # As python -m does: modules of the folder that the command is called in.
    sys.path.insert(0, "")
    return importlib.import_module(name)


def _require_one_argument(flag: str, name: str, function: Callable[..., Any]) -> None:
    try:
        inspect.signature(function).bind(object())
    except TypeError as error:
        raise ValueError(
            f"{flag} must name a function of one argument, the model, got {name}"
            f"{inspect.signature(function)}"
        ) from error
    except ValueError:  # of a function that tells no signature
        return
