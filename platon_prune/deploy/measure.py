"""`deploy_report`: a model in every form that this machine can run, measured side by side."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from platon_prune.deploy.facts import machine_facts, model_facts, versions
from platon_prune.deploy.form import Form, Source, dense_files
from platon_prune.deploy.forms import FORMS, finalized, usual_forms
from platon_prune.deploy.inputs import Example, make_examples
from platon_prune.deploy.memory import with_memory
from platon_prune.deploy.report import DeployReport, FileSize, FormRow, Times
from platon_prune.export.codec import require_zstd
from platon_prune.export.files import save
from platon_prune.export.sparse_file import SparseStateDict
from platon_prune.masks.targets import find_tensors
from platon_prune.runtimes.onnx_file import (
    one_line,
    tensors_in,
    without_caches,
)
from platon_prune.timing import Clock, event_clock, interleaved

_FEWEST_ROUNDS, _MOST_ROUNDS = 5, 101
# Of the largest output: forms round differently, but they are the same model.
_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-3}
_COARSE_TOLERANCE = 3e-2


@torch.inference_mode()
def deploy_report(
    model: nn.Module,
    example_inputs: Any = None,
    *,
    num_tokens: Sequence[int] | None = None,
    batch_size: int = 1,
    forms: Sequence[str] | None = None,
    rounds: int | None = None,
    time_limit: float = 10.0,
    memory: bool = True,
    timed: Clock | None = None,
    progress: Callable[[str], object] | None = None,
    seconds: float | None = None,
) -> DeployReport:
    """Measure a model in every form in which it can be deployed here, and say which one to use.

    The forms: the ordinary model ("dense"), the model with its masks ("masked"), linear layers as
    CSR ("CSR"), without the heads, neurons and channels that are masked ("shrunk"), torch's
    semi-structured weights ("2:4"), "ONNX Runtime" and "OpenVINO"; for a model on a GPU "float16",
    "bfloat16" and "compiled" (by ``torch.compile``) in place of CSR and the last two. What this
    model or machine does not have is listed with the reason. All forms are in memory at the same
    time.

    Args:
        model: With masks or without; it stays as it is.
        example_inputs: A tensor, a tuple of arguments, a mapping of keyword arguments; or a
            function from a number of tokens to one of these. A text or image model of transformers
            needs none: they are made from its config.
        num_tokens: Lengths of the sequence, each measured; (8, 32, 128) by default.
        batch_size: Sequences or images in a call, where inputs are made from the config.
        forms: Names of the forms to measure, beside "dense", on any device; those above by default.
        rounds: Times to take of each form and size; as many as fit in ``time_limit`` by default,
            from 5 to 101.
        time_limit: Seconds for each size, all forms together.
        memory: Whether to see how much memory each form needs: in a process of its own, or on a
            GPU by the device's allocator.
        timed: How many milliseconds a function takes; by default wall-clock time, on a GPU between
            two events of it.
        progress: Called with a few words on what comes next.
        seconds: Another name of ``time_limit``, which it was called before.

    Returns:
        What was measured; it prints as tables and has ``to_markdown()`` and ``to_json()``.

    Raises:
        ValueError: If a setting is out of range, or inputs are needed and missing.
        TypeError: If ``forms`` is one name instead of a list.

    Example:
        >>> print(platon_prune.deploy_report(model, num_tokens=(16, 128)))
    """
    device = next((str(p.device) for p in model.parameters()), "cpu")
    wanted = _wanted(forms, device)
    if rounds is not None and rounds < 1:
        raise ValueError(f"rounds must be at least 1, got {rounds}")
    argument, limit = ("time_limit", time_limit) if seconds is None else ("seconds", seconds)
    if not limit > 0:
        raise ValueError(f"{argument} must be above 0, got {limit}")
    examples = make_examples(model, example_inputs, num_tokens, batch_size)
    say = progress or (lambda words: None)
    with tempfile.TemporaryDirectory() as folder, _evaluating(model), without_caches(model):
        dense = finalized(model)
        source = Source(model, dense, examples, Path(folder), torch.get_num_threads())
        built, rows = _build(source, wanted, say)
        calls, rows, scale = _check(built, rows, source, say)
        measuring = timed or event_clock(device)
        times = _time(calls, examples, rounds, 1000 * limit, measuring, say)
        rows = [replace(row, times=times.get(row.name, {})) for row in rows]
        if memory:
            rows = [with_memory(row, built.get(row.name), source, say) for row in rows]
        files = _files(source, say)
        rows = [_with_tolerance(row, built.get(row.name), scale) for row in rows]
        dtype = source.dtype
        return DeployReport(
            tuple(rows),
            files,
            tuple(example.label for example in examples),
            _TOLERANCE.get(dtype, _COARSE_TOLERANCE) * scale,
            model_facts(dense, dtype),
            machine_facts(device),
            versions(),
        )


def _wanted(forms: Sequence[str] | None, device: str) -> list[str]:
    if forms is None:
        return list(usual_forms(device))
    if isinstance(forms, str):
        raise TypeError(f"forms must be a list of names, got {forms!r}: put it in brackets")
    # Typed in a shell, where capitals are easily missed.
    by_name = {name.lower(): name for name in FORMS}
    unknown = [name for name in forms if name.lower() not in by_name]
    if unknown:
        raise ValueError(f"forms must be among {', '.join(FORMS)}; got {', '.join(unknown)}")
    chosen = {by_name[name.lower()] for name in forms} | {"dense"}
    return [name for name in FORMS if name in chosen]


@contextlib.contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    # Module by module: a user may have put some of them into evaluation mode.
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


# --- build, check, time -------------------------------------------------------------------------


def _build(
    source: Source, wanted: Sequence[str], say: Callable[[str], object]
) -> tuple[dict[str, Form], list[FormRow]]:
    built, rows = {}, []
    for name in wanted:
        say(f"building {name}")
        try:
            # Weights made in inference mode could not be exported or copied.
            with torch.inference_mode(False), torch.no_grad():
                form = built[name] = FORMS[name](source)
        except ModuleNotFoundError as error:
            rows.append(FormRow(name, f"the package {error.name} is not installed"))
        # Whatever a form can't do, the others can go on.
        except Exception as error:
            if name == "dense":
                raise
            rows.append(FormRow(name, one_line(error)))
        else:
            row = FormRow(name, None, form.file_bytes, form.num_weights, note=form.note)
            rows.append(row)
    return built, rows


def _check(
    built: dict[str, Form], rows: list[FormRow], source: Source, say: Callable[[str], object]
) -> tuple[dict[str, dict[str, Callable[[], Any]]], list[FormRow], float]:
    """Run every form once at every size: what it can run, and how far its outputs are off."""
    say("comparing outputs")
    calls: dict[str, dict[str, Callable[[], Any]]] = {}
    expected: dict[str, list[Tensor]] = {}
    checked = []
    for row in rows:
        form = built.get(row.name)
        if form is not None:
            # Dense comes first, so what the others are compared with is there.
            outputs, problem = _outputs(form, source.examples, calls.setdefault(row.name, {}))
            expected = expected or outputs
            if row.name == "dense" and problem is not None:
                raise problem
            if not outputs and problem is not None:
                del built[row.name], calls[row.name]
                row = FormRow(row.name, one_line(problem))
            else:
                row = replace(row, difference=_difference(outputs, expected))
        checked.append(row)
    scale = max((float(t.abs().max()) for out in expected.values() for t in out), default=0.0)
    return calls, checked, max(scale, 1e-6)


def _outputs(
    form: Form, examples: Sequence[Example], calls: dict[str, Callable[[], Any]]
) -> tuple[dict[str, list[Tensor]], Exception | None]:
    outputs, problem = {}, None
    for example in examples:
        try:
            call = form.prepare(example.inputs)
            outputs[example.label] = [tensor.float().cpu() for tensor in tensors_in(call())]
            calls[example.label] = call
        except Exception as error:
            problem = error
    return outputs, problem


def _with_tolerance(row: FormRow, form: Form | None, scale: float) -> FormRow:
    """The row of a form that rounds, which is the same model however far rounding takes it."""
    if form is None or not form.rounds:
        return row
    return replace(row, tolerance=_COARSE_TOLERANCE * scale)


def _difference(outputs: dict[str, list[Tensor]], expected: dict[str, list[Tensor]]) -> float:
    """The largest of all; infinite if outputs differ in number or shape."""
    worst = 0.0
    for label, tensors in outputs.items():
        if [t.shape for t in tensors] != [t.shape for t in expected[label]]:
            return float("inf")
        for tensor, other in zip(tensors, expected[label], strict=True):
            if tensor.numel():
                worst = max(worst, float((tensor - other).abs().max()))
    return worst


def _time(
    calls: dict[str, dict[str, Callable[[], Any]]],
    examples: Sequence[Example],
    rounds: int | None,
    budget: float,
    timed: Clock,
    say: Callable[[str], object],
) -> dict[str, dict[str, Times]]:
    times: dict[str, dict[str, Times]] = {name: {} for name in calls}
    for example in examples:
        names = [name for name in calls if example.label in calls[name]]
        functions = [calls[name][example.label] for name in names]
        # Also the warm-up: compilers and allocators do their work in a first call.
        once = sum(map(timed, functions))
        count = rounds or min(_MOST_ROUNDS, max(_FEWEST_ROUNDS, round(budget / max(once, 1e-3))))
        say(f"timing {len(names)} forms at {example.label}, {count} rounds")
        for name, samples in zip(names, interleaved(functions, count, timed), strict=True):
            times[name][example.label] = Times.of(samples)
    return times


# --- files ---------------------------------------------------------------------------


def _files(source: Source, say: Callable[[str], object]) -> tuple[FileSize, ...]:
    say("writing files")
    model = source.dense
    # The matrices alone are told too: embeddings, never pruned, fill half of a small model.
    names = [name for name, _, _ in find_tensors(model)]
    dense = sum(path.stat().st_size for path in dense_files(model, source.folder / "dense"))
    matrices = sum(getattr(module, name).nbytes for _, module, name in find_tensors(model))
    sizes = [FileSize("dense", dense, matrices)]
    compressions: list[str | None] = [None]
    with contextlib.suppress(ImportError):
        require_zstd()
        compressions.append("zstd")
    for compression in compressions:
        path = source.folder / "file.sparse"
        # In a dictionary: the file alone, without a folder around it.
        save(nn.ModuleDict({"model": model}), path, compression=compression)
        stored = SparseStateDict(path)
        matrices = sum(stored.stored_bytes(f"model.{name}") for name in names)
        name = "sparse" if compression is None else f"sparse, {compression}"
        sizes.append(FileSize(name, path.stat().st_size, matrices))
    return tuple(sizes)
