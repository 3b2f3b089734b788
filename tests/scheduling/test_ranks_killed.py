"""A rank that is killed ends the others with an error, and the last checkpoint goes on."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import rank_jobs
import ranks
from rank_jobs import STEPS

TIMEOUT_SECONDS = 20


def main():
    """``RANK SIZE STORE FOLDER``: train, saving after every step."""
    rank, size, store, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], Path(sys.argv[4])
    import torch

    torch.set_num_threads(1)
    ranks.join(rank, size, store, TIMEOUT_SECONDS)
    run = rank_jobs.Run(rank_jobs.fsdp)
    for step in range(1, STEPS + 1):
        run.to(step)
        rank_jobs.write_checkpoint(run, folder / str(step))
        print(step, flush=True)
    time.sleep(600)  # to be killed


def _start(rank, size, store, folder):
    command = [sys.executable, __file__, *map(str, (rank, size, store, folder))]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )


def _last_saved(folder):
    """The last step whose checkpoint was written by all: this file comes last, in one move."""
    return max(int(path.parent.name) for path in folder.glob("*/.metadata"))


# In the warm-up, at a choice, and in the final phase; what a rank does when it dies is chance.
@pytest.mark.parametrize(("at_step", "victim"), [(2, 1), (8, 0), (19, 1)])
def test_a_killed_rank_ends_the_others_and_the_last_checkpoint_goes_on(tmp_path, at_step, victim):
    store = tmp_path / "store"
    processes = [_start(rank, 2, store, tmp_path) for rank in range(2)]
    try:
        for line in processes[victim].stdout:
            if int(line) == at_step:
                break
        processes[victim].kill()
        survivor = processes[1 - victim]
        _, message = survivor.communicate(timeout=3 * TIMEOUT_SECONDS)
        assert survivor.returncode not in (0, None)
        assert "Error" in message
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    saved = _last_saved(tmp_path)
    assert saved >= at_step - 1
    expected = rank_jobs.results(rank_jobs.alone, "random", (STEPS,), {})
    folder = tmp_path / str(saved)
    for found in ranks.run(
        3, rank_jobs.resume_checkpoint, folder, rank_jobs.fsdp, "random", (STEPS,), {}
    ):
        assert not rank_jobs.differences(found[0], expected[0])


if __name__ == "__main__":
    main()
