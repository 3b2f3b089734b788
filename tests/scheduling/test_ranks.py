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
KINDS = ("random", "tied", "zero", "denormal", "huge")
SIZES = (1, 2, 3, 4)
EVERYTHING = [
    (i + j + k, kind, SHORT | dict(criterion=criterion, masking=masking))
    for i, kind in enumerate(KINDS)
    for j, criterion in enumerate(CRITERIA)
    for k, masking in enumerate(("step", "window"))
]


def _results_of_everything(layout, size):
    """Each kind, criterion and masking at one number of processes, so that all pairs occur."""
    return {
        (kind, *settings.items()): rank_jobs.results(layout, kind, (6, 10), settings)
        for number, kind, settings in EVERYTHING
        if number % len(SIZES) == size % len(SIZES)
    }


@pytest.mark.parametrize("size", SIZES)
def test_scores_of_every_kind_criterion_and_masking_give_the_masks_of_one_process(size):
    alone = _results_of_everything(rank_jobs.alone, size)
    assert {kind for kind, *_ in alone} == set(KINDS)
    for rank, found in enumerate(ranks.run(size, _results_of_everything, rank_jobs.fsdp, size)):
        assert found.keys() == alone.keys()
        for what, results in found.items():
            for one, other in zip(results, alone[what], strict=True):
                assert not rank_jobs.differences(one, other), f"rank {rank}, {what}"


# All pairs; which of the three layouts it is says little of how a criterion meets a masking.
TIED = [
    (layout, size, criterion, ("step", "window")[(i + j) % 2])
    for i, criterion in enumerate(CRITERIA)
    for j, (layout, size) in enumerate([("fsdp", 3), ("copies", 2), ("hsdp", 4)])
]


@pytest.mark.parametrize(("layout", "size", "criterion", "masking"), TIED)
def test_tied_weights_give_the_masks_of_one_process(layout, size, criterion, masking):
    _assert_equal(layout, size, "tied", dict(criterion=criterion, masking=masking))


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
