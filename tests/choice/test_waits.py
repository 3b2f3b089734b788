"""A choice on an accelerator reads at most four values of it; counted where it runs on the CPU."""

import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

import platon_prune
from platon_prune.scheduling import selected
from platon_prune.tensors import digits

# What makes the host wait for a device: a value is read, or a size depends on values.
READS = {"tolist", "item", "__bool__", "__int__", "__float__", "nonzero", "unique", "cpu", "numpy"}
READS |= {"masked_select", "bincount", "argwhere", "_local_scalar_dense"}


class Reads(TorchFunctionMode):
    """Names of the calls that would have waited."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        name = getattr(function, "__name__", "")
        indexes = args[1] if name in ("__getitem__", "__setitem__") else ()
        indexes = indexes if isinstance(indexes, tuple) else (indexes,)
        by_mask = any(isinstance(i, torch.Tensor) and i.dtype == torch.bool for i in indexes)
        if name in READS or by_mask:
            self.names.append(name)
        return function(*args, **(kwargs or {}))


@pytest.fixture(autouse=True)
def _as_on_an_accelerator(monkeypatch):
    # Histograms are those of an accelerator; the backend of the CPU, whose own reads do not count.
    monkeypatch.setattr(digits, "serves", lambda devices, processes: True)
    monkeypatch.setattr(selected.SelectedTensors, "_may_wait", lambda self, flag: flag is not None)


class Quiet:
    """A backend that counts digits as an accelerator does, without a wait."""

    def count_digits_(self, keys, counts, high):
        numbers = (keys >> 16) + 32768
        counted = torch.ones_like(numbers, dtype=torch.int64)
        if high is not None:
            counted, numbers = numbers.eq(high).to(torch.int64), keys & 0xFFFF
        counts.scatter_add_(0, numbers.to(torch.int64), counted)


@pytest.mark.parametrize("gradient", ["random", "tied"])
@pytest.mark.parametrize("num_layers", [3, 30])
def test_a_choice_waits_at_most_four_times_whatever_the_number_of_tensors(
    num_layers, gradient, monkeypatch
):
    monkeypatch.setattr(digits, "backend_for", lambda device: Quiet())
    torch.manual_seed(0)
    model = nn.Sequential(*[nn.Linear(8, 8, bias=False) for _ in range(num_layers)])
    if gradient == "tied":
        for layer in model:
            nn.init.ones_(layer.weight)
    scheduler = platon_prune.global_unstructured(
        model, amount=0.5, total_steps=40, window=2, warmup_steps=0, cooldown_steps=0
    )
    for step in range(1, 12):
        for layer in model:
            weight = layer.weight_orig
            weight.grad = torch.ones_like(weight) if gradient == "tied" else torch.rand(8, 8)
        if scheduler.schedule.is_choosing_step(step):
            amount = scheduler.schedule.amount_at(step)
            # Where tensors lie in the line is worked out by the host, once.
            scheduler._tensors.choose(amount / 2, tells=True)
            with Reads() as reads:
                scheduler._tensors.choose(amount, tells=True)
            assert len(reads.names) <= 4, reads.names
        scheduler.step()
