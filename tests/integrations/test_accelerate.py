"""A loop with Accelerate: its optimizer steps are counted right, on one process and on two."""

from __future__ import annotations

import accelerate_jobs
import pytest
import ranks
import torch
from accelerate import Accelerator
from trainer_jobs import one_accelerator

from platon_prune.integrations.accelerate_steps import num_optimizer_steps

PRUNED = (12 * 16 + 16 * 2) * 3 // 4
# 72 examples in batches of 4 are 18 batches, 9 on each of two processes; 3 epochs.
TWO = {(1, True): 27, (2, True): 3 * 5, (2, False): 27 // 2, (4, True): 3 * 3}


@pytest.mark.case
@pytest.mark.parametrize(("accumulated", "syncs"), TWO)
def test_the_steps_of_each_of_two_processes_are_counted_and_the_amount_reached(accumulated, syncs):
    results = ranks.run(2, accelerate_jobs.count_and_train, accumulated, syncs)
    for steps, taken, zeros, told, weights in results:
        assert (steps, taken, zeros) == (TWO[accumulated, syncs], steps, PRUNED)
        assert not [each for each in told if "empty" not in each]
        assert all(map(torch.equal, weights, results[0][-1]))


@pytest.mark.parametrize("size", [1, 2])
def test_pruning_may_be_set_up_after_prepare_as_well(size):
    later = ranks.run(size, accelerate_jobs.count_and_train, 1, True, False)
    first = ranks.run(size, accelerate_jobs.count_and_train, 1, True, True)
    assert later[0][:3] == first[0][:3] == (54 // size, 54 // size, PRUNED)
    assert all(map(torch.equal, later[0][-1], first[0][-1]))


def test_a_loader_that_is_not_prepared_is_refused_since_its_length_is_another():
    with one_accelerator():
        accelerator = Accelerator(cpu=True)
        with pytest.raises(ValueError, match="loader must be prepared, got a DataLoader.*prepare"):
            num_optimizer_steps(accelerator, accelerate_jobs.loader())
        with pytest.raises(ValueError, match="num_epochs must be at least 1, got 0"):
            num_optimizer_steps(accelerator, accelerator.prepare(accelerate_jobs.loader()), 0)


class _Endless(torch.utils.data.IterableDataset):
    def __iter__(self):
        yield torch.zeros(12)


def test_data_without_a_length_are_refused_with_what_to_do():
    with one_accelerator():
        accelerator = Accelerator(cpu=True)
        loader = accelerator.prepare(torch.utils.data.DataLoader(_Endless(), batch_size=1))
        with pytest.raises(ValueError, match="loader must have a length.*total_steps"):
            num_optimizer_steps(accelerator, loader)
