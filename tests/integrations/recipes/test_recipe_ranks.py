"""Each recipe over two processes, under DDP and FSDP2: trained, resumed, an ordinary model left."""

import json
import os

os.environ["HF_HUB_OFFLINE"] = "1"

import shutil
import subprocess
import sys

import pytest
import ranks
import recipe_jobs
import sharding_on_cpu
import torch
from recipe_models import results, save_bert, save_images, save_llama, save_sst2, save_vit
from safetensors.torch import load_file
from squad_files import rivers, write_model

LAYERS = {
    "glue": "BertLayer",
    "squad": "BertLayer",
    "image": "ViTLayer",
    "clm": "LlamaDecoderLayer",
}
LAYOUTS = ["ddp", "fsdp"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
# Two layers: attention has 4 matrices of 16 x 16, the feed-forward part 2 of 16 x 32; the patches
# of the image model are 3 colours x 4 x 4.
# Llama's attention has two narrower matrices, its feed-forward part a third one.
SELECTED = {
    "glue": 4096,
    "squad": 4096,
    "image": 4096 + 16 * 48,
    "clm": 2 * (2 * 16 * 16 + 2 * 8 * 16 + 3 * 16 * 32),
}
STEPS = (
    "--max_steps", "6", "--save_strategy", "steps", "--save_steps", "4", "--logging_steps", "2",
    "--per_device_train_batch_size", "4", "--learning_rate", "0.01", "--amount", "0.75",
    "--pruning_window", "2", "--pruning_warmup_steps", "1", "--pruning_cooldown_steps", "1",
    "--report_to", "none",
)  # fmt: skip


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """The flags of each recipe that name a tiny model and tiny data."""
    glue, squad, image, clm = (tmp_path_factory.mktemp(name) for name in LAYERS)
    cats = clm / "cats.txt"
    cats.write_text("the cat sat on the mat .\nthe dog sat on a cat .\n" * 20)
    train, validation = save_images(image / "train"), save_images(image / "validation", count=3)
    return {
        "glue": [
            "--model_name_or_path", save_bert(glue), "--task_name", "sst2",
            "--max_seq_length", "16", *save_sst2(glue),
        ],
        "squad": [
            "--model_name_or_path", write_model(squad), "--max_seq_length", "48",
            "--doc_stride", "12", "--train_file", rivers(squad / "train.json", 16),
            "--validation_file", rivers(squad / "dev.json", 5),
        ],
        "image": [
            "--model_name_or_path", save_vit(image), "--train_dir", str(train),
            "--validation_dir", str(validation),
        ],
        "clm": [
            "--model_name_or_path", save_llama(clm), "--train_file", str(cats),
            "--validation_file", str(cats), "--block_size", "16", "--generation_tokens", "4",
        ],
    }  # fmt: skip


@pytest.fixture(scope="module")
def whole_run(given, tmp_path_factory):
    """Folder of an uninterrupted run of a recipe in a layout, made once; what its ranks print."""
    made = {}

    def of(recipe, layout):
        if (recipe, layout) not in made:
            folder = tmp_path_factory.mktemp(f"{recipe}-{layout}")
            flags = _flags(given, recipe, layout, folder)
            made[recipe, layout] = folder, _start_two(recipe, flags)
        return made[recipe, layout]

    return of


def _start_two(recipe, flags):
    return ranks.run(2, recipe_jobs.start, recipe, flags, timeout=120)


def _flags(given, recipe, layout, folder, *more):
    wrapped = json.dumps({"transformer_layer_cls_to_wrap": [LAYERS[recipe]]})
    sharding = ["--fsdp", "--fsdp_config", wrapped] if layout == "fsdp" else []
    todo = ["--do_train", "--do_eval"]
    return [*given[recipe], "--output_dir", str(folder), *STEPS, *sharding, *todo, *more]


def _assert_equal(folder, expected):
    """The same weights, bit by bit, and the same measured at the end."""
    one, other = (load_file(each / "model.safetensors") for each in (folder, expected))
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name
    found, wanted = results(folder), results(expected)
    assert found["pruned_weights"] == wanted["pruned_weights"]
    assert found["metrics"]["eval_loss"] == wanted["metrics"]["eval_loss"]
    later = [entry for entry in wanted["pruning_history"] if entry["step"] > 4]
    assert later and found["pruning_history"] == later


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("recipe", LAYERS)
def test_two_processes_leave_one_report_and_an_ordinary_model(whole_run, given, recipe, layout):
    folder, (first, second) = whole_run(recipe, layout)
    assert "results.json and the model are in" in first and second == ""
    found = results(folder)
    count = round(0.75 * SELECTED[recipe])
    assert (found["selected_weights"], found["pruned_weights"]) == (SELECTED[recipe], count)
    checkpoint = folder / "checkpoint-4"
    sharded = (checkpoint / "platon_scheduler").is_dir()
    assert sharded == (layout == "fsdp")
    assert (checkpoint / "platon_scheduler.pt").is_file() != sharded
    # What two processes measured is what one finds in the saved model.
    alone = folder / "alone"
    flags = [*given[recipe], "--model_name_or_path", str(folder), "--output_dir", str(alone)]
    recipe_jobs.start(recipe, [*flags, "--do_eval"])
    assert results(alone)["sparsity"] == found["sparsity"] == count / SELECTED[recipe]
    shared = {"eval_accuracy", "eval_f1", "eval_exact_match", "eval_tokens"} & found[
        "metrics"
    ].keys()
    assert shared
    for name in shared:
        assert results(alone)["metrics"][name] == found["metrics"][name], name


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("recipe", LAYERS)
def test_two_processes_resume_bit_by_bit(whole_run, given, tmp_path, recipe, layout):
    folder, _ = whole_run(recipe, layout)
    resume = ("--resume_from_checkpoint", str(folder / "checkpoint-4"))
    flags = _flags(given, recipe, layout, tmp_path, *resume)
    _start_two(recipe, flags)
    _assert_equal(tmp_path, folder)


def test_the_last_checkpoint_is_the_last_complete_one(whole_run, given, tmp_path):
    folder, _ = whole_run("glue", "fsdp")
    for name in ("checkpoint-4", "checkpoint-6"):
        shutil.copytree(folder / name, tmp_path / name)
    # As if the run had been killed while its processes wrote their shards.
    (tmp_path / "checkpoint-6" / "platon_scheduler" / "outline.pt").unlink()
    flags = _flags(given, "glue", "fsdp", tmp_path, "--resume_from_checkpoint", "true")
    _start_two("glue", flags)
    _assert_equal(tmp_path, folder)


def test_two_processes_go_back_to_what_held_and_resume_within_the_cooldown(given, tmp_path):
    # Compared with a baseline of nearly no loss, whatever is pruned has lost too much.
    goal = (
        "--metric", "loss", "--max_drop", "0", "--baseline", "0.001", "--eval_strategy", "steps",
        "--eval_steps", "1", "--max_steps", "9", "--save_steps", "3",
    )  # fmt: skip
    first = _flags(given, "glue", "ddp", tmp_path / "whole", *goal)
    printed, nothing = _start_two("glue", first)
    assert "0 % pruned" in printed and nothing == ""
    resume = ("--resume_from_checkpoint", str(tmp_path / "whole" / "checkpoint-3"))
    _start_two("glue", _flags(given, "glue", "ddp", tmp_path / "again", *goal, *resume))
    one, other = results(tmp_path / "whole"), results(tmp_path / "again")
    assert one["goal"] == other["goal"] and one["pruned_weights"] == other["pruned_weights"] == 0
    weights = [load_file(tmp_path / name / "model.safetensors") for name in ("whole", "again")]
    assert all(torch.equal(each, weights[1][name]) for name, each in weights[0].items())


def test_torchrun_resumes_what_these_ranks_began(whole_run, given, tmp_path):
    command = [*TORCHRUN, sharding_on_cpu.__file__]
    for layout in LAYOUTS:
        checkpoint = whole_run("glue", layout)[0] / "checkpoint-4"
        more = ("--use_cpu", "--disable_tqdm", "true", "--resume_from_checkpoint", str(checkpoint))
        command += ["glue", *_flags(given, "glue", layout, tmp_path / layout, *more)]
        command += [sharding_on_cpu.AND] if layout != LAYOUTS[-1] else []
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    for layout in LAYOUTS:
        assert (tmp_path / layout / "results.json").is_file()
        _assert_equal(tmp_path / layout, whole_run("glue", layout)[0])
