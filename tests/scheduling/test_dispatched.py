"""How many torch operations a step on a CPU dispatches; small models wait for little else."""

import pytest
import torch
from torch import nn

import platon_prune
from platon_prune.commands.benchmarks.counts import count

NUM_TENSORS = 72
ORDINARY, CHOOSING = (5, 15), (20, 25, 30)


@pytest.mark.parametrize(
    "settings", [{}, dict(history=False), dict(masking="window"), dict(criterion="movement")]
)
def test_a_step_dispatches_few_operations_for_each_of_many_small_tensors(settings):
    model = nn.Sequential(*[nn.Linear(64, 64) for _ in range(NUM_TENSORS)])
    scheduler = platon_prune.global_unstructured(
        model, amount=0.9, total_steps=30, warmup_steps=10, cooldown_steps=5, window=10, **settings
    )
    operations = {}
    for step in range(1, 31):
        for layer in model:
            layer.weight_orig.grad = torch.randn(64, 64)
        counted = count(scheduler.step, "cpu")
        operations[step] = counted.launches / NUM_TENSORS
        # Values that are read do not grow with the number of tensors either.
        assert counted.waits <= 24
    assert all(operations[step] <= 8 for step in ORDINARY)
    assert all(operations[step] <= 25 for step in CHOOSING)
