"""A rank that is killed ends the others with an error, and the last checkpoint goes on."""

import contextlib
import time
import traceback

import pytest
import rank_jobs
import ranks
import torch
from rank_jobs import STEPS

TIMEOUT_SECONDS = 20


def _train(connection, rank, size, store, folder):
    """Train, saving after every step; send the number of each, and what ended it."""
    torch.set_num_threads(1)
    try:
        ranks.join(rank, size, store, TIMEOUT_SECONDS)
        run = rank_jobs.Run(rank_jobs.fsdp)
        for step in range(1, STEPS + 1):
            run.to(step)
            rank_jobs.write_checkpoint(run, folder / str(step))
            connection.send(step)
        time.sleep(600)  # to be killed
    except Exception:
        connection.send(traceback.format_exc())
        raise


def _last_saved(folder):
    """The last step whose checkpoint was written by all: this file comes last, in one move."""
    return max(int(path.parent.name) for path in folder.glob("*/.metadata"))


# In the warm-up, at a choice, and in the final phase; what a rank does when it dies is chance.
@pytest.mark.parametrize(("at_step", "victim"), [(2, 1), (8, 0), (19, 1)])
def test_a_killed_rank_ends_the_others_and_the_last_checkpoint_goes_on(tmp_path, at_step, victim):
    store = tmp_path / "store"
    begun = [ranks.begin(_train, rank, 2, store, tmp_path) for rank in range(2)]
    try:
        process, connection = begun[victim]
        while connection.recv() != at_step:
            pass
        process.kill()
        survivor, connection = begun[1 - victim]
        survivor.join(3 * TIMEOUT_SECONDS)
        assert survivor.exitcode not in (0, None)
        said = []
        with contextlib.suppress(EOFError):
            while True:
                said.append(connection.recv())
        assert "Error" in said[-1]
    finally:
        for process, connection in begun:
            process.kill()
            process.join()
            connection.close()
    saved = _last_saved(tmp_path)
    assert saved >= at_step - 1
    expected = rank_jobs.results(rank_jobs.alone, "random", (STEPS,), {})
    folder = tmp_path / str(saved)
    for found in ranks.run(
        3, rank_jobs.resume_checkpoint, folder, rank_jobs.fsdp, "random", (STEPS,), {}
    ):
        assert not rank_jobs.differences(found[0], expected[0])
