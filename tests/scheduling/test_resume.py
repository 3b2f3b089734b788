"""A run that is stopped and resumed is bit-identical to one that is not."""

import copy
import random
import signal
import subprocess
import sys
import time

import pytest
import torch
import training_job
from training_job import TOTAL_STEPS, Job, resumed, save_atomically

import platon_prune

SCRIPT = training_job.__file__
MASKINGS = ["step", "window"]


def assert_identical(one, other, path="checkpoint"):
    """Equal bit by bit, all the way down."""
    assert type(one) is type(other), path
    if isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype, path
        assert torch.equal(one.cpu(), other.cpu()), path  # another process has one on the CPU
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), path
        for key in one:
            assert_identical(one[key], other[key], f"{path}/{key}")
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other), path
        for i, pair in enumerate(zip(one, other, strict=True)):
            assert_identical(*pair, f"{path}/{i}")
    else:
        assert one == other, path


def _uninterrupted(masking):
    """The checkpoint after every step."""
    job = Job(masking)
    return {step: copy.deepcopy(job.checkpoint()) for step in job.train(TOTAL_STEPS)}


@pytest.fixture(scope="module")
def runs():
    return {masking: _uninterrupted(masking) for masking in MASKINGS}


@pytest.mark.parametrize("masking", MASKINGS)
def test_stopped_after_any_step_goes_on_bit_by_bit(runs, masking):
    checkpoints = runs[masking]
    for stop in range(1, TOTAL_STEPS):
        job = Job(masking)
        job.load(copy.deepcopy(checkpoints[stop]))
        assert_identical(job.checkpoint(), checkpoints[stop])
        for step in job.train(TOTAL_STEPS):
            if step in (stop + 1, stop + 7, TOTAL_STEPS):
                assert_identical(job.checkpoint(), checkpoints[step], f"{stop}->{step}")


@pytest.mark.parametrize("schedule", ["linear", "exponential", "once"])
def test_every_schedule_goes_on_bit_by_bit(schedule):
    job = Job("window", schedule=schedule)
    checkpoints = {step: copy.deepcopy(job.checkpoint()) for step in job.train(TOTAL_STEPS)}
    for stop in (3, 6, 7, 23, 25):  # before and after the one choice, and around the ramp's end
        job = Job("window", schedule=schedule)
        job.load(copy.deepcopy(checkpoints[stop]))
        for step in job.train(TOTAL_STEPS):
            assert_identical(job.checkpoint(), checkpoints[step], f"{stop}->{step}")


def test_resumed_in_a_fresh_process_goes_on_bit_by_bit(runs, tmp_path):
    files, expected = [], []
    for masking in MASKINGS:
        for stop in (1, 3, 6, 14, 18, 23, 27, 31):  # windows of 6: ends, middles, the final phase
            files.append(str(tmp_path / f"{masking}-{stop}.pt"))
            save_atomically(runs[masking][stop], files[-1])
            expected.append(runs[masking][TOTAL_STEPS])
    out = tmp_path / "final.pt"
    subprocess.run([sys.executable, SCRIPT, "finish", out, *files], check=True)
    for file, final, checkpoint in zip(files, torch.load(out), expected, strict=True):
        assert_identical(final, checkpoint, file)


@pytest.mark.parametrize("masking", MASKINGS)
def test_killed_in_the_middle_of_a_save_the_last_complete_checkpoint_resumes(
    runs, tmp_path, masking
):
    path = tmp_path / "checkpoint.pt"
    process = subprocess.Popen(
        [sys.executable, SCRIPT, "run", path, masking, "15"], stdout=subprocess.PIPE
    )
    assert [process.stdout.readline() for _ in range(2)] == [b"started\n", b"saving\n"]
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    process.stdout.close()
    with pytest.raises((RuntimeError, OSError)):  # half a file
        torch.load(f"{path}.new", weights_only=True)
    job = resumed(path)
    assert job.scheduler.last_step == 14
    for step in job.train(TOTAL_STEPS):
        assert_identical(job.checkpoint(), runs[masking][step])


def test_killed_at_random_moments_the_last_complete_checkpoint_resumes(runs, tmp_path):
    path = tmp_path / "checkpoint.pt"
    random.seed(0)
    kills = 0
    for _ in range(40):
        process = subprocess.Popen(
            [sys.executable, SCRIPT, "run", path, "step"], stdout=subprocess.PIPE
        )
        assert process.stdout.readline() == b"started\n"
        if kills < 4:
            time.sleep(random.uniform(0.0, 0.03))
            process.send_signal(signal.SIGKILL)
            kills += process.wait() == -signal.SIGKILL
        else:
            assert process.wait() == 0
        process.stdout.close()
        if path.exists():
            job = resumed(path)
            assert_identical(job.checkpoint(), runs["step"][job.scheduler.last_step])
            if job.scheduler.last_step == TOTAL_STEPS:
                break
    assert kills >= 1
    assert job.scheduler.last_step == TOTAL_STEPS


def test_window_masking_resumes_from_a_model_that_was_saved_without_what_was_refilled(runs):
    """As `save_pretrained` does: the model holds zeros, the scheduler what they grew to."""
    checkpoint = copy.deepcopy(runs["window"][20])
    for name in ("0", "3"):
        weight, mask = (checkpoint["model"][f"{name}.weight{s}"] for s in ("_orig", "_mask"))
        assert weight[~mask].count_nonzero(), "refilled between choices"
        weight[~mask] = 0
    job = Job("window")
    job.load(checkpoint)
    for step in job.train(TOTAL_STEPS):
        assert_identical(job.checkpoint(), runs["window"][step])


def test_a_state_is_a_copy_that_training_does_not_change():
    job = Job("step")
    steps = job.train(TOTAL_STEPS)
    for _ in range(9):
        next(steps)
    state = job.scheduler.state_dict()
    kept = copy.deepcopy(state)
    for _ in range(9):
        next(steps)
    assert_identical(state, kept)


def test_loading_restores_the_zeros_of_the_masks_even_over_dense_weights():
    job = Job("step")
    for _ in job.train(TOTAL_STEPS):
        pass
    other = Job("step")
    other.scheduler.load_state_dict(job.scheduler.state_dict())
    for name in ("0.weight", "3.weight"):
        weight = other.model.get_parameter(f"{name}_orig")
        assert torch.equal(weight == 0, ~job.scheduler.masks()[name])


def test_a_model_moved_to_another_dtype_keeps_its_float32_state():
    job = Job("step")
    steps = job.train(TOTAL_STEPS)
    for _ in range(8):
        next(steps)
    job.model.bfloat16()
    state = job.scheduler.state_dict()["tensors"]["0.weight"]
    assert state["sensitivity"].dtype == state["window"].dtype == torch.float32
    assert job.model[0].weight_mask.dtype == torch.bool
    platon_prune.remove(job.model)
    assert job.model[0].weight.dtype == torch.bfloat16
