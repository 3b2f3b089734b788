"""The recipe for images, from folders that the tests make, through the command line."""

import io
import json
import os

os.environ["HF_HUB_OFFLINE"] = "1"

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from recipe_models import PROCESSOR, results, run, save_images, save_vit
from safetensors.torch import load_file
from transformers import (
    AutoModelForImageClassification,
    ResNetConfig,
    ResNetForImageClassification,
)

import platon_prune
from platon_prune import PruningWarning
from platon_prune.integrations.recipes.image_data import (
    check_classes,
    check_images,
    class_names,
    pixels,
    read_folder,
)

# Two layers as in recipe_models, and the patches: 16 outputs of 3 colours x 4 x 4.
SELECTED = 2 * (4 * 16 * 16 + 2 * 16 * 32) + 16 * 3 * 4 * 4


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    return save_vit(tmp_path_factory.mktemp("vit"))


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    save_images(folder / "train")
    save_images(folder / "validation", count=3)
    return folder


def flags(vit, images, folder, *more):
    return [
        "--model_name_or_path", vit, "--train_dir", images / "train",
        "--validation_dir", images / "validation", "--output_dir", folder,
        "--pruning_window", 2, "--save_strategy", "no", "--learning_rate", 1e-2, *more,
    ]  # fmt: skip


TRAIN = ("--do_train", "--do_eval", "--max_steps", 12, "--logging_steps", 4)


