"""Worker processes that play the ranks of a job: `run(size, function, *arguments)`.

They are started once and used by all tests; each call makes a new gloo group over loopback. They
are forks of one process that has imported what takes long, and has done nothing else.
"""

import atexit
import gc
import multiprocessing
import os
import tempfile
import traceback
from datetime import timedelta

import torch
import torch.distributed as dist

IMPORTED = [
    "torch.distributed.checkpoint", "torch.distributed.fsdp", "torch.distributed.tensor.parallel",
    "transformers.trainer",
]  # fmt: skip
_workers = []


class RankError(Exception):
    """What went wrong in the ranks: (type name, message) for each, None where nothing did."""

    def __init__(self, errors, traces):
        self.errors = errors
        super().__init__("\n".join(trace for trace in traces if trace))


def run(size, function, *arguments, timeout=60):
    """What ``function(*arguments)`` returned in each of ``size`` ranks, in their order."""
    _start(size)
    descriptor, store = tempfile.mkstemp()
    os.close(descriptor)
    os.unlink(store)
    for rank, (_, connection) in enumerate(_workers[:size]):
        connection.send((rank, size, store, timeout, function, arguments))
    answers = [connection.recv() for _, connection in _workers[:size]]
    if any(error for _, error, _ in answers):
        raise RankError([error for _, error, _ in answers], [trace for _, _, trace in answers])
    return [value for value, _, _ in answers]


def errors_of(size, function, *arguments, timeout=60):
    """(type name, message) of the error in each rank; None where there was none."""
    try:
        run(size, function, *arguments, timeout=timeout)
    except RankError as error:
        return error.errors
    return [None] * size


def _start(size):
    if not _workers:
        atexit.register(_stop)
    while len(_workers) < size:
        _workers.append(begin(_serve))


def begin(function, *arguments):
    """A process of its own that calls ``function(connection, *arguments)``, and our end of it."""
    multiprocessing.set_forkserver_preload(IMPORTED)
    context = multiprocessing.get_context("forkserver")
    here, there = context.Pipe()
    process = context.Process(target=function, args=(there, *arguments), daemon=True)
    process.start()
    there.close()  # so that the end of the process is the end of what can be read
    return process, here


def _stop():
    for process, connection in _workers:
        connection.close()
        process.join(5)
    _workers.clear()


def _serve(connection):
    torch.set_num_threads(1)
    while True:
        try:
            rank, size, store, timeout, function, arguments = connection.recv()
        except EOFError:
            return
        try:
            join(rank, size, store, timeout)
            # One that leaves at once would break off the others, which may still be connecting.
            dist.barrier()
            answer = function(*arguments), None, None
        except Exception as error:
            answer = None, (type(error).__name__, str(error)), traceback.format_exc()
        finally:
            leave()
        connection.send(answer)
        # As the tests' own process does: what is there by now need not be looked at again.
        gc.collect()
        gc.freeze()


def join(rank, size, store, timeout=60):
    """Become a rank of a new group whose members meet at a file."""
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(size))
    dist.init_process_group(
        "gloo",
        init_method=f"file://{store}",
        rank=rank,
        world_size=size,
        timeout=timedelta(seconds=timeout),
    )


def leave():
    """Leave the group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        os.environ.pop(name, None)
    torch.manual_seed(0)
