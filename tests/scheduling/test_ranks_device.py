"""Processes that exchange on a device vote there, and wait for no vote of an ordinary step.

Here gloo on the CPU stands for the device; one process of NCCL runs with ``--device cuda``.
"""

import itertools

import device_jobs
import pytest
import rank_jobs
import ranks
import torch
import torch.distributed as dist

from platon_prune.tensors.collectives import Processes

STEPS, WINDOW = rank_jobs.STEPS, rank_jobs.SETTINGS["window"]


@pytest.fixture(scope="module")
def alone():
    return {
        kind: rank_jobs.results(rank_jobs.alone, kind, (4, 9, STEPS), {})
        for kind in ("random", "tied")
    }


@pytest.mark.parametrize("kind", ["random", "tied"])
@pytest.mark.parametrize("layout", [rank_jobs.copies, rank_jobs.fsdp])
def test_processes_choose_what_one_process_would(layout, kind, alone):
    for found in ranks.run(2, device_jobs.results, layout, kind, (4, 9, STEPS), {}):
        for result, expected in zip(found, alone[kind], strict=True):
            assert not rank_jobs.differences(result, expected)


@pytest.mark.parametrize("layout", [rank_jobs.copies, rank_jobs.fsdp])
def test_an_ordinary_step_reads_nothing(layout):
    for found in ranks.run(2, device_jobs.reads_of_each_step, layout):
        ordinary = [names for step, is_ordinary, names in found if is_ordinary and step > 1]
        assert len(ordinary) > STEPS / 2
        # Once the run has ended its votes are read as often as a window has steps.
        assert not any(ordinary)


@pytest.mark.parametrize("num_layers", [3, 30])
def test_a_choice_waits_four_times_at_most_whatever_the_number_of_tensors(num_layers):
    for counts in ranks.run(2, device_jobs.reads_of_choices, num_layers):
        assert counts and max(counts) <= 4


def test_a_gradient_that_is_not_finite_in_one_process_is_skipped_in_all():
    found = ranks.run(2, device_jobs.step_with_nan_on, 1, rank_jobs.copies, 10)
    expected = ranks.run(2, rank_jobs.step_with_nan_on, 1, rank_jobs.copies, 10)
    for (skipped, result), (others, other) in zip(found, expected, strict=True):
        assert skipped == others == 1
        assert not rank_jobs.differences(result, other)


@pytest.mark.parametrize(
    ("kind", "at"),
    [
        *itertools.product(["no gradient", "finalized", "another step"], [6, 8, 9]),
        ("finalized", STEPS + 1),  # when no gradient is needed any more
        ("another step", STEPS + 1),
    ],
)
def test_a_process_that_differs_ends_all_of_them_within_a_window(kind, at):
    found = ranks.run(2, device_jobs.trouble, rank_jobs.copies, kind, 1, at, timeout=20)
    steps = [step for step, _, _ in found]
    assert all(name == "RuntimeError" for _, name, _ in found), found
    assert len(set(steps)) == 1 and at <= steps[0] <= at + WINDOW
    own, others = found[1][2], found[0][2]
    if kind == "another step":
        assert "must take the same step" in own and "must take the same step" in others
    else:
        assert {"no gradient": "have no gradient", "finalized": "finalized"}[kind] in own
        assert "must succeed in every process" in others


def test_a_skip_that_one_process_is_told_of_is_one_of_all():
    found = ranks.run(2, device_jobs.trouble, rank_jobs.copies, "skipped", 1, 7)
    assert [skipped for skipped, _, _ in found] == [1, 1]


@pytest.mark.parametrize("backend", ["gloo", "nccl"])
def test_one_process_of_a_group_prunes_as_without(backend, device, tmp_path, monkeypatch):
    if backend == "nccl" and device.type != "cuda":
        pytest.skip("exchanges by NCCL: run on a GPU with python -m pytest --device cuda")
    here = device if backend == "nccl" else torch.device("cpu")
    expected = device_jobs.masks_on(here)
    dist.init_process_group(backend, init_method=f"file://{tmp_path}/s", rank=0, world_size=1)
    try:
        # Its only member adds up what it has; more than one, so that it is asked.
        monkeypatch.setattr(Processes, "size", 2)
        monkeypatch.setattr(Processes, "gather", lambda self, value: [value])
        if backend == "gloo":
            monkeypatch.setattr(Processes, "on_device", lambda self: here)
        assert Processes().on_device().type == here.type
        found = device_jobs.masks_on(here)
    finally:
        dist.destroy_process_group()
    assert all(torch.equal(found[name], mask) for name, mask in expected.items())
