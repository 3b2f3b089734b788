"""A model is traced around what can't be: recurrent layers, and modules that the tracer fails on.

Such a module is a wall: what comes out of it has no history, so nothing that flows in is traced
either. What lies between its own layers is traced by itself, module by module.
"""

from __future__ import annotations

import contextlib
import ctypes
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from platon_prune.example_inputs import call_model

T = TypeVar("T")
# Of the time for a whole model, what a search for the module that fails gives to each.
_SHARE_OF_EACH = 8
_RECURRENT = (nn.RNNBase, nn.RNNCellBase)


class Traced(Generic[T]):
    """What tracing gave.

    Attributes:
        found: The results of all traces.
        untraced: Names of modules that are walls, and why.
    """

    def __init__(self) -> None:
        self.found: list[T] = []
        self.untraced: dict[str, str] = {}


def trace_around(
    model: nn.Module,
    inputs: Any,
    trace: Callable[[nn.Module, Any, Sequence[nn.Module]], list[T]],
    seconds: float,
) -> Traced[T]:
    """Trace a model; if that fails, everything but the modules on which it does.

    Args:
        model: A copy that may be run and hooked.
        inputs: Example inputs.
        trace: Traces a module on its inputs, around modules that are walls.
        seconds: What the whole model may take, and the search if that fails.

    Raises:
        ValueError: If the model does not run on the inputs.
        TimeoutError: If the search took too long.
    """
    result: Traced[T] = Traced()
    names = {module: name for name, module in model.named_modules()}
    walls = [module for module in names if isinstance(module, _RECURRENT)]
    for wall in walls:
        result.untraced[names[wall]] = _described(wall)
    search: _Search[T] = _Search(trace, names, seconds)
    try:
        calls = _calls(model, inputs)
    except Exception as raised:
        raise ValueError(
            "model must run on example_inputs and be traced by torch-pruning, but got "
            f"{type(raised).__name__}: {raised}"
        ) from raised
    search.calls = calls
    found, error = search.tried(model, (inputs,), walls, seconds)
    if error is None:
        result.found = found
        return result
    search.ends = time.monotonic() + seconds
    failing = search.smallest(model, error, walls)
    for module, why in failing.items():
        result.untraced[names[module]] = f"{_described(module)}, {why}"
    if model not in failing:
        result.found, error = search.tried(model, (inputs,), [*walls, *failing], seconds)
        if error is not None:
            result.untraced[""] = f"{_described(model)}, {error}"
    for module in failing:
        for child in called_children(module, calls):
            found, error = search.tried(child, calls[child], walls)
            result.found += found if error is None else []
    return result


class _Search(Generic[T]):
    """Looks for the modules on which tracing fails."""

    def __init__(self, trace: Any, names: dict[nn.Module, str], seconds: float) -> None:
        self._trace = trace
        self._names = names
        self._seconds = seconds
        self.calls: dict[nn.Module, tuple[Any, ...]] = {}
        self.ends = float("inf")

    def tried(
        self,
        module: nn.Module,
        call: tuple[Any, ...],
        walls: Sequence[nn.Module],
        seconds: float | None = None,
    ) -> tuple[list[T], str | None]:
        """What tracing a module gives, and why it failed if it did."""
        inputs = call[0]
        name = self._names[module]
        left = self.ends - time.monotonic()
        if left <= 0:
            raise TimeoutError(
                f"torch-pruning must trace the model within {self._seconds:g} seconds, but did "
                "not, nor find the layer at fault in as many; it was tracing "
                f"{name or 'the model'} ({type(module).__name__}): give it more with "
                "time_limit, or a smaller model of the same layers"
            )
        limit = min(left, self._seconds / _SHARE_OF_EACH if seconds is None else seconds)
        try:
            with _walled(walls):
                return within(limit, lambda: self._trace(module, inputs, walls)), None
        except ImportError:
            raise
        except TimeoutError:
            return [], f"on which torch-pruning did not end within {limit:g} seconds"
        except Exception as error:
            text = str(error).strip().splitlines()
            said = f"{type(error).__name__}: {text[0][:120]}" if text else type(error).__name__
            return [], f"on which torch-pruning fails with {said}"

    def smallest(
        self, module: nn.Module, error: str, walls: Sequence[nn.Module]
    ) -> dict[nn.Module, str]:
        """The smallest modules inside one on which tracing fails, and why."""
        found: dict[nn.Module, str] = {}
        for child in called_children(module, self.calls):
            if child in walls:
                continue
            _, why = self.tried(child, self.calls[child], walls)
            if why is not None:
                found |= self.smallest(child, why, walls)
        return found or {module: error}


def called_children(module: nn.Module, calls: dict[nn.Module, Any]) -> Iterator[nn.Module]:
    """The modules inside one that were called and have weights, through lists that were not."""
    for child in module.children():
        if child in calls:
            if any(True for _ in child.children()):
                yield child
        else:
            yield from called_children(child, calls)


@torch.no_grad()
def _calls(model: nn.Module, inputs: Any) -> dict[nn.Module, tuple[Any, ...]]:
    """The arguments of the first call of each module in one forward; each in a tuple."""
    calls: dict[nn.Module, tuple[Any, ...]] = {}

    def note(module: nn.Module, args: Any, kwargs: Any) -> None:
        # `as_call` takes either; a module with both is not traced by itself.
        if module not in calls and not (args and kwargs):
            calls[module] = (kwargs if kwargs else tuple(args),)

    hooks = [module.register_forward_pre_hook(note, with_kwargs=True) for module in model.modules()]
    try:
        call_model(model, inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return calls


@contextlib.contextmanager
def _walled(walls: Sequence[nn.Module]) -> Iterator[None]:
    """Within, what comes out of these modules has no history."""

    def forget(module: nn.Module, args: Any, output: Any) -> Any:
        def one(leaf: Any) -> Any:
            is_float = isinstance(leaf, Tensor) and leaf.is_floating_point()
            return leaf.detach().requires_grad_() if is_float else leaf

        return pytree.tree_map(one, output)

    hooks = [module.register_forward_hook(forget) for module in walls]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _described(module: nn.Module) -> str:
    if isinstance(module, _RECURRENT):
        return f"a {type(module).__name__}, whose sizes are not its layers'"
    return f"a {type(module).__name__}"


# --- the time limit -----------------------------------------------------------------------------


class _TimedOut(BaseException):
    """Raised inside a thread to end it; no ``except Exception`` on its way holds it up."""


def within(seconds: float, work: Callable[[], T]) -> T:
    """Do something in a thread of its own that is ended if it takes too long.

    Raises:
        TimeoutError: If it did.
    """
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        # A thread can't be ended otherwise, and one that went on would take a core from the user
        # for ever. The plain ways do not do: a process of its own would have to be sent the model,
        # an alarm works in the main thread only, and a trace function slows all of it many times.
        # torch-pruning loops in Python, where this is noticed at the next instruction.
        ctypes.pythonapi.PyThreadState_SetAsyncExc(
            ctypes.c_ulong(thread.ident or 0), ctypes.py_object(_TimedOut)
        )
        raise TimeoutError
    if errors:
        raise errors[0]
    return results[0]
