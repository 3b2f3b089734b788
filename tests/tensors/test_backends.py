"""Backends carry out one step alike, wait for no device, and need few operations."""

import copy
import importlib.util
import os
import pickle
import subprocess
import sys

import backend_twin as twin
import pytest
import torch
from pages import ROOT
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from platon_prune.tensors import foreach_backend
from platon_prune.tensors.backends import VARIABLE, Operands, backend_for
from platon_prune.tensors.foreach_backend import FOREACH, ForeachBackend
from platon_prune.tensors.plain_backend import PLAIN, PlainBackend

CPU = torch.device("cpu")
NEEDS_TRITON = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None,
    reason="Triton is not installed: pip install triton (on Linux)",
)
NAMES = ["plain", "foreach", pytest.param("triton", marks=NEEDS_TRITON)]


def _new(name):
    """A backend with no temporaries yet: those made of fake tensors must not be kept."""
    if name == "triton":
        from platon_prune.tensors.triton_backend import TritonBackend

        return TritonBackend()
    return {"plain": PlainBackend, "foreach": ForeachBackend}[name]()


class Counting(TorchDispatchMode):
    """Counts dispatched operations; refuses copies between devices, which fake tensors let pass."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        self.names.append(name)
        if name in ("_to_copy", "copy_"):
            devices = {x.device for x in args if isinstance(x, torch.Tensor)}
            devices |= {torch.device(d) for d in [(kwargs or {}).get("device")] if d is not None}
            assert len({device.type for device in devices}) <= 1, f"{name} between {devices}"
        return func(*args, **(kwargs or {}))


# Float32 by hand, from what the interface says: one entry of each case.
WEIGHT, GRADIENT = [2.0, -3.0, -0.0, torch.nan], [-0.5, 4.0, 1.0, 0.0]
KEPT = [True, False, False, False]
ADDED = {
    "abs_product": [1.0, 12.0, 0.0],
    "negative_product": [1.0, 12.0, 0.0],
    "squared_gradient": [0.25, 16.0, 1.0],
}


@pytest.mark.parametrize("backend", [PLAIN, FOREACH], ids=["plain", "foreach"])
@pytest.mark.parametrize("formula", ADDED)
def test_a_step_adds_the_sample_then_zeroes_what_is_pruned(backend, formula):
    weight, window = torch.tensor(WEIGHT), torch.full((4,), 1.0)
    mask = torch.tensor(KEPT)
    backend.accumulate_(
        [Operands(weight, mask, window)], [torch.tensor(GRADIENT)], formula, None, masking=True
    )
    assert window[:3].tolist() == [1 + added for added in ADDED[formula]]
    assert weight.tolist() == [2.0, 0.0, 0.0, 0.0]
    assert not torch.signbit(weight[1:]).any()


@pytest.mark.parametrize("name", ["plain", "foreach"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_raised_flag_leaves_every_bit_of_a_window_and_masks_all_the_same(name, dtype):
    window = torch.tensor([-0.0, 1.5, torch.inf], dtype=dtype)
    before, weight = window.clone(), torch.ones(3)
    operands = Operands(weight, torch.tensor([True, False, True]), window)
    gradients = [torch.full((3,), torch.nan)]
    _new(name).accumulate_([operands], gradients, "abs_product", torch.ones(1), masking=True)
    assert torch.equal(window, before) and torch.signbit(window[0])
    assert weight.tolist() == [1.0, 0.0, 1.0]


@pytest.mark.parametrize("name", ["plain", "foreach"])
@pytest.mark.parametrize("kind", twin.KINDS[::2], ids=str)
@pytest.mark.parametrize("is_told", [False, True])
def test_the_device_may_say_whether_to_zero(name, kind, is_told):
    for flagged in (0.0, 1.0):
        ours = twin.operands_of(kind, 5, special=True)
        theirs, flag = twin.copies(ours), torch.tensor([flagged])
        twin.step(_new(name), ours, "abs_product", flag, torch.tensor([float(is_told)]))
        twin.step(PLAIN, theirs, "abs_product", flag, is_told)
        twin.assert_same_bits(ours, theirs)


@pytest.mark.parametrize("name", ["plain", "foreach"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_flag_is_raised_by_what_is_not_finite_alone(name, dtype):
    backend, largest = _new(name), torch.finfo(dtype).max
    finite = [torch.full((50,), largest, dtype=dtype), torch.zeros(0, dtype=dtype)]
    for gradients, expected in [
        (finite, 0.0),
        ([*finite, torch.tensor([[1.0, torch.nan]], dtype=dtype)], 1.0),
        ([torch.full((3, 5), -torch.inf, dtype=dtype).t(), *finite], 1.0),
        ([torch.tensor(torch.inf, dtype=dtype)], 1.0),
    ]:
        flag = torch.zeros(1)
        backend.flag_non_finite_([None, *gradients], flag)
        assert flag.item() == expected
    flag = torch.ones(1)
    backend.flag_non_finite_(finite, flag)
    assert flag.item() == 1.0


@pytest.mark.parametrize("kind", twin.KINDS, ids=str)
@pytest.mark.parametrize("formula", twin.FORMULAS)
@pytest.mark.parametrize("size", [50, 1 << 20])
def test_foreach_equals_plain_to_the_bit(kind, formula, size, monkeypatch):
    monkeypatch.setattr(foreach_backend, "CPU_SLICE", size)  # some are cut, or are not
    for flagged, masking in ((None, True), (0, False), (1, True)):
        twin.compare_steps(
            ForeachBackend(),
            lambda step: twin.operands_of(kind, 10 + step, special=True),
            formula, flagged, masking,
        )  # fmt: skip


@pytest.mark.parametrize("density", [0.0, 1.1])
def test_foreach_equals_plain_where_all_or_nothing_is_pruned_and_dtypes_are_mixed(density):
    def make(step):
        return [
            one
            for kind in twin.KINDS
            for one in twin.operands_of(kind, step, special=True, density=density)
        ]

    twin.compare_steps(ForeachBackend(), make, "abs_product", 0, True)


@pytest.mark.parametrize("name", ["plain", "foreach"])
def test_any_strides_are_taken_and_those_that_do_not_fit_are_counted(name):
    backend = _new(name)
    weight, gradient = torch.arange(6.0).view(3, 2).t(), torch.ones(2, 3)
    mask, window = torch.tensor([[True, True, False]] * 2), torch.zeros(2, 3)
    fitting = Operands(torch.ones(3), torch.ones(3).bool(), torch.zeros(3))
    tensors, gradients = [Operands(weight, mask, window), fitting], [gradient, torch.ones(3)]
    backend.accumulate_(tensors, gradients, "abs_product", None, True)
    assert window.tolist() == [[0.0, 2.0, 4.0], [1.0, 3.0, 5.0]]
    assert weight.tolist() == [[0.0, 2.0, 0.0], [1.0, 3.0, 0.0]]
    assert fitting.window is not None and fitting.window.tolist() == [1.0] * 3
    if name == "foreach":
        assert backend.num_plain == 1


@pytest.mark.parametrize("name", ["plain", "foreach"])
@pytest.mark.parametrize("high", [None, 0, 32768 + (1_065_353_216 >> 16)])
def test_digits_are_counted_as_one_by_one_and_added(name, high):
    keys = twin.keys_of_all_signs(2001)
    counts = torch.ones(65536, dtype=torch.int64)
    _new(name).count_digits_(keys, counts, None if high is None else torch.tensor([high]))
    assert counts.sub_(1).tolist() == twin.digits(keys, high)


def _small(num_tensors, device="cpu", kind=(torch.float32,) * 3):
    """Layers so small that a step of them is all overhead."""
    weight, gradient, window = kind
    return [
        twin.Learning(
            torch.ones(64, 64, dtype=weight, device=device),
            torch.ones(64, 64, dtype=gradient, device=device),
            torch.ones(64, 64, dtype=torch.bool, device=device),
            torch.zeros(64, 64, dtype=window, device=device),
        )
        for _ in range(num_tensors)
    ]


KINDS = [(torch.float32,) * 3, (torch.bfloat16,) * 3]


def _operations(backend, tensors):
    """Names of those of one step, once its temporaries are there: of the flag, and of the rest."""
    flag = torch.zeros(1)
    twin.step(backend, tensors, "abs_product", flag, True)
    with Counting() as flagging:
        backend.flag_non_finite_([one.gradient for one in tensors], flag)
    with Counting() as adding:
        twin.step(backend, tensors, "abs_product", flag, True)
    return flagging.names, adding.names


# In 16 bits the weight is brought to float32 by an operation of its own.
@pytest.mark.parametrize(("kind", "most"), [(KINDS[0], 6), (KINDS[1], 7)], ids=["float32", "bf16"])
def test_plain_takes_six_operations_a_tensor_and_one_to_look_whether_it_is_finite(kind, most):
    flagging, adding = _operations(PlainBackend(), _small(72, kind=kind))
    a_few = 10
    assert len(flagging) <= 72 + a_few
    assert len(adding) <= most * 72 + a_few


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_foreach_takes_six_multi_tensor_operations_a_slice_and_one_a_tensor(kind, monkeypatch):
    tensors = _small(72, kind=kind)
    monkeypatch.setattr(foreach_backend, "CPU_SLICE", 36 * 64 * 64)
    flagging, adding = _operations(ForeachBackend(), tensors)
    a_few = 10
    assert len(flagging) <= a_few
    assert sum(name.startswith("_foreach") for name in adding) <= 2 * 6
    assert sum(not name.startswith("_foreach") for name in adding) <= 72 + 2 * 6


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", [*KINDS, (torch.float64, torch.float16, torch.float32)], ids=str)
def test_a_step_reads_no_value_of_a_device(name, kind, monkeypatch):
    # The method itself, unlike the operator, asks for a CUDA build before it looks at the tensor.
    monkeypatch.setattr(torch.Tensor, "copy_", lambda to, of: torch.ops.aten.copy_(to, of))
    with FakeTensorMode():
        backend = _new(name)
        tensors = _small(3, "cuda", kind)
        tensors.append(tensors[0]._replace(gradient=None))
        tensors.append(tensors[0]._replace(weight=tensors[0].weight.t(), window=None))
        flag = torch.zeros(1, device="cuda")
        keys = torch.zeros(100, dtype=torch.int32, device="cuda")
        counts = torch.zeros(65536, dtype=torch.int64, device="cuda")
        with Counting() as counting:
            for formula in twin.FORMULAS:
                backend.flag_non_finite_([one.gradient for one in tensors[:3]], flag)
                twin.step(backend, tensors, formula, flag, True)
            backend.count_digits_(keys, counts, None)
            backend.count_digits_(keys, counts, torch.zeros(1, dtype=torch.int64, device="cuda"))
    assert "_local_scalar_dense" not in counting.names


@NEEDS_TRITON
def test_triton_kernels_equal_the_plain_twin_in_its_interpreter():
    helpers = ROOT / "tests" / "helpers"
    result = subprocess.run(
        [sys.executable, "-W", "ignore", str(helpers / "triton_jobs.py")],
        env=os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": f"{ROOT}{os.pathsep}{helpers}"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout + result.stderr[-3000:]


@pytest.mark.parametrize("name", NAMES)
def test_the_environment_names_the_backend_of_any_device(name, monkeypatch):
    monkeypatch.setenv(VARIABLE, name)
    for device in (CPU, torch.device("cuda", 0), torch.device("mps")):
        assert backend_for(device).name == name


def test_a_name_of_no_backend_is_refused(monkeypatch):
    monkeypatch.setenv(VARIABLE, "fast")
    with pytest.raises(ValueError, match="PLATON_PRUNE_BACKEND must be plain, foreach or triton"):
        backend_for(CPU)


@pytest.mark.parametrize("name", NAMES)
def test_a_copied_backend_is_the_same_one(name, monkeypatch):
    monkeypatch.setenv(VARIABLE, name)
    backend = backend_for(CPU)
    assert copy.deepcopy(backend) is backend
    assert pickle.loads(pickle.dumps(backend)) is backend
