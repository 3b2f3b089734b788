"""What processes must have in common, and what they do when something is amiss in one of them."""

import warnings

import pytest
import rank_jobs
import ranks
import torch
import torch.distributed as dist
from rank_jobs import SETTINGS, STEPS
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel

import platon_prune


@pytest.mark.parametrize(("layout", "rank"), [("copies", 0), ("fsdp", 2), ("fsdp", 0)])
def test_a_gradient_that_is_not_finite_on_one_rank_skips_the_step_on_all(layout, rank):
    everyone = ranks.run(3, rank_jobs.step_with_nan_on, rank, getattr(rank_jobs, layout), 6)
    run = rank_jobs.Run().to(5)
    run.scheduler.step(skipped=True)
    expected = run.to(STEPS).result()
    for skipped, result in everyone:
        assert skipped == 1
        assert not rank_jobs.differences(result, expected)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (dict(amount=0.5), "amount is 0.7 in process 0 and 0.5 in process 1"),
        (dict(window=5), "window is 4 in process 0 and 5 in process 1"),
        (dict(criterion="sensitivity"), "criterion is 'platon' in process 0 and 'sensitivity' in"),
        (dict(masking="window"), "masking is 'step' in process 0 and 'window' in process 1"),
        (dict(state_dtype=torch.bfloat16), "state_dtype is 'torch.float32' in process 0 and"),
        (dict(own_keys=True), "own_keys of first.weight is False in process 0 and True"),
        (dict(exclude="one"), "shape of one.weight is (1, 10) in process 0 and 'absent' in"),
    ],
)
def test_ranks_with_different_settings_are_refused_at_set_up(other, message):
    for outcome in ranks.run(2, rank_jobs.set_up_with, [{}, other]):
        kind, text, is_untouched = outcome
        assert kind == "ValueError" and is_untouched
        assert message in text


def test_a_set_up_that_fails_in_one_rank_fails_in_all_and_changes_no_model():
    outcomes = ranks.run(3, rank_jobs.set_up_with, [{}, dict(amount=1.5), {}])
    assert [kind for kind, _, _ in outcomes] == ["RuntimeError", "ValueError", "RuntimeError"]
    assert all(is_untouched for _, _, is_untouched in outcomes)
    assert "amount must be in [0, 1), got 1.5" in outcomes[1][1]
    assert "failed in process 1: ValueError: amount must be in" in outcomes[0][1]


DRIFTS = [
    ("copies", 3, "flip_a_mask_bit", "RuntimeError", "they differ in second.weight"),
    ("copies", 2, "change_a_score", "RuntimeError", "they differ in second.weight"),
    ("hsdp", 4, "change_a_score", "RuntimeError", "they differ in second.weight"),
    ("fsdp", 2, "take_a_step_more", "RuntimeError", "processes must take the same step"),
    ("copies", 2, "take_a_step_more", "RuntimeError", "steps 8 to 9 in all"),
]


@pytest.mark.parametrize(("layout", "size", "what", "kind", "message"), DRIFTS)
def test_ranks_that_have_drifted_apart_end_in_an_error_on_every_rank(
    layout, size, what, kind, message
):
    errors = ranks.errors_of(
        size,
        rank_jobs.change_one_rank,
        getattr(rank_jobs, layout),
        getattr(rank_jobs, what),
        8,
        1,
    )
    for error in errors:
        assert error is not None and error[0] == kind and message in error[1]


def test_the_same_run_without_a_change_has_no_error():
    for layout, size in (("copies", 3), ("hsdp", 4), ("fsdp", 2)):
        function = getattr(rank_jobs, layout)
        assert (
            ranks.errors_of(size, rank_jobs.change_one_rank, function, len, 8, -1) == [None] * size
        )


@pytest.mark.parametrize(
    ("what", "message"),
    [("finalize", "was finalized or pruned anew"), ("lose_the_gradients", "have no gradient")],
)
def test_an_error_in_one_rank_is_an_error_in_all_not_a_hang(what, message):
    errors = ranks.errors_of(
        3, rank_jobs.change_one_rank, rank_jobs.copies, getattr(rank_jobs, what), 8, 1
    )
    assert message in errors[1][1]
    for rank in (0, 2):
        assert (
            errors[rank][0] == "RuntimeError" and "failed in another at step 8" in errors[rank][1]
        )


# --- gradients that only several processes together can make ------------------------------------


def _result_without_optimizer(skipped_step=0):
    run = rank_jobs.Run()
    for step in range(1, STEPS + 1):
        rank_jobs.feed(run.model, step)
        run.scheduler.step(skipped=step == skipped_step)
    return run.result()