def test_channels_of_a_network_that_is_traced_go_and_are_cut_out(images, tmp_path):
    pytest.importorskip("torch_pruning")
    config = ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=2
    )
    model = tmp_path / "resnet"
    ResNetForImageClassification(config).save_pretrained(model)
    (model / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    more = ("--pruning_granularity", "structured", "--pruning_kinds", "channels", "--shrink")
    out = tmp_path / "out"
    train = ("--do_train", "--max_steps", 4)
    assert run("image", *flags(model, images, out, *train, *more)) == 0
    found = results(out)["shrunk"]
    assert found["parameters_after"] < found["parameters_before"]
    assert {row["kind"] for row in found["places"]} == {"channels"}
    small = platon_prune.load(out / "shrunk")
    assert sum(weight.numel() for weight in small.parameters()) == found["parameters_after"]


def test_a_run_leaves_a_sparse_model_and_its_report(vit, images, tmp_path):
    assert run("image", *flags(vit, images, tmp_path, *TRAIN, "--amount", 0.8)) == 0
    found = results(tmp_path)
    count = round(0.8 * SELECTED)
    assert (found["selected_weights"], found["pruned_weights"]) == (SELECTED, count)
    assert found["sparsity"] == pytest.approx(count / SELECTED, abs=1e-12)
    assert found["metrics"]["eval_accuracy"] in [n / 6 for n in range(7)]
    assert (tmp_path / "report.png").is_file()
    model = AutoModelForImageClassification.from_pretrained(tmp_path)
    names = [layer["name"] for layer in found["layers"]]
    assert sum(int((model.get_parameter(name) == 0).sum()) for name in names) == count
    assert model.config.label2id == {"blue": 0, "red": 1}
    again = tmp_path / "again"
    assert run("image", *flags(tmp_path, images, again, "--do_eval")) == 0
    assert results(again)["metrics"]["eval_loss"] == found["metrics"]["eval_loss"]
    assert results(again)["sparsity"] == found["sparsity"]


def test_a_model_that_is_saved_under_other_names_resumes(vit, images, tmp_path):
    more = (*TRAIN, "--amount", 0.8, "--save_strategy", "steps", "--save_steps", 8)
    whole, again = tmp_path / "whole", tmp_path / "again"
    assert run("image", *flags(vit, images, whole, *more)) == 0
    saved = load_file(whole / "checkpoint-8" / "model.safetensors")
    assert (
        not saved.keys() <= AutoModelForImageClassification.from_pretrained(vit).state_dict().keys()
    )
    resumed = ("--resume_from_checkpoint", whole / "checkpoint-8")
    assert run("image", *flags(vit, images, again, *more, *resumed)) == 0
    expected = load_file(whole / "model.safetensors")
    for name, tensor in load_file(again / "model.safetensors").items():
        assert torch.equal(tensor, expected[name]), name


def test_the_best_of_a_model_that_is_saved_under_other_names_is_loaded(vit, images, tmp_path):
    worst = ("--metric_for_best_model", "eval_loss", "--greater_is_better", "true")
    steps = ("--eval_strategy", "steps", "--eval_steps", 4, "--save_steps", 4)
    more = ("--amount", 0.8, "--save_strategy", "steps", "--load_best_model_at_end", *worst, *steps)
    with pytest.warns(PruningWarning, match="the best model was saved, before the schedule did"):
        assert run("image", *flags(vit, images, tmp_path, *TRAIN, *more)) == 0
    state = json.loads((tmp_path / "checkpoint-12" / "trainer_state.json").read_text())
    assert state["best_model_checkpoint"].endswith("checkpoint-4")
    expected = load_file(tmp_path / "checkpoint-4" / "model.safetensors")
    for name, tensor in load_file(tmp_path / "model.safetensors").items():
        assert torch.equal(tensor, expected[name]), name


def test_a_teacher_and_a_share_of_the_training_images_work(vit, images, tmp_path):
    teacher = save_vit(tmp_path / "teacher", id2label={0: "blue", 1: "red"},
                       label2id={"blue": 0, "red": 1})  # fmt: skip
    status = run(
        "image", "--model_name_or_path", vit, "--train_dir", images / "train", *TRAIN,
        "--train_val_split", 0.25, "--teacher_name_or_path", teacher, "--output_dir", tmp_path,
        "--pruning_window", 2, "--augmentation", "none", "--save_strategy", "no",
        "--optim", "adamax",
    )  # fmt: skip
    assert status == 0
    assert results(tmp_path)["metrics"]["eval_accuracy"] in [n / 4 for n in range(5)]
    assert results(tmp_path)["pruned_weights"] == round(0.9 * SELECTED)


def test_a_data_set_by_name_is_read_by_its_columns(vit, tmp_path, monkeypatch):
    features = datasets.Features(
        {"img": datasets.Image(), "fine": datasets.ClassLabel(names=["blue", "red"])}
    )
    rows = {"img": [Image.new("L", (9, 9))] * 4, "fine": [0, 1, 0, 1]}
    table = datasets.Dataset.from_dict(rows, features=features)
    loaded = {"train": table, "test": table}
    monkeypatch.setattr(datasets, "load_dataset", lambda *arguments, **settings: loaded)
    given = ["--model_name_or_path", vit, "--dataset_name", "cifar", "--do_eval"]
    columns = ["--image_column", "img", "--label_column", "fine", "--output_dir", tmp_path]
    assert run("image", *given, *columns) == 0
    assert results(tmp_path)["metrics"]["eval_accuracy"] == 0.5


@pytest.mark.parametrize(
    ("column", "found"),
    [
        ([b"", b"no image"], "the image of row 2 must be an image: remove or replace it"),
        ([b"", None], "row 2 must have an image, got none: remove it"),
    ],
)
def test_every_image_of_a_data_set_is_opened_before_training(column, found, tmp_path):
    good = io.BytesIO()
    Image.new("L", (9, 9)).save(good, "png")
    rows = [content if content is None else {"bytes": content or good.getvalue(), "path": None}
            for content in column]  # fmt: skip
    features = datasets.Features({"image": datasets.Image()})
    table = datasets.Dataset.from_dict({"image": rows}, features=features)
    with pytest.raises(ValueError, match=f"train: {found}"):
        check_images("train", table)
    check_images("train", table.select([0]))


def test_a_column_that_has_no_images_is_named():
    table = datasets.Dataset.from_dict({"image": [1, 2]})
    with pytest.raises(ValueError, match="must have images or their paths, got .*int64.*choose an"):
        check_images("train", table)


def test_a_data_set_without_the_columns_is_refused(vit, tmp_path, monkeypatch, capsys):
    table = datasets.Dataset.from_dict({"img": ["a"], "label": [0]})
    monkeypatch.setattr(datasets, "load_dataset", lambda *arguments, **settings: {"train": table})
    given = ["--model_name_or_path", vit, "--dataset_name", "cifar", "--do_train"]
    assert run("image", *given, "--output_dir", tmp_path) == 2
    assert "must have the columns image, label, got img, label" in capsys.readouterr().err


def test_a_data_set_that_can_not_be_loaded_says_what_to_do(vit, tmp_path, monkeypatch, capsys):
    def unreachable(*arguments, **settings):
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    given = ["--model_name_or_path", vit, "--dataset_name", "cifar", "--do_train"]
    assert run("image", *given, "--output_dir", tmp_path) == 2
    assert "cifar could not be loaded (no network): check the name" in capsys.readouterr().err


# --- folders ------------------------------------------------------------------------------------


def test_classes_are_the_folders_in_alphabetical_order(tmp_path):
    table = read_folder("--train_dir", str(save_images(tmp_path, ("red", "blue"), count=2)))
    assert table.features["label"].names == ["blue", "red"]
    assert table["label"] == [0, 0, 1, 1]
    assert [path.split("/")[-2:] for path in table["image"]][:1] == [["blue", "0.png"]]


def test_a_validation_folder_may_lack_a_class_and_keeps_the_numbers(tmp_path):
    save_images(tmp_path, ("red",), count=1)
    table = read_folder("--validation_dir", str(tmp_path), ["blue", "red"])
    assert table["label"] == [1]


@pytest.mark.parametrize(
    ("classes", "known", "message"),
    [
        (None, None, "--train_dir must be a folder"),
        ((), None, "must have one folder of images per class, got none"),
        (("red", "green"), ["red"], r"must have the classes of the training images \(red\), got g"),
    ],
)
def test_folders_that_do_not_fit_are_refused(tmp_path, classes, known, message):
    folder = tmp_path / "images"
    if classes is not None:
        folder.mkdir()
        save_images(folder, classes, count=1)
    with pytest.raises(ValueError, match=message):
        read_folder("--train_dir", str(folder), known)


def test_a_class_without_images_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").touch()
    with pytest.raises(ValueError, match="each class must have images .* got none in .*empty"):
        read_folder("--train_dir", str(tmp_path))


def test_labels_without_names_count_from_0():
    table = datasets.Dataset.from_dict({"image": ["a", "b"], "label": [2, 0]})
    assert class_names({"train": table}) == ["0", "1", "2"]
    with pytest.raises(ValueError, match="validation: label must be from 0 to 1, got 2 in row 1"):
        check_classes("validation", table, ["0", "1"])
    table = datasets.Dataset.from_dict({"image": ["a"], "label": ["cat"]})
    with pytest.raises(ValueError, match="labels must be whole numbers from 0, got 'cat'"):
        class_names({"train": table})


# --- images -------------------------------------------------------------------------------------


def test_any_mode_becomes_rgb(tmp_path):
    Image.new("L", (3, 2), 7).save(tmp_path / "grey.png")
    image = pixels(str(tmp_path / "grey.png"))
    assert (image.mode, image.size, image.getpixel((0, 0))) == ("RGB", (3, 2), (7, 7, 7))


def test_a_broken_image_is_named(tmp_path):
    (tmp_path / "broken.png").write_text("no image")
    with pytest.raises(ValueError, match="broken.png must be an image: remove or replace it"):
        pixels(str(tmp_path / "broken.png"))


@pytest.mark.case
@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I"])
def test_16_bits_of_grey_are_scaled_to_8(mode):
    values = np.linspace(0, 65535, 256).astype({"I": "int32", "I;16B": ">u2"}.get(mode, "uint16"))
    image = Image.frombytes(mode, (16, 16), values.tobytes())
    found = np.asarray(pixels(image))[..., 0].ravel()
    assert np.abs(found.astype(int) - values.astype(int) // 257).max() <= 1
    assert (found[0], found[-1]) == (0, 255)


def test_values_of_neither_8_nor_16_bits_are_refused(tmp_path):
    Image.fromarray(np.array([[0, 70_000]], "int32")).save(tmp_path / "deep.tif")
    with pytest.raises(ValueError, match="deep.tif must have values of 8 or 16 bits, got 0.0 to 7"):
        pixels(str(tmp_path / "deep.tif"))


@pytest.mark.case
def test_an_image_above_the_limit_of_pil_is_named(tmp_path, monkeypatch):
    Image.new("RGB", (60, 60)).save(tmp_path / "big.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ValueError, match="big.png must be an image of at most 2,000 pixels"):
        pixels(str(tmp_path / "big.png"))


@pytest.mark.case
def test_hidden_files_and_what_a_mac_leaves_behind_are_no_images(tmp_path):
    save_images(tmp_path, ("blue", "red"), count=1)
    for junk in ("blue/._0.png", "blue/.ipynb_checkpoints/0.png", "red/__MACOSX/0.png",
                 "__MACOSX/0.png", ".cache/0.png"):  # fmt: skip
        (tmp_path / junk).parent.mkdir(exist_ok=True)
        (tmp_path / junk).write_bytes(b"\0\5\x16\7")
    table = read_folder("--train_dir", str(tmp_path))
    assert table.features["label"].names == ["blue", "red"]
    assert [path.rsplit("/", 2)[1:] for path in table["image"]] == [
        ["blue", "0.png"], ["red", "0.png"],
    ]  # fmt: skip


@pytest.mark.parametrize("ending", ["png", "jpg"])
def test_every_file_is_opened_before_training(vit, images, tmp_path, capsys, ending):
    folder = save_images(tmp_path / "train", count=2)
    whole = folder / "red" / f"whole.{ending}"
    Image.effect_noise((64, 64), 50).save(whole)
    (folder / "red" / f"cut.{ending}").write_bytes(whole.read_bytes()[:-600])
    (folder / "blue" / "empty.gif").touch()
    given = ["--train_dir", folder, "--output_dir", tmp_path / "out"]
    assert run("image", *flags(vit, images, tmp_path / "out", *TRAIN, *given)) == 2
    shown = capsys.readouterr().err
    assert "train: " in shown and "blue/empty.gif must be an image: remove or replace it" in shown
    assert "(2 files can't be read)" in shown
    assert not (tmp_path / "out").exists()


def test_flip_mirrors_about_half_of_the_images():
    image = Image.new("RGB", (2, 1))
    image.putpixel((0, 0), (255, 0, 0))
    torch.manual_seed(0)
    mirrored = sum(pixels(image, "flip").getpixel((1, 0)) == (255, 0, 0) for _ in range(200))
    assert 70 < mirrored < 130


def test_crops_have_8_to_100_percent_of_the_area_and_shapes_of_3_to_4():
    image = Image.new("RGB", (120, 90))
    torch.manual_seed(0)
    for width, height in (pixels(image, "crop").size for _ in range(200)):
        assert 0.07 < width * height / (120 * 90) <= 1
        assert 0.7 < width / height < 1.4


# --- errors before training ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--do_predict",), "image knows no --do_predict"),
        (("--dataset_name", "cifar", "--do_eval"), "got both: leave one out"),
        (("--train_val_split", 2, "--do_eval"), "--train_val_split must be in (0, 1), got 2.0"),
        (("--train_dir", "nowhere", "--do_train"), "--train_dir must be a folder"),
        (("--model_name_or_path", "nowhere", "--do_eval"), "image processor that can be loaded"),
        (("--preset", "mnli-10", "--do_eval"), "presets (none for this recipe)"),
        ((), "there is nothing to do"),
    ],
)
def test_settings_that_do_not_fit_end_the_command_with_a_message(
    vit, images, tmp_path, capsys, more, message
):
    assert run("image", *flags(vit, images, tmp_path, *more)) == 2
    assert message in capsys.readouterr().err


def test_missing_images_are_named_by_their_flag(vit, images, tmp_path, capsys):
    given = ["--model_name_or_path", vit, "--train_dir", images / "train", "--do_eval"]
    assert run("image", *given, "--output_dir", tmp_path) == 2
    assert "give --validation_dir or --train_val_split" in capsys.readouterr().err
    assert run("image", "--model_name_or_path", vit, "--do_train", "--output_dir", tmp_path) == 2
    assert "there must be images" in capsys.readouterr().err


def test_a_processor_of_another_model_is_refused(images, tmp_path, capsys):
    vit = save_vit(tmp_path / "vit", image_size=16)
    assert run("image", *flags(vit, images, tmp_path / "out", "--do_eval")) == 2
    assert "must make images of 16 pixels, the model's size, got 8" in capsys.readouterr().err
