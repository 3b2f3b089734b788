"""The recipes as users start them, in one process or in the ranks of a test."""

import contextlib
import io

import sharding_on_cpu
import torch.distributed as dist
from trainer_jobs import one_accelerator

from platon_prune import cli


def start(recipe, flags):
    """What a process prints; its exit status has to be 0."""
    sharding_on_cpu.enable()
    printed = io.StringIO()
    with one_accelerator(), contextlib.redirect_stdout(printed):
        status = cli.main([recipe, *flags, "--use_cpu", "--disable_tqdm", "true"])
        if dist.is_initialized():
            dist.barrier()
    assert status == 0
    return printed.getvalue()
