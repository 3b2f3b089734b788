"""A warning points at the line of the user's that led to it, whatever lies between."""

import linecache
import warnings
from contextlib import contextmanager

import pytest
import torch
from torch import nn

import platon_prune
from platon_prune import PruningWarning

TWO_LAYERS = dict(amount=0.5, initial_amount=0.5, total_steps=9, window=1, criterion="magnitude")


@contextmanager
def points_at(code, match):
    """One warning, at a line of this file with this code in it."""
    with pytest.warns(PruningWarning, match=match) as caught:
        yield
    for each in caught:
        assert each.filename == __file__
        assert code in linecache.getline(each.filename, each.lineno)


def _loses_a_layer():
    """A model whose first layer the first choice empties."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64, bias=False), nn.Linear(64, 256, bias=False))
    with torch.no_grad():
        model[0].weight.mul_(1e-6)
    return model, platon_prune.global_unstructured(
        model, **dict(warmup_steps=0, cooldown_steps=0) | TWO_LAYERS
    )


def _with_gradients(model):
    model(torch.ones(2, 64)).sum().backward()
    return torch.optim.SGD(model.parameters(), lr=0.0)


# --- a step -------------------------------------------------------------------------------------


def test_a_layer_that_is_emptied_is_warned_about_where_the_scheduler_is_stepped():
    _, scheduler = _loses_a_layer()
    with points_at("scheduler.step()  # here", "nearly empty"):
        scheduler.step()  # here


def test_one_without_gradients_is_warned_about_where_the_scheduler_is_stepped():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    scheduler = platon_prune.global_unstructured(
        model, amount=0.5, total_steps=20, window=2, warmup_steps=0, cooldown_steps=0
    )
    model[0](torch.ones(1, 4)).sum().backward()
    with points_at("scheduler.step()  # here", "had no gradient for a whole window"):
        for _ in range(4):
            scheduler.step()  # here


def test_a_choice_that_is_not_made_is_warned_about_where_the_scheduler_is_stepped():
    scheduler = platon_prune.global_unstructured(
        nn.Linear(4, 4), amount=0.5, total_steps=8, window=4, warmup_steps=0, cooldown_steps=0
    )
    with points_at("scheduler.step(skipped=True)  # here", "no mask is chosen at step"):
        for _ in range(8):
            scheduler.step(skipped=True)  # here


def _step(optimizer, model):
    optimizer.step()  # the optimizer's


def _step_of_a_closure(optimizer, model):
    optimizer.step(lambda: 0.0)  # the optimizer's


def _step_below_a_learning_rate_schedule(optimizer, model):
    torch.optim.lr_scheduler.StepLR(optimizer, 5)  # wraps the optimizer's step
    optimizer.step()  # the optimizer's


def _step_of_a_gradient_scaler(optimizer, model):
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(torch.ones(()))  # as a loss before its backward
    scaler.step(optimizer)  # the optimizer's


@pytest.mark.parametrize(
    "step",
    [
        _step,
        _step_of_a_closure,
        _step_below_a_learning_rate_schedule,
        _step_of_a_gradient_scaler,
    ],
)
def test_of_an_optimizer_that_is_followed_it_is_the_line_that_steps_that(step):
    model, scheduler = _loses_a_layer()
    optimizer = _with_gradients(model)
    scheduler.step_with(optimizer)
    with points_at("# the optimizer's", "nearly empty"):
        step(optimizer, model)


def test_a_hook_of_the_users_own_is_the_users_line():
    model, scheduler = _loses_a_layer()
    optimizer = _with_gradients(model)
    optimizer.register_step_post_hook(lambda *_: scheduler.step())  # the hook
    with points_at("# the hook", "nearly empty"):
        optimizer.step()


# --- setting up ---------------------------------------------------------------------------------


def test_what_is_warned_about_at_set_up_points_at_the_door():
    with points_at("platon_prune.global_unstructured(  # here", "looks like|such as"):
        platon_prune.global_unstructured(  # here
            nn.Linear(50, 50), amount=50, total_steps=20, warmup_steps=0, cooldown_steps=0
        )
    with points_at("platon_prune.semi_structured(  # here", "left out of 2:4"):
        platon_prune.semi_structured(  # here
            nn.Sequential(nn.Linear(9, 8), nn.Linear(8, 4)),
            total_steps=20,
            warmup_steps=0,
            cooldown_steps=0,
        )


def test_a_warning_of_n_of_m_pruning_that_is_an_error_leaves_the_model_as_it_was():
    model = nn.Sequential(nn.Linear(9, 8), nn.Linear(8, 4))
    keys = list(model.state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(PruningWarning, match="left out of 2:4"):
            platon_prune.semi_structured(model, total_steps=20, warmup_steps=0, cooldown_steps=0)
    assert list(model.state_dict()) == keys
    assert type(model[1]) is nn.Linear and not model[1]._forward_pre_hooks


# --- what is printed ----------------------------------------------------------------------------


def test_what_is_printed_shows_the_line_of_the_user_and_none_of_the_library():
    with pytest.warns(PruningWarning) as caught:
        platon_prune.global_unstructured(nn.Linear(50, 50), amount=50, total_steps=20)  # mine
    each = caught[0]
    printed = warnings.formatwarning(each.message, each.category, each.filename, each.lineno)
    head, line = printed.splitlines()
    assert head.startswith(f"{__file__}:{each.lineno}: PruningWarning: amount=50 ")
    assert line.endswith("# mine")


def test_a_line_that_runs_again_is_warned_about_once():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for _ in range(3):
            platon_prune.global_unstructured(
                nn.Linear(50, 50), amount=50, total_steps=20, warmup_steps=0, cooldown_steps=0
            )
    assert len(caught) == 1


def test_a_module_of_the_package_that_is_run_is_no_users_line():
    program = "import platon_prune\ndef main(): platon_prune.PruningWarning.warn('said')"
    names = {"__name__": "__main__", "__package__": "platon_prune.commands"}
    exec(program, names)
    with points_at('names["main"]()  # here', "said"):
        names["main"]()  # here


def test_where_no_line_is_the_users_no_source_line_is_printed(monkeypatch):
    monkeypatch.setattr("platon_prune.warning._line_of_user", lambda frame: None)
    with pytest.warns(PruningWarning) as caught:
        PruningWarning.warn("said")
    assert linecache.getline(caught[0].filename, caught[0].lineno) == ""
