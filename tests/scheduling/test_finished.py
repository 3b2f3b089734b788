"""A scheduler whose run has ended answers for that run or says that it can't, and holds nothing."""

import copy
import gc
import pickle
import weakref

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

import platon_prune

ENDED = "was finalized: of a run that has ended"


def _model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 10), nn.Tanh(), nn.Linear(10, 2))


def _set_up(model, amount=0.5, **settings):
    settings = dict(total_steps=4, window=1, criterion="magnitude") | settings
    return platon_prune.global_unstructured(
        model, amount=amount, **dict(warmup_steps=0, cooldown_steps=0) | settings
    )


def _train(model, scheduler, steps=4):
    for _ in range(steps):
        model(torch.ones(1, 8)).sum().backward()
        scheduler.step()
    return scheduler


def _remove_by_torch(model, scheduler):
    for index in (0, 2):
        prune.remove(model[index], "weight")


FINALIZED_BY = {
    "the scheduler": lambda model, scheduler: scheduler.remove(),
    "the library": lambda model, scheduler: platon_prune.remove(model),
    "torch": _remove_by_torch,
}


@pytest.fixture(params=FINALIZED_BY)
def finalize(request):
    return FINALIZED_BY[request.param]


def _readings(scheduler, folder):
    return {
        "sparsity": scheduler.sparsity,
        "memory": scheduler.memory,
        "state_dict": scheduler.state_dict,
        "score": lambda: scheduler.score("0.weight"),
        "adopt_zeros": scheduler.adopt_zeros,
        "record_masks": lambda: scheduler.record_masks(folder / "more"),
    }


def test_all_that_needs_the_masks_says_that_the_run_has_ended(tmp_path, finalize):
    model = _model()
    scheduler = _train(model, _set_up(model))
    finalize(model, scheduler)
    for name, read in _readings(scheduler, tmp_path).items():
        with pytest.raises(RuntimeError, match=f"0.weight must carry its mask .*{ENDED}"):
            read()
        assert not (tmp_path / "more").exists(), name
    for call in (scheduler.step, scheduler.remove, lambda: scheduler.load_state_dict({})):
        with pytest.raises(RuntimeError, match="0.weight must carry the mask of this scheduler"):
            call()


def test_the_masks_of_the_next_run_are_not_taken_for_those_of_the_one_that_ended(
    tmp_path, finalize
):
    model = _model()
    first = _train(model, _set_up(model, mask_history=tmp_path / "first"))
    expected = first.masks()
    finalize(model, first)
    second = _train(model, _set_up(model, amount=0.2))
    assert sum(int(mask.sum()) for mask in first.masks().values()) == 50
    for name, mask in expected.items():
        assert torch.equal(first.masks()[name], mask)
    for read in _readings(first, tmp_path).values():
        with pytest.raises(RuntimeError, match=ENDED):
            read()
    assert sum(int(mask.sum()) for mask in second.masks().values()) == 80


def test_a_mask_of_torch_is_not_taken_for_that_of_the_run_that_ended(tmp_path, finalize):
    model = _model()
    first = _train(model, _set_up(model, mask_history=tmp_path / "first"))
    expected = first.masks()
    finalize(model, first)
    prune.l1_unstructured(model[0], "weight", amount=0.9)
    assert torch.equal(first.masks()["0.weight"], expected["0.weight"])
    with pytest.raises(RuntimeError, match=ENDED):
        first.sparsity()


def test_one_tensor_that_is_finalized_ends_the_run(tmp_path):
    model = _model()
    scheduler = _train(model, _set_up(model))
    prune.remove(model[2], "weight")
    for _ in range(2):
        with pytest.raises(RuntimeError, match=f"2.weight must carry its mask .*{ENDED}"):
            scheduler.sparsity()
        with pytest.raises(RuntimeError, match="2.weight must carry the mask"):
            scheduler.step()
    assert prune.is_pruned(model[0])
    platon_prune.remove(model)


def test_a_copy_goes_on_once_the_run_that_it_was_copied_from_has_ended():
    model = _model()
    scheduler = _train(model, _set_up(model), steps=2)
    twins = [
        copy.deepcopy((model, scheduler)),
        pickle.loads(pickle.dumps((model, scheduler))),
    ]
    scheduler.remove()
    for twin, twin_scheduler in twins:
        _train(twin, twin_scheduler, steps=2)
        assert twin_scheduler.sparsity() == 0.5
        twin_scheduler.remove()
        assert int((twin[0].weight == 0).sum() + (twin[2].weight == 0).sum()) == 50


def test_a_copy_of_the_model_that_is_finalized_ends_no_run():
    model = _model()
    scheduler = _train(model, _set_up(model))
    platon_prune.remove(copy.deepcopy(model))
    assert scheduler.sparsity() == 0.5


def test_the_run_that_ended_keeps_neither_the_model_nor_what_was_remembered(finalize):
    model = _model()
    scheduler = _train(model, _set_up(model, criterion="platon"))
    remembered = [each for tensor in scheduler._tensors for each in tensor.remembered.items()]
    gone = [weakref.ref(tensor) for _, tensor in remembered]
    assert len(gone) == 2 * 3
    gone += [weakref.ref(tensor._base) for _, tensor in remembered[:3]]
    gone += [weakref.ref(each) for each in (model[0], model[0].weight_orig, model[0].weight_mask)]
    gone += [weakref.ref(model[2].weight_orig.grad)]
    del remembered
    finalize(model, scheduler)
    with pytest.raises(RuntimeError):
        scheduler.sparsity()  # notices it
    del model
    gc.collect()
    assert [ref() for ref in gone] == [None] * len(gone)
    assert scheduler.history[-1].step == scheduler.last_step == 4


def test_recorded_masks_are_read_once_the_model_is_gone(tmp_path):
    model = _model()
    scheduler = _train(model, _set_up(model, mask_history=tmp_path / "masks"))
    expected = scheduler.masks()
    scheduler.remove()
    del model
    for name, mask in scheduler.masks().items():
        assert torch.equal(mask, expected[name])
