"""What the authors' users look for in a recipe: their warm-up, dropout, lengths, several tasks."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
from recipe_models import results, run, save_bert, save_sst2

from platon_prune import PruningWarning
from platon_prune.integrations.recipes.glue_data import GlueArguments
from platon_prune.integrations.recipes.parsing import parse_arguments
from platon_prune.integrations.recipes.presets import GLUE_PRESETS


def parse(*flags):
    return parse_arguments(
        [*map(str, flags)], "glue", GlueArguments, description="", examples="", presets=GLUE_PRESETS
    )


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return save_bert(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="module")
def sst2(tmp_path_factory):
    return save_sst2(tmp_path_factory.mktemp("sst2"))


def short(bert, folder, *more):
    return [
        "--model_name_or_path", bert, "--output_dir", folder, "--max_seq_length", 16,
        "--pruning_window", 2, "--save_strategy", "no", "--do_train", "--max_steps", 4,
        "--amount", 0.5, *more,
    ]  # fmt: skip


# --- pruning ------------------------------------------------------------------------------------


def test_a_beta1_of_0_is_refused_by_the_name_of_its_flag():
    with pytest.raises(ValueError, match="^--pruning_beta1 must be above 0 for --criterion platon"):
        parse("--pruning_beta1", 0)
    # Where no score of PLATON's is computed it is a setting like another.
    for more in (["--criterion", "sensitivity"], ["--amount", 0]):
        assert parse("--pruning_beta1", 0, *more).pruning.pruning_beta1 == 0


def test_a_limit_for_each_layer_of_heads_and_neurons_holds(bert, sst2, tmp_path):
    heads = ("--pruning_granularity", "structured", "--pruning_max_amount", 0.5)
    flags = short(bert, tmp_path, "--task_name", "sst2", *sst2, *heads)
    with pytest.warns(PruningWarning, match="at their floor"):
        assert run("glue", *flags) == 0
    found = results(tmp_path)
    assert found["settings"]["pruning"]["pruning_max_amount"] == 0.5
    # Half of each place may go, and half of all weights must: so it is half of each.
    sparsities = {layer["name"]: layer["sparsity"] for layer in found["layers"]}
    assert sparsities and set(sparsities.values()) == {0.5}
