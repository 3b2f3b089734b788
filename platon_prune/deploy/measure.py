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

from platon_prune.deploy.evaluation import Evaluate
from platon_prune.deploy.facts import machine_facts, model_facts, versions
from platon_prune.deploy.form import Form, Source, dense_files
from platon_prune.deploy.forms import (
    FORMS,
    WEIGHTS,
    finalized,
    int8_forms,
    usual_forms,
    weights_of,
)
from platon_prune.deploy.inputs import Example, make_examples
from platon_prune.deploy.memory import with_memory
from platon_prune.deploy.report import DeployReport
from platon_prune.deploy.rows import FileSize, FormRow, Times
from platon_prune.deploy.scoring import Scoring
from platon_prune.export.codec import require_zstd
from platon_prune.export.files import save
from platon_prune.export.sparse_file import SparseStateDict
from platon_prune.extras import how_to_install
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
    int8: bool = False,
    unpruned: nn.Module | None = None,
    evaluate: Evaluate | None = None,
    metric: str | None = None,
    greater_is_better: bool | None = None,
) -> DeployReport:
    """Measure a model in every form in which it can be deployed here, and say which one to use.

    The forms: the ordinary model ("dense"), the model with its masks ("masked"), "bfloat16", linear
    layers as CSR ("CSR"), without the heads, neurons and channels that are masked ("shrunk"),
    torch's semi-structured weights ("2:4"), "ONNX Runtime" and "OpenVINO"; for a model on a GPU
    "float16" and "compiled" (by ``torch.compile``) in place of CSR and the last two. ``int8`` adds
    those with int8 weights. What this model or machine does not have is listed with the reason. All
    forms are in memory at the same time.

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
        int8: Whether to measure int8 too: linear layers by torchao, weights alone ("int8 weights")
            or with activations ("int8", and "compiled int8"), "ONNX Runtime int8" and
            "OpenVINO int8" (by NNCF). These, bfloat16 and both runtimes are measured of the model,
            of the shrunk one ("shrunk int8") and of the unpruned one ("unpruned int8").
        unpruned: The model before it was pruned, called in the same way, to be measured as well.
        evaluate: Takes a form, which is called as the model is, and gives its metric: one number.
            It is called once for each form, in evaluation mode without gradients.
        metric: What that number is called; by default the function's name.
        greater_is_better: Whether a larger one is better; by default unless the metric's name ends
            in "loss" or "perplexity".

    Returns:
        What was measured; it prints as tables and has ``to_markdown()`` and ``to_json()``.

    Raises:
        ValueError: If a setting is out of range, inputs are needed and missing, or ``evaluate``
            gives no finite number for the dense form.
        TypeError: If ``forms`` is one name instead of a list, or another argument is of a wrong
            type.

    Example:
        >>> print(platon_prune.deploy_report(model, num_tokens=(16, 128)))
    """
    device = next((str(p.device) for p in model.parameters()), "cpu")
    scoring = Scoring.of(evaluate, metric, greater_is_better)
    _check_unpruned(unpruned, model)
    wanted = _wanted(forms, device, int8, unpruned is not None)
    if rounds is not None and rounds < 1:
        raise ValueError(f"rounds must be at least 1, got {rounds}")
    argument, limit = ("time_limit", time_limit) if seconds is None else ("seconds", seconds)
    if not limit > 0:
        raise ValueError(f"{argument} must be above 0, got {limit}")
    examples = make_examples(model, example_inputs, num_tokens, batch_size)
    say = progress or (lambda words: None)
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        for each in [model] if unpruned is None else [model, unpruned]:
            stack.enter_context(_evaluating(each))
            stack.enter_context(without_caches(each))
        source = Source(
            model, finalized(model), examples, Path(folder), torch.get_num_threads(),
            None if unpruned is None else finalized(unpruned), any_batch=scoring is not None,
        )  # fmt: skip
        built, rows = _build(source, wanted, scoring, say)
        calls, rows, scale = _check(built, rows, source, say)
        if scoring is not None:
            rows = [scoring.with_metric(row, built.get(row.name), source, say) for row in rows]
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
            model_facts(source.dense, dtype),
            machine_facts(device),
            versions(),
            None if scoring is None else scoring.name,
            scoring is None or scoring.greater_is_better,
        )


