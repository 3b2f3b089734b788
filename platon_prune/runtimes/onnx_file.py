"""A model as an ONNX file, and a session of ONNX Runtime that takes and gives torch's tensors."""

from __future__ import annotations

import contextlib
import inspect
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from platon_prune.example_inputs import as_call, call_model

# A file of one piece can hold no more than 2 GB; weights of larger models go into a second file.
_LARGEST_FILE = 1_500_000_000


def write_onnx(model: nn.Module, examples: Sequence[Any], path: Path) -> bool:
    """Export a model with ``torch.onnx.export(dynamo=True)``.

    Args:
        model: Without masks, in evaluation mode.
        examples: Inputs as :func:`as_call` takes them, at least one. Dimensions in which two of
            them differ may have any size in the file, all others have the size that is seen.
        path: File to write; weights of more than 1.5 GB go to a second one, ``path`` + ".data".

    Returns:
        Whether the file takes all examples, tried where ONNX Runtime is installed. Where torch
        can't export a model for several sizes, it takes those of the largest example only.

    Raises:
        ValueError: If torch can't export the model at all.
    """
    shapes = _dynamic_shapes(model, examples)
    # Traced at the largest: what is sized by an example must not be too small for another.
    largest = max(examples, key=_num_entries)
    first: Exception | None = None
    for dynamic in [shapes, None] if shapes is not None else [None]:
        wanted = examples if dynamic is not None else [largest]
        for attention in _attentions(model):
            try:
                with attention:
                    _export(model, largest, path, dynamic)
                # Where the model's code asks for a size, the exporter may take its answer for good.
                if all(_gives_the_same(path, model, example) for example in wanted):
                    return wanted is examples or len(examples) == 1
            # Any error of the exporter: whether another way works is all that matters here.
            except Exception as error:
                first = first or error
    said = "its outputs are others" if first is None else one_line(first)
    raise ValueError(
        f"model must be one that torch.onnx.export(dynamo=True) can export, got a "
        f"{type(model).__name__}, of which it says: {said}"
    ) from first


def _attentions(model: nn.Module) -> list[contextlib.AbstractContextManager[None]]:
    """As the model is; and with the plain attention of transformers, which torch always exports."""
    ways: list[contextlib.AbstractContextManager[None]] = [contextlib.nullcontext()]
    used = getattr(getattr(model, "config", None), "_attn_implementation", "eager")
    # Only where it makes a difference: a second export takes as long as the first.
    if used != "eager" and hasattr(model, "set_attn_implementation"):
        ways.append(_plain_attention(model, used))
    return ways


@contextlib.contextmanager
def _plain_attention(model: Any, used: str) -> Iterator[None]:
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(used)


def one_line(error: BaseException) -> str:
    """What an error says, in one line of at most 200 characters."""
    text = str(error)
    # torch's exporter puts advice for its developers before the cause.
    _, _, cause = text.partition("## Exception summary")
    lines = [line.strip() for line in (cause or text).splitlines() if line.strip()]
    line = lines[0] if lines else type(error).__name__
    return line if len(line) <= 200 else f"{line[:197]}..."


def _gives_the_same(path: Path, model: nn.Module, example: Any) -> bool:
    """Whether a file's outputs are the model's; taken for granted without ONNX Runtime."""
    try:
        outputs = tensors_in(onnx_runner(path, torch.get_num_threads()).prepare(example)())
    except ModuleNotFoundError:
        return True
    with torch.no_grad(), without_caches(model):
        expected = tensors_in(call_model(model, example))
    return len(outputs) == len(expected) and all(
        output.shape == other.shape and torch.allclose(output, other, rtol=1e-2, atol=1e-3)
        for output, other in zip(outputs, expected, strict=True)
    )


