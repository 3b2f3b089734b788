"""Models that torchao has quantised after they were pruned: counted, and refused for pruning."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

import platon_prune

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    torchao = pytest.importorskip("torchao", reason="needs torchao: platon-prune[test]")
    from torchao import quantization

KINDS = [
    "Int8WeightOnlyConfig",
    "Int8DynamicActivationInt8WeightConfig",
    "Float8WeightOnlyConfig",
    "IntxWeightOnlyConfig",
]
KEPT = (32 * 32 + 32 * 8) // 4


def _pruned(*, finalized: bool = True) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 8)).eval()
    platon_prune.global_unstructured(
        model, amount=0.75, total_steps=1, criterion="magnitude"
    ).step()
    return platon_prune.remove(model) if finalized else model


def _quantised(kind: str) -> nn.Module:
    model = _pruned()
    quantization.quantize_(model, getattr(quantization, kind)())
    assert type(model[0].weight) is not nn.Parameter
    return model


@pytest.mark.parametrize("kind", KINDS)
def test_a_summary_counts_what_a_quantised_weight_stands_for(kind):
    rows = platon_prune.summary(_quantised(kind))
    assert [row.shape for row in rows] == [(32, 32), (8, 32)]
    # By magnitude what is kept is far from zero, so that no rounding makes zeros of it.
    assert (rows.total.kept, rows.total.outside) == (KEPT, 0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_quantised_model_is_refused_by_what_it_is_and_not_as_frozen(kind):
    with pytest.raises(ValueError, match=r"0\.weight must be a plain.*before it is quantised"):
        platon_prune.global_unstructured(_quantised(kind), amount=0.5, total_steps=100)


def test_a_model_with_masks_is_to_be_finalized_before_it_is_quantised():
    model = _pruned(finalized=False)
    with pytest.raises(RuntimeError, match="finalize with torch.nn.utils.prune.remove"):
        quantization.quantize_(model, quantization.Int8WeightOnlyConfig())
    assert platon_prune.summary(model).total.kept == KEPT
