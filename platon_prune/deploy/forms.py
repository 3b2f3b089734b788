"""The forms of a model, each built from the same weights: what runs it, and what it takes to load.

A form that can't be built raises an error; its first line is what the report says of it.
"""

from __future__ import annotations

import contextlib
import copy
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from platon_prune.deploy.inputs import Example
from platon_prune.example_inputs import call_model
from platon_prune.export.files import save
from platon_prune.masks.method import PlatonUnstructured
from platon_prune.masks.targets import find_tensors
from platon_prune.runtimes.onnx_file import onnx_runner, write_onnx
from platon_prune.runtimes.openvino_file import openvino_runner, write_openvino
from platon_prune.runtimes.semi_structured_inference import to_semi_structured
from platon_prune.runtimes.sparse_inference import to_sparse_inference
from platon_prune.shrinking.shrink import shrink


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


def finalized(model: nn.Module) -> nn.Module:
    """A model without masks: itself if it has none, else a copy with the zeros in its weights."""
    if not prune.is_pruned(model):  # type: ignore[no-untyped-call]
        return model
    with torch.no_grad():
        for module, method in _methods(model):
            if not isinstance(method, PlatonUnstructured):
                # Torch's methods leave the product of weight and mask on the module; with its
                # graph it could not be copied. The next forward makes it anew.
                setattr(module, method._tensor_name, method.apply_mask(module))
    model = copy.deepcopy(model)
    for module, method in _methods(model):
        prune.remove(module, method._tensor_name)  # type: ignore[no-untyped-call]
    return model


def _methods(model: nn.Module) -> list[tuple[nn.Module, Any]]:
    return [
        (module, hook)
        for module in model.modules()
        for hook in module._forward_pre_hooks.values()
        if isinstance(hook, prune.BasePruningMethod)
    ]


# --- one function a form ------------------------------------------------------------------------


def dense(source: Source) -> Form:
    """The ordinary model."""
    return _of_torch(source, source.dense, "dense")


def masked(source: Source) -> Form:
    """The model as it is while it is being pruned."""
    if source.model is source.dense:
        raise UnavailableError("the model carries no masks")
    return _of_torch(source, source.model, "masked")


def csr(source: Source) -> Form:
    """Linear layers as CSR, where each was measured to be faster so."""
    source.require_cpu()
    model = to_sparse_inference(copy.deepcopy(source.dense), source.largest)
    # Without a layer that gains it would be the dense model under another name.
    report: Any = model.sparse_report
    if not report.num_sparse:
        left = Counter(choice.reason for choice in report)
        reasons = "; ".join(f"{count} {reason}" for reason, count in left.items())
        raise UnavailableError(f"no linear layer is faster as CSR (left dense: {reasons})")
    path = source.folder / "csr.sparse"
    save(nn.ModuleDict({"model": source.dense}), path)
    note = f"{report.num_sparse} of {len(report)} linear layers are CSR; the file is the sparse one"
    return Form(_call_of(model), "torch", (path,), model, note=note)


def shrunk(source: Source) -> Form:
    """Without the heads, neurons and channels that are masked."""
    model = copy.deepcopy(source.model)
    # From the masked model, since masks tell which groups were pruned as a whole.
    shrink(model, example_inputs=source.largest)
    return _of_torch(source, model, "shrunk")


def semi_structured(source: Source) -> Form:
    """Weights of two in four as torch's semi-structured tensors."""
    return _of_torch(source, to_semi_structured(copy.deepcopy(source.dense)), "2of4")


def onnx(source: Source) -> Form:
    """ONNX Runtime on the CPU."""
    source.require_cpu()
    path, takes_all = _onnx_file(source)
    # The same number of threads as torch has, or the runtimes would not be compared.
    names, prepare = onnx_runner(path, source.num_threads)
    return Form(prepare, "onnx", _with_data(path), names=tuple(names), note=_sizes_note(takes_all))


def openvino(source: Source) -> Form:
    """OpenVINO on the CPU, from the ONNX file."""
    source.require_cpu()
    import openvino  # noqa: F401  # before the export, which takes long

    onnx_path, takes_all = _onnx_file(source)
    path = source.folder / "openvino.xml"
    write_openvino(onnx_path, path)
    names, prepare = openvino_runner(path, source.num_threads)
    files = (path, path.with_suffix(".bin"))
    return Form(prepare, "openvino", files, names=tuple(names), note=_sizes_note(takes_all))


# In the order of the table.
FORMS: Mapping[str, Callable[[Source], Form]] = {
    "dense": dense,
    "masked": masked,
    "CSR": csr,
    "shrunk": shrunk,
    "2:4": semi_structured,
    "ONNX Runtime": onnx,
    "OpenVINO": openvino,
}


# --- parts --------------------------------------------------------------------------------------


def _of_torch(source: Source, model: nn.Module, name: str) -> Form:
    return Form(_call_of(model), "torch", dense_files(model, source.folder / name), model)


def _call_of(model: nn.Module) -> Callable[[Any], Callable[[], Any]]:
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


def _onnx_file(source: Source) -> tuple[Path, bool]:
    """The ONNX file, exported once for all who need it, and whether it takes every size."""
    # A file beside it notes that it takes one size only: two forms ask, one exports.
    path, mark = source.folder / "model.onnx", source.folder / "model.onnx.fixed"
    if not path.exists():
        # What the other runtimes read is made by these.
        import onnxscript  # noqa: F401

        inputs = [example.inputs for example in source.examples]
        if not write_onnx(source.dense, inputs, path):
            mark.touch()
    return path, not mark.exists()


def _with_data(path: Path) -> tuple[Path, ...]:
    data = path.with_name(path.name + ".data")
    return (path, data) if data.exists() else (path,)


def _sizes_note(takes_all: bool) -> str:
    return "" if takes_all else "torch can export this model for one size of inputs only"
