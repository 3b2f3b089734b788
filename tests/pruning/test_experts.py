"""Experts of mixtures are pruned while the model is trained, and no token goes to a pruned one."""

import copy
import io

import pytest
import torch
from mixtures import SETTINGS, logits, mixture, picked, routers, tokens, train

import platon_prune
from platon_prune import PruningWarning
from platon_prune.groups.find import find
from platon_prune.masks.routers import pruned_experts

pytest.importorskip("transformers")
FAMILIES = list(SETTINGS)
RUN = {"total_steps": 4, "warmup_steps": 1, "cooldown_steps": 1, "window": 1}


def pruned(family="Mixtral", amount=0.4, kinds="experts", **settings):
    """A trained mixture with its masks, and its scheduler."""
    model = mixture(family)
    scheduler = platon_prune.global_structured(model, amount=amount, kinds=kinds, **RUN, **settings)
    train(model, scheduler, 4)
    return model.eval(), scheduler


def gone(scheduler):
    """The pruned experts of each layer, by the masks of its matrices."""
    masks = scheduler.masks()
    found = []
    for place in scheduler.granularity.groups:
        if place.kind == "experts":
            kept = masks[place.members[0].name].any(dim=(1, 2))
            found.append(set((~kept).nonzero().flatten().tolist()))
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_an_expert_is_its_slices_and_its_row_of_the_router(family):
    model = mixture(family)
    places = [place for place in find(model, kinds="experts").groups]
    assert [place.size for place in places] == [8, 8]
    names = {member.name.rpartition("mlp.")[2] for member in places[0].members}
    names = {name.rpartition("block_sparse_moe.")[2] for name in names}
    router = "router" if family in ("GptOss", "GraniteMoe") else "gate"
    expected = {"experts.gate_up_proj", "experts.down_proj", f"{router}.weight"}
    if family == "GptOss":
        expected |= {"experts.gate_up_proj_bias", "experts.down_proj_bias", "router.bias"}
    assert names == expected
    assert all(m.dim == 0 and m.group_of.tolist() == list(range(8)) for m in places[0].members)
    # Two experts for each token; two of each of two routing groups.
    assert places[0].least == (4 if family == "DeepseekV3" else 2)


def test_experts_are_found_only_where_they_are_named():
    assert {place.kind for place in platon_prune.find_groups(mixture("Mixtral"))} == {
        "heads",
        "neurons",
    }


@pytest.mark.parametrize("family", FAMILIES)
def test_no_token_goes_to_a_pruned_expert(family):
    model, scheduler = pruned(family)
    out = gone(scheduler)
    assert any(out)
    assert all(not chosen & experts for chosen, experts in zip(picked(model), out, strict=True))
    for router, experts in zip(routers(model), out, strict=True):
        assert not router.weight[list(experts)].any()
        assert set(pruned_experts(router).nonzero().flatten().tolist()) == experts


def test_a_model_with_no_expert_pruned_yet_computes_what_it_did():
    model = mixture("DeepseekV3")
    expected = logits(model)
    platon_prune.global_structured(model, amount=0.4, kinds="experts", **RUN)
    assert torch.equal(logits(model), expected)


def test_experts_compete_with_heads_and_neurons_of_all_layers():
    _, scheduler = pruned("Qwen3Moe", kinds=("heads", "neurons", "experts"))
    kinds = [place.kind for place in scheduler.granularity.groups]
    assert sorted(kinds) == sorted(["heads", "neurons", "experts"] * 2)
    assert abs(scheduler.sparsity() - 0.4) <= scheduler.granularity.tolerance + 1e-9


@pytest.mark.parametrize("family", ["Mixtral", "DeepseekV3"])
def test_each_mixture_keeps_its_floor(family):
    model = mixture(family)
    settings = {"kinds": "experts", "total_steps": 12, "window": 2}
    needed = 4 if family == "DeepseekV3" else 2
    scheduler = platon_prune.global_structured(model, amount=0.2, **settings)
    assert scheduler.granularity.floors == (needed, needed)
    scheduler.remove()
    scheduler = platon_prune.global_structured(model, amount=0.2, min_experts=5, **settings)
    # Of two routing groups each keeps three.
    assert set(scheduler.granularity.floors) == ({6} if family == "DeepseekV3" else {5})
    scheduler.remove()
    with pytest.raises(ValueError, match="amount must be at most .*min_experts"):
        platon_prune.global_structured(model, amount=0.9, **settings)
    with pytest.raises(ValueError, match="min_experts must be a count of at least 1, got 0.5"):
        platon_prune.global_structured(model, amount=0.2, min_experts=0.5, **settings)


@pytest.mark.parametrize("amount", [0.2, 0.35, 0.5])
def test_routing_groups_keep_equal_numbers_of_experts(amount):
    _, scheduler = pruned("DeepseekV3", amount=amount)
    for experts in gone(scheduler):
        assert sum(expert < 4 for expert in experts) == sum(expert >= 4 for expert in experts)


