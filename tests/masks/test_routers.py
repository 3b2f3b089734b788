"""Routers that pass over pruned experts give what they would give without their rows."""

import copy
import functools
import importlib
import io
from types import SimpleNamespace

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from platon_prune.masks.routers import (
    OUT,
    forget_pruned_,
    known_router,
    pass_over_pruned_,
    pruned_experts,
)
from platon_prune.mixtures import CORRECTION, ROUTERS
from platon_prune.spellings import NUM_EXPERTS

transformers = pytest.importorskip("transformers")
CLASSES = [name for router in ROUTERS for name in router.classes]
KEPT = torch.tensor([0, 2, 3, 4, 5, 7])  # three of each of two routing groups
PRUNED = torch.tensor([False, True, False, False, False, False, True, False])


# Where transformers defines the classes, as far as their names do not tell.
FOLDERS = {"DeepseekV3": "deepseek_v3", "ExaoneMoe": "exaone_moe", "FlexOlmo": "flex_olmo"}
FOLDERS |= {"Glm4Moe": "glm4_moe", "Glm4MoeLite": "glm4_moe_lite", "Glm4vMoeText": "glm4v_moe"}
FOLDERS |= {"GptOss": "gpt_oss", "Qwen2Moe": "qwen2_moe", "Qwen3Moe": "qwen3_moe"}
FOLDERS |= {"Qwen3Next": "qwen3_next", "Qwen3_5Moe": "qwen3_5_moe", "SolarOpen": "solar_open"}
FOLDERS |= {"Qwen3VLMoeText": "qwen3_vl_moe", "Qwen3OmniMoeText": "qwen3_omni_moe"}


@functools.cache
def class_named(name):
    stem = name.lower().removesuffix("topkrouter")
    folder = FOLDERS.get(name[: len(stem)], stem)
    path = f"transformers.models.{folder}.modeling_{folder}"
    return getattr(importlib.import_module(path), name)


def router(name, **settings):
    torch.manual_seed(0)
    counts = dict.fromkeys(NUM_EXPERTS, 8)
    config = {"num_experts_per_tok": 2, "hidden_size": 4, "norm_topk_prob": False, "n_group": 2}
    config |= {"topk_group": 1, "routed_scaling_factor": 2.5, **counts, **settings}
    made = class_named(name)(SimpleNamespace(**config))
    for tensor in (*made.parameters(), *made.buffers()):
        tensor.data.normal_()
    return made


def without_rows(made):
    """The router as its class makes it of the rows that are kept."""
    cut = copy.deepcopy(made)
    for tensor in (*cut.parameters(), *cut.buffers()):
        tensor.data = tensor.data[KEPT]
    cut.num_experts = len(KEPT)
    return cut


def by_expert(weights, indices):
    """The weight of each expert, zero where a token does not go: the order of picks is free."""
    return torch.zeros(len(weights), 8).scatter(1, indices, weights.float())


@pytest.mark.parametrize("divides", [False, True])
@pytest.mark.parametrize("name", CLASSES)
def test_a_router_gives_what_it_gives_without_the_rows_of_pruned_experts(name, divides):
    made, states = router(name, norm_topk_prob=divides), torch.randn(40, 4)
    logits, weights, indices = without_rows(made)(states)
    own = made(states)
    pass_over_pruned_(made, PRUNED)
    found = made(states)
    assert torch.equal(found[0][:, KEPT], own[0][:, KEPT]) and logits.isfinite().all()
    assert found[0][:, PRUNED].eq(-torch.inf).all()
    assert found[1].dtype == weights.dtype and found[2].dtype == indices.dtype
    expected = by_expert(weights, KEPT[indices])
    assert torch.allclose(by_expert(*found[1:3]), expected, atol=1e-6, rtol=0)
    # A check of the check: without the hook some token goes to a pruned expert.
    assert by_expert(*own[1:3])[:, PRUNED].any()


@pytest.mark.parametrize("name", CLASSES)
def test_a_router_without_pruned_experts_gives_its_own_outputs_to_the_bit(name):
    made, states = router(name, norm_topk_prob=True), torch.randn(40, 4)
    expected = made(states)
    pass_over_pruned_(made, torch.zeros(8, dtype=torch.bool))
    found = made(states)
    assert torch.equal(found[0], expected[0])
    assert torch.equal(by_expert(*found[1:3]), by_expert(*expected[1:3]))


def test_a_router_passes_over_pruned_experts_in_half_precision():
    made = router("MixtralTopKRouter").bfloat16()
    pass_over_pruned_(made, PRUNED)
    _, weights, indices = made(torch.randn(40, 4).bfloat16())
    assert not torch.isin(indices, torch.tensor([1, 6])).any()
    plain = router("MixtralTopKRouter").bfloat16()
    assert weights.dtype == plain(torch.randn(1, 4).bfloat16())[1].dtype


def test_a_copy_and_a_pickle_pass_over_the_same_experts():
    made, states = router("MixtralTopKRouter"), torch.randn(40, 4)
    pass_over_pruned_(made, PRUNED)
    expected = made(states)
    file = io.BytesIO()
    torch.save(made, file)
    file.seek(0)
    for other in (copy.deepcopy(made), torch.load(file, weights_only=False)):
        assert all(torch.equal(*pair) for pair in zip(other(states), expected, strict=True))
        assert torch.equal(pruned_experts(other), PRUNED)


def test_no_gradient_comes_to_a_pruned_row_and_the_others_have_theirs():
    made = router("Qwen3MoeTopKRouter")
    pass_over_pruned_(made, PRUNED)
    made(torch.randn(40, 4))[1].square().sum().backward()
    assert not made.weight.grad[PRUNED].any() and made.weight.grad.isfinite().all()
    assert made.weight.grad[KEPT].any(dim=1).all()


def test_a_router_that_forgets_is_as_it_was():
    made, states = router("GptOssTopKRouter"), torch.randn(40, 4)
    keys, expected = made.state_dict().keys(), made(states)
    pass_over_pruned_(made, PRUNED)
    assert made.state_dict().keys() == keys
    forget_pruned_(made)
    assert not hasattr(made, OUT) and not made._forward_hooks
    assert all(torch.equal(*pair) for pair in zip(made(states), expected, strict=True))


def test_one_graph_serves_all_choices_under_compile():
    made, states = router("DeepseekV3TopkRouter"), torch.randn(40, 4)
    pass_over_pruned_(made, torch.zeros(8, dtype=torch.bool))
    graphs = CompileCounter()
    compiled = torch.compile(made, backend=graphs, fullgraph=True)
    compiled(states)
    first = graphs.frame_count
    getattr(made, OUT).copy_(PRUNED)
    assert not torch.isin(compiled(states)[2], torch.tensor([1, 6])).any()
    assert graphs.frame_count == first > 0


def test_the_table_names_classes_of_routers_once_and_what_they_are_corrected_by():
    assert len(CLASSES) == len(set(CLASSES))
    for name in CLASSES:
        made = router(name)
        assert known_router(made) is not None
        is_corrected = known_router(made).rule == "sigmoid"
        assert hasattr(made, CORRECTION) == is_corrected
