"""What is remembered, kept in bfloat16 or in host memory, and how much memory it is."""

import gc
import weakref

import pytest
import rank_jobs
import ranks
import torch
from rank_jobs import STEPS

BFLOAT16 = dict(state_dtype=torch.bfloat16)
OFFLOADED = dict(offload_averages=True)
WEIGHTS = 13 * 9 + 10 * 13 + 1 * 10


@pytest.mark.parametrize(
    ("settings", "per_weight"),
    [
        ({}, 1 + 3 * 4),
        (BFLOAT16, 1 + 3 * 2),
        (dict(criterion="sensitivity"), 1 + 2 * 4),
        (dict(criterion="movement", **BFLOAT16), 1 + 2 * 2),
        (dict(criterion="magnitude"), 1),
    ],
)
def test_memory_counts_the_mask_the_window_and_the_averages(settings, per_weight):
    scheduler = rank_jobs.Run(**settings).to(2).scheduler
    memory = scheduler.memory()
    assert memory.per_weight == per_weight
    assert memory.total == per_weight * WEIGHTS
    assert (memory.num_local, memory.num_weights) == (WEIGHTS, WEIGHTS)
    assert f"{per_weight * WEIGHTS:,}" in str(memory)


@pytest.mark.parametrize("settings", [{}, BFLOAT16, OFFLOADED])
def test_a_finalized_scheduler_frees_what_it_remembered(settings):
    run = rank_jobs.Run(**settings).to(2)
    remembered = [each for tensor in run.scheduler._tensors for each in tensor.remembered.items()]
    assert sum(each.numel() for _, each in remembered) == 3 * WEIGHTS
    gone = [weakref.ref(each) for _, each in remembered]
    gone += [weakref.ref(each._base) for _, each in remembered[:3]]  # all of them, in one line
    gone += [weakref.ref(mask) for _, mask in run.model.named_buffers()]
    assert len(gone) == 3 * 3 + 3 + 3
    del remembered
    run.scheduler.remove()
    gc.collect()
    assert [each() for each in gone] == [None] * len(gone)
    assert run.scheduler.last_step == 2


def _memory_of_ranks():
    memory = rank_jobs.Run(rank_jobs.fsdp).to(2).scheduler.memory()
    return memory.num_local, memory.total


def test_memory_is_that_of_this_rank():
    # 13, 10 and 1 rows over two ranks.
    local = [7 * 9 + 5 * 13 + 10, 6 * 9 + 5 * 13]
    assert ranks.run(2, _memory_of_ranks) == [(n, 13 * n) for n in local]


@pytest.mark.parametrize("masking", ["step", "window"])
@pytest.mark.parametrize("kind", ["random", "tied"])
def test_averages_in_host_memory_give_the_same_masks(kind, masking):
    expected = rank_jobs.results(rank_jobs.alone, kind, (8, STEPS), dict(masking=masking))
    settings = dict(masking=masking, offload_averages=True)
    found = rank_jobs.results(rank_jobs.alone, kind, (8, STEPS), settings)
    for one, other in zip(found, expected, strict=True):
        assert not rank_jobs.differences(one, other)


def test_bfloat16_averages_are_the_float32_ones_rounded_at_each_window():
    run = rank_jobs.Run(**BFLOAT16, beta1=0.5, beta2=0.5, window=2, masking="window")
    weight, averages = run.model.first.weight_orig, [torch.zeros(13, 9) for _ in range(2)]
    window = torch.zeros(13, 9)
    for step in range(1, 9):
        rank_jobs.feed(run.model, step)
        run.optimizer.step()
        sample = (weight.detach() * weight.grad).abs()
        run.scheduler.step()
        if step % 2 == 0:
            # One phantom zero in the first window, which has seen one step only.
            mean = window / 2
            averages[0] = 0.5 * averages[0] + 0.5 * mean
            averages[1] = 0.5 * averages[1] + 0.5 * (mean - averages[0]).abs()
            averages = [average.bfloat16().float() for average in averages]
            window = torch.zeros(13, 9)
        window = (window + sample).bfloat16().float()
    torch.testing.assert_close(
        run.scheduler.score("first.weight"), averages[0] * averages[1], rtol=0.02, atol=1e-8
    )
    saved = run.scheduler.state_dict()["tensors"]["first.weight"]
    assert saved["window"].dtype == saved["uncertainty"].dtype == torch.bfloat16


@pytest.mark.parametrize("settings", [BFLOAT16, OFFLOADED, BFLOAT16 | OFFLOADED])
def test_every_storage_over_ranks_gives_the_masks_of_one_process(settings):
    expected = rank_jobs.results(rank_jobs.alone, "random", (8, STEPS), settings)
    for found in ranks.run(3, rank_jobs.results, rank_jobs.fsdp, "random", (8, STEPS), settings):
        for one, other in zip(found, expected, strict=True):
            assert not rank_jobs.differences(one, other)


def test_a_float32_state_goes_on_in_bfloat16_and_back():
    state = rank_jobs.Run().to(9).scheduler.state_dict()
    small = rank_jobs.Run(**BFLOAT16)
    small.scheduler.load_state_dict(state)
    assert small.scheduler.last_step == 9
    back = rank_jobs.Run()
    back.scheduler.load_state_dict(small.scheduler.state_dict())
    for name, tensor in state["tensors"].items():
        found = back.scheduler.state_dict()["tensors"][name]["sensitivity"]
        assert torch.equal(found, tensor["sensitivity"].bfloat16().float())