def test_gradients_that_are_yet_to_be_added_up_give_the_masks_of_one_process():
    expected = _result_without_optimizer()
    for skipped, result in ranks.run(2, rank_jobs.step_with_sums_undone, 0):
        assert skipped == 0 and not rank_jobs.differences(result, expected)


@pytest.mark.parametrize("what", ["spoil_an_undone_sum", "spoil_a_gradient"])
def test_one_that_is_not_finite_on_one_rank_skips_the_step_on_all(what):
    expected = _result_without_optimizer(skipped_step=6)
    job = rank_jobs.step_with_sums_undone
    for skipped, result in ranks.run(2, job, 6, 1, getattr(rank_jobs, what)):
        assert skipped == 1 and not rank_jobs.differences(result, expected)


def test_they_are_not_waited_for_where_another_rank_fails_in_the_same_step():
    job = rank_jobs.step_with_sums_undone
    errors = ranks.errors_of(2, job, 8, 1, rank_jobs.finalize)
    assert "was finalized or pruned anew" in errors[1][1]
    assert errors[0][0] == "RuntimeError" and "failed in another at step 8" in errors[0][1]


def test_they_are_not_waited_for_where_another_rank_has_none():
    job = rank_jobs.step_with_sums_undone
    for kind, message in ranks.errors_of(2, job, 8, 1, rank_jobs.forget_a_gradient):
        assert kind == "RuntimeError" and "the gradient of first.weight must be placed" in message


VOTE = 5 * 8  # bytes


@pytest.mark.parametrize("layout", ["copies", "fsdp", "tp"])
def test_a_step_that_chooses_nothing_costs_one_vote(layout):
    for steps in ranks.run(2, rank_jobs.collectives_of_steps, getattr(rank_jobs, layout), False):
        # Set up with a window of 4 and a warm-up of 3: a choice at 4, 8, ..., 24, the ramp's at 18.
        for step, sizes in enumerate(steps, start=1):
            if step % 4 and step != 18:
                assert sizes == [VOTE]
            assert sizes[0] == VOTE


def test_only_gradients_that_are_yet_to_be_added_up_cost_more():
    for steps in ranks.run(2, rank_jobs.collectives_of_steps, rank_jobs.tp, True):
        assert steps[0] == [VOTE, 2 * 3 * 8, VOTE]  # two flags for each of three tensors


# --- reading and rescheduling -------------------------------------------------------------------


def _read_then_step(read):
    run = rank_jobs.Run(rank_jobs.copies).to(9)
    run.model = rank_jobs.hsdp(run.model)
    run.optimizer = torch.optim.SGD(run.model.parameters(), lr=0.05)
    read(run.scheduler)
    return run.to(STEPS).result()


@pytest.mark.parametrize(
    "read",
    [
        platon_prune.PlatonScheduler.memory,
        platon_prune.PlatonScheduler.state_dict,
        platon_prune.PlatonScheduler.sparsity,
        platon_prune.PlatonScheduler.masks,
    ],
)
def test_reading_a_model_that_was_just_sharded_changes_nothing(read):
    run = rank_jobs.Run().to(9)
    run.optimizer = torch.optim.SGD(run.model.parameters(), lr=0.05)
    expected = run.to(STEPS).result()
    for result in ranks.run(4, _read_then_step, read):
        assert not rank_jobs.differences(result, expected)


def _reschedule_one_rank():
    run = rank_jobs.Run(rank_jobs.fsdp)
    run.scheduler.sparsity()
    if dist.get_rank():
        run.scheduler.reschedule(total_steps=24, warmup_steps=9, cooldown_steps=6)
    run.to(STEPS)


def test_ranks_that_are_rescheduled_differently_are_refused_at_the_first_step():
    for kind, message in ranks.errors_of(2, _reschedule_one_rank):
        assert kind == "ValueError" and "warmup_steps is 3 in process 0 and 9 in" in message


def _set_up_outside_the_group():
    group = dist.new_group([0, 1])
    rank_jobs.Run(process_group=group).to(2)


def test_a_process_outside_the_group_is_refused():
    errors = ranks.errors_of(3, _set_up_outside_the_group)
    assert errors[:2] == [None, None]
    assert errors[2][0] == "ValueError" and "process_group must have this process" in errors[2][1]


# --- DistributedDataParallel --------------------------------------------------------------------


def _compiled(model):
    return torch.compile(model, backend="eager")


