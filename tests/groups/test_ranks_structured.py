"""Structured pruning over several processes."""

import pytest
import rank_jobs
import ranks
import structured_jobs
import torch
from pages import ROOT, blocks_of


def test_copies_in_several_processes_choose_alike_and_drift_is_noticed():
    alone = structured_jobs.copies(False)
    assert ranks.run(2, structured_jobs.copies, False) == [alone, alone]
    for message in ranks.run(2, structured_jobs.copies, True):
        assert "the processes have drifted apart" in message


def test_under_ddp_all_processes_have_the_same_groups_and_weights():
    first, second = ranks.run(2, structured_jobs.ddp)
    assert first == second


def test_under_ddp_all_processes_make_the_same_cut_and_go_on_once_wrapped_again():
    first, second = ranks.run(2, structured_jobs.cut_under_ddp)
    assert first == second and first[0]


def test_processes_that_train_together_do_not_cut_by_themselves():
    for message in ranks.run(2, structured_jobs.cut_by_itself):
        assert "call scheduler.cut() in all of them, and wrap the model again" in message


KnownRun = structured_jobs.KnownRun
AT = (8, 13, 24)  # a choice, between two, the end


def _assert_equal(layout, size, kind="random", prune_first=True, runs=KnownRun, **more):
    expected = rank_jobs.results(rank_jobs.alone, kind, AT, more, runs=runs)
    everyone = ranks.run(size, rank_jobs.results, layout, kind, AT, more, prune_first, runs)
    for rank, found in enumerate(everyone):
        for step, one, other in zip(AT, found, expected, strict=True):
            # The mean over a group is a sum of float64, added up in another order over shards.
            assert one.pop("threshold") == pytest.approx(other["threshold"], rel=1e-12)
            one["threshold"] = other["threshold"]
            assert not rank_jobs.differences(one, other), f"rank {rank}, step {step}"
    masks = expected[-1]["masks"]
    assert any(not mask.all() for mask in masks.values())


@pytest.mark.parametrize(
    ("layout", "size", "kind"),
    [(rank_jobs.fsdp, 2, "random"), (rank_jobs.fsdp, 4, "tied"), (rank_jobs.hsdp, 4, "random"),
     (structured_jobs.fsdp_tp, 4, "random")],
)  # fmt: skip
def test_over_shards_the_groups_and_weights_are_those_of_one_process_bit_by_bit(layout, size, kind):
    _assert_equal(layout, size, kind)


@pytest.mark.parametrize(
    "settings",
    [dict(aggregate="sum", masking="window"), dict(aggregate="max"), dict(aggregate="l2"),
     dict(normalizer="mean", budget="macs", min_neurons=0.4, amount=0.5)],
    ids=str,
)  # fmt: skip
def test_every_way_to_score_and_count_is_that_of_one_process(settings):
    _assert_equal(rank_jobs.fsdp, 2, **settings)


def test_known_layers_may_be_sharded_before_pruning_is_set_up_and_traced_ones_after():
    _assert_equal(rank_jobs.fsdp, 2, prune_first=False)
    _assert_equal(rank_jobs.fsdp, 2, runs=structured_jobs.Run)


@pytest.mark.parametrize(
    ("settings", "told"),
    [({}, "where layers are not known by their names"), (dict(budget="macs"), 'budget="macs"'),
     (dict(budget="latency"), 'budget="latency"')],
)  # fmt: skip
def test_a_sharded_model_that_would_have_to_run_is_refused_in_every_process(settings, told):
    for message in ranks.run(2, structured_jobs.set_up_after_sharding, settings):
        assert "must be whole in every process" in message and told in message
        assert "set pruning up before sharding" in message


def test_a_checkpoint_of_shards_goes_on_in_another_layout(tmp_path):
    runs = KnownRun
    ranks.run(2, rank_jobs.save_checkpoint, tmp_path, rank_jobs.fsdp, "random", 14, {}, runs)
    expected = rank_jobs.results(rank_jobs.alone, "random", (24,), {}, runs=runs)
    for layout, size in ((rank_jobs.fsdp, 3), (rank_jobs.copies, 2)):
        arguments = (tmp_path, layout, "random", (24,), {}, runs)
        for (found,) in ranks.run(size, rank_jobs.resume_checkpoint, *arguments):
            found["threshold"] = expected[0]["threshold"]
            assert not rank_jobs.differences(found, expected[0])


