"""`scheduler.history`: what each choice did, with numbers that can be counted by hand."""

import warnings

import pytest
import rank_jobs
import ranks
import torch
from torch import nn

import platon_prune


def _run(scores, amount=0.5, steps=None, **settings):
    """Choices by given magnitudes: one step each, with the weights put in by hand."""
    model = nn.Sequential(nn.Linear(4, 2, bias=False), nn.Linear(2, 1, bias=False))
    scheduler = platon_prune.global_unstructured(
        model, amount=amount, initial_amount=amount, total_steps=len(scores), window=1,
        criterion="magnitude", **dict(warmup_steps=0, cooldown_steps=0) | settings,
    )  # fmt: skip
    for first, second in scores[:steps]:
        with torch.no_grad():
            model[0].weight_orig.copy_(torch.tensor(first).view(2, 4))
            model[1].weight_orig.copy_(torch.tensor(second).view(1, 2))
        scheduler.step()
    return scheduler


# Ten weights, of which the five smallest go.
SCORES = [
    ([1, 2, 3, 4, 5, 6, 7, 8.0], [9, 10.0]),  # 1 to 5
    ([9, 8, 3, 4, 5, 6, 7, 2.0], [1, 10.0]),  # 3, 4, 5, 2 and 1: two left and two came back
    ([9, 8, 3, 4, 5, 6, 7, 2.0], [1, 10.0]),  # the same
    ([1, 2, 3, 4, 5, 6, 7, 8.0], [9, 10.0]),  # as at first
]


def test_each_choice_has_its_step_target_sparsity_threshold_and_what_changed():
    history = _run(SCORES).history
    assert [choice.step for choice in history] == [1, 2, 3, 4]
    assert [choice.amount for choice in history] == [0.5] * 4
    assert [choice.sparsity for choice in history] == [0.5] * 4
    assert [choice.threshold for choice in history] == [5.0] * 4
    assert [choice.left for choice in history] == [0.5, 0.2, 0, 0.2]
    assert [choice.came_back for choice in history] == [0, 0.2, 0, 0.2]
    assert [dict(choice.sparsities) for choice in history] == [
        {"0.weight": 5 / 8, "1.weight": 0},
        {"0.weight": 4 / 8, "1.weight": 1 / 2},
        {"0.weight": 4 / 8, "1.weight": 1 / 2},
        {"0.weight": 5 / 8, "1.weight": 0},
    ]


def test_it_is_a_sequence_that_prints_as_a_table():
    history = _run(SCORES).history
    assert len(history) == 4 and history[-1].step == 4 and history[1:3][0].step == 2
    lines = str(history).splitlines()
    assert lines[0].split() == ["step", "amount", "sparsity", "threshold", "left", "came", "back"]
    assert lines[-1].split() == ["4", "50.00%", "50.00%", "5", "20.00%", "20.00%"]


def test_off_by_a_switch_it_stays_empty_and_the_masks_are_the_same():
    on, off = _run(SCORES), _run(SCORES, history=False)
    assert len(off.history) == 0 and off.state_dict()["history"] is None
    for name, mask in on.masks().items():
        assert torch.equal(mask, off.masks()[name])


def test_a_choice_that_prunes_nothing_has_no_threshold():
    choice = _run(SCORES, amount=0).history[0]
    assert (choice.threshold, choice.sparsity, choice.left) == (None, 0, 0)
    assert "-" in str(_run(SCORES, amount=0).history)


# --- saving -------------------------------------------------------------------------------------


