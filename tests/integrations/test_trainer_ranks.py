"""transformers' Trainer over several processes, under DDP and under FSDP2, resumes bit by bit."""

import functools

import pytest
import ranks
import torch
import trainer_jobs
from tiny_trainer import SELECTED, zeros_of
from transformers import BertForSequenceClassification

from platon_prune.integrations.hf_checkpoints import STATE_FILE, STATE_FOLDER, saved_states

FULL = {"state_dict_type": "FULL_STATE_DICT"}
SHARDED = {"state_dict_type": "SHARDED_STATE_DICT"}
SAVING = dict(save_strategy="steps", save_steps=10)
EVALUATED = dict(eval_strategy="steps", eval_steps=7)
CHOSEN_BY_METRIC = dict(
    eval_strategy="steps", eval_steps=5, save_steps=5, load_best_model_at_end=True,
    metric_for_best_model="made_up", greater_is_better=False,
)  # fmt: skip


def _train(folder, size=2, **settings):
    """What each rank saw."""
    job = functools.partial(trainer_jobs.train, str(folder), **settings)
    return ranks.run(size, job, timeout=120)


def _assert_equal(one, other, path=""):
    """Two nested dicts of tensors and numbers, bit by bit."""
    if isinstance(one, dict):
        assert one.keys() == other.keys(), path
        for key in one:
            _assert_equal(one[key], other[key], f"{path}/{key}")
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, other), path
    else:
        assert one == other, path


def _assert_final_model(folder, results):
    """An ordinary sparse model, the same as the one in each rank."""
    model, info = BertForSequenceClassification.from_pretrained(
        folder / "final", output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert zeros_of(model) == round(0.8 * SELECTED)
    assert model.config.platon_prune["sparsity"] == pytest.approx(0.8, abs=1 / SELECTED)
    tokens = torch.stack([example["input_ids"] for example in trainer_jobs.Examples(16)])
    with torch.no_grad():
        logits = model.eval()(tokens).logits
    for result in results:
        _assert_equal(result["weights"], dict(model.state_dict()))
        torch.testing.assert_close(result["logits"], logits)


LAYOUTS = {
    "ddp": None,
    "full": FULL,
    "sharded": SHARDED,
    "full, loaded by one": FULL | {"cpu_ram_efficient_loading": True},
    "sharded, loaded by one": SHARDED | {"cpu_ram_efficient_loading": True},
    "full, gathered until the backward": FULL | {"reshard_after_forward": False},
}


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    """Folder of an uninterrupted run in a layout, made once, and what its ranks saw."""
    made = {}

    def of(layout):
        if layout not in made:
            folder = tmp_path_factory.mktemp("whole")
            made[layout] = folder, _train(folder, **_settings(layout), **SAVING, **EVALUATED)
        return made[layout]

    return of


def _settings(layout):
    pruned = {"masking": "window"} if layout == "full" else {}
    return dict(fsdp=LAYOUTS[layout], pruning=pruned)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_resumed_run_is_bit_identical_and_the_saved_model_is_an_ordinary_one(
    whole_run, tmp_path, layout
):
    is_sharded = LAYOUTS[layout] is not None
    root, whole = whole_run(layout)
    assert [result["sharded"] for result in whole] == [is_sharded] * 2
    _assert_final_model(root, whole)
    assert (root / "final" / "README.md").exists() is False
    assert (root / "README.md").read_text().count("## Pruning") == 1
    folder = root / "checkpoint-10"
    assert (folder / STATE_FILE).exists() == (not is_sharded)
    assert (folder / STATE_FOLDER).exists() == is_sharded
    settings = _settings(layout) | SAVING | EVALUATED
    resumed = _train(tmp_path, resume=str(folder), **settings)
    for one, other in zip(resumed, whole, strict=True):
        _assert_equal(one["begun"], whole[0]["saved"][10])
        _assert_equal(one["weights"], other["weights"])
        _assert_equal(one["history"], other["history"][-len(one["history"]) :])


def test_both_layouts_give_the_same_masks(tmp_path):
    ddp, fsdp = (
        _train(tmp_path / name, fsdp=config, dropout=0.0, **SAVING)[0]["saved"][20]["tensors"]
        for name, config in (("ddp", None), ("fsdp", FULL))
    )
    same = sum(int((ddp[name]["mask"] == fsdp[name]["mask"]).sum()) for name in ddp)
    # Sums of gradients in another order may change a few scores next to the threshold.
    assert same > 0.99 * SELECTED


def test_masks_are_not_broadcast_by_ddp(whole_run):
    for result in whole_run("ddp")[1]:
        # The same names again for a compiled model.
        ignored = [n for n in result["ignored_by_ddp"] if not n.startswith("_orig_mod.")]
        assert len(ignored) == 12  # two layers of six matrices
        assert all(name.endswith("weight_mask") for name in ignored)


@pytest.mark.parametrize(
    ("before", "after", "size"),
    [("sharded", "sharded", 3), ("full", "full", 3), ("ddp", "ddp", 3), ("ddp", None, 1)],
)
def test_another_number_of_processes_goes_on_with_the_same_state(
    whole_run, tmp_path, before, after, size
):
    root, first = whole_run(before)
    settings = dict(resume=str(root / "checkpoint-10"))
    if after is None:
        found = [trainer_jobs.train(str(tmp_path), **settings)]
    else:
        found = _train(tmp_path, size, **_settings(after), **settings)
    for result in found:
        _assert_equal(result["begun"], first[0]["saved"][10])
    _assert_final_model(tmp_path, found)


@pytest.mark.parametrize("fsdp", [FULL, SHARDED])
def test_the_best_model_is_loaded_at_the_end_with_its_masks(tmp_path, fsdp):
    results = _train(
        tmp_path, fsdp=fsdp, metrics=[0.9, 0.8, 0.1, 0.7, 0.6], **SAVING | CHOSEN_BY_METRIC
    )
    for result in results:
        assert result["best"].endswith("checkpoint-15")
        for name, tensor in result["saved"][15]["tensors"].items():
            assert torch.equal(result["weights"][name] != 0, tensor["mask"]), name
    _assert_final_model(tmp_path, results)


def test_a_checkpoint_that_is_cut_off_costs_none_before_it_and_is_passed_over(tmp_path):
    settings = dict(fsdp=SHARDED, save_total_limit=1, **SAVING)
    with pytest.raises(ranks.RankError, match="killed"):
        _train(tmp_path, before=trainer_jobs.fail_to_save, **settings)
    assert not saved_states(tmp_path / "checkpoint-20")
    assert saved_states(tmp_path / "checkpoint-10")
    resumed = _train(tmp_path, resume=True, **settings)
    assert [result["resumed_from"] for result in resumed] == [10, 10]
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-20"]
    _assert_final_model(tmp_path, resumed)


def test_a_checkpoint_without_the_pruners_state_is_refused_in_every_process(tmp_path):
    _train(tmp_path, fsdp=FULL, **SAVING)
    (tmp_path / "checkpoint-10" / STATE_FOLDER / "outline.pt").unlink()
    with pytest.raises(ranks.RankError) as caught:
        _train(tmp_path, fsdp=FULL, resume=str(tmp_path / "checkpoint-10"))
    for kind, message in caught.value.errors:
        assert kind == "ValueError" and f"or {STATE_FOLDER} of a sharded model" in message


def test_fsdp1_that_accelerate_was_told_of_is_refused(tmp_path):
    errors = ranks.errors_of(2, trainer_jobs.wrap_in_fsdp1)
    assert errors[0][0] == "ValueError" and "a model under FSDP1" in errors[0][1]