def test_experts_cost_no_multiply_adds():
    with pytest.raises(ValueError, match='budget must be "parameters" for kinds with "experts"'):
        platon_prune.global_structured(
            mixture("Mixtral"), {"input_ids": tokens()}, amount=0.2, kinds="experts",
            budget="macs", total_steps=12, window=2,
        )  # fmt: skip


def test_a_mixture_whose_tokens_need_all_experts_is_named():
    model = mixture("Mixtral", num_local_experts=2)
    with pytest.raises(ValueError, match=r"layers.0.mlp .*each token needs 2 of its 2 experts"):
        platon_prune.global_structured(model, amount=0.2, kinds="experts", **RUN)


# --- what becomes of a run ----------------------------------------------------------------------


def test_a_finalized_model_passes_over_pruned_experts_and_goes_on_doing_so():
    # In this masking weights are refilled between choices, which no mask must hide.
    model, scheduler = pruned(masking="window")
    expected, out = logits(model), gone(scheduler)
    platon_prune.remove(model)
    assert torch.equal(logits(model), expected)
    # Trained further, zeros of the router grow again; no token comes of it.
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with torch.no_grad():
        for router in routers(model):
            router.weight += 1.0
    model(tokens(), labels=tokens()).loss.backward()
    optimizer.step()
    assert all(not chosen & experts for chosen, experts in zip(picked(model), out, strict=True))


def test_what_is_removed_before_a_choice_leaves_nothing_behind():
    model = mixture("Mixtral")
    hooks = [len(router._forward_hooks) for router in routers(model)]
    platon_prune.global_structured(model, amount=0.4, kinds="experts", **RUN).remove()
    assert [len(router._forward_hooks) for router in routers(model)] == hooks


def test_a_copy_and_a_pickle_compute_what_the_pruned_model_does():
    model, _ = pruned("GptOss")
    expected = logits(model)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for other in (copy.deepcopy(model), torch.load(file, weights_only=False)):
        assert torch.equal(logits(other), expected)
        platon_prune.remove(other)
        assert torch.equal(logits(other), expected)


def test_a_resumed_run_passes_over_what_was_pruned_and_chooses_alike():
    whole, expected = pruned("Qwen3Moe")
    model = mixture("Qwen3Moe")
    settings = {"amount": 0.4, "kinds": "experts", **RUN}
    scheduler = platon_prune.global_structured(model, **settings)
    optimizer = train(model, scheduler, 3)
    states = [copy.deepcopy(part.state_dict()) for part in (model, scheduler, optimizer)]
    again = mixture("Qwen3Moe")
    resumed = platon_prune.global_structured(again, **settings)
    again.load_state_dict(states[0])
    resumed.load_state_dict(states[1])
    assert torch.equal(logits(again), logits(model))
    assert gone(resumed) == gone(scheduler) and any(gone(resumed))
    optimizer = torch.optim.AdamW(again.parameters(), lr=1e-2)
    optimizer.load_state_dict(states[2])
    again.train()
    again(tokens(), labels=tokens()).loss.backward()
    optimizer.step()
    resumed.step()
    assert gone(resumed) == gone(expected)
    assert torch.equal(logits(again), logits(whole))


def test_an_average_of_weights_passes_over_what_the_scheduler_pruned():
    model = mixture("Mixtral")
    scheduler = platon_prune.global_structured(model, amount=0.4, kinds="experts", **RUN)
    average = torch.optim.swa_utils.AveragedModel(model)
    train(model, scheduler, 4)
    average.update_parameters(model)
    platon_prune.apply_masks(average, scheduler)
    out = gone(scheduler)
    assert any(out)
    assert all(not chosen & experts for chosen, experts in zip(picked(average), out, strict=True))


def test_save_pretrained_of_a_masked_mixture_warns(tmp_path):
    model, _ = pruned()
    for part in (model, platon_prune.remove(copy.deepcopy(model))):
        with pytest.warns(PruningWarning, match="pruned experts are saved as zeros") as told:
            part.save_pretrained(tmp_path)
        assert len(told) == 1


def test_a_sparse_folder_of_a_mixture_that_was_not_shrunk_passes_over_its_zeros(tmp_path):
    model, scheduler = pruned("DeepseekV3")
    expected, out = logits(model), gone(scheduler)
    platon_prune.save(model, tmp_path / "sparse")
    loaded = platon_prune.load(tmp_path / "sparse")
    assert torch.equal(logits(loaded), expected)
    assert all(not chosen & experts for chosen, experts in zip(picked(loaded), out, strict=True))
    with pytest.warns(PruningWarning, match="pruned experts are saved as zeros"):
        loaded.save_pretrained(tmp_path / "plain")


def test_losses_that_balance_experts_see_no_pruned_one():
    model, scheduler = pruned()
    found = model(tokens(), output_router_logits=True).router_logits
    for layer, experts in zip(found, gone(scheduler), strict=True):
        assert layer[:, list(experts)].eq(-torch.inf).all()
    assert model(tokens(), output_router_logits=True).aux_loss.isfinite()
