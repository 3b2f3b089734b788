"""Mixtures that lost experts are cut to those that are left, and compute what they did."""

import pytest
import torch
from mixtures import SETTINGS, logits, mixture, picked, routers, tokens, train

import platon_prune
from platon_prune import PruningWarning
from platon_prune.export.size_record import SizeRecord, apply_sizes_
from platon_prune.shrinking.even import with_zeros_back

pytest.importorskip("transformers")
FAMILIES = list(SETTINGS)
RUN = {"total_steps": 4, "warmup_steps": 1, "cooldown_steps": 1, "window": 1}
# The first layer loses two of eight at most, so the second one four at least.
DIFFERENT = {"kinds": "experts", "amount": 0.4, "max_amount": {"layers.0.": 0.25}}
KINDS = ("heads", "neurons", "experts")


def close(found, expected):
    return (found - expected).abs().max() <= 1e-5 * expected.abs().max()


def pruned(family, *, kinds=KINDS, amount=0.4, settings=None, **more):
    model = mixture(family, **(settings or {}))
    scheduler = platon_prune.global_structured(model, amount=amount, kinds=kinds, **RUN, **more)
    optimizer = train(model, scheduler, 4)
    return model.eval(), scheduler, optimizer


FOUR = {"kinds": "experts", "min_experts": 4}


def largest(family, **floors):
    """The amount with which every layer is at its floor."""
    scheduler = platon_prune.global_structured(mixture(family), amount=0.1, **RUN, **floors)
    return scheduler.granularity.largest_amount


def counts(model):
    return [router.weight.shape[0] for router in routers(model)]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_mixture_is_trained_shrunk_saved_loaded_and_generated_from(family, tmp_path):
    model, _, optimizer = pruned(family, amount=0.75)
    expected = logits(model)
    said = model.generate(tokens(), max_new_tokens=4, do_sample=False)
    report = platon_prune.shrink(model, optimizer)
    rows = {(row.kind, row.name): row for row in report.places}
    assert any(row.after < row.before for row in report.places if row.kind == "experts")
    assert any(row.after < row.before for row in report.places if row.kind != "experts")
    assert [row.after for (kind, _), row in rows.items() if kind == "experts"] == counts(model)
    assert close(logits(model), expected)
    assert torch.equal(model.generate(tokens(), max_new_tokens=4, do_sample=False), said)
    platon_prune.save(model, tmp_path / "shrunk")
    loaded = platon_prune.load(tmp_path / "shrunk")
    assert torch.equal(logits(loaded), logits(model))
    assert torch.equal(loaded.generate(tokens(), max_new_tokens=4, do_sample=False), said)
    # Nothing of ours is left, and training goes on.
    assert all(not hasattr(router, "pruned_experts") for router in routers(model))
    model.train()
    model(tokens(), labels=tokens()).loss.backward()
    optimizer.step()
    assert logits(model).isfinite().all()


@pytest.mark.parametrize("family", FAMILIES)
def test_equal_numbers_of_experts_are_in_the_config_and_from_pretrained_builds_them(
    family, tmp_path
):
    model, _, _ = pruned(family, amount=largest(family, **FOUR), **FOUR)
    expected = logits(model)
    report = platon_prune.shrink(model)
    assert counts(model) == [4, 4] and report.in_config == ("experts",)
    assert model.config.num_local_experts == 4
    assert close(logits(model), expected)
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    assert torch.equal(logits(loaded), logits(model))


def test_the_config_tells_experts_and_their_neurons_together(tmp_path):
    floors = {"kinds": ("experts", "neurons"), "min_experts": 4, "min_neurons": 0.66}
    model, _, _ = pruned("Mixtral", amount=largest("Mixtral", **floors), **floors)
    expected = logits(model)
    report = platon_prune.shrink(model)
    # Four of eight experts, 16 of 24 neurons: what the floors leave.
    assert report.in_config == ("experts", "neurons")
    assert (model.config.num_local_experts, model.config.intermediate_size) == (4, 16)
    model.save_pretrained(tmp_path)
    assert close(logits(type(model).from_pretrained(tmp_path)), expected)


def test_a_masked_mixture_loses_as_many_experts_as_its_masks_say_and_no_more():
    model, scheduler, _ = pruned("Qwen3Moe", kinds="experts")
    masks = scheduler.masks()
    left = [
        int(masks[place.members[0].name].any(dim=(1, 2)).sum())
        for place in scheduler.granularity.groups
    ]
    platon_prune.shrink(model)
    assert counts(model) == left and min(left) >= 2


