"""The most memory that each form takes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from platon_prune.deploy.form import Form, Source
from platon_prune.deploy.inputs import Example
from platon_prune.deploy.report import FormRow
from platon_prune.example_inputs import as_call
from platon_prune.runtimes.onnx_file import named_inputs, one_line


def with_memory(
    row: FormRow, form: Form | None, source: Source, say: Callable[[str], object]
) -> FormRow:
    """The row with what a new process needs to load the form and run its largest inputs."""
    if form is None:
        return row
    say(f"memory of {row.name}")
    labels = [example.label for example in source.examples if example.label in row.times]
    example = next(e for e in source.examples if e.label == labels[-1])
    try:
        return replace(row, peak_bytes=_peak_bytes(form, example, source))
    # Of a class that another process can't import, or a system that does not tell.
    except Exception as error:
        note = f"memory not measured: {one_line(error)}"
        return replace(row, note="; ".join(filter(None, [row.note, note])))


def _peak_bytes(form: Form, example: Example, source: Source) -> int:
    job: dict[str, Any] = {"kind": form.kind, "num_threads": source.num_threads, "modules": []}
    if form.model is not None:
        # Unpickling imports them anyway; named, they are loaded before memory is measured.
        names = {type(module).__module__ for module in form.model.modules()}
        if "__main__" in names:
            raise ValueError("the model's class is in the script that runs, import it from a file")
        job["modules"] = sorted(names)
        job["path"], job["inputs"] = (str(source.folder / n) for n in ("form.pt", "inputs.pt"))
        torch.save(form.model, job["path"])
        torch.save([as_call(example.inputs)], job["inputs"])
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
