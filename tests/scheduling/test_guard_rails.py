"""A run that does not keep to its schedule, or to its model, says so: once, at the user's line."""

import copy
import io
import pickle
import warnings

import pytest
import torch
from tiny import sample, sites
from torch import nn
from torch.nn.utils import prune

import platon_prune
from platon_prune import PlatonUnstructured, PruningWarning

# Ramp from step 4 to step 16, a choice every other step.
LENGTHS = dict(total_steps=20, warmup_steps=4, cooldown_steps=4, window=2)
WEIGHTS = 4 * 8 + 8 * 4
DOORS = {
    "unstructured": lambda model, **changes: platon_prune.global_unstructured(
        model, **dict(amount=0.75) | LENGTHS | changes
    ),
    "n of m": lambda model, **changes: platon_prune.semi_structured(model, **LENGTHS | changes),
    "structured": lambda model, **changes: platon_prune.global_structured(
        model, torch.ones(1, 4), **dict(amount=0.5) | LENGTHS | changes
    ),
}
REMOVALS = {
    "platon_prune.remove": lambda model, scheduler: platon_prune.remove(model),
    "scheduler.remove": lambda model, scheduler: scheduler.remove(),
    "torch's remove": lambda model, scheduler: [prune.remove(*site) for site in list(sites(model))],
}


def _model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4))


def _train(model, scheduler, steps, optimizer=None):
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(steps):
        (model(sample(8, 4)) - 1).square().mean().backward()
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()


def _caught(act):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", PruningWarning)
        act()
    return [each for each in caught if issubclass(each.category, PruningWarning)]


# --- shorter than the schedule --------------------------------------------------------------


@pytest.mark.case
@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("remove", REMOVALS)
def test_masks_that_are_removed_before_the_final_amount_are_warned_about_once(door, remove):
    model = _model()
    scheduler = DOORS[door](model)
    _train(model, scheduler, 7)
    final = {"unstructured": 0.75, "n of m": 1.0, "structured": 0.5}[door]
    reached = final - final * (1 - (6 - 4) / 12) ** 3  # of the choice at step 6
    (warning,) = _caught(lambda: REMOVALS[remove](model, scheduler))
    said = f"step 7 of 20: {100 * reached:.3g} % pruned of {100 * final:g} %, which step 16 would"
    assert said in str(warning.message)
    assert warning.filename == __file__
    assert not prune.is_pruned(model)


def test_the_warning_as_an_error_comes_before_anything_is_changed_and_only_once():
    model = _model()
    scheduler = DOORS["unstructured"](model)
    _train(model, scheduler, 7)
    with warnings.catch_warnings():
        warnings.simplefilter("error", PruningWarning)
        with pytest.raises(PruningWarning, match="step 7 of 20"):
            platon_prune.remove(model)
    assert prune.is_pruned(model[0]) and prune.is_pruned(model[2])
    platon_prune.remove(model)
    assert not prune.is_pruned(model)


def test_before_the_first_choice_nothing_is_pruned_and_that_is_said():
    model = _model()
    scheduler = DOORS["unstructured"](model)
    _train(model, scheduler, 3)
    with pytest.warns(PruningWarning, match="step 3 of 20: 0 % pruned of 75 %"):
        platon_prune.remove(model)


