"""A local model of somebody else: one line, and nothing is fetched for it."""

import json
import os

os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import transformers.integrations.hub_kernels as hub_kernels
import transformers.modeling_utils as modeling_utils
from recipe_models import save_bert
from transformers import AutoModelForSequenceClassification

from platon_prune.integrations.recipes.arguments import (
    DistillationArguments,
    ModelArguments,
)
from platon_prune.integrations.recipes.loading import load_model, load_teacher


class _Arguments:
    """What is read of a recipe's settings to load a model."""

    def __init__(self, folder):
        self.model = ModelArguments(model_name_or_path=str(folder))
        self.distillation = DistillationArguments(teacher_name_or_path=str(folder))
        self.training = type("Training", (), {"do_train": True})


LOADERS = {
    "model": lambda folder: load_model(_Arguments(folder), AutoModelForSequenceClassification),
    "teacher": lambda folder: load_teacher(
        _Arguments(folder), AutoModelForSequenceClassification, None
    ),
}
TEXTS = {
    "deep": "[" * 100_000,
    "a list": "[]",
    "half": '{"model_type": "be',
    "a number that is text": '{"model_type": "bert", "hidden_size": "x"}',
    "no model type": "{}",
    "code of its own": '{"auto_map": {"AutoConfig": "evil.Evil"}, "model_type": "evil"}',
}


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("kind", TEXTS)
def test_a_config_that_can_not_be_read_names_the_flag_in_one_line(kind, loader, tmp_path):
    save_bert(tmp_path)
    (tmp_path / "config.json").write_text(TEXTS[kind])
    with pytest.raises(ValueError, match=f"--{loader}.*_name_or_path must be a model") as caught:
        LOADERS[loader](tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("key", ["attn_implementation", "experts_implementation"])
def test_a_config_that_names_code_of_the_hub_is_refused(loader, key, tmp_path, monkeypatch):
    asked = []
    for module in (hub_kernels, modeling_utils):
        monkeypatch.setattr(module, "is_kernels_available", lambda *a, **k: True)
    monkeypatch.setattr(hub_kernels, "get_kernel", lambda *a, **k: asked.append(a))
    save_bert(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {key: "somebody/anything"}))
    with pytest.raises(ValueError, match=f"needs no code of the Hub.*{key} 'somebody/anything'"):
        LOADERS[loader](tmp_path)
    assert not asked
