"""What is measured of a model, by a clock that counts multiply-adds instead of time."""

from __future__ import annotations

import random

import pytest
import small_transformers
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import platon_prune
from platon_prune.groups.latency import PER_MILLISECOND
from platon_prune.shrinking import latency
from platon_prune.shrinking.latency import measure_latency


class CountingClock:
    """A millisecond for each multiply-add, or its like of which none is counted."""

    def __init__(self):
        self.seen = {}

    def __call__(self, function):
        with FlopCounterMode(display=False) as counter:
            function()
        self.seen.setdefault(function, set()).add(counter.get_total_flops() // 2)
        return counter.get_total_flops() // 2


def _measured(name, min_floor=1):
    model = small_transformers.build(name)
    model.set_attn_implementation("eager")  # whose products are counted
    groups = platon_prune.find_groups(model)
    clock = CountingClock()
    inputs = small_transformers.inputs(model)
    return measure_latency(model, groups, [min_floor] * len(groups), inputs, clock), clock


def test_a_group_costs_what_its_place_saves_at_the_floor_over_the_groups_that_go():
    table, _ = _measured("BERT")
    # Twelve tokens, in two examples of six. A neuron: its row and its column of 16.
    neuron = 12 * 2 * 16
    # A head: four matrices of 16 by 4, and all pairs of tokens twice, for each width.
    head = 12 * 4 * 16 * 4 + 2 * 6 * 6 * 2 * 4
    for place in table.places:
        each, size = (head, 4) if place.kind == "heads" else (neuron, 10)
        assert (place.size, place.left) == (size, 1)
        assert place.per_group == each * PER_MILLISECOND
        assert place.saved == (size - 1) * place.per_group
    layers = 2 * (4 * head + 10 * neuron)
    assert table.forward >= layers * PER_MILLISECOND > 0.9 * table.forward  # the rest: the pooler


@pytest.mark.parametrize("name", ["Llama", "T5", "GPT-2"])
def test_a_call_is_the_same_each_time_and_every_place_is_measured(name):
    # Caches would grow from call to call; T5's layers are given a bias made for all heads.
    table, clock = _measured(name)
    assert all(len(counts) == 1 for counts in clock.seen.values())
    assert all(place.per_group > 0 for place in table.places)


def test_a_place_at_its_floor_already_is_not_measured():
    table, clock = _measured("BERT", min_floor=4)
    heads = [place for place in table.places if place.kind == "heads"]
    assert [(place.left, place.full, place.per_group) for place in heads] == [(4, 0, 0)] * 2
    assert len(clock.seen) == 1 + 2 * 2  # the forward, and both layers of neurons twice


def test_measuring_leaves_the_model_and_the_random_numbers_as_they_were():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.Dropout(0.5),
        nn.Conv2d(8, 4, 3), nn.Flatten(), nn.Linear(64, 2),
    )  # fmt: skip
    model[4].eval()
    model(torch.randn(2, 3, 8, 8)).sum().backward()
    groups = platon_prune.find_groups(model, torch.zeros(2, 3, 8, 8))
    kept = {name: value.clone() for name, value in model.state_dict().items()}
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    identities = [id(parameter) for parameter in model.parameters()]
    states = torch.get_rng_state(), random.getstate()
    table = measure_latency(
        model, groups, [1] * len(groups), torch.randn(2, 3, 8, 8, generator=torch.Generator()),
        lambda function: (function(), 3000.0)[1],
    )  # fmt: skip
    assert [place.left for place in table.places] == [1] * len(groups) and len(groups) > 1
    assert torch.equal(states[0], torch.get_rng_state()) and states[1] == random.getstate()
    assert all(torch.equal(value, kept[name]) for name, value in model.state_dict().items())
    assert [module.training for module in model] == [True] * 4 + [False] + [True] * 2
    assert identities == [id(parameter) for parameter in model.parameters()]
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        assert torch.equal(parameter.grad, gradient) and parameter.requires_grad
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_on_a_gpu_events_are_the_clock_and_on_one_thread_processor_time(monkeypatch):
    monkeypatch.setattr(latency, "event_clock", lambda device: f"events of {device}")
    monkeypatch.setattr(latency, "clock", lambda device, processor_time: processor_time)
    assert latency._clock("cuda:1") == "events of cuda:1"
    for threads, is_processor_time in ((1, True), (2, False)):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        assert latency._clock("cpu") is is_processor_time
