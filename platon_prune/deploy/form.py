"""What all forms of a model are built from, what a form is, and its files."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from platon_prune.deploy.inputs import Example
from platon_prune.example_inputs import call_model
from platon_prune.masks.targets import find_tensors


class UnavailableError(RuntimeError):
    """A form that this model or this machine does not have, with the reason."""


@dataclass(frozen=True)
class Source:
    """What all forms are built from.

    Args:
        model: As it was given, in evaluation mode.
        dense: The same without masks; the same object if it carries none.
        examples: Inputs of each size.
        folder: Where files may be written.
        num_threads: Of every runtime.
    """

    model: nn.Module
    dense: nn.Module
    examples: list[Example]
    folder: Path
    num_threads: int

    @property
    def largest(self) -> Any:
        """The inputs of the last size."""
        return self.examples[-1].inputs

    def require_cpu(self) -> None:
        """Raise an error unless the model is on the CPU."""
        # A runtime for the CPU beside a model on a GPU would compare machines, not forms.
        device = next(self.dense.parameters()).device.type
        if device != "cpu":
            raise UnavailableError(f"it is measured on the CPU, and the model is on {device}")


@dataclass(frozen=True)
class Form:
    """One form, ready to run.

    Args:
        prepare: Takes inputs and gives a function without arguments that runs them.
        kind: "torch", "onnx" or "openvino".
        files: The files that it is loaded from.
        model: The module, of kind "torch".
        names: Of the inputs, of the other kinds.
        note: What else there is to know.
    """

    prepare: Callable[[Any], Callable[[], Any]]
    kind: str
    files: tuple[Path, ...] = ()
    model: nn.Module | None = None
    names: tuple[str, ...] = ()
    note: str = ""

    @property
    def file_bytes(self) -> int:
        """Of all its files."""
        return sum(path.stat().st_size for path in self.files)

    @property
    def num_weights(self) -> int | None:
        """Entries of the matrices that pruning selects."""
        if self.model is None:
            return None
        tensors: Iterator[Tensor] = (
            getattr(module, name) for _, module, name in find_tensors(self.model)
        )
        return sum(tensor.numel() for tensor in tensors)


def of_torch(source: Source, model: nn.Module, name: str) -> Form:
    """A form that torch runs, with its files in a folder of this name."""
    return Form(call_of(model), "torch", dense_files(model, source.folder / name), model)


def call_of(model: nn.Module) -> Callable[[Any], Callable[[], Any]]:
    """What takes inputs and gives a function without arguments that runs a model on them."""
    return lambda inputs: lambda: call_model(model, inputs)


def dense_files(model: nn.Module, folder: Path) -> tuple[Path, ...]:
    """The files with weights that a model is usually saved to."""
    if hasattr(model, "save_pretrained"):
        try:
            with _without_progress_bars():
                model.save_pretrained(folder)  # type: ignore[operator]
            return tuple(folder.glob("*.safetensors"))
        # Of types that safetensors does not know; the other form says the same of their size.
        except Exception:
            pass
    folder.mkdir(exist_ok=True)
    path = folder / "state.pt"
    torch.save(model.state_dict(), path)
    return (path,)


@contextlib.contextmanager
def _without_progress_bars() -> Iterator[None]:
    from transformers.utils import logging

    bars: Any = logging
    enabled = bars.is_progress_bar_enabled()
    bars.disable_progress_bar()
    try:
        yield
    finally:
        if enabled:
            bars.enable_progress_bar()
