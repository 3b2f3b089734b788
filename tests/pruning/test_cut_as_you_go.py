"""What is pruned is cut out during training, which goes on as if it was merely masked."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from tiny_blocks import built, go_on, output
from tiny_shrink import images, resnet
from torch import nn

import platon_prune

RUN = dict(total_steps=12, window=2, warmup_steps=2, cooldown_steps=4)
SETTINGS: dict[str, dict[str, object]] = {
    "Llama": dict(amount=0.5),
    "GPT-2": dict(amount=0.5, kinds=["heads", "neurons", "blocks"], masking="window"),
    "OLMo 2": dict(amount=0.4, kinds="heads"),
}
FAMILIES = ["Llama", "GPT-2"]
quiet = pytest.mark.filterwarnings("ignore:(left out of pruning|at their floor)")


def set_up(
    name: str, **settings: object
) -> tuple[nn.Module, platon_prune.PlatonScheduler, torch.optim.Optimizer]:
    model = built(name)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    settings = RUN | SETTINGS[name] | settings
    scheduler = platon_prune.global_structured(model, optimizer=optimizer, **settings)
    return model, scheduler, optimizer


def num_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


# --- the run goes on ------------------------------------------------------------------------------


@quiet
@pytest.mark.parametrize("name", FAMILIES)
def test_a_run_that_is_cut_as_it_goes_ends_as_one_that_is_cut_in_the_end(name: str) -> None:
    # Nothing comes back in these runs, so that all choices are the same.
    whole, scheduler, optimizer = set_up(name)
    go_on(whole, scheduler, optimizer, 12)
    assert all(choice.came_back == 0 for choice in scheduler.history)
    sparsity = scheduler.sparsity()
    platon_prune.shrink(whole, optimizer)

    model, scheduler, optimizer = set_up(name, cut_after=1)
    sizes = []
    for _ in range(6):
        go_on(model, scheduler, optimizer, 2)
        sizes.append(num_parameters(model))
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] < num_parameters(built(name))
    assert scheduler.sparsity() == pytest.approx(sparsity, abs=1e-9)
    platon_prune.remove(model)
    assert sizes[-1] == num_parameters(whole)
    found, expected = output(model), output(whole)
    assert float((found - expected).abs().max()) <= 1e-4 * float(expected.abs().max())


@quiet
@pytest.mark.parametrize("name", ["OLMo 2", "GPT-2"])
def test_a_cut_by_hand_changes_no_output_and_keeps_what_was_learnt(name: str) -> None:
    model, scheduler, optimizer = set_up(name)
    go_on(model, scheduler, optimizer, 9)
    expected = output(model)
    scores = {key: scheduler.score(key) for key in scheduler.masks()}
    step, threshold, sparsity = scheduler.last_step, scheduler.threshold, scheduler.sparsity()
    before = num_parameters(model)
    report = scheduler.cut()
    assert report.parameters_before == before > report.parameters_after == num_parameters(model)
    found = output(model)
    assert float((found - expected).abs().max()) <= 1e-5 * float(expected.abs().max())
    assert (scheduler.last_step, scheduler.threshold) == (step, threshold)
    assert scheduler.sparsity() == pytest.approx(sparsity, abs=1e-9)
    for parameter, state in optimizer.state.items():
        assert state["exp_avg"].shape == parameter.shape
    # Every score that is left was there before, in its tensor or in that of a later layer.
    pool = {float(value) for each in scores.values() for value in each.flatten()}
    for key in scheduler.masks():
        left = scheduler.score(key)
        assert left.shape == scheduler.masks()[key].shape
        assert {float(value) for value in left.flatten()} <= pool
    assert scheduler.cut().parameters_after == num_parameters(model)  # there is nothing more
    go_on(model, scheduler, optimizer, 3)
    assert scheduler.history[-1].sparsity == pytest.approx(scheduler.sparsity(), abs=1e-3)


def test_what_was_cut_counts_as_pruned_in_the_history_and_under_its_first_name() -> None:
    runs = []
    for cut_after in (None, 1):
        model, scheduler, optimizer = set_up("Llama", cut_after=cut_after)
        go_on(model, scheduler, optimizer, 12)
        runs.append(scheduler.history)
    for masked, cut in zip(*runs, strict=True):
        assert (masked.step, masked.amount, masked.sparsities) == (
            cut.step, cut.amount, cut.sparsities,
        )  # fmt: skip


@pytest.mark.parametrize("cut_after", [1, 2])
def test_a_group_is_cut_once_it_stayed_out_for_so_many_choices(cut_after: int) -> None:
    model, scheduler, optimizer = set_up("Llama", cut_after=cut_after)
    whole = num_parameters(model)
    first = next(t for t in range(1, 13) if scheduler.schedule.amount_at(t) > 0.02 and t % 2 == 0)
    go_on(model, scheduler, optimizer, first)
    assert scheduler.sparsity() > 0
    assert (num_parameters(model) < whole) == (cut_after == 1)
    go_on(model, scheduler, optimizer, 2)
    assert num_parameters(model) < whole


# --- saving ---------------------------------------------------------------------------------------


@quiet
@pytest.mark.parametrize("name", ["OLMo 2", "GPT-2"])
def test_a_run_is_resumed_bit_by_bit_after_cuts(name: str) -> None:
    model, scheduler, optimizer = set_up(name, cut_after=2)
    go_on(model, scheduler, optimizer, 9)
    file = io.BytesIO()
    parts = {"model": model, "optimizer": optimizer, "scheduler": scheduler}
    torch.save({key: part.state_dict() for key, part in parts.items()}, file)
    go_on(model, scheduler, optimizer, 3)

    file.seek(0)
    saved = torch.load(file, weights_only=True)
    again, resumed, its_optimizer = set_up(name, cut_after=2)
    with pytest.raises(ValueError, match=r"call scheduler.cut_like\(state\)"):
        resumed.load_state_dict(saved["scheduler"])
    resumed.cut_like(saved["scheduler"])
    again.load_state_dict(saved["model"])
    its_optimizer.load_state_dict(saved["optimizer"])
    resumed.load_state_dict(saved["scheduler"])
    go_on(again, resumed, its_optimizer, 3)
    for key, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[key], value), key
    assert [*map(str, resumed.history)] == [*map(str, scheduler.history)]
    assert str(resumed.state_dict()["cuts"]) == str(scheduler.state_dict()["cuts"])


def test_a_state_of_an_uncut_run_has_no_word_of_cuts_and_loads_as_before() -> None:
    model, scheduler, optimizer = set_up("Llama")
    go_on(model, scheduler, optimizer, 6)
    state = scheduler.state_dict()
    assert "cuts" not in state
    _, other, _ = set_up("Llama")
    other.cut_like(state)
    other.load_state_dict(state)
    assert other.last_step == 6


def test_a_scheduler_whose_model_was_cut_can_be_copied() -> None:
    model, scheduler, optimizer = set_up("Llama", cut_after=1)
    go_on(model, scheduler, optimizer, 10)
    copied_model, copied = copy.deepcopy((model, scheduler))
    assert copied.optimizer is None and copied.last_step == 10
    assert pickle.loads(pickle.dumps(scheduler)).last_step == 10
    assert torch.equal(output(copied_model), output(model))


# --- what can't be --------------------------------------------------------------------------------


def test_what_can_not_cut_says_so() -> None:
    network = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2))
    unstructured = platon_prune.global_unstructured(network, amount=0.5, total_steps=20, window=2)
    with pytest.raises(RuntimeError, match="set pruning up with global_structured"):
        unstructured.cut()
    for settings, error, message in (
        (dict(cut_after=0), ValueError, "cut_after must be a count of choices of at least 1"),
        (dict(cut_after=1.5), ValueError, "cut_after must be a count"),
        (dict(cut_after=1, mask_history="masks"), ValueError, "mask_history must be None with"),
        (dict(optimizer=3), TypeError, "optimizer must be a torch.optim.Optimizer"),
    ):
        with pytest.raises(error, match=message):
            platon_prune.global_structured(built("Llama"), **{**RUN, "amount": 0.5, **settings})


def test_cutting_by_itself_needs_an_optimizer_before_the_first_step() -> None:
    model = built("Llama")
    scheduler = platon_prune.global_structured(model, amount=0.5, cut_after=1, **RUN)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    with pytest.raises(RuntimeError, match=r"give global_structured optimizer=..., set"):
        go_on(model, scheduler, optimizer, 1)
    scheduler.optimizer = optimizer
    go_on(model, scheduler, optimizer, 12)
    assert num_parameters(model) < num_parameters(built("Llama"))


def test_an_optimizer_that_is_followed_is_cut_along() -> None:
    model = built("Llama")
    scheduler = platon_prune.global_structured(model, amount=0.5, cut_after=1, **RUN)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    scheduler.step_with(optimizer)
    go_on(model, None, optimizer, 12)
    assert num_parameters(model) < num_parameters(built("Llama"))


def test_an_optimizer_whose_state_can_not_be_cut_leaves_all_as_it_was() -> None:
    model, scheduler, _ = set_up("Llama")
    go_on(model, scheduler, torch.optim.AdamW(model.parameters(), lr=1e-3), 9)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    strange = torch.optim.SGD(model.parameters(), lr=0.1)
    strange.state[next(model.parameters())]["old"] = [torch.ones(2)]
    with pytest.raises(ValueError, match="optimizer must keep tensors and numbers"):
        scheduler.cut(strange)
    assert all(torch.equal(model.state_dict()[key], value) for key, value in state.items())
    scheduler.step(skipped=True)


def test_channels_are_cut_with_their_norms_and_training_goes_on() -> None:
    torch.manual_seed(0)
    model, pictures = resnet().train(), images()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    scheduler = platon_prune.global_structured(
        model, pictures, amount=0.5, optimizer=optimizer, cut_after=2, **RUN
    )

    def steps(count: int) -> None:
        for _ in range(count):
            model(pictures).square().mean().backward()
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()

    before = num_parameters(model)
    steps(8)
    assert num_parameters(model) < before
    expected = model.eval()(pictures).detach()
    scheduler.cut()
    found = model(pictures).detach()
    assert float((found - expected).abs().max()) <= 1e-5 * float(expected.abs().max())
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean.shape == module.weight.shape
    model.train()
    steps(4)
    sparsity = scheduler.sparsity()
    assert sparsity == pytest.approx(scheduler.target_sparsity, abs=scheduler.granularity.tolerance)
