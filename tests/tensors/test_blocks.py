"""Blocks cover every entry once, and zeroing by a mask equals masked_fill to the bit."""

import pytest
import torch

from platon_prune.tensors import blocks as blocks_module
from platon_prune.tensors.blocks import Scratch, blocks, count_true, slices, zero_pruned_

CPU = torch.device("cpu")

TENSORS = {
    "0-dim": lambda: torch.zeros(()),
    "one entry": lambda: torch.zeros(1),
    "odd vector": lambda: torch.zeros(101),
    "matrix": lambda: torch.zeros(13, 17),
    "transposed": lambda: torch.zeros(17, 13).t(),
    "one long row, transposed": lambda: torch.zeros(300, 2).t(),
    "channels last": lambda: torch.zeros(5, 3, 4, 7).to(memory_format=torch.channels_last),
    "every other column": lambda: torch.zeros(9, 22)[:, ::2],
    "every other entry": lambda: torch.zeros(90)[::2],
    "permuted": lambda: torch.zeros(4, 5, 6).permute(2, 0, 1),
}


@pytest.mark.parametrize("block", [1, 10, 64, 1 << 19])
@pytest.mark.parametrize("kind", TENSORS)
def test_blocks_cover_every_entry_once_at_matching_positions(kind, block, monkeypatch):
    monkeypatch.setattr(blocks_module, "CPU_BLOCK", block)
    tensor = TENSORS[kind]()
    numbers = torch.arange(tensor.numel(), dtype=torch.float32).view(tensor.shape)
    seen = []
    for piece, number in blocks(tensor, numbers):
        assert piece.shape == number.shape
        piece += number + 1
        seen += number.reshape(-1).tolist()
    assert sorted(seen) == list(range(tensor.numel()))
    assert torch.equal(tensor, numbers + 1)


@pytest.mark.parametrize("block", [1, 10, 64])
def test_blocks_of_contiguous_tensors_are_no_longer_than_asked(block, monkeypatch):
    monkeypatch.setattr(blocks_module, "CPU_BLOCK", block)
    assert all(piece.numel() <= block for (piece,) in blocks(torch.zeros(13, 17)))


@pytest.mark.parametrize("numel", [0, 1, 9, 10, 11, 99, 100, 101])
def test_slices_cover_a_range_once_in_order(numel, monkeypatch):
    monkeypatch.setattr(blocks_module, "CPU_BLOCK", 10)
    pieces = list(slices(numel, CPU))
    assert [i for piece in pieces for i in range(numel)[piece]] == list(range(numel))
    assert all(0 < piece.stop - piece.start <= 10 for piece in pieces)


SPECIAL = [1.5, -2.0, 0.0, -0.0, torch.nan, torch.inf, -torch.inf, 6e-8, -6e-8]
BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("transposed", [False, True])
def test_zeroing_by_a_mask_equals_masked_fill_to_the_bit(dtype, transposed):
    values = torch.tensor(SPECIAL * 2, dtype=dtype).view(2, 9)
    mask = torch.arange(18).view(2, 9) < 9  # each value once kept and once pruned
    if transposed:
        values, mask = values.t(), mask.t().contiguous()
    expected = values.masked_fill(~mask, 0)
    for value, kept in blocks(values, mask):
        zero_pruned_(value, kept, Scratch())
    bits = BITS[dtype.itemsize]
    assert torch.equal(values.contiguous().view(bits), expected.contiguous().view(bits))


def test_scratch_has_the_shape_and_dtype_asked_for_and_grows():
    scratch = Scratch()
    small = scratch.like(torch.zeros(2, 3), torch.float32)
    assert (small.shape, small.dtype) == ((2, 3), torch.float32)
    large = scratch.like(torch.zeros(50), torch.int64)
    assert (large.shape, large.dtype) == ((50,), torch.int64)
    again = scratch.like(torch.zeros(2, 3), torch.float32)
    assert again.data_ptr() == large.data_ptr()  # one buffer for a role: the small one was let go


def test_scratch_of_two_roles_does_not_overlap():
    scratch, like = Scratch(), torch.zeros(8)
    first = scratch.like(like, torch.float32, role="first").fill_(1)
    scratch.like(like, torch.float32, role="second").fill_(2)
    assert first.tolist() == [1.0] * 8


@pytest.mark.parametrize("start", range(9))
@pytest.mark.parametrize("length", [0, 5, 1023, 1024, 1030, 5000])
def test_true_entries_of_a_piece_are_counted_wherever_it_begins(start: int, length: int) -> None:
    flags = torch.rand(6000, generator=torch.Generator().manual_seed(0)) < 0.3
    piece = flags[start : start + length]
    assert count_true(piece) == sum(piece.tolist())


def test_pieces_of_which_nothing_is_pruned_are_left_as_they_are() -> None:
    block = torch.tensor([float("nan"), -0.0, 1.0])
    zero_pruned_(block, torch.ones(3, dtype=torch.bool), Scratch())
    assert block[0].isnan() and torch.signbit(block[1]) and block[2] == 1