def test_it_is_saved_as_plain_numbers_and_goes_on_after_a_resume(tmp_path):
    stopped, whole = _run(SCORES, steps=2), _run(SCORES)
    torch.save(stopped.state_dict(), tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    # step, amount, threshold, how many left and came back, and pruned of each tensor
    assert state["history"] == [[1, 0.5, 5.0, 5, 0, 5, 0], [2, 0.5, 5.0, 2, 2, 4, 1]]
    resumed = _run(SCORES, steps=0)
    resumed.load_state_dict(state)
    assert list(resumed.history) == list(whole.history)[:2]


def test_loading_drops_the_choices_after_the_saved_step():
    run, whole = _run(SCORES), _run(SCORES, steps=2)
    run.load_state_dict(whole.state_dict())
    assert [choice.step for choice in run.history] == [1, 2]


def test_a_state_loads_whether_history_is_on_or_off():
    on, off = _run(SCORES), _run(SCORES, history=False)
    on.load_state_dict(off.state_dict())
    assert len(on.history) == 0
    off.load_state_dict(_run(SCORES).state_dict())
    assert len(off.history) == 0


@pytest.mark.parametrize(
    "history",
    [7, [7], [[1, 0.5, 5.0, 0, 0, 5]], [[1, 0.5, 5.0, 0, -1, 5, 0]], [[1, "a"] + [0] * 5]],
)
def test_a_history_of_something_else_is_refused_and_changes_nothing(history):
    run = _run(SCORES)
    with pytest.raises(ValueError, match="history in the state must be lists of 7 numbers"):
        run.load_state_dict(run.state_dict() | {"history": history, "last_step": 1})
    assert run.last_step == 4 and len(run.history) == 4


def test_it_adds_no_lasting_memory_for_a_weight():
    model = nn.Linear(100, 100)
    scheduler = platon_prune.global_unstructured(
        model, amount=0.5, total_steps=20, warmup_steps=0, cooldown_steps=0
    )
    assert scheduler.memory().per_weight == 13  # the mask, and three float32 of PLATON


# --- layers that lose all -----------------------------------------------------------------------


def _with_small_layer(scale=1e-6, amount=0.5, size=64, first=None, **settings):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, size, bias=False), nn.Linear(size, 256, bias=False))
    with torch.no_grad():
        model[0].weight.mul_(scale)
    return platon_prune.global_unstructured(
        model, amount=amount, initial_amount=amount if first is None else first, total_steps=9,
        window=1, criterion="magnitude", **dict(warmup_steps=0, cooldown_steps=0) | settings,
    )  # fmt: skip


def test_a_tensor_that_loses_all_is_named_once():
    scheduler = _with_small_layer()
    with pytest.warns(platon_prune.PruningWarning, match="0.weight keeps 0 of 4096") as caught:
        for _ in range(9):
            scheduler.step()
    assert len(caught) == 1 and "since step 1" in str(caught[0].message)
    assert "1.weight" not in str(caught[0].message)


def test_a_tensor_that_keeps_one_in_a_thousand_is_named():
    # 4096 of 20480 weights are small; all of those but 4 go, and 4 <= 4096 / 1000.
    with pytest.warns(platon_prune.PruningWarning, match="0.weight keeps 4 of 4096"):
        _with_small_layer(amount=4092).step()
    with pytest.warns(platon_prune.PruningWarning) as caught:
        _with_small_layer(amount=4091).step()
    assert not any("nearly empty" in str(each.message) for each in caught)


def test_a_tensor_that_a_choice_like_the_last_would_empty_is_named_before_it_is():
    # All that goes is of the small tensor: more than half of its 4096 weights at once. It then has
    # 1820 / 4096 = 0.444 of them, and half of what the model has is 18204 / 20480 / 2 = 0.444.
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _with_small_layer(amount=2275).step()
    with pytest.warns(platon_prune.PruningWarning) as caught:
        _with_small_layer(amount=2276).step()
    (message,) = [str(each.message) for each in caught]
    assert message.startswith("empty soon if pruning goes on as at step 1: 0.weight keeps 1820 of")
    assert "max_amount" in message and "1.weight" not in message


def test_a_tensor_is_named_once_as_one_that_will_be_empty_and_once_as_one_that_is():
    # The ramp goes from 2048 to 4096 of the small weights in six choices, then stays there.
    scheduler = _with_small_layer(amount=4096, first=2048)
    with pytest.warns(platon_prune.PruningWarning) as caught:
        for _ in range(9):
            scheduler.step()
    starts = [str(each.message).split(" ")[:2] for each in caught]
    assert starts == [["empty", "soon"], ["nearly", "empty"]]


def test_a_tensor_that_loses_less_at_each_choice_than_it_keeps_is_not_named():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scheduler = _with_small_layer(amount=3600, first=0)  # 1072 of 4096, then fewer and fewer
        for _ in range(9):
            scheduler.step()
    assert int(scheduler.masks()["0.weight"].sum()) == 496


def test_a_limit_that_leaves_next_to_nothing_does_not_silence_what_is_left():
    with pytest.warns(platon_prune.PruningWarning, match="nearly empty since step 1: 0.weight ke"):
        _with_small_layer(amount=5000, max_amount=0.9995).step()  # keeps 3 of 4096