def _train_with_ddp(before, after):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))
    for wrap in before:
        model = wrap(model)
    scheduler = platon_prune.global_unstructured(
        model, **dict(warmup_steps=0, cooldown_steps=0) | SETTINGS
    )
    for wrap in after:
        model = wrap(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    generator = torch.Generator().manual_seed(dist.get_rank())  # each rank its own data
    for _ in range(STEPS):
        model(torch.randn(12, 8, generator=generator)).square().mean().backward()
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
    ddp = next(m for m in model.modules() if isinstance(m, nn.parallel.DistributedDataParallel))
    sent = [name for name in ddp.named_module_buffers if name.endswith("_mask")]
    names = list(scheduler.masks())
    masks = [mask.tolist() for mask in scheduler.masks().values()]
    return sent, names, masks, scheduler.sparsity()


DDP = nn.parallel.DistributedDataParallel


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ([], [DDP]),
        ([DDP], []),
        ([], [_compiled, DDP]),
        ([_compiled, DDP], []),
        ([DDP, _compiled], []),
    ],
)
def test_ddp_trains_one_mask_and_never_sends_it(before, after):
    (sent, names, masks, sparsity), other = ranks.run(2, _train_with_ddp, before, after)
    assert (sent, names) == ([], ["0.weight", "3.weight"])
    assert other == (sent, names, masks, sparsity)
    pruned = sum(row.count(False) for mask in masks for row in mask)
    assert pruned == round(0.7 * (8 * 16 + 16 * 3)) and sparsity == pruned / (8 * 16 + 16 * 3)


class _Branches(nn.Module):
    """Each rank uses a branch of its own, and none of them the last layer."""

    def __init__(self):
        super().__init__()
        self.branches = nn.ModuleList(nn.Linear(8, 8) for _ in range(2))
        self.idle = nn.Linear(8, 8)

    def forward(self, x):
        return self.branches[dist.get_rank()](x)


def _train_with_unused_parameters():
    torch.manual_seed(0)
    model = _Branches()
    scheduler = platon_prune.global_unstructured(
        model, **dict(warmup_steps=0, cooldown_steps=0) | SETTINGS
    )
    model = DDP(model, find_unused_parameters=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    generator = torch.Generator().manual_seed(dist.get_rank())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(STEPS):
            model(torch.randn(12, 8, generator=generator)).square().mean().backward()
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
    said = [str(each.message) for each in caught if each.category is platon_prune.PruningWarning]
    kept = {name: int(mask.sum()) for name, mask in scheduler.masks().items()}
    return said, kept, {name: mask.tolist() for name, mask in scheduler.masks().items()}


def test_ddp_may_leave_parameters_unused_in_some_ranks_or_in_all():
    (said, kept, masks), other = ranks.run(2, _train_with_unused_parameters)
    assert other == (said, kept, masks)
    # Said once: that it is emptied is what comes of it.
    assert len(said) == 1 and said[0].startswith("idle.weight had no gradient for a whole window")
    # Its scores are zero, so all of it goes, and of the 192 weights 58 are left for the branches.
    assert kept["idle.weight"] == 0 and sum(kept.values()) == 192 - round(0.7 * 192)
    assert min(kept["branches.0.weight"], kept["branches.1.weight"]) > 0


def _wrap_in_fsdp1(prune_first):
    model = rank_jobs.net()
    if not prune_first:
        model = FullyShardedDataParallel(model, device_id=torch.device("cpu"))
    scheduler = platon_prune.global_unstructured(
        model, **dict(warmup_steps=0, cooldown_steps=0) | SETTINGS
    )
    model = FullyShardedDataParallel(model, use_orig_params=True, device_id=torch.device("cpu"))
    model(torch.ones(2, 9)).sum().backward()
    scheduler.step()


@pytest.mark.parametrize(
    ("prune_first", "message"),
    [(False, "got a model under FSDP1, which flattens them"), (True, "FSDP1 and DeepSpeed do")],
)
def test_fsdp1_is_refused_by_name(prune_first, message):
    for error in ranks.errors_of(2, _wrap_in_fsdp1, prune_first):
        assert error is not None and message in error[1], error


# --- groups -------------------------------------------------------------------------------------


def _choose_in_pairs():
    """Two models, each in a group of two ranks that knows nothing of the other."""
    pairs = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    own = pairs[dist.get_rank() // 2]
    run = rank_jobs.Run(amount=0.5 if dist.get_rank() < 2 else 0.8, process_group=own)
    return run.to(STEPS).result()


def test_a_process_group_chooses_for_itself():
    for rank, result in enumerate(ranks.run(4, _choose_in_pairs)):
        expected = rank_jobs.Run(amount=0.5 if rank < 2 else 0.8).to(STEPS).result()
        assert not rank_jobs.differences(result, expected)


def _shard_over_all_but_choose_in_a_pair():
    pairs = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    rank_jobs.Run(rank_jobs.fsdp, process_group=pairs[dist.get_rank() // 2]).to(1)


def test_a_group_that_does_not_hold_the_whole_model_is_refused():
    for kind, message in ranks.errors_of(4, _shard_over_all_but_choose_in_a_pair):
        assert kind == "RuntimeError" and "must be held completely by the processes" in message
