"""Triton's kernels in its interpreter on the CPU, against the plain twin; a process of its own.

Run with ``TRITON_INTERPRET=1``, which Triton reads when it is imported.
"""

import itertools
import os
import sys
import weakref

import backend_twin as twin
import torch
from torch import nn

import platon_prune
from platon_prune.tensors.backends import VARIABLE, FixedList, Operands
from platon_prune.tensors.capture import Capture
from platon_prune.tensors.plain_backend import PLAIN
from platon_prune.tensors.triton_backend import TritonBackend

CONVERTED = {torch.float32, torch.bfloat16, torch.float16}


def check_steps():
    """Every pair of dtypes, formula, flag and masking, at addresses that change at each step."""
    backend = TritonBackend(block=128)
    settings = list(itertools.product(twin.FORMULAS, (None, 0, 1), (False, True)))
    for i, kind in enumerate(twin.KINDS):
        # All settings for the usual dtypes, some of them for each of the others.
        for formula, flagged, masking in settings if i == 0 else settings[i % 3 :: 3]:
            twin.compare_steps(
                backend,
                lambda step, kind=kind: twin.operands_of(kind, 10 + step, special=True),
                formula, flagged, masking, steps=2 if i == 0 else 1,
            )  # fmt: skip
        fits = set(kind[:2]) <= CONVERTED
        assert backend.num_plain == (
            0 if fits else len(twin.SHAPES) + 1 + (kind[0] not in CONVERTED)
        )


def check_masks_and_mixtures():
    """Masks all True and all False; dtypes mixed in one call; aligned and unaligned addresses."""
    backend = TritonBackend(block=128)
    for density in (0.0, 1.1):
        twin.compare_steps(
            backend,
            lambda step, density=density: twin.operands_of(
                twin.KINDS[0], 30 + step, special=True, density=density
            ),
            "abs_product", 0, True,
        )  # fmt: skip
    twin.compare_steps(
        backend,
        lambda step: [one for kind in twin.KINDS for one in twin.operands_of(kind, step)],
        "abs_product", 0, True,
    )  # fmt: skip
    aligned = [torch.randn(256), torch.randn(256), torch.rand(256) < 0.5, torch.zeros(256)]
    assert all(tensor.data_ptr() % 16 == 0 for tensor in aligned)
    twin.compare_steps(
        backend, lambda step: [twin.Learning(*(x.clone() for x in aligned))], "abs_product", 0, True
    )
    transposed = [
        twin.Learning(torch.randn(9, 5).t(), torch.randn(5, 9), torch.rand(5, 9) < 0.5, None)
    ]
    twin.compare_steps(backend, lambda step: transposed, "abs_product", None, True)
    assert backend.num_plain == 1


def check_flags():
    """A value that is not finite is found wherever it is, and nothing else sets the flag."""
    backend = TritonBackend(block=128)
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        largest = torch.finfo(dtype).max
        finite = [twin.values(shape, dtype, 3) for shape in twin.SHAPES]
        finite.append(
            torch.full((200,), largest, dtype=dtype).mul_(torch.tensor([1, -1]).repeat(100))
        )
        for flagged in (0.0, 1.0):
            flag = torch.tensor([flagged])
            backend.flag_non_finite_([None, *finite], flag)
            assert flag.item() == flagged
        for tensor, value in itertools.product((1, 4, 5), (torch.nan, torch.inf, -torch.inf)):
            broken = [gradient.clone() for gradient in finite]
            broken[tensor].view(-1)[-1] = value
            for other in (backend, PLAIN):
                flag = torch.zeros(1)
                other.flag_non_finite_(broken, flag)
                assert flag.item() == 1, (dtype, tensor, value, other.name)


def check_digits():
    """Histograms of both digits, added to what was counted before."""
    backend = TritonBackend(block=1024)
    keys = twin.keys_of_all_signs(3001)
    for high in (None, 32768 + (1_065_353_216 >> 16)):
        counts = torch.ones(65536, dtype=torch.int64)
        backend.count_digits_(keys, counts, None if high is None else torch.tensor([high]))
        assert counts.sub_(1).tolist() == twin.digits(keys, high)
    backend.count_digits_(keys[:0], counts, None)


def check_versions():
    """Autograd sees that a weight has changed, as after an operation of torch."""
    weight = torch.ones(5, requires_grad=True)
    before = weight._version
    kept = torch.zeros(5, dtype=torch.bool)
    TritonBackend(block=16).accumulate_(
        [Operands(weight.detach(), kept, None)], None, "abs_product", None, True
    )
    assert weight.tolist() == [0.0] * 5 and weight._version == before + 1


def check_fixed_lists():
    """What is kept of a fixed list holds for that list alone, whatever its gradients are."""
    backend = TritonBackend(block=128)
    for seed in range(3):  # the next list may get the number, and the addresses, of the last
        ours = twin.operands_of(twin.KINDS[0], seed, special=True)
        theirs = twin.copies(ours)
        fixed = FixedList(Operands(one.weight, one.mask, one.window) for one in ours)
        for step, kind in enumerate([0, 0, 1, 9, 0]):  # float64 gradients do not fit
            made = twin.operands_of(twin.KINDS[kind], 50 + step, special=True)
            gradients = [one.gradient for one in made]
            gradients[step] = None
            gradients = FixedList(gradients) if step % 2 else gradients
            flags = [torch.zeros(1), torch.zeros(1)]
            for runner, flag in zip((backend, PLAIN), flags, strict=True):
                runner.flag_non_finite_(gradients, flag)
            assert flags[0] == flags[1] == 1
            backend.accumulate_(fixed, gradients, "abs_product", None, step != 1)
            twin.step(
                PLAIN,
                [one._replace(gradient=g) for one, g in zip(theirs, gradients, strict=True)],
                "abs_product", None, step != 1,
            )  # fmt: skip
            twin.assert_same_bits(ours, theirs)
        backend.accumulate_(fixed, None, "abs_product", None, True)
        twin.assert_same_bits(ours, theirs)
        assert len(backend._plans) == 1
        alive = weakref.ref(fixed[3].window)
        del fixed, ours, gradients
        assert alive() is None and not backend._plans and not backend._seen


