"""LoRA by peft on a sparse base: what is merged keeps the zeros of the base, and says so."""

from __future__ import annotations

import pytest
import torch
from tiny_trainer import SELECTED, small_bert, zeros_of
from torch import nn

import platon_prune
from platon_prune import PruningWarning

peft = pytest.importorskip("peft", reason="needs peft: platon-prune[test]")
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")

PRUNED = SELECTED // 2


def _sparse() -> nn.Module:
    model = small_bert()
    scheduler = platon_prune.global_unstructured(
        model, amount=0.5, total_steps=1, criterion="magnitude"
    )
    scheduler.step()
    return platon_prune.remove(model)


def _train_adapters(model: nn.Module) -> nn.Module:
    adapted = peft.get_peft_model(
        model, peft.LoraConfig(target_modules=["query", "dense"], r=2, task_type="SEQ_CLS")
    )
    trained = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.1)
    for _ in range(2):
        adapted(input_ids=torch.ones(2, 4, dtype=torch.long)).logits.square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return adapted


@pytest.mark.parametrize("safe", [False, True])
def test_a_merge_into_an_adopted_base_keeps_its_zeros_and_says_how_many_it_filled(safe):
    model = _sparse()
    scheduler = platon_prune.adopt_zeros(model)
    masks = scheduler.masks()
    merged = _train_adapters(model).merge_and_unload(safe_merge=safe)
    outside = platon_prune.summary(merged).total.outside
    assert outside > 0 and f"{outside:,} outside their mask" in str(platon_prune.summary(merged))
    with pytest.warns(PruningWarning, match=f"^{outside} pruned weights were filled in.*merge"):
        platon_prune.remove(merged)
    for name, mask in masks.items():
        assert not merged.get_parameter(name)[~mask].any()
    assert zeros_of(merged) == PRUNED


def test_a_merged_model_that_still_has_its_masks_is_saved_with_its_zeros(tmp_path):
    model = _sparse()
    platon_prune.adopt_zeros(model)
    merged = _train_adapters(model).merge_and_unload()
    with pytest.warns(PruningWarning, match="are saved as zeros"):
        merged.save_pretrained(tmp_path)
    assert zeros_of(type(model).from_pretrained(tmp_path)) == PRUNED


def test_the_optimizer_of_the_adapters_may_drive_the_scheduler_of_the_base():
    model = _sparse()
    scheduler = platon_prune.adopt_zeros(model)
    adapted = _train_adapters(model)
    scheduler.step()  # the base is frozen by now
    scheduler.remove()
    assert zeros_of(adapted.unload()) == PRUNED


def test_a_merged_model_that_is_frozen_gets_one_error_that_leads_to_the_end():
    merged = _train_adapters(_sparse()).merge_and_unload()
    settings = dict(amount=0.5, total_steps=2, warmup_steps=0, cooldown_steps=0, window=1)
    with pytest.raises(ValueError, match=r"\d+ of 12 frozen.*model\.requires_grad_\(True\)"):
        platon_prune.global_unstructured(merged, **settings)
    merged.requires_grad_(True)  # as it says
    scheduler = platon_prune.global_unstructured(merged, **settings)
    for _ in range(2):
        merged(input_ids=torch.ones(2, 4, dtype=torch.long)).logits.square().sum().backward()
        scheduler.step()
    assert zeros_of(platon_prune.remove(merged)) == PRUNED


def test_adapters_on_the_model_lead_to_adopting_before_them():
    adapted = _train_adapters(_sparse())
    with pytest.raises(ValueError, match=r"merge them first.*adopt_zeros\(base\) before the adapt"):
        platon_prune.adopt_zeros(adapted)