def test_replicas_of_a_shard_that_drifted_apart_are_found():
    runs = KnownRun
    arguments = (rank_jobs.hsdp, rank_jobs.change_a_score, 16, 1, runs)
    errors = ranks.errors_of(4, rank_jobs.change_one_rank, *arguments)
    assert all("the processes have drifted apart" in text for _, text in errors)


def test_a_sharded_model_is_shrunk_once_it_is_gathered():
    _, counts, outputs = structured_jobs.shrunk(rank_jobs.alone)
    for refused, found, others in ranks.run(2, structured_jobs.shrunk, rank_jobs.fsdp):
        assert "must be whole in every process to be cut" in refused[0]
        assert '"Cutting while it trains" in docs/scale.md' in refused[0]
        assert "full_state_dict=True" in refused[1]
        assert found == counts and sum(kept for _, kept in counts) < 13 + 11
        assert torch.allclose(torch.tensor(others), torch.tensor(outputs), rtol=1e-6)


def test_the_steps_of_the_page_cut_a_sharded_model_as_one_process_cuts_a_whole_one(tmp_path):
    settings = dict(masking="window", amount=0.5)  # with all that a state can hold
    blocks = (code for _, code in blocks_of(ROOT / "docs" / "scale.md", "python"))
    (steps,) = (code for code in blocks if "def cut_sharded(" in code)
    expected, sizes = structured_jobs.cut_while_sharded(None, rank_jobs.alone, settings)
    # Both cuts take something out, and later choices prune what is left further.
    assert sizes[0] > sizes[1] == sizes[2]
    assert expected[1]["sparsity"] < expected[2]["sparsity"]
    arguments = (steps, rank_jobs.fsdp, settings, tmp_path)
    for found, _ in ranks.run(2, structured_jobs.cut_while_sharded, *arguments):
        for one, other in zip(found, expected, strict=True):
            assert one.pop("threshold") == pytest.approx(other["threshold"], rel=1e-12)
            one["threshold"] = other["threshold"]
            assert not rank_jobs.differences(one, other)


def test_a_model_is_made_as_small_as_a_checkpoint_before_it_is_sharded():
    for message in ranks.run(2, structured_jobs.cut_like_of_shards):
        assert "must be whole in every process to be cut" in message
        assert "call scheduler.cut_like(state) before fully_shard" in message


def test_a_router_of_which_each_process_has_a_shard_passes_over_the_same_experts_in_all():
    pruned = [False, True, True, False, True]
    expected = [pruned, pruned]
    assert ranks.run(2, structured_jobs.out_of_a_sharded_router, pruned) == [expected, expected]


def test_the_first_process_measures_for_all():
    first, second = ranks.run(2, structured_jobs.times)
    assert first == second and first.places[0].full == 2 * 10**9


@pytest.mark.parametrize("first", [0, 1])
def test_a_budget_that_one_process_has_is_named_in_all(first):
    settings = [dict(budget="latency", amount=0.1), dict(budget="macs", amount=0.1)]
    if first:
        settings.reverse()
    for name, message, is_untouched in ranks.run(
        2, structured_jobs.times_of_other_settings, settings
    ):
        assert name == "ValueError" and "budget" in message and "set them up alike" in message
        assert is_untouched


@pytest.mark.parametrize(
    "other", [dict(amount=None), dict(budget="macs"), dict(total_steps=2.5)], ids=str
)
def test_settings_of_which_one_process_has_others_end_in_an_error_everywhere(other):
    settings = [dict(budget="latency", amount=0.1), dict(budget="latency", amount=0.1) | other]
    for name, message, is_untouched in ranks.run(
        2, structured_jobs.times_of_other_settings, settings
    ):
        assert name in ("ValueError", "TypeError", "RuntimeError"), message
        assert is_untouched
