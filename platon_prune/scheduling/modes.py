"""The modes of torch that a caller may be in, and that must not reach what a scheduler does."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

_Given = ParamSpec("_Given")
_Result = TypeVar("_Result")


def in_plain_mode(function: Callable[_Given, _Result]) -> Callable[_Given, _Result]:
    """Call a function without gradients, inference mode and default device, whatever is set."""

    @functools.wraps(function)
    def called(*args: _Given.args, **kwargs: _Given.kwargs) -> _Result:
        with contextlib.ExitStack() as stack:
            # What is made in inference mode could not be changed by a later step outside it.
            if torch.is_inference_mode_enabled():
                stack.enter_context(torch.inference_mode(False))
            # Numbers of ours that name no device belong to the host. Entered only where one is
            # set: within this context each operation takes a detour through Python.
            if torch.get_default_device().type != "cpu":
                stack.enter_context(torch.device("cpu"))
            with torch.no_grad():
                return function(*args, **kwargs)

    return called
