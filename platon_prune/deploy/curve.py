"""The checkpoints of one run as points: a metric, a size and a speed for each density."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from platon_prune.deploy.measure import deploy_report
from platon_prune.deploy.models import read_model
from platon_prune.tables import table

_STATE, _CONFIG = "trainer_state.json", "config.json"
# Of an evaluation of transformers' trainer, what says nothing of the model.
_NO_METRICS = ("runtime", "per_second", "preparation_time")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that a pruned model was saved in.

    Args:
        step: Of the run.
        folder: The checkpoint's.
        sparsity: Of the selected weights.
        metrics: Of the evaluation at this step.
    """

    step: int
    folder: Path
    sparsity: float
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class Point:
    """What was measured of a checkpoint.

    Args:
        step: Of the run.
        folder: The checkpoint's.
        sparsity: Of the selected weights.
        value: Of the metric.
        file_bytes: Of the smallest of its files that hold the model.
        dense_bytes: Of its dense file.
        milliseconds: Median time of a call, in the fastest form of PyTorch.
        dense_milliseconds: Of the dense form.
    """

    step: int
    folder: Path
    sparsity: float
    value: float
    file_bytes: int
    dense_bytes: int
    milliseconds: float
    dense_milliseconds: float

    @property
    def speed(self) -> float:
        """How many times as fast as dense it is."""
        return self.dense_milliseconds / self.milliseconds

    def to_json(self) -> dict[str, Any]:
        """Plain numbers; the folder by its name, and None for a value that is not finite."""
        # NaN is no JSON, and other languages' parsers refuse it.
        value = self.value if math.isfinite(self.value) else None
        return asdict(self) | {"folder": self.folder.name, "speed": self.speed, "value": value}


def checkpoints_of(run: Path) -> list[Checkpoint]:
    """The checkpoints of a run's folder that have an evaluation, by their steps.

    Where a run with a metric went back, the evaluation was of the model before, and the checkpoint
    of that step holds the one after: no point.

    Raises:
        ValueError: If there are none of pruned models.
    """
    folders = {int(path.name.rpartition("-")[2]): path for path in run.glob("checkpoint-*")
               if path.name.rpartition("-")[2].isdigit()}  # fmt: skip
    # Each has the log of all steps before it.
    log = _read(folders[max(folders)] / _STATE).get("log_history", []) if folders else []
    found = []
    for step, folder in sorted(folders.items()):
        pruning = _read(folder / _CONFIG).get("platon_prune")
        metrics = _metrics(log, step)
        if isinstance(pruning, dict) and metrics and pruning.get("held_since") != step:
            found.append(Checkpoint(step, folder, float(pruning["sparsity"]), metrics))
    if not found:
        raise ValueError(
            f"RUN must hold checkpoints of a pruned model that were evaluated when they were "
            f"saved, got {run} without: run it with --eval_strategy steps --save_strategy steps "
            "and the same --eval_steps and --save_steps, without a --save_total_limit"
        )
    return found


def metric_of(checkpoints: Sequence[Checkpoint], asked: str | None) -> str:
    """The metric that is drawn.

    Raises:
        ValueError: If the evaluations have none of that name.
    """
    names = sorted({name for each in checkpoints for name in each.metrics})
    if asked is not None:
        for name in (asked, f"eval_{asked}"):
            if name in names:
                return name
        raise ValueError(f"--metric must be one of {', '.join(names)}; got {asked!r}")
    own = [name for name in names if not name.endswith("loss")]
    return own[0] if len(own) == 1 else "eval_loss" if "eval_loss" in names else names[0]


def measured(
    checkpoint: Checkpoint, metric: str, num_tokens: int, batch_size: int, rounds: int | None
) -> Point:
    """Measure the file and the speed of a checkpoint's model.

    Args:
        checkpoint: Of a model of transformers.
        metric: Which of its metrics counts.
        num_tokens: Length of the sequence that is timed, of a text model.
        batch_size: Sequences or images in a call.
        rounds: Times to take; as many as fit into two seconds if None.
    """
    report = deploy_report(
        read_model(checkpoint.folder), num_tokens=[num_tokens], batch_size=batch_size,
        forms=["CSR", "shrunk"], rounds=rounds, time_limit=2.0, memory=False,
    )  # fmt: skip
    times = {row.name: row.times[report.sizes[0]].median for row in report if row.times}
    return Point(
        checkpoint.step,
        checkpoint.folder,
        checkpoint.sparsity,
        float(checkpoint.metrics[metric]),
        min(file.num_bytes for file in report.files),
        report.files[0].num_bytes,
        min(times.values()),
        times["dense"],
    )


def nearest(points: Sequence[Point], sparsity: float) -> Point:
    """The point next to a sparsity; of two, the later one."""
    return min(points, key=lambda point: (abs(point.sparsity - sparsity), -point.step))


def shown(points: Sequence[Point], metric: str) -> str:
    """The points as a table."""
    lines: list[tuple[str, ...]] = [("step", "density", metric, "file", "speed")]
    for point in points:
        share = point.file_bytes / point.dense_bytes
        lines.append(
            (
                str(point.step), f"{1 - point.sparsity:.1%}", f"{point.value:.4g}",
                f"{share:.2f} of dense", f"{point.speed:.2f}x",
            )
        )  # fmt: skip
    return table(lines)


def _metrics(log: Sequence[Mapping[str, Any]], step: int) -> dict[str, float]:
    """Those of the last evaluation at a step."""
    found: dict[str, float] = {}
    for entry in log:
        if entry.get("step") == step:
            found |= {
                name: float(value)
                for name, value in entry.items()
                if name.startswith("eval_")
                and not name.endswith(_NO_METRICS)
                and isinstance(value, (int, float))
            }
    return found


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
