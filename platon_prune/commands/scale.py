"""``platon-prune scale``: what one exact choice costs over several processes, beside a model of it.

The processes run on this machine and talk over loopback. Processor time is counted, since they
share its cores: what a choice costs each of them, not how long they wait for a core.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from platon_prune.commands.benchmarks.figures import (
    Spread,
    add_measuring_arguments,
    check_measuring_arguments,
    write_json,
)
from platon_prune.writing import write_text

if TYPE_CHECKING:
    from platon_prune.choice.scored import ScoredTensor
    from platon_prune.tensors.collectives import Processes

HELP = "Measure one exact choice over 1 to 8 processes, and compare it with the cost model."

# Of a choice between PLATON scores in float32, in bytes for each weight that a process holds: two
# averages read by the sweep, the same read again to write the mask, and the mask.
BYTES_PER_WEIGHT = 8 + 8 + 1
_ROW = 1024


@dataclass(frozen=True)
class ChoiceCost:
    """What one choice cost, over all processes.

    Args:
        weights: Of the whole model.
        processes: That choose together, each with its share.
        seconds: Processor time of one process, the mean over them; of the repeats.
        wall_seconds: Until the last process was done, which waits for cores too.
        collectives: How many each took part in.
        payload: Bytes of their tensors, in each process.
    """

    weights: int
    processes: int
    seconds: Spread
    wall_seconds: float
    collectives: int
    payload: int


@dataclass(frozen=True)
class CostModel:
    """Seconds of one choice in each of R processes that hold N weights together.

    ``per_weight * N / R + per_sample * samples(N) / R + fixed[R]``
    """

    per_weight: float
    per_sample: float
    fixed: dict[int, float]

    @classmethod
    def fit(cls, choices: Sequence[ChoiceCost]) -> CostModel:
        """From the sizes of one process, and from the smallest choice of each number."""
        from platon_prune.choice.bracket import sample_size

        smallest = min(choice.weights for choice in choices)
        fixed = {c.processes: c.seconds.median for c in choices if c.weights == smallest}
        alone = sorted(
            (c.weights, c.seconds.median)
            for c in choices
            if c.processes == 1 and c.weights > smallest
        )
        (small, small_seconds), (large, large_seconds) = alone[0], alone[-1]
        # Both unknowns from the smallest and the largest size; one alone says only their sum.
        per_sample = 0.0
        if small < large:
            a, b = small_seconds - fixed[1], large_seconds - fixed[1]
            samples, more = sample_size(small), sample_size(large)
            per_sample = max(0.0, (a * large - b * small) / (samples * large - more * small))
        per_weight = (large_seconds - fixed[1] - per_sample * sample_size(large)) / large
        return cls(per_weight, per_sample, fixed)

    def seconds(self, weights: int, processes: int) -> float:
        """Of one choice."""
        from platon_prune.choice.bracket import sample_size

        local = self.per_weight * weights + self.per_sample * sample_size(weights)
        return local / processes + self.fixed[processes]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "--processes", type=int, nargs="+", default=[1, 2, 4, 8], help="(default: 1 2 4 8)"
    )
    parser.add_argument(
        "--weights",
        type=float,
        nargs="+",
        default=[1e6, 10e6, 50e6, 200e6],
        help="sizes of the model (default: 1e6 10e6 50e6 200e6)",
    )
    add_measuring_arguments(parser, repeats=5, what="of each choice")
    parser.add_argument(
        "--storage",
        action="store_true",
        help="instead, train on digits with averages in bfloat16 and compare with float32",
    )


def run(arguments: argparse.Namespace) -> int:
    """Measure, print the table, write the file.

    Raises:
        ValueError: If one process is not among ``--processes``, to which the model is fitted, or
            nothing is to be repeated.
    """
    if arguments.storage:
        from platon_prune.commands.benchmarks import storage as _storage

        print(_storage.table(amounts=(0.9, 0.99), seeds=range(3)))
        return 0
    check_measuring_arguments(arguments)
    if 1 not in arguments.processes or min(arguments.processes) < 1:
        raise ValueError(f"--processes must have 1 among them, got {arguments.processes}")
    sizes = sorted({_ROW, *(round(size) for size in arguments.weights)})
    choices = [
        choice
        for count in sorted(set(arguments.processes))
        for choice in measure(count, sizes, arguments.repeats)
    ]
    model = CostModel.fit(choices)
    print(_table(choices, model))
    write_json(arguments, [asdict(choice) for choice in choices])
    return 0


def measure(num_processes: int, sizes: Sequence[int], repeats: int) -> list[ChoiceCost]:
    """Start the processes, and let them choose over each size in turn, ``repeats`` times."""
    from torch.multiprocessing.spawn import spawn

    with tempfile.TemporaryDirectory() as folder:
        arguments = (num_processes, list(sizes), repeats, folder)
        spawn(_work, arguments, nprocs=num_processes)  # type: ignore[no-untyped-call]
        measured = [
            json.loads(Path(folder, f"{rank}.json").read_text()) for rank in range(num_processes)
        ]
    choices = []
    for i, size in enumerate(sizes):
        ranks = [each[i] for each in measured]
        seconds = [statistics.mean(times) for times in zip(*(r["cpu"] for r in ranks), strict=True)]
        walls = [max(times) for times in zip(*(r["wall"] for r in ranks), strict=True)]
        choices.append(
            ChoiceCost(
                size,
                num_processes,
                Spread.of(seconds),
                statistics.median(walls),
                ranks[0]["collectives"],
                ranks[0]["payload"],
            )
        )
    return choices


def _work(rank: int, num_processes: int, sizes: list[int], repeats: int, folder: str) -> None:
    """One process: choose, and write down what it cost."""
    import torch
    import torch.distributed as dist

    from platon_prune.choice.selection import prune_smallest_

    torch.set_num_threads(1)
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=num_processes)
    measured: list[dict[str, Any]] = [{"cpu": [], "wall": []} for _ in sizes]
    tensors = [_share(size, rank, num_processes) for size in sizes]
    for repeat in range(-1, repeats):  # the first touches new memory and is not counted
        for tensor, record in zip(tensors, measured, strict=True):
            counting = _counting_processes()
            dist.barrier()
            wall, cpu = time.perf_counter(), time.process_time()
            count = round((0.6 + 0.3 * (repeat + 1) / (repeats + 1)) * tensor.whole_numel)
            prune_smallest_([tensor], count, counting)
            if repeat >= 0:
                record["cpu"].append(time.process_time() - cpu)
                record["wall"].append(time.perf_counter() - wall)
            record["collectives"], record["payload"] = counting.calls, counting.payload
    write_text(Path(folder, f"{rank}.json"), json.dumps(measured))
    dist.barrier()
    dist.destroy_process_group()


def _share(size: int, rank: int, num_processes: int) -> ScoredTensor:
    """This process's rows of one tensor with PLATON scores, log-normal as real ones are."""
    import torch

    from platon_prune.choice.scored import ScoredTensor
    from platon_prune.criteria import Platon
    from platon_prune.tensors.shards import Shard

    rows = max(1, size // _ROW)
    index = torch.arange(rows).tensor_split(num_processes)[rank]
    shard = Shard(torch.Size((rows, _ROW)), (index, None))
    generator = torch.Generator().manual_seed(rank)
    numel = shard.local_shape.numel()
    averages = [torch.empty(numel).log_normal_(-9, 2, generator=generator) for _ in range(2)]
    out = torch.empty(1 << 20)
    criterion = Platon()

    def score(at: Any) -> Any:
        first, second = averages[0][at], averages[1][at]
        return criterion.score(first, [first, second], out[: first.numel()])

    return ScoredTensor(score, torch.ones(numel, dtype=torch.bool), 0, shard)


def _counting_processes() -> Any:
    """All processes, and how often and with how much they speak to each other."""
    from platon_prune.tensors.collectives import Processes

    class Counting(Processes):
        calls = payload = 0

        def _reduced(self, tensor: Any, operation: Any) -> Any:
            self.calls += 1
            self.payload += tensor.numel() * tensor.element_size()
            return super()._reduced(tensor, operation)

    counting: Processes = Counting()
    return counting


def _table(choices: Sequence[ChoiceCost], model: CostModel) -> str:
    lines = [
        "ratio: measured / model; 1 is as predicted, and above 1 slower than that",
        "",
        "weights      processes  ms a process (range)        model  ratio  collectives  KiB",
    ]
    for c in choices:
        predicted = model.seconds(c.weights, c.processes)
        median, low, high = (value * 1e3 for value in c.seconds)
        spread = f"({low:.1f}-{high:.1f})"
        lines.append(
            f"{c.weights:<12,} {c.processes:<10} {median:>8.1f} {spread:<18} "
            f"{predicted * 1e3:>8.1f}  {c.seconds.median / predicted:>5.2f}  {c.collectives:>11}  "
            f"{c.payload / 1024:,.0f}"
        )
    per_weight = model.per_weight * 1e9
    rate = BYTES_PER_WEIGHT / model.per_weight / 1e9
    lines.append(
        f"model: {per_weight:.2f} ns for each weight that a process holds, {rate:.1f} GB/s"
    )
    return "\n".join(lines)
