"""Small tensors of a fixed list, done together, lead to the bits of one tensor after another."""

import backend_twin as twin
import pytest
import torch

from platon_prune.tensors import together
from platon_prune.tensors.backends import FixedList, Operands
from platon_prune.tensors.plain_backend import PlainBackend

SHAPES = [(7, 19), (3,), (), (0,), (300,), (5, 4, 3)]
BITS = torch.int32


def _made(special=False):
    """Operands and gradients; of the fourth weight other strides, of the third another dtype."""
    operands, gradients = FixedList(), []
    for i, shape in enumerate(SHAPES):
        weight = twin.values(shape, torch.float32, i, special=True)
        gradients.append(twin.values(shape, torch.float32, 10 + i, special=special))
        mask = torch.rand(shape, generator=torch.Generator().manual_seed(i)) < 0.5
        operands.append(Operands(weight, mask, torch.rand(shape)))
    other = twin.values((6, 5), torch.float32, 20).t()
    operands.append(Operands(other, torch.ones(5, 6) > 0, torch.zeros(5, 6)))
    half = twin.values((8,), torch.bfloat16, 21)
    operands.append(Operands(half, torch.zeros(8) > 0, torch.zeros(8)))
    return operands, [*gradients, torch.ones(5, 6), torch.ones(8, dtype=torch.bfloat16)]


def _same_bits(one, other):
    integer = twin.BITS[one.dtype.itemsize] if one.dtype != torch.bool else torch.int8
    return torch.equal(one.contiguous().view(integer), other.contiguous().view(integer))


@pytest.mark.parametrize("run", [together.RUN, 200])
@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("masking", [False, True])
@pytest.mark.parametrize("formula", twin.FORMULAS)
def test_a_step_over_a_fixed_list_is_the_step_over_any_list(
    formula, masking, missing, run, monkeypatch
):
    monkeypatch.setattr(together, "RUN", run)
    operands, gradients = _made()
    if missing:
        gradients[1] = None
    backend = PlainBackend()
    for _ in range(2):  # the second time from what is kept of the first
        copies = [Operands(*(each.clone() for each in one)) for one in operands]
        fixed = FixedList(gradients)
        fixed.beside = operands
        flag = torch.zeros(1)
        backend.flag_non_finite_(fixed, flag)
        assert float(flag) == 0
        backend.accumulate_(operands, fixed, formula, flag, masking)
        PlainBackend().accumulate_(copies, gradients, formula, flag, masking)
        for one, other in zip(operands, copies, strict=True):
            assert all(_same_bits(*pair) for pair in zip(one, other, strict=True))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("where", range(len(SHAPES)))
def test_a_gradient_that_is_not_finite_is_seen_and_changes_no_window(where, bad):
    operands, gradients = _made()
    if not gradients[where].numel():
        return
    gradients[where].view(-1)[-1] = bad
    windows = [each.window.clone() for each in operands]
    fixed, flag, backend = FixedList(gradients), torch.zeros(1), PlainBackend()
    fixed.beside = operands
    backend.flag_non_finite_(fixed, flag)
    assert float(flag) == 1
    backend.accumulate_(operands, fixed, "abs_product", flag, True)
    assert all(map(torch.equal, windows, [each.window for each in operands]))
    assert all(bool((one.weight[~one.mask] == 0).all()) for one in operands)


def test_gradients_whose_sum_overflows_are_finite():
    operands = FixedList(Operands(torch.ones(4), torch.ones(4) > 0, torch.zeros(4)) for _ in "ab")
    fixed, flag, backend = FixedList(torch.full((4,), 3e38) for _ in "ab"), torch.zeros(1), None
    fixed.beside = operands
    backend = PlainBackend()
    backend.flag_non_finite_(fixed, flag)
    assert float(flag) == 0
    backend.accumulate_(operands, fixed, "abs_product", flag, True)
    assert all(bool((each.window == 3e38).all()) for each in operands)


def test_what_another_list_left_in_the_temporaries_is_not_taken_for_gradients():
    one, gradients = _made()
    other, _ = _made()
    expected = [each.window.clone() for each in one]
    backend, fixed = PlainBackend(), FixedList(gradients)
    fixed.beside = one
    backend.flag_non_finite_(fixed, torch.zeros(1))
    between = FixedList([torch.full(each.weight.shape, 7.0) for each in other])
    between.beside = other
    backend.flag_non_finite_(between, torch.zeros(1))
    backend.accumulate_(one, fixed, "squared_gradient", None, False)
    for window, gradient, each in zip(expected, gradients, one, strict=True):
        assert torch.equal(each.window, window + gradient.float() ** 2)
