"""Masks, weights and scores over several processes equal those of one process, bit by bit."""

import pytest
import rank_jobs
import ranks

CRITERIA = ("platon", "sensitivity", "magnitude", "movement", "random")
AT = (7, 8, 13, 18, 21, 24)  # warm-up, choices, between two, the ramp's end, final phase, the end

LAYOUTS = {
    ("copies", 1),
    ("copies", 3),
    ("fsdp", 1),
    ("fsdp", 2),
    ("fsdp", 3),
    ("fsdp", 4),
    ("hsdp", 4),
    ("tp", 2),
    ("tp", 3),
    ("fsdp_tp", 4),
    ("several_meshes", 4),
    ("meta_fsdp", 3),
}


def _assert_equal(layout, size, kind, settings, prune_first=True):
    expected = rank_jobs.results(rank_jobs.alone, kind, AT, settings)
    function = getattr(rank_jobs, layout)
    everyone = ranks.run(size, rank_jobs.results, function, kind, AT, settings, prune_first)
    for rank, found in enumerate(everyone):
        for step, one, other in zip(AT, found, expected, strict=True):
            assert not rank_jobs.differences(one, other), f"rank {rank}, step {step}"


@pytest.mark.parametrize(("layout", "size"), sorted(LAYOUTS))
def test_every_layout_gives_the_masks_of_one_process(layout, size):
    _assert_equal(layout, size, "random", {})


@pytest.mark.parametrize("size", [1, 2, 3, 4])
@pytest.mark.parametrize("kind", ["tied", "zero", "denormal", "huge"])
def test_scores_of_every_kind_give_the_masks_of_one_process(kind, size):
    _assert_equal("fsdp", size, kind, {})


@pytest.mark.parametrize("masking", ["step", "window"])
@pytest.mark.parametrize("criterion", CRITERIA)
def test_every_criterion_and_masking_gives_the_masks_of_one_process(criterion, masking):
    settings = dict(criterion=criterion, masking=masking)
    for layout, size in (("fsdp", 3), ("copies", 2), ("hsdp", 4)):
        _assert_equal(layout, size, "tied", settings)


@pytest.mark.parametrize(
    ("layout", "size"), [("tp", 2), ("tp", 3), ("fsdp_tp", 4), ("several_meshes", 4)]
)
def test_ties_are_broken_by_global_position_however_a_tensor_is_divided(layout, size):
    _assert_equal(layout, size, "random", dict(criterion="random"))


@pytest.mark.parametrize("layout", ["copies", "fsdp", "tp"])
def test_a_model_that_is_laid_out_before_it_is_pruned_gives_the_same(layout):
    _assert_equal(layout, 2, "random", {}, prune_first=False)