def test_training_without_a_step_of_the_scheduler_is_warned_about():
    model = _model()
    DOORS["unstructured"](model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        model(sample(8, 4)).square().mean().backward()
        optimizer.step()
    with pytest.warns(PruningWarning, match="step 0 of 20: 0 % pruned of 75 %"):
        platon_prune.remove(model)


def test_it_is_said_where_nobody_holds_the_scheduler_any_more():
    model = _model()
    _train(model, DOORS["unstructured"](model), 7)
    with pytest.warns(PruningWarning, match="step 7 of 20"):
        platon_prune.remove(model)


@pytest.mark.parametrize("steps", [0, 16, 20])
@pytest.mark.parametrize("masking", ["step", "window"])
def test_a_run_that_never_began_or_has_its_final_amount_is_finalized_without_a_word(steps, masking):
    model = _model()
    scheduler = DOORS["unstructured"](model, masking=masking)
    _train(model, scheduler, steps)
    assert not _caught(lambda: platon_prune.remove(model))


def test_one_choice_is_the_end_of_a_schedule_of_one_choice():
    model = _model()
    scheduler = DOORS["unstructured"](model, schedule="once")
    _train(model, scheduler, 5)
    assert not _caught(lambda: platon_prune.remove(model))


def test_zeros_that_were_adopted_have_no_schedule_to_keep_to():
    model = _model()
    with torch.no_grad():
        model[0].weight[0] = 0
    scheduler = platon_prune.adopt_zeros(model)
    _train(model, scheduler, 5)
    assert not _caught(lambda: platon_prune.remove(model))


def test_what_was_adopted_counts_as_pruned_before_the_first_choice():
    model = _model()
    with torch.no_grad():
        model[0].weight[:4] = 0  # 16 of 64
    scheduler = DOORS["unstructured"](model, initial_amount="zeros")
    _train(model, scheduler, 3)
    with pytest.warns(PruningWarning, match="step 3 of 20: 25 % pruned of 75 %"):
        platon_prune.remove(model)


def test_another_length_that_is_meant_is_allowed_without_a_word():
    model = _model()
    scheduler = DOORS["unstructured"](model)
    _train(model, scheduler, 7)
    scheduler.allow_other_length()
    assert not _caught(lambda: platon_prune.remove(model))
    model = _model()
    scheduler = DOORS["unstructured"](model)
    scheduler.allow_other_length()
    _train(model, scheduler, 23)
    assert scheduler.last_step == 23


def test_copies_of_a_model_are_finalized_at_any_step_without_a_word():
    model = _model()
    scheduler = DOORS["unstructured"](model)
    _train(model, scheduler, 7)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for other in (
        copy.deepcopy(model),
        pickle.loads(pickle.dumps(model)),
        torch.load(file, weights_only=False),
    ):
        assert not _caught(lambda other=other: platon_prune.remove(other))
    with pytest.warns(PruningWarning, match="step 7 of 20"):
        platon_prune.remove(model)


def test_a_resumed_run_counts_from_where_it_was_saved():
    model, later = _model(), _model()
    scheduler = DOORS["unstructured"](model)
    _train(model, scheduler, 9)
    resumed = DOORS["unstructured"](later)
    later.load_state_dict(model.state_dict())
    resumed.load_state_dict(scheduler.state_dict())
    with pytest.warns(PruningWarning, match="step 9 of 20"):
        platon_prune.remove(later)
    _train(model, scheduler, 11)
    assert not _caught(lambda: platon_prune.remove(model))


def test_lengths_that_are_set_anew_are_those_that_count():
    model = _model()
    scheduler = DOORS["unstructured"](model)
    scheduler.reschedule(total_steps=8, warmup_steps=2, cooldown_steps=2)
    _train(model, scheduler, 8)
    assert not _caught(lambda: platon_prune.remove(model))


# --- longer than the schedule ---------------------------------------------------------------


def test_steps_beyond_the_total_are_warned_about_once():
    model = _model()
    scheduler = DOORS["unstructured"](model)
    _train(model, scheduler, 20)
    caught = _caught(lambda: _train(model, scheduler, 5))
    assert [str(each.message)[:36] for each in caught] == ["step 21 is beyond total_steps=20, wh"]
    assert caught[0].filename == __file__
    assert not _caught(lambda: platon_prune.remove(model))


@pytest.mark.case
def test_a_step_for_each_micro_batch_is_warned_about():
    model = _model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = DOORS["unstructured"](model)

    def run():
        for batch in range(40):
            model(sample(8, 4)).square().mean().backward()
            scheduler.step()
            if batch % 2:
                optimizer.step()
                optimizer.zero_grad()

    (warning,) = _caught(run)
    assert "for each optimizer step, not for each micro-batch" in str(warning.message)


def test_a_run_that_is_resumed_beyond_the_total_is_warned_about_again():
    model, later = _model(), _model()
    scheduler = DOORS["unstructured"](model)
    _train(model, scheduler, 20)
    with pytest.warns(PruningWarning, match="step 21 is beyond"):
        _train(model, scheduler, 2)
    resumed = DOORS["unstructured"](later)
    later.load_state_dict(model.state_dict())
    resumed.load_state_dict(scheduler.state_dict())
    with pytest.warns(PruningWarning, match="step 23 is beyond total_steps=20"):
        _train(later, resumed, 1)


def test_a_run_that_is_resumed_with_a_shorter_total_is_refused():
    model, later = _model(), _model()
    scheduler = DOORS["unstructured"](model)
    _train(model, scheduler, 15)
    shorter = DOORS["unstructured"](later, total_steps=12)
    with pytest.raises(ValueError, match="total_steps is 12 here and 20 in the state"):
        shorter.load_state_dict(scheduler.state_dict())


# --- another model than was set up ----------------------------------------------------------


class Listed(nn.Module):
    def __init__(self):
        super().__init__()
        self.parts = nn.ModuleList([nn.Linear(4, 8), nn.Linear(8, 4)])

    def forward(self, x):
        return self.parts[1](torch.relu(self.parts[0](x)))


def _child(model):
    model[0] = nn.Linear(4, 8)


def _attribute(model):
    setattr(model, "0", nn.Linear(4, 8))


def _entry(model):
    model.parts[0] = nn.Linear(4, 8)


def _whole_list(model):
    model.parts = nn.ModuleList([nn.Linear(4, 8), model.parts[1]])


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize(
    ("build", "replace", "name"),
    [
        (_model, _child, "0.weight"),
        (_model, _attribute, "0.weight"),
        (Listed, _entry, "parts.0.weight"),
        (Listed, _whole_list, "parts.0.weight"),
    ],
)
def test_a_module_that_is_replaced_is_named_once_at_the_next_choice(door, build, replace, name):
    model = build()
    scheduler = DOORS[door](model, criterion="magnitude")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    _train(model, scheduler, 7, optimizer)
    replace(model)
    caught = _caught(lambda: _train(model, scheduler, 8, optimizer))
    (said,) = [str(each.message) for each in caught if "replaced" in str(each.message)]
    assert name in said.split(" of the model")[0].split(", ")
    assert {each.filename for each in caught if "replaced" in str(each.message)} == {__file__}


def test_a_module_that_is_replaced_once_all_masks_are_chosen_is_noticed_too():
    model = _model()
    with torch.no_grad():
        model[0].weight[0] = 0
    scheduler = platon_prune.adopt_zeros(model, include="0.weight")
    _train(model, scheduler, 3)
    _child(model)
    with pytest.warns(PruningWarning, match="0.weight of the model is not what is pruned any more"):
        _train(model, scheduler, 10)


def test_a_parameter_can_only_be_replaced_where_the_mask_goes_on():
    model = _model()
    scheduler = DOORS["unstructured"](model)
    with pytest.raises(RuntimeError, match="weight of a pruned Linear can't be assigned"):
        model[0].weight = nn.Parameter(torch.ones(8, 4))
    model[0].weight_orig = nn.Parameter(torch.ones(8, 4))
    _train(model, scheduler, 20)
    assert sum(int((model[i].weight == 0).sum()) for i in (0, 2)) == round(0.75 * WEIGHTS)


def test_modules_that_are_wrapped_cast_or_copied_are_those_that_were_there():
    model = _model()
    scheduler = DOORS["unstructured"](model)

    class Wrapper(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            return self.inner(x)

    model[0] = Wrapper(model[0])
    model.double().float()
    _train(model, scheduler, 12)
    others = copy.deepcopy((model, scheduler))
    _train(*others, 8)
    _train(model, scheduler, 8)
    assert torch.equal(others[0][2].weight, model[2].weight)


# --- settings and torch's own functions -----------------------------------------------------


@pytest.mark.case
@pytest.mark.parametrize(
    "settings", [dict(beta1=0), dict(beta1=0.0), dict(beta1=0.0, criterion="platon", beta2=0.5)]
)
def test_a_beta1_that_makes_every_score_zero_is_refused(settings):
    with pytest.raises(ValueError, match="beta1 must be above 0 for PLATON's scores, got 0"):
        DOORS["unstructured"](_model(), **settings)


def test_other_scores_than_platons_have_a_meaning_without_memory():
    for criterion in ("sensitivity", "fisher", "magnitude"):
        DOORS["unstructured"](_model(), beta1=0, criterion=criterion)


@pytest.mark.parametrize(("amount", "share"), [(90, "0.9"), (6, "0.06"), (99, "0.99")])
def test_a_count_that_could_be_a_percentage_is_warned_about_in_small_models_too(amount, share):
    with pytest.warns(
        PruningWarning, match=rf"amount={amount} prunes {amount} of the 576 .*such as {share}$"
    ):
        platon_prune.global_unstructured(nn.Linear(24, 24), amount=amount, **LENGTHS)


def _pairs(model):
    return [(model[0], "weight"), (model[2], "weight")]


def test_torchs_own_pruning_by_weights_with_their_signs_is_warned_about():
    model = _model()
    negative = sum(int((module.weight < 0).sum()) for module, _ in _pairs(model))
    with pytest.warns(PruningWarning, match=rf"got {negative} of {WEIGHTS} below zero") as caught:
        prune.global_unstructured(_pairs(model), pruning_method=PlatonUnstructured, amount=0.5)
    assert caught[0].filename == __file__


def test_torchs_own_pruning_by_scores_is_not_warned_about():
    model = _model()
    scores = {pair: pair[0].weight.abs() for pair in _pairs(model)}
    prune.global_unstructured(
        _pairs(model), pruning_method=PlatonUnstructured, importance_scores=scores, amount=0.5
    )
    model = _model()  # such as those of movement
    scores = {pair: pair[0].weight.detach() for pair in _pairs(model)}
    prune.global_unstructured(
        _pairs(model), pruning_method=PlatonUnstructured, importance_scores=scores, amount=0.5
    )
    PlatonUnstructured.apply(nn.Linear(4, 4), "weight", amount=0.5)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_a_model_with_masks_that_is_scripted_is_told_to_be_finalized():
    model = _model()
    scheduler = DOORS["unstructured"](model)
    with pytest.raises(RuntimeError, match=r"can't be scripted: finalize .* platon_prune.remove"):
        torch.jit.script(model)
    _train(model, scheduler, 20)
    platon_prune.remove(model)
    assert torch.equal(torch.jit.script(model)(sample(3, 4)), model(sample(3, 4)))


# --- what is printed ------------------------------------------------------------------------


@pytest.mark.case
def test_a_scheduler_shows_its_step_its_amount_and_the_sparsity_of_its_last_choice():
    model = _model()
    scheduler = DOORS["unstructured"](model)
    assert repr(scheduler) == (
        "PlatonScheduler(step 0 of 20, amount 0 of 0.75, criterion platon, 2 tensors)"
    )
    _train(model, scheduler, 16)
    platon_prune.remove(model)
    assert "step 16 of 20, amount 0.75 of 0.75, sparsity 0.75" in repr(scheduler)


def test_a_summary_shows_how_much_is_zero():
    model = _model()
    with torch.no_grad():
        model[0].weight[:4] = 0
    assert repr(platon_prune.summary(model)) == "Summary(2 tensors, 16 of 64 weights zero: 25.00%)"
