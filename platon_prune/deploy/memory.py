"""The most memory that each form takes."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from platon_prune.deploy.form import Form, Source
from platon_prune.deploy.inputs import Example
from platon_prune.deploy.rows import FormRow
from platon_prune.example_inputs import as_call, as_dtype
from platon_prune.runtimes.onnx_file import named_inputs, one_line


def with_memory(
    row: FormRow, form: Form | None, source: Source, say: Callable[[str], object]
) -> FormRow:
    """The row with what a new process needs to load the form and run its largest inputs.

    Of a form on a GPU it is the device's memory, as torch's allocator counts it in this process.
    """
    if form is None:
        return row
    say(f"memory of {row.name}")
    labels = [example.label for example in source.examples if example.label in row.times]
    example = next(e for e in source.examples if e.label == labels[-1])
    try:
        device = _device_of(form)
        if device.type == "cuda":
            assert form.model is not None
            call = form.prepare(example.inputs)
            return replace(row, peak_bytes=device_peak_bytes(form.model, call, device))
        if device.type != "cpu":
            # What a process adds is memory of the host.
            raise ValueError(f"it is read of a CPU or a CUDA GPU, and the model is on {device}")
        return replace(row, peak_bytes=_peak_bytes(form, example, source))
    # Of a class that another process can't import, or a system that does not tell.
    except Exception as error:
        note = f"memory not measured: {one_line(error)}"
        return replace(row, note="; ".join(filter(None, [row.note, note])))


def _device_of(form: Form) -> torch.device:
    parameters = iter(()) if form.model is None else form.model.parameters()
    return next((each.device for each in parameters), torch.device("cpu"))


def device_peak_bytes(model: nn.Module, call: Callable[[], object], device: torch.device) -> int:
    """The most memory of a GPU that a model takes while it runs, its weights included.

    Args:
        model: What is run; on the device.
        call: Runs it.
        device: The GPU, on which other models may be as well.
    """
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    call()
    torch.cuda.synchronize(device)
    return held_bytes(model) + torch.cuda.max_memory_allocated(device) - before


def held_bytes(model: nn.Module) -> int:
    """Bytes of a model's parameters and buffers, those that share memory once."""
    storages = {
        (each.device, each.untyped_storage().data_ptr()): each.untyped_storage().nbytes()
        for tensor in itertools.chain(model.parameters(), model.buffers())
        for each in _inner(tensor.detach())
    }
    return sum(storages.values())


def _inner(tensor: Tensor) -> Iterator[Tensor]:
    """The tensors that one of a class of its own, as 2:4 weights are, is made of; or itself."""
    if not is_traceable_wrapper_subclass(tensor):
        yield tensor
        return
    names, _ = tensor.__tensor_flatten__()
    for name in names:
        yield from _inner(getattr(tensor, name))


def _peak_bytes(form: Form, example: Example, source: Source) -> int:
    if form.kind == "compiled":
        raise ValueError("compiling takes more of it than the compiled model")
    job: dict[str, Any] = {"kind": form.kind, "num_threads": source.num_threads, "modules": []}
    if form.model is not None:
        # Unpickling imports them anyway; named, they are loaded before memory is measured.
        names = {type(module).__module__ for module in form.model.modules()}
        # Weights of a class of their own, as int8 ones are, come with a package.
        names |= {type(parameter).__module__ for parameter in form.model.parameters()}
        if "__main__" in names:
            raise ValueError("the model's class is in the script that runs, import it from a file")
        job["modules"] = sorted(names)
        job["path"], job["inputs"] = (str(source.folder / n) for n in ("form.pt", "inputs.pt"))
        torch.save(form.model, job["path"])
        dtypes = (each.dtype for each in form.model.parameters() if each.is_floating_point())
        inputs = as_dtype(example.inputs, next(dtypes)) if form.rounds else example.inputs
        torch.save([as_call(inputs)], job["inputs"])
    else:
        import numpy as np

        job["path"], job["inputs"] = str(form.files[0]), str(source.folder / "inputs.npz")
        np.savez(job["inputs"], **named_inputs(example.inputs, form.names))
    return _run_job(job)


def _run_job(job: dict[str, Any]) -> int:
    program = Path(__file__).with_name("peak_memory.py")
    # -P: the folder of the program is not searched for modules.
    result = subprocess.run(
        [sys.executable, "-P", str(program), json.dumps(job)],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    if result.returncode:
        *_, last = result.stderr.strip().splitlines() or [f"exit status {result.returncode}"]
        raise RuntimeError(last)
    # The last line, since a library may print something before it.
    found = json.loads(result.stdout.strip().splitlines()[-1])
    if "bytes" not in found:
        raise RuntimeError(found["reason"])
    return int(found["bytes"])
