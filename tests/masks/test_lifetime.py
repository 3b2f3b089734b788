"""What pruning makes is freed with what it was made for: classes, tensors, objects."""

import copy
import gc
import pickle
import weakref

import leaks
import pytest
import torch
from torch import nn

import platon_prune


@pytest.mark.parametrize("granularity", leaks.GRANULARITIES)
def test_set_ups_leave_no_class_no_tensor_and_no_object(granularity):
    found = leaks.of_set_ups(granularity, 20)
    # A choice here and there; a class for each of the set-ups would be hundreds.
    assert found["classes"] == 0 and found["tensors"] == 0 and found["objects"] < 40, found


@pytest.mark.parametrize("granularity", leaks.GRANULARITIES)
def test_steps_leave_no_tensor_and_few_objects(granularity):
    found = leaks.of_steps(granularity, 100)
    # A row and its counts for each of the 40 choices after the first fifth.
    assert found["tensors"] == 0 and found["objects"] < 4 * 40, found


def test_modules_of_one_class_share_the_class_that_is_made_of_it():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    platon_prune.global_unstructured(
        model, amount=0.5, total_steps=20, warmup_steps=0, cooldown_steps=0
    )
    assert type(model[0]) is type(model[1]) is type(copy.deepcopy(model[0]))
    assert type(pickle.loads(pickle.dumps(model[0]))) is type(model[0])


def test_a_pruned_copy_outlives_the_model_that_it_was_copied_from():
    class Layer(nn.Linear):
        pass

    model = nn.Sequential(Layer(4, 4))
    scheduler = platon_prune.global_unstructured(
        model, amount=0.5, total_steps=20, warmup_steps=0, cooldown_steps=0
    )
    other, cls = copy.deepcopy(model), weakref.ref(Layer)
    expected = model(torch.ones(1, 4))
    del Layer, model, scheduler
    gc.collect()
    assert cls() is not None and torch.equal(other(torch.ones(1, 4)), expected)
    platon_prune.remove(other)
    assert type(other[0]) is cls()
    del other
    gc.collect()
    assert cls() is None