def test_where_all_tensors_lose_as_much_none_is_named():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _with_small_layer(scale=1, amount=0.6).step()


def test_what_can_not_be_emptied_is_not_named():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = nn.Sequential(nn.Linear(64, 8, bias=False), nn.Linear(8, 512, bias=False))
        with torch.no_grad():
            model[0].weight.mul_(1e-6)
        platon_prune.semi_structured(
            model,
            amount=1 / 9,
            initial_amount=1 / 9,
            total_steps=9,
            window=1,
            criterion="magnitude",
            warmup_steps=0,
            cooldown_steps=0,
        ).step()  # all 128 groups of the small tensor, of 1,152: half of it goes at once
        assert int(model[0].weight_mask.sum()) == 256


def test_where_the_whole_model_is_that_sparse_nothing_is_said():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _with_small_layer(scale=1, amount=20480 - 14).step()  # of 4096, about 3 stay
        _with_small_layer(amount=20480).step()


def test_with_a_limit_no_tensor_is_lost():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _with_small_layer(max_amount=0.9).step()


# --- over processes -----------------------------------------------------------------------------


def _history(layout, kind, settings):
    run = rank_jobs.Run(layout, kind, **settings).to(rank_jobs.STEPS)
    return list(run.scheduler.history)


@pytest.mark.parametrize(
    ("layout", "size"), [("copies", 2), ("fsdp", 3), ("hsdp", 4), ("several_meshes", 4)]
)
def test_processes_count_the_whole_model_and_each_entry_once(layout, size):
    expected = _history(rank_jobs.alone, "random", {})
    assert len(expected) == 7 and sum(choice.came_back for choice in expected) > 0
    for found in ranks.run(size, _history, getattr(rank_jobs, layout), "random", {}):
        assert found == expected


def _resumed_history(folder, layout):
    run = rank_jobs.Run(layout, "random")
    state = {"scheduler": run.scheduler.state_dict()}
    rank_jobs.checkpoint.load(state, checkpoint_id=folder)
    run.scheduler.load_state_dict(state["scheduler"])
    return list(run.scheduler.history)


def test_a_checkpoint_of_two_processes_brings_it_to_three_and_to_one(tmp_path):
    ranks.run(2, rank_jobs.save_checkpoint, tmp_path, rank_jobs.fsdp, "random", 14, {})
    expected = [choice for choice in _history(rank_jobs.alone, "random", {}) if choice.step <= 14]
    assert [choice.step for choice in expected] == [4, 8, 12]
    for size, layout in ((3, rank_jobs.fsdp), (1, rank_jobs.alone)):
        for found in ranks.run(size, _resumed_history, tmp_path, layout):
            assert found == expected


@pytest.mark.parametrize("granularity", ["semi_structured", "global_structured"])
def test_other_granularities_record_what_they_did_too(granularity, tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    settings = dict(total_steps=8, window=2, criterion="random", mask_history=tmp_path / "masks")
    if granularity == "semi_structured":
        scheduler = platon_prune.semi_structured(
            model, n=2, m=4, **dict(warmup_steps=0, cooldown_steps=0) | settings
        )
    else:
        scheduler = platon_prune.global_structured(
            model, torch.ones(1, 8), amount=0.5, **dict(warmup_steps=0, cooldown_steps=0) | settings
        )
    for _ in range(8):
        scheduler.step()
    assert [choice.step for choice in scheduler.history] == [2, 4, 6, 8]
    # Half of every group of four; 8 of 16 neurons, each with all that it has.
    assert scheduler.history[-1].sparsity == 0.5
    for choice in scheduler.history:
        pruned = sum(int((~mask).sum()) for mask in scheduler.masks(choice.step).values())
        total = sum(mask.numel() for mask in scheduler.masks().values())
        assert choice.sparsity == pytest.approx(pruned / total)


def test_it_says_where_it_is_in_a_line_and_shows_its_table_in_a_notebook():
    history = _run(SCORES).history
    expected = "<History of 4 choices, the last at step 4: amount 50.00%, sparsity 50.00%>"
    assert repr(history) == expected
    assert history._repr_html_().count("<tr>") == 1 + 4
    assert repr(_run(SCORES, steps=0).history) == "<History of no choice>"
