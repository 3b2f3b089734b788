"""Reading, loading and stepping in odd modes, memory that moves, and products that overflow."""

import contextlib

import pytest
import torch
from torch import nn

import platon_prune
from platon_prune.masks.masked import mask_of

MODES = {
    "inference_mode": torch.inference_mode,
    "no_grad": torch.no_grad,
    "meta": lambda: torch.device("meta"),
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
}
READINGS = {
    "sparsity": lambda scheduler: scheduler.sparsity(),
    "memory": lambda scheduler: scheduler.memory(),
    "score": lambda scheduler: scheduler.score("0.weight"),
    "masks": lambda scheduler: scheduler.masks(),
    "state_dict": lambda scheduler: scheduler.state_dict(),
}
STEPS = 9


class Run:
    """A small model that is pruned by random gradients; the choices are at 4, 6 and 8."""

    def __init__(self, **settings):
        generator = torch.Generator().manual_seed(0)
        self.model = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 4))
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)
        self.scheduler = platon_prune.global_unstructured(
            self.model,
            **dict(amount=0.5, total_steps=8, warmup_steps=2, window=2, cooldown_steps=0)
            | settings,
        )

    @property
    def weights(self):
        return [layer.weight_orig for layer in self.model]

    def to(self, last, mode=contextlib.nullcontext, scale=1.0):
        for step in range(self.scheduler.last_step + 1, last + 1):
            generator = torch.Generator().manual_seed(step)
            for weight in self.weights:
                weight.grad = scale * torch.randn(weight.shape, generator=generator)
            self.optimizer.step()
            with mode():
                self.scheduler.step()
        return self


def _numbers(state):
    """All of a state, its tensors as lists."""
    if isinstance(state, dict):
        return {key: _numbers(value) for key, value in state.items()}
    return state.tolist() if isinstance(state, torch.Tensor) else state


def _outcome(run):
    return _numbers(run.scheduler.state_dict()), [weight.tolist() for weight in run.weights]


@pytest.mark.case
@pytest.mark.parametrize("reading", READINGS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("moment", [0, 5])
def test_reading_in_any_mode_at_any_moment_leaves_the_run_as_it_was(moment, mode, reading):
    run = Run().to(moment)
    with MODES[mode]():
        READINGS[reading](run.scheduler)
    assert _outcome(run.to(STEPS)) == _outcome(Run().to(STEPS))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("moment", [0, 3, 5])
def test_steps_in_any_mode_are_the_steps_outside_or_raise_before_anything_is_changed(moment, mode):
    run = Run().to(moment)
    try:
        run.to(moment + 2, MODES[mode])
    except RuntimeError:
        assert run.scheduler.last_step == moment
    assert _outcome(run.to(STEPS)) == _outcome(Run().to(STEPS))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("moment", [0, 5])
def test_a_state_is_loaded_in_any_mode_as_outside_or_nothing_is_changed(moment, mode):
    state, weights = Run().to(5).scheduler.state_dict(), [w.detach() for w in Run().to(5).weights]
    run = Run().to(moment)
    with torch.no_grad():
        for weight, saved in zip(run.weights, weights, strict=True):
            weight.copy_(saved)
    before = _outcome(run)
    try:
        with MODES[mode]():
            run.scheduler.load_state_dict(state)
    except (RuntimeError, ValueError):
        assert _outcome(run) == before
        run.scheduler.load_state_dict(state)
    assert _outcome(run.to(STEPS)) == _outcome(Run().to(STEPS))


def _replaced(module):
    module.register_buffer("weight_mask", module.weight_mask.clone())


def _swapped(module):
    module.weight_mask.data = module.weight_mask.clone()


def _moved(module):
    module.to(torch.float64).to(torch.float32)  # the parameter's memory is another one then


@pytest.mark.parametrize("move", [_replaced, _swapped, _moved])
@pytest.mark.parametrize("criterion", ["platon", "magnitude"])
def test_a_tensor_whose_memory_moved_between_steps_is_found_again(criterion, move):
    run = Run(criterion=criterion).to(5)
    old = run.model[0].weight_mask
    move(run.model[0])
    # What is left behind must not be read: all of it would be pruned.
    if run.model[0].weight_mask.data_ptr() != old.data_ptr():
        old.zero_()
    run.to(STEPS)
    assert _outcome(run) == _outcome(Run(criterion=criterion).to(STEPS))
    for layer in run.model:
        assert bool((layer.weight_orig[~mask_of(layer, "weight")] == 0).all())


@pytest.mark.parametrize("state_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "settings",
    [
        dict(criterion="platon"),
        dict(criterion="platon", beta1=0.001, beta2=0.001),
        dict(criterion="sensitivity"),
        dict(criterion="movement"),
        dict(criterion="fisher"),
    ],
)
def test_products_that_overflow_leave_numbers_and_an_exact_count(settings, state_dtype):
    run = Run(**settings, state_dtype=state_dtype)
    with torch.no_grad():
        run.weights[0].mul_(1e30)
        run.weights[1][0] = 0.0  # times what overflowed, no number
    run.optimizer.param_groups[0]["lr"] = 0.0
    run.to(STEPS, scale=1e20)
    for tensor in run.scheduler.state_dict()["tensors"].values():
        averages = [
            each for name, each in tensor.items() if name in run.scheduler.criterion.averages
        ]
        assert averages and all(bool(each.isfinite().all()) for each in averages)
    for name in ("0.weight", "1.weight"):
        assert not run.scheduler.score(name).isnan().any()
    kept = sum(int(mask.sum()) for mask in run.scheduler.masks().values())
    assert kept == 80 - 40
