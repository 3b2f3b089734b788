"""What all forms of a model are built from, what a form is, and its files."""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from platon_prune.deploy.inputs import Example
from platon_prune.example_inputs import as_dtype, call_model
from platon_prune.masks.targets import find_tensors
from platon_prune.warning import PruningWarning


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

    @property
    def dtype(self) -> torch.dtype:
        """That of the weights; float32 where there is none."""
        found = (each.dtype for each in self.dense.parameters() if each.is_floating_point())
        return next(found, torch.float32)

    def in_dtype(self, dtype: torch.dtype) -> nn.Module:
        """A copy of the dense model with weights of a type."""
        return copy.deepcopy(self.dense).to(dtype)

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
        kind: "torch", "compiled" (by torch, when it is first called), "onnx" or "openvino".
        files: The files that it is loaded from.
        model: The module, of the kinds that torch runs.
        names: Of the inputs, of the other kinds.
        note: What else there is to know.
        selected: The module whose matrices count, if not ``model``, whose weights may have another
            form.
        rounds: Whether its outputs are rounded to 16 bits.
    """

    prepare: Callable[[Any], Callable[[], Any]]
    kind: str
    files: tuple[Path, ...] = ()
    model: nn.Module | None = None
    names: tuple[str, ...] = ()
    note: str = ""
    selected: nn.Module | None = None
    rounds: bool = False

    @property
    def file_bytes(self) -> int:
        """Of all its files."""
        return sum(path.stat().st_size for path in self.files)

    @property
    def num_weights(self) -> int | None:
        """Entries of the matrices that pruning selects."""
        selected = self.selected or self.model
        if selected is None:
            return None
        tensors: Iterator[Tensor] = (
            getattr(module, name) for _, module, name in find_tensors(selected)
        )
        return sum(tensor.numel() for tensor in tensors)


def of_torch(source: Source, model: nn.Module, name: str) -> Form:
    """A form that torch runs, with its files in a folder of this name."""
    return Form(call_of(model), "torch", dense_files(model, source.folder / name), model)


def call_of(model: nn.Module) -> Callable[[Any], Callable[[], Any]]:
    """What takes inputs and gives a function without arguments that runs a model on them."""
    return lambda inputs: lambda: call_model(model, inputs)


def call_in(model: nn.Module, dtype: torch.dtype) -> Callable[[Any], Callable[[], Any]]:
    """The same for a model in another type, to which images and the like are brought first."""

    def prepare(inputs: Any) -> Callable[[], Any]:
        # Once and for all calls: how inputs come is not what is measured.
        cast = as_dtype(inputs, dtype)
        return lambda: call_model(model, cast)

    return prepare


def dense_files(model: nn.Module, folder: Path) -> tuple[Path, ...]:
    """The files with weights that a model is usually saved to."""
    if hasattr(model, "save_pretrained"):
        try:
            with _without_progress_bars(), warnings.catch_warnings():
                # Of what a model saved so computes: nobody loads this one.
                warnings.simplefilter("ignore", PruningWarning)
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
