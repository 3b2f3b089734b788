"""Checkpoints of several processes go on in any other number of them as if nothing had been."""

import pytest
import rank_jobs
import ranks
import torch
import torch.distributed as dist
from rank_jobs import STEPS
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    set_model_state_dict,
)
from torch.distributed.tensor import DTensor

SAVED_AT, THEN_AT = 14, (15, 16, 20, STEPS)


def _assert_resumed(folder, saved, resumed, kind="random", **settings):
    """Saved by (layout, size), resumed by others: equal to one process that never stopped."""
    layout, size = saved
    ranks.run(
        size,
        rank_jobs.save_checkpoint,
        folder,
        getattr(rank_jobs, layout),
        kind,
        SAVED_AT,
        settings,
    )
    expected = rank_jobs.results(rank_jobs.alone, kind, THEN_AT, settings)
    for layout, size in resumed:
        function = getattr(rank_jobs, layout)
        everyone = ranks.run(
            size, rank_jobs.resume_checkpoint, folder, function, kind, THEN_AT, settings
        )
        for found in everyone:
            for step, one, other in zip(THEN_AT, found, expected, strict=True):
                assert not rank_jobs.differences(one, other), f"{layout} {size}, step {step}"


# Every two of kind, masking and number of processes meet.
@pytest.mark.parametrize(
    ("kind", "masking", "resumed"),
    [
        ("random", "step", [("alone", 1), ("fsdp", 3)]),
        ("random", "window", [("fsdp", 1), ("fsdp", 4)]),
        ("tied", "step", [("fsdp", 1), ("fsdp", 4)]),
        ("tied", "window", [("alone", 1), ("fsdp", 3)]),
    ],
)
def test_saved_on_2_ranks_goes_on_on_1_3_and_4_as_one_process_would(
    tmp_path, kind, masking, resumed
):
    _assert_resumed(tmp_path, ("fsdp", 2), resumed, kind, masking=masking)


@pytest.mark.parametrize("saved", [("alone", 1), ("copies", 2), ("hsdp", 4), ("tp", 2)])
def test_a_checkpoint_goes_on_in_another_layout(tmp_path, saved):
    resumed = [("fsdp", 3), ("copies", 2), ("several_meshes", 4)]
    _assert_resumed(tmp_path, saved, resumed)


def test_a_model_under_tensor_parallelism_and_fsdp_goes_on_alone(tmp_path):
    _assert_resumed(tmp_path, ("fsdp_tp", 4), [("alone", 1), ("fsdp_tp", 4)])
    _assert_resumed(tmp_path / "other", ("fsdp", 2), [("fsdp_tp", 4)])


@pytest.mark.parametrize("criterion", ["sensitivity", "movement", "magnitude", "random", "fisher"])
def test_every_criterion_goes_on_on_another_number_of_ranks(tmp_path, criterion):
    _assert_resumed(tmp_path, ("fsdp", 2), [("fsdp", 3)], criterion=criterion)


@pytest.mark.parametrize(
    "settings", [dict(state_dtype=torch.bfloat16), dict(offload_averages=True)]
)
def test_every_storage_goes_on_on_another_number_of_ranks(tmp_path, settings):
    _assert_resumed(tmp_path, ("fsdp", 2), [("fsdp", 3), ("alone", 1)], **settings)


# --- what a state holds -------------------------------------------------------------------------


def _layout_of_state():
    run = rank_jobs.Run(rank_jobs.fsdp).to(9)
    state, local = run.scheduler.state_dict()["tensors"]["first.weight"], {}
    weight = run.model.first.weight_orig
    for name, tensor in state.items():
        if name != "had_gradient":
            assert isinstance(tensor, DTensor) and tensor.placements == weight.placements
            local[name] = tuple(tensor.to_local().shape)
    score, mask = run.scheduler.score("first.weight"), run.model.first.weight_mask
    for tensor in (score, mask):
        assert isinstance(tensor, DTensor) and tensor.placements == weight.placements
    return local, mask.to_local().untyped_storage().nbytes()


def test_scores_states_and_masks_cost_each_rank_its_part_only():
    (first, first_bytes), (second, second_bytes) = ranks.run(2, _layout_of_state)
    # 13 rows over 2 ranks.
    assert set(first.values()) == {(7, 9)} and set(second.values()) == {(6, 9)}
    assert first.keys() == {"mask", "window", "sensitivity", "uncertainty"}
    assert (first_bytes, second_bytes) == (7 * 9, 6 * 9)


def _load_full_state(folder):
    """A state of one process, whole in every rank, and a dense model's weights."""
    saved = torch.load(folder / "alone.pt", weights_only=True)
    run = rank_jobs.Run(rank_jobs.fsdp)
    options = StateDictOptions(full_state_dict=True)
    set_model_state_dict(run.model, saved["model"], options=options)
    run.optimizer = torch.optim.SGD(run.model.parameters(), lr=0.05)
    run.scheduler.load_state_dict(saved["scheduler"])
    run.to(16)
    return run.result()


def test_a_plain_state_of_one_process_loads_into_a_sharded_model(tmp_path):
    run = rank_jobs.Run().to(SAVED_AT)
    state = {"model": run.model.state_dict(), "scheduler": run.scheduler.state_dict()}
    torch.save(state, tmp_path / "alone.pt")
    run.optimizer = torch.optim.SGD(run.model.parameters(), lr=0.05)
    expected = run.to(16).result()
    for result in ranks.run(3, _load_full_state, tmp_path):
        assert not rank_jobs.differences(result, expected)


def _round_trip_in_full(own_keys, strict, broadcast):
    """The whole model's dict, taken from one sharded run and given to another."""
    options = StateDictOptions(
        full_state_dict=True, cpu_offload=broadcast, broadcast_from_rank0=broadcast, strict=strict
    )
    run = rank_jobs.Run(rank_jobs.fsdp, own_keys=own_keys).to(SAVED_AT)
    state = get_model_state_dict(run.model, options=StateDictOptions(full_state_dict=True))
    keys = sorted(state)
    another = rank_jobs.Run(rank_jobs.fsdp, own_keys=own_keys)
    if broadcast and dist.get_rank():
        state = {}
    set_model_state_dict(another.model, state, options=options)
    before, after = run.result(), another.result()
    return keys, [
        name
        for part in ("masks", "weights")
        for name in before[part]
        if not torch.equal(before[part][name], after[part][name])
    ]


@pytest.mark.parametrize("broadcast", [False, True])
@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("own_keys", [False, True])
def test_the_whole_dict_of_a_sharded_model_loads_into_another(own_keys, strict, broadcast):
    for keys, different in ranks.run(2, _round_trip_in_full, own_keys, strict, broadcast):
        assert different == []
        ends = ("weight", "bias") if own_keys else ("weight_orig", "weight_mask", "bias")
        assert keys == sorted(f"{m}.{e}" for m in ("first", "second", "one") for e in ends)
