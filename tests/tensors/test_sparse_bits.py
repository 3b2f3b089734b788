"""Masks survive as bits, in the little-endian order of numpy."""

import numpy as np
import pytest
import torch

from platon_prune.tensors.bits import count_ones, pack_bits, unpack_bits_


@pytest.mark.parametrize("size", range(1, 41))
def test_bits_are_those_of_numpy_and_unpack_to_the_mask(size):
    torch.manual_seed(size)
    mask = torch.rand(size) < 0.5
    packed = pack_bits(mask)
    assert packed.tolist() == np.packbits(mask.numpy(), bitorder="little").tolist()
    restored = torch.rand(size) < 0.5
    unpack_bits_(restored, packed)
    assert torch.equal(restored, mask)


@pytest.mark.parametrize("block", [1, 3, 1000])
def test_any_shape_and_block_size_packs_in_row_order(block, monkeypatch):
    monkeypatch.setattr("platon_prune.tensors.blocks.CPU_BLOCK", block)
    mask = torch.rand(7, 3, 5) < 0.5
    packed = pack_bits(mask)
    assert packed.tolist() == np.packbits(mask.numpy().ravel(), bitorder="little").tolist()
    restored = torch.zeros(7, 3, 5, dtype=torch.bool)
    unpack_bits_(restored, packed)
    assert torch.equal(restored, mask)


def test_a_transposed_mask_packs_in_row_order():
    mask = torch.rand(5, 9) < 0.5
    expected = np.packbits(mask.t().numpy().ravel(), bitorder="little")
    assert pack_bits(mask.t()).tolist() == expected.tolist()


@pytest.mark.parametrize("size", [1, 7, 8, 63, 64, 65, 1000, 4099])
def test_the_bits_that_are_set_are_counted_from_any_place_in_memory(size):
    for share in (0.0, 0.3, 1.0):
        flags = torch.rand(size + 3) < share
        assert count_ones(pack_bits(flags[3:])) == sum(flags[3:].tolist())
