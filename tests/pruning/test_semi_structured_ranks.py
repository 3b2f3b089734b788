"""n:m over several processes: the masks of one process, bit by bit, and no group is ever cut."""

import n_of_m_jobs
import pytest
import rank_jobs
import ranks
import torch

AT = (8, 13, 18, 24)  # a choice, between two, the ramp's end, the end
LAYOUTS = [("copies", 2), ("fsdp", 3), ("fsdp", 4), ("hsdp", 4), ("tp", 2), ("fsdp_tp", 4)]


def _assert_equal(layout, size, kind, settings, prune_first=True):
    expected = rank_jobs.results(rank_jobs.alone, kind, AT, settings, runs=n_of_m_jobs.Run)
    function = getattr(rank_jobs, layout)
    everyone = ranks.run(
        size, rank_jobs.results, function, kind, AT, settings, prune_first, n_of_m_jobs.Run
    )
    for rank, found in enumerate(everyone):
        for step, one, other in zip(AT, found, expected, strict=True):
            assert not rank_jobs.differences(one, other), f"rank {rank}, step {step}"


@pytest.mark.parametrize(("layout", "size"), LAYOUTS)
@pytest.mark.parametrize("kind", ["random", "tied"])
def test_every_layout_gives_the_masks_of_one_process(kind, layout, size):
    _assert_equal(layout, size, kind, {})


def test_other_patterns_and_window_masking_give_the_masks_of_one_process():
    _assert_equal("fsdp", 2, "tied", dict(n=1, m=4, masking="window"))
    _assert_equal("hsdp", 4, "zero", dict(n=1, m=2))
    _assert_equal("hsdp", 4, "random", dict(criterion="random"))


@pytest.mark.parametrize("layout", ["fsdp", "tp"])
def test_a_model_that_is_laid_out_before_it_is_pruned_gives_the_same(layout):
    _assert_equal(layout, 2, "random", {}, prune_first=False)


@pytest.mark.parametrize("saved", [("fsdp", 2), ("alone", 1)])
def test_a_checkpoint_goes_on_in_another_layout(tmp_path, saved):
    layout, size = saved
    runs = n_of_m_jobs.Run
    function = getattr(rank_jobs, layout)
    ranks.run(size, rank_jobs.save_checkpoint, tmp_path, function, "tied", 14, {}, runs)
    expected = rank_jobs.results(rank_jobs.alone, "tied", (16, 24), {}, runs=runs)
    everyone = ranks.run(
        3, rank_jobs.resume_checkpoint, tmp_path, rank_jobs.fsdp, "tied", (16, 24), {}, runs
    )
    for found in everyone:
        for one, other in zip(found, expected, strict=True):
            assert not rank_jobs.differences(one, other)


@pytest.mark.parametrize("prune_first", [True, False])
def test_sharding_that_cuts_groups_is_refused_in_every_process(prune_first):
    errors = ranks.errors_of(
        3, n_of_m_jobs.train_transposed, 16, rank_jobs.fully_shard, prune_first
    )
    assert all(errors)
    named = [text for _, text in errors if "layer.weight must be sharded in whole groups" in text]
    assert named and "got a process with 6 of 16 entries there" in named[0]


def test_tensor_parallelism_that_cuts_groups_is_refused():
    errors = ranks.errors_of(
        3, rank_jobs.results, rank_jobs.tp, "random", AT, {}, True, n_of_m_jobs.Run
    )
    assert any("second.weight must be sharded in whole groups of 4" in text for _, text in errors)


def test_sharding_in_whole_groups_along_the_inputs_gives_the_masks_of_one_process():
    expected = n_of_m_jobs.train_transposed(24, rank_jobs.alone)
    for mask in ranks.run(3, n_of_m_jobs.train_transposed, 24):
        assert torch.equal(mask, expected)


@pytest.mark.parametrize("what", [rank_jobs.flip_a_mask_bit, rank_jobs.change_a_score])
def test_copies_that_drifted_apart_are_found_at_the_next_choice(what):
    errors = ranks.errors_of(
        2, rank_jobs.change_one_rank, rank_jobs.copies, what, 16, 1, n_of_m_jobs.Run
    )
    assert all("they differ in second.weight" in text for _, text in errors)
