"""A tenth of warm-up and three tenths of cool-down unless given: functions, callbacks, recipes."""

import dataclasses
import inspect

import pytest
from torch import nn

import platon_prune

DOORS = ("global_unstructured", "semi_structured", "global_structured")


@pytest.mark.parametrize("door", DOORS)
def test_functions_have_the_defaults(door):
    parameters = inspect.signature(getattr(platon_prune, door)).parameters
    assert parameters["warmup_steps"].default == 0.1
    assert parameters["cooldown_steps"].default == 0.3


def test_callbacks_and_recipes_have_them_too():
    pytest.importorskip("transformers")
    pytest.importorskip("lightning")
    from platon_prune.integrations.hf_trainer import PlatonCallback
    from platon_prune.integrations.lightning_callback import PlatonLightningCallback
    from platon_prune.integrations.recipes.arguments import PruningArguments

    for callback in (PlatonCallback, PlatonLightningCallback):
        parameters = inspect.signature(callback).parameters
        assert parameters["warmup_steps"].default == 0.1
        assert parameters["cooldown_steps"].default == 0.3
    recipe = {field.name: field.default for field in dataclasses.fields(PruningArguments)}
    assert (recipe["pruning_warmup_steps"], recipe["pruning_cooldown_steps"]) == (0.1, 0.3)


@pytest.mark.parametrize(
    ("given", "warmup", "cooldown"),
    [
        ({}, 20, 60),
        ({"warmup_steps": 0.25, "cooldown_steps": 0.5}, 50, 100),
        ({"warmup_steps": 5, "cooldown_steps": 0}, 5, 0),
    ],
)
def test_fractions_are_shares_of_the_run_and_whole_numbers_counts(given, warmup, cooldown):
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    scheduler = platon_prune.global_unstructured(model, amount=0.5, total_steps=200, **given)
    assert scheduler.schedule.warmup_steps == warmup
    assert scheduler.schedule.ramp_end == 200 - cooldown