def check_captures():
    """A recorded step reads tables of its own, whatever other steps have sent or dropped since."""

    def made(number):
        return twin.operands_of(twin.KINDS[0], number, shapes=[(1,), (63,), (300,)])

    backend, ours = TritonBackend(block=128), made(1)
    theirs = twin.copies(ours)
    fixed = FixedList(Operands(one.weight, one.mask, one.window) for one in ours)
    launched, told, flag = [], torch.ones(1), torch.zeros(1)

    def step(number, capture=None):
        gradients = FixedList(one.gradient for one in made(number))
        gradients.capture = capture
        backend.flag_non_finite_(gradients, flag)
        backend.accumulate_(fixed, gradients, "abs_product", flag, told)
        return gradients

    step(2)
    capture = Capture(len(fixed), torch.device("cpu"))
    launch, backend._launch = backend._launch, lambda *args, **kw: launched.append((args, kw))
    captured = step(3, capture)
    backend._launch = launch
    assert len(launched) == 2 and len(capture.kept) == 2
    others = [step(4), step(5)]
    backend._flag_plans.clear(), backend._chunk_maps.clear(), backend._sent.clear()
    for is_told in (0.0, 1.0):
        told.fill_(is_told)
        for args, kwargs in launched:
            launch(*args, **kwargs)
    told.fill_(1.0)
    for gradients in (
        [one.gradient for one in made(2)], *others, captured, captured
    ):  # fmt: skip
        twin.step(
            PLAIN,
            [one._replace(gradient=g) for one, g in zip(theirs, gradients, strict=True)],
            "abs_product", None, True,
        )  # fmt: skip
    twin.assert_same_bits(ours, theirs)
    # A launch that only zeroes reads a table of its own as well, beside that of the gradients.
    backend.accumulate_(fixed, None, "abs_product", flag, told)
    nothing = FixedList([None] * len(fixed))
    nothing.capture = capture
    backend._launch = lambda *args, **kw: launched.append((args, kw))
    backend.accumulate_(fixed, nothing, "abs_product", flag, told)
    backend._launch = launch
    (_, _, addresses, *_), _ = launched[-1]
    assert addresses.here == [0] * len(fixed) and addresses.there.tolist() == addresses.here
    assert all(addresses.there is not kept.there for kept in backend._sent.values())
    assert launched[0][0][2].there.tolist() == [
        0 if each is None else each.data_ptr() for each in captured
    ]
    backend._plans.clear()
    try:
        gradients = FixedList([None] * len(fixed))
        gradients.capture = Capture(len(fixed), torch.device("cpu"))
        backend.accumulate_(fixed, gradients, "abs_product", flag, told)
    except RuntimeError as error:
        assert "warm-up steps" in str(error)
    else:
        raise AssertionError("a table would have been made while a graph is recorded")


def check_told():
    """Whether to zero may be said by the device: then no bit of a weight changes if it says no."""
    for density in (0.0, 0.5, 1.1):
        ours = twin.operands_of(twin.KINDS[0], 7, True, density, [(63,), (300,)])
        for is_told in (0.0, 1.0):
            theirs = twin.copies(ours)
            each = [Operands(one.weight, one.mask, one.window) for one in ours]
            gradients = [one.gradient for one in ours]
            TritonBackend(block=128).accumulate_(
                each, gradients, "abs_product", torch.zeros(1), torch.tensor([is_told])
            )
            twin.step(PLAIN, theirs, "abs_product", None, bool(is_told))
            twin.assert_same_bits(ours, theirs)


def check_runs_with_bfloat16_state():
    """A run that keeps window and averages in bfloat16 has the same bits by either backend."""
    states = []
    for name in ("triton", "plain"):
        os.environ[VARIABLE] = name
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(9, 13), nn.Linear(13, 10))
        scheduler = platon_prune.global_unstructured(
            model, amount=0.5, total_steps=20, warmup_steps=3, cooldown_steps=3, window=3,
            state_dtype=torch.bfloat16,
        )  # fmt: skip
        generator = torch.Generator().manual_seed(1)
        for _ in range(11):
            for parameter in model.parameters():
                parameter.grad = torch.randn(parameter.shape, generator=generator)
                parameter.data.add_(parameter.grad, alpha=-0.01)
            scheduler.step()
        states.append(scheduler.state_dict()["tensors"])
    del os.environ[VARIABLE]
    for tensor, ours in states[0].items():
        assert ours["window"].dtype == ours["sensitivity"].dtype == torch.bfloat16
        assert not ours["mask"].all() and ours["window"].any()
        for key in ("mask", "window", "sensitivity", "uncertainty"):
            assert torch.equal(ours[key], states[1][tensor][key]), (tensor, key)


CHECKS = [
    check_captures,
    check_told,
    check_steps,
    check_masks_and_mixtures,
    check_fixed_lists,
    check_flags,
    check_digits,
    check_versions,
    check_runs_with_bfloat16_state,
]

if __name__ == "__main__":
    torch.set_num_threads(1)
    for check in CHECKS:
        check()
        print(check.__name__, flush=True)
    sys.exit(0)
