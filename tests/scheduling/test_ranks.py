"""Masks, weights and scores over several processes equal those of one process, bit by bit."""

import pages
import pytest
import rank_jobs
import ranks

CRITERIA = (
    "platon", "sensitivity", "magnitude", "movement", "random", "fisher", "scaled_magnitude",
)  # fmt: skip
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


# Choices at 4, 6, 8 and 10.
SHORT = dict(total_steps=10, warmup_steps=2, cooldown_steps=2, window=2)
EVERYTHING = [
    (kind, SHORT | dict(criterion=criterion, masking=masking))
    for kind in ("random", "tied", "zero", "denormal", "huge")
    for criterion in CRITERIA
    for masking in ("step", "window")
]


def _results_of_everything(layout):
    return [rank_jobs.results(layout, kind, (6, 10), settings) for kind, settings in EVERYTHING]


@pytest.fixture(scope="module")
def everything_alone():
    return _results_of_everything(rank_jobs.alone)


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_scores_of_every_kind_criterion_and_masking_give_the_masks_of_one_process(
    everything_alone, size
):
    for rank, found in enumerate(ranks.run(size, _results_of_everything, rank_jobs.fsdp)):
        for what, results, expected in zip(EVERYTHING, found, everything_alone, strict=True):
            for one, other in zip(results, expected, strict=True):
                assert not rank_jobs.differences(one, other), f"rank {rank}, {what}"


@pytest.mark.parametrize("masking", ["step", "window"])
@pytest.mark.parametrize("criterion", CRITERIA)
def test_every_layout_gives_the_masks_of_one_process_for_tied_weights(criterion, masking):
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


def test_the_example_of_two_processes_ends_with_the_same_sparse_weights_in_both(tmp_path):
    script = pages.ROOT / "docs" / "examples" / "two_processes.py"
    first, second = ranks.run(2, rank_jobs.example, str(script), str(tmp_path))
    assert first == second
    kept = sum(
        weight != 0 for name in ("0.weight", "2.weight") for row in first[name] for weight in row
    )
    assert kept == round(0.1 * (16 * 64 + 64 * 4))
    assert (tmp_path / "two_processes.safetensors").is_file()