def test_a_finalized_mixture_is_shrunk_and_shrunk_again():
    model, _, _ = pruned("Olmoe", kinds="experts")
    platon_prune.remove(model)
    expected = logits(model)
    platon_prune.shrink(model)
    assert close(logits(model), expected) and min(counts(model)) < 8
    scheduler = platon_prune.global_structured(model, amount=0.2, kinds="experts", **RUN)
    train(model, scheduler, 4)
    expected, before = logits(model), sum(counts(model))
    platon_prune.shrink(model)
    assert close(logits(model), expected) and sum(counts(model)) < before


def test_experts_of_zeros_that_tokens_go_to_stay():
    model = mixture("Mixtral")
    with torch.no_grad():
        for layer in model.model.layers:
            for tensor in layer.mlp.parameters():
                tensor[:3] = 0
    expected = logits(model)
    with pytest.raises(ValueError, match="of which nothing is left"):
        platon_prune.shrink(model)
    assert torch.equal(logits(model), expected)


def test_a_correction_is_cut_with_its_experts():
    model, scheduler, _ = pruned("DeepseekV3", kinds="experts")
    kept = [
        scheduler.masks()[place.members[0].name].any(dim=(1, 2))
        for place in scheduler.granularity.groups
    ]
    before = [router.e_score_correction_bias.clone() for router in routers(model)]
    platon_prune.shrink(model)
    for router, bias, left in zip(routers(model), before, kept, strict=True):
        assert torch.equal(router.e_score_correction_bias, bias[left])


def test_shrink_says_that_no_loss_balances_different_numbers_of_experts():
    model, _, _ = pruned("Mixtral", settings={"output_router_logits": True}, **DIFFERENT)
    assert len(set(counts_by_masks(model))) > 1
    with pytest.warns(PruningWarning, match="auxiliary loss that balances them is not to be had"):
        platon_prune.shrink(model)
    assert len(set(counts(model))) > 1
    assert model(tokens(), labels=tokens()).loss.isfinite()


def counts_by_masks(model):
    return [int(router.weight.any(dim=1).sum()) for router in routers(model)]


def test_a_loss_that_balances_equal_numbers_of_experts_stays():
    model, _, _ = pruned(
        "Mixtral", settings={"output_router_logits": True}, amount=largest("Mixtral", **FOUR),
        **FOUR,
    )  # fmt: skip
    platon_prune.shrink(model)
    assert model.num_experts == 4 and model.config.output_router_logits
    assert model(tokens(), labels=tokens()).aux_loss.isfinite()


def test_uniform_fills_layers_up_with_experts_that_no_token_goes_to(tmp_path):
    model, _, _ = pruned("Mixtral", **DIFFERENT)
    expected, left = logits(model), counts_by_masks(model)
    assert len(set(left)) > 1
    with pytest.warns(PruningWarning, match="experts of zeros"):
        platon_prune.shrink(model, uniform=True)
    assert counts(model) == [max(left)] * 2 and model.config.num_local_experts == max(left)
    assert close(logits(model), expected)
    with pytest.warns(PruningWarning, match="pruned experts are saved as zeros"):
        model.save_pretrained(tmp_path)


def test_zeros_are_not_put_back_for_experts_that_tokens_would_go_to():
    model, _, _ = pruned("Mixtral", **DIFFERENT)
    platon_prune.shrink(model)
    with pytest.raises(ValueError, match="as many experts in each layer .* with 6 of 8"):
        with_zeros_back(model)


@pytest.mark.parametrize(
    "sizes",
    [
        {"gate.weight": (4, 16)},
        {"gate.weight": (5, 16), "experts.gate_up_proj": (4, 48, 16)}
        | {"experts.down_proj": (4, 16, 24)},
        # Each token goes to two.
        {"gate.weight": (1, 16), "experts.gate_up_proj": (1, 48, 16)}
        | {"experts.down_proj": (1, 16, 24)},
    ],
)
def test_a_record_of_sizes_that_a_mixture_can_not_have_is_refused(sizes):
    record = SizeRecord({f"model.layers.0.mlp.{name}": shape for name, shape in sizes.items()})
    with pytest.raises(ValueError, match="as many experts in its router as matrices"):
        apply_sizes_(mixture("Mixtral"), record, "a file")


def test_the_survivors_are_picked_by_all_tokens():
    model, _, _ = pruned("GraniteMoe", kinds="experts")
    platon_prune.shrink(model)
    for chosen, count in zip(picked(model), counts(model), strict=True):
        assert chosen <= set(range(count))
