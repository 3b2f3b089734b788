"""What all forms of a model are built from, what a form is, and its files."""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from platon_prune.deploy.inputs import Example
from platon_prune.example_inputs import as_dtype, call_model
from platon_prune.masks.targets import find_tensors
from platon_prune.warning import PruningWarning

# Of all forms and sizes that torch may compile for one class of model.
_MOST_COMPILED = 64


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
        unpruned: The model before it was pruned, if it is to be measured as well.
        any_batch: Whether files should take batches of other sizes than the examples' too.
        made: What several forms share, by names, once it is made; or why it could not be.
    """

    model: nn.Module
    dense: nn.Module
    examples: list[Example]
    folder: Path
    num_threads: int
    unpruned: nn.Module | None = None
    any_batch: bool = False
    made: dict[str, Any] = field(default_factory=dict)

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

    def once(self, name: str, make: Callable[[], Any]) -> Any:
        """What a function makes, which is called the first time only; its error each time."""
        if name not in self.made:
            try:
                self.made[name] = make()
            # Several forms ask, and each is to say why it is not there.
            except Exception as error:
                self.made[name] = error.with_traceback(None)
        if isinstance(self.made[name], Exception):
            raise self.made[name]
        return self.made[name]

    def of(self, name: str, make: Callable[[], nn.Module]) -> Source:
        """The same for other weights, made once, with a folder of this name to themselves."""

        def source() -> Source:
            model = make()
            folder = self.folder / name
            folder.mkdir(exist_ok=True)
            return replace(self, model=model, dense=model, folder=folder, made={})

        found: Source = self.once(name, source)
        return found

    @property
    def is_on_cpu(self) -> bool:
        """Whether the CPU runs the model."""
        return self._device == "cpu"

    @property
    def _device(self) -> str:
        return next((each.device.type for each in self.dense.parameters()), "cpu")

    def require_cpu(self) -> None:
        """Raise an error unless the model is on the CPU."""
        # A runtime for the CPU beside a model on a GPU would compare machines, not forms.
        if not self.is_on_cpu:
            raise UnavailableError(f"it is measured on the CPU, and the model is on {self._device}")

    def require_float32(self) -> None:
        """Raise an error unless the weights are in float32, of which int8 ones are made."""
        if self.dtype != torch.float32:
            raise UnavailableError(
                f"it is made of float32 weights, and the model is in {name_of(self.dtype)}"
            )


def name_of(dtype: torch.dtype) -> str:
    """What a type is called in tables."""
    return str(dtype).removeprefix("torch.")


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
        rounds_weights: Whether its weights are rounded to int8.
    """

    prepare: Callable[[Any], Callable[[], Any]]
    kind: str
    files: tuple[Path, ...] = ()
    model: nn.Module | None = None
    names: tuple[str, ...] = ()
    note: str = ""
    selected: nn.Module | None = None
    rounds: bool = False
    rounds_weights: bool = False

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


def call_compiled(run: Any) -> Callable[[Any], Callable[[], Any]]:
    """The same of what ``torch.compile`` gave, which is compiled for these inputs at once."""

    def prepare(inputs: Any) -> Callable[[], Any]:
        # Forms of one class share a count of what was compiled; beyond torch's limit it gives up.
        with (
            torch._dynamo.config.patch(recompile_limit=_MOST_COMPILED),
            warnings.catch_warnings(),
        ):
            # Of torchao's tensors: that what is compiled can't be kept for another process.
            warnings.filterwarnings("ignore", ".*_stable_hash_for_caching")
            call_model(run, inputs)
        return lambda: call_model(run, inputs)

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
    return state_file(model, folder)


def state_file(model: nn.Module, folder: Path) -> tuple[Path, ...]:
    """The file of a state dict, of a model whose weights no other file can hold."""
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