def _check_unpruned(unpruned: nn.Module | None, model: nn.Module) -> None:
    if unpruned is None:
        return
    if not isinstance(unpruned, nn.Module):
        raise TypeError(f"unpruned must be an nn.Module, got {type(unpruned).__name__}")
    if unpruned is model:
        raise ValueError(
            "unpruned must be the model before it was pruned, got the model itself: leave it out"
        )
    devices = [next((str(p.device) for p in m.parameters()), "cpu") for m in (model, unpruned)]
    if devices[0] != devices[1]:
        raise ValueError(
            f"unpruned must be where the model is, on {devices[0]}, got one on {devices[1]}: "
            "move it"
        )


def _wanted(forms: Sequence[str] | None, device: str, int8: bool, with_unpruned: bool) -> list[str]:
    if isinstance(forms, str):
        raise TypeError(f"forms must be a list of names, got {forms!r}: put it in brackets")
    if not isinstance(int8, bool):
        raise TypeError(f"int8 must be a bool, got {int8!r}")
    # Typed in a shell, where capitals are easily missed.
    by_name = {name.lower(): name for name in FORMS}
    unknown = [name for name in forms or () if name.lower() not in by_name]
    if unknown:
        raise ValueError(f"forms must be among {', '.join(FORMS)}; got {', '.join(unknown)}")
    chosen = set(usual_forms(device)) if forms is None else {by_name[f.lower()] for f in forms}
    if int8:
        chosen |= set(int8_forms(with_unpruned))
    if with_unpruned:
        chosen.add("unpruned")
    elif lacking := [name for name in FORMS if name in chosen and weights_of(name) == "unpruned"]:
        raise ValueError(
            f"unpruned must be given for the form {lacking[0]!r}, got none: pass the model before "
            "it was pruned"
        )
    # What others are compared with is measured beside them.
    chosen |= {"dense", *map(weights_of, chosen)}
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
    source: Source, wanted: Sequence[str], scoring: Scoring | None, say: Callable[[str], object]
) -> tuple[dict[str, Form], list[FormRow]]:
    built, rows = {}, []
    for name in wanted:
        say(f"building {name}")
        try:
            # Weights made in inference mode could not be exported or copied.
            with torch.inference_mode(False), torch.no_grad():
                form = built[name] = FORMS[name](source)
        except ModuleNotFoundError as error:
            package = (error.name or "").partition(".")[0]
            reason = f"the package {package} is not installed: {how_to_install(package)}"
            rows.append(FormRow(name, reason, compared_with=_reference(name)))
        # Whatever a form can't do, the others can go on.
        except Exception as error:
            if name == "dense":
                raise
            rows.append(FormRow(name, one_line(error), compared_with=_reference(name)))
        else:
            if name == "dense" and scoring is not None:
                # First of all: a function that fails here would fail for every form.
                scoring.first(form, source, say)
            row = FormRow(
                name, None, form.file_bytes, form.num_weights, note=form.note,
                compared_with=_reference(name), rounds_weights=form.rounds_weights,
            )  # fmt: skip
            rows.append(row)
    return built, rows


def _reference(name: str) -> str:
    """The form that the outputs of one are compared with."""
    # What was cut must give what it gave with its zeros.
    return "dense" if name == "shrunk" else weights_of(name)


def _check(
    built: dict[str, Form], rows: list[FormRow], source: Source, say: Callable[[str], object]
) -> tuple[dict[str, dict[str, Callable[[], Any]]], list[FormRow], float]:
    """Run every form once at every size: what it can run, and how far its outputs are off."""
    say("comparing outputs")
    calls: dict[str, dict[str, Callable[[], Any]]] = {}
    references: dict[str, dict[str, list[Tensor]]] = {}
    checked = []
    for row in rows:
        form = built.get(row.name)
        if form is not None:
            # A reference comes before what is compared with it; dense is the first of all.
            outputs, problem = _outputs(form, source.examples, calls.setdefault(row.name, {}))
            if row.name in ("dense", *WEIGHTS):
                references[row.name] = outputs
            if row.name == "dense" and problem is not None:
                raise problem
            if not outputs and problem is not None:
                del built[row.name], calls[row.name]
                row = FormRow(row.name, one_line(problem), compared_with=row.compared_with)
            else:
                expected = references.get(row.compared_with, {})
                # A reference that runs fewer sizes is compared at these.
                shared = {label: outputs[label] for label in outputs if label in expected}
                row = replace(row, difference=_difference(shared, expected) if shared else None)
        checked.append(row)
    expected = references["dense"]
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
