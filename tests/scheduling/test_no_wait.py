"""An ordinary step on an accelerator reads no value of it; tried with tensors that have none."""

import re

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import platon_prune
from platon_prune.tensors import backends

STEPS_PER_WINDOW = 5
# Neither a launch nor a wait; fake tensors also dispatch the question where they are.
VIEWS = re.compile(r"prim::device|view|split|detach|alias|slice|empty|permute|transpose|as_strided")


class Launches(TorchDispatchMode):
    """Counts operations, and refuses copies between devices, which would wait for one of them."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        devices = {each.device.type for each in (*args, result) if isinstance(each, torch.Tensor)}
        assert len(devices) <= 1 or "copy" not in function.name(), f"{function} over {devices}"
        if not VIEWS.search(function.name()):
            self.names.append(function.name())
        return result


@pytest.fixture(params=["plain", "foreach", "triton"])
def backend(request, monkeypatch):
    if request.param == "triton" and not backends.has_triton():
        pytest.skip("Triton is missing: pip install triton")
    monkeypatch.setenv(backends.VARIABLE, request.param)
    return request.param


class Linear(nn.Linear):
    def reset_parameters(self):
        pass  # random numbers need a device


def _set_up(num_layers, **settings):
    model = nn.Sequential(*[Linear(8, 8, device="cuda") for _ in range(num_layers)])
    scheduler = platon_prune.global_unstructured(
        model,
        amount=0.5,
        total_steps=40,
        warmup_steps=10,
        window=STEPS_PER_WINDOW,
        **dict(cooldown_steps=0) | settings,
    )
    return model, scheduler


def _step(model, scheduler):
    for parameter in model.parameters():
        parameter.grad = torch.empty_like(parameter)  # a backward does not run with fake tensors
    with Launches() as launches:
        scheduler.step()
    return launches.names


@pytest.mark.parametrize(
    "settings",
    [
        {},
        dict(state_dtype=torch.bfloat16),
        dict(masking="window"),
        dict(criterion="movement"),
        dict(criterion="fisher"),
    ],
)
def test_ordinary_steps_run_with_tensors_that_have_no_values(backend, settings):
    with FakeTensorMode():
        model, scheduler = _set_up(3, **settings)
        for _ in range(STEPS_PER_WINDOW - 1):
            names = _step(model, scheduler)
            assert not [name for name in names if "_local_scalar_dense" in name]
    assert scheduler.last_step == STEPS_PER_WINDOW - 1


def test_a_skipped_step_that_only_the_device_knows_of_is_not_read(backend):
    with FakeTensorMode():
        model, scheduler = _set_up(3)
        for parameter in model.parameters():
            parameter.grad = torch.empty_like(parameter)
        scheduler.step(skipped=torch.empty((), dtype=torch.bool, device="cuda"))
    assert scheduler.last_step == 1


def test_operations_do_not_grow_with_the_number_of_tensors_but_by_one_each(backend):
    counts = {}
    for num_layers in (4, 24):
        with FakeTensorMode():
            model, scheduler = _set_up(num_layers)
            _step(model, scheduler)
            counts[num_layers] = len(_step(model, scheduler))
    more = (counts[24] - counts[4]) / 20
    assert more <= {"plain": 12, "foreach": 1, "triton": 0}[backend]


@pytest.mark.skipif(not backends.has_triton(), reason="Triton is missing: pip install triton")
def test_triton_launches_at_most_six_times_however_many_tensors_there_are(monkeypatch):
    from platon_prune.tensors import triton_backend

    monkeypatch.setenv(backends.VARIABLE, "triton")
    launched = []
    for owner, name in ((triton_backend.TritonBackend, "_launch"), (triton_backend, "_send")):
        # With fake tensors neither a kernel nor a copy to the device is dispatched.
        original = getattr(owner, name)
        monkeypatch.setattr(
            owner,
            name,
            lambda *args, original=original, name=name, **kwargs: (
                launched.append(name),
                original(*args, **kwargs),
            )[1],
        )
    counts = []
    for num_layers in (4, 24):
        with FakeTensorMode():
            model, scheduler = _set_up(num_layers)
            _step(model, scheduler)
            launched.clear()
            names = _step(model, scheduler)
        assert launched.count("_launch") == 2  # the flag, and all the rest
        counts.append(len(names) + launched.count("_launch"))  # tables are kept, but not fake ones
    assert counts[0] == counts[1] <= 6