def _export(model: nn.Module, example: Any, path: Path, dynamic_shapes: Any) -> None:
    args, kwargs = as_call(example)
    num_bytes = sum(parameter.nbytes for parameter in model.parameters())
    # Keys and values for a next call would be outputs of the file, and slow it down.
    with _quietly(), without_caches(model):
        torch.onnx.export(
            model,
            args,
            path,
            kwargs=kwargs,
            dynamo=True,
            verbose=False,
            external_data=num_bytes > _LARGEST_FILE,
            output_names=_output_names(model, args, kwargs),
            dynamic_shapes=dynamic_shapes,
        )


class Runner(NamedTuple):
    """A compiled graph.

    Args:
        names: Of its inputs.
        prepare: A function that takes inputs as :func:`as_call` does and gives one that runs them.
    """

    names: list[str]
    prepare: Callable[[Any], Callable[[], list[Tensor]]]


def onnx_runner(path: Path, num_threads: int) -> Runner:
    """Load an ONNX file into ONNX Runtime.

    Args:
        path: An ONNX file.
        num_threads: Of ONNX Runtime.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    # Threads that wait in a loop for the next call would slow down whoever runs in between.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]

    def prepare(example: Any) -> Callable[[], list[Tensor]]:
        feed = named_inputs(example, names)
        return lambda: list(map(torch.from_numpy, session.run(None, feed)))

    return Runner(names, prepare)


# --- inputs and outputs -------------------------------------------------------------------------


def tensors_in(outputs: Any) -> list[Tensor]:
    """Every floating-point tensor of a model's outputs, in order."""
    leaves = pytree.tree_leaves(outputs)
    return [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def named_inputs(example: Any, names: Sequence[str]) -> dict[str, Any]:
    """Inputs as NumPy arrays under the names of a graph's inputs, or in their order."""
    args, kwargs = as_call(example)
    # Graphs keep the names of keyword arguments; positional ones come in the order of a tree.
    if not args and set(names) <= kwargs.keys():
        return {name: kwargs[name].numpy() for name in names}
    leaves = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    return {name: leaf.numpy() for name, leaf in zip(names, leaves, strict=True)}


@contextlib.contextmanager
def without_caches(model: nn.Module) -> Iterator[None]:
    """Keep a transformers model from returning keys and values for the next call."""
    # A decoder within a model may have a config of its own.
    found = {id(c): c for module in model.modules() if (c := getattr(module, "config", None))}
    configs = [config for config in found.values() if getattr(config, "use_cache", None)]
    for config in configs:
        config.use_cache = False
    try:
        yield
    finally:
        for config in configs:
            config.use_cache = True


def _num_entries(example: Any) -> int:
    return sum(leaf.numel() for leaf in pytree.tree_leaves(example) if isinstance(leaf, Tensor))


@torch.no_grad()
def _output_names(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> list[str] | None:
    """The names that a mapping of tensors gives them; None for any other outputs."""
    outputs = model(*args, **kwargs)
    if isinstance(outputs, Mapping) and all(isinstance(out, Tensor) for out in outputs.values()):
        return list(outputs)
    return None


def _dynamic_shapes(model: nn.Module, examples: Sequence[Any]) -> Any:
    """Of each input the dimensions in which two examples differ; None if there is none."""
    calls = [as_call(example) for example in examples]
    if len(calls) == 1:
        return None
    shapes = pytree.tree_map(_differing, calls[0], *calls[1:])
    if not any(pytree.tree_leaves(shapes)):
        return None
    # Keyword arguments by name, positional ones by the name that forward has for them.
    parameters = list(inspect.signature(model.forward).parameters)
    args, kwargs = shapes
    return dict(zip(parameters, args, strict=False)) | kwargs


class _Dims(dict[int, Any]):
    """Dimensions of one tensor; a class of its own, lest it be taken for a tree."""


def _differing(first: Any, *others: Any) -> Any:
    if not isinstance(first, Tensor):
        return None
    dims = [i for i in range(first.dim()) if any(o.shape[i] != first.shape[i] for o in others)]
    return _Dims({i: torch.export.Dim.AUTO for i in dims}) if dims else None


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Without the exporter's remarks on itself; errors are raised as ever."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
