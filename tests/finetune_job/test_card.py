"""The model card: its figures, and that names of others stay text in it."""

import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from mnist_ray import data
from mnist_ray.data import read_picture
from mnist_ray.export.picture_model import OF_ONE_STROKE, PictureSession, picture_file
from mnist_ray.export.write import export
from mnist_ray.finetune_job.card import as_text, model_card
from mnist_ray.finetune_job.judging import pictured
from mnist_ray.run.publication import Known, Manifest
from tests.support.networks import HP as NETWORK
from tests.support.networks import network

MANIFEST = Manifest(
    file="model.onnx",
    sha256="0" * 64,
    n_parameters=1234567,
    val_accuracy=0.995,
    test_accuracy=0.9972,
    test_images=10000,
    test_errors=28,
    test_accuracy_interval=(0.9959, 0.9981),
    max_difference_from_torch=3.4e-6,
    verified_on_images=1000,
    latency_ms=0.5,
    dataset="mnist",
    classes=("0", "1"),
    run="first",
    recipe="default",
    train_on="all",
    lineage=(
        {"step": "search", "trial": 3, "val_accuracy": 0.995, "test_accuracy": 0.996},
        {"step": "stage-1", "epochs": 13, "lr": 0.1, "test_accuracy": 0.9972, "augment": "none"},
    ),
)
HP = {"in_channels": 1, "image_size": [28, 20]}


def header(card: str) -> dict:
    return yaml.safe_load(card.split("---\n")[1])


def test_the_card_says_what_the_manifest_says() -> None:
    card = model_card(MANIFEST, HP)
    assert card.startswith("---\nlibrary_name: onnx\n")
    assert "# first\n\nA classifier of mnist images with 1,234,567 parameters" in card
    assert "float32 [batch, 1, 28, 20], pixels in [0, 1] (bright on black;" in card
    assert "logits [batch, 2] of the classes 0, 1." in card
    assert "**99.72%** (28 errors; 95 % Wilson interval\n99.59% to 99.81%)" in card
    assert "1000 images: 3.4e-06.\n" in card
    assert (
        "|---|---|---|---|---|\n"
        "| search | – | – | 0.995 | 0.996 |\n"
        "| stage-1 | 13 | 0.1 | – | 0.9972 |\n"
        "\nThe search and every choice"
    ) in card
    assert "all training images; no augmentation." in card
    assert card.endswith("less than 0.11% between models mean little.\n")
    result = header(card)["model-index"][0]["results"][0]
    assert result["metrics"] == [{"type": "accuracy", "value": 0.9972}]
    assert result["dataset"] == {"name": "mnist", "type": "mnist", "split": "test"}


def test_augmentation_of_search_and_stages_is_named() -> None:
    lineage = ({"step": "stage-1", "augment": "shift"}, {"step": "stage-2", "augment": "none"})
    manifest = dataclasses.replace(MANIFEST, lineage=lineage, train_on="train")
    card = model_card(manifest, {**HP, "augment": "affine"})
    assert "the training part; augmentation: affine, shift." in card

    anew = dataclasses.replace(MANIFEST, lineage=({"step": "stage-0", "augment": "none"},))
    assert "; no augmentation." in model_card(anew, {**HP, "augment": "affine"})


@pytest.mark.parametrize(
    ("by", "unsure", "text"),
    [
        ("validation", 0.4, "neither network had seen"),
        ("twin", 0.4, "neither that network nor a twin of the model had seen"),
        ("none", 0.0, "that network had seen"),
    ],
)
def test_the_card_says_who_had_not_seen_the_images_of_the_thresholds(
    by: str, unsure: float, text: str
) -> None:
    """A model that trained on all images has seen them; its twin has not."""
    known = Known(
        0.01, unsure, 0.5, 300, 0.01, 999, 1.0, {"noise": 1.0}, 0.01, 0.01, 1, {"0.01": 1}
    )
    manifest = dataclasses.replace(MANIFEST, known=known, calibration={"by": by})
    assert f"by 300 training images that {text}, so" in model_card(manifest, HP)


@pytest.mark.parametrize("run", ["null", "123", "2026-11-25", "yes", "1e3", "~"])
def test_a_runs_name_is_text_in_the_header(run: str) -> None:
    found = header(model_card(dataclasses.replace(MANIFEST, run=run), HP))
    assert found["model-index"][0]["name"] == run


def test_colour_images_are_not_bright_on_black() -> None:
    card = model_card(MANIFEST, {**HP, "in_channels": 3})
    assert "float32 [batch, 3, 28, 20], pixels in [0, 1] (normalisation is inside)" in card
    assert "bright on black" not in card


def test_class_names_are_text() -> None:
    classes = (
        "*bold*",
        "<script>alert(1)</script>",
        "[a](http://b)",
        "a\n# b",
        "\x1b[31mred",
        "x|y",
    )
    card = model_card(dataclasses.replace(MANIFEST, classes=classes), HP)
    assert (
        r"of the classes \*bold\*, \<script\>alert(1)\</script\>, \[a\](http://b), a \# b, "
        r"\[31mred, x\|y."
    ) in card
    assert as_text("T-shirt/top") == "T-shirt/top"


def test_its_lines_of_python_classify_a_picture(tmp_path: Path) -> None:
    about = {
        "file": "picture.onnx", "sha256": "0" * 64, "max_difference": 1e-7,
        "verified_on_pictures": 201,
    }  # fmt: skip
    card = model_card(dataclasses.replace(MANIFEST, picture=about, dataset="kmnist"), HP)
    assert "`known`, which is always true." in card
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    model = export(network(NETWORK), NETWORK, {})
    (tmp_path / "picture.onnx").write_bytes(picture_file(model, "model"))
    image = data.load("digits", "test").images[0, 0]
    deep = Image.fromarray(image.astype(np.uint16) * 257)
    deep.resize((90, 90), Image.Resampling.NEAREST).save(tmp_path / "picture.png")
    (tmp_path / "card.py").write_text(code + "print(label, probability, known)\n")
    done = subprocess.run(
        [sys.executable, "card.py"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    found = PictureSession(picture_file(model, "model"), "picture.onnx")(
        read_picture(str(tmp_path / "picture.png"))
    )
    label, probability, known = done.stdout.split()
    assert (int(label), known) == (found.label, "True")
    assert float(probability) == pytest.approx(found.probability, abs=1e-6)


@pytest.mark.parametrize("padding", [None, "black"])
def test_what_known_means_is_tried_on_an_empty_picture(padding: str | None) -> None:
    metadata = {"dataset": "digits"} if padding is None else {"padding": padding}
    model = export(network(NETWORK), NETWORK, metadata)
    _, about = pictured(model, data.load("digits", "train").images[:4], None)
    dataset = "kmnist" if padding is None else "folder:digits"
    card = model_card(dataclasses.replace(MANIFEST, picture=about, dataset=dataset), HP, padding)
    told = "always true" if padding else "false where nothing is drawn"
    assert f"`known`, which is {told}." in card


@pytest.mark.parametrize("dataset", OF_ONE_STROKE)
def test_the_card_says_that_several_digits_are_declined(dataset: str) -> None:
    """As picture.onnx decides: for these data sets alone, and for digits as MNIST has them."""
    about = {"max_difference": 1e-7, "verified_on_pictures": 201, "declines_empty": True}
    manifest = dataclasses.replace(MANIFEST, picture=about, dataset=dataset)
    told = "`known`, which is false where nothing is drawn, and where several digits are drawn."
    assert told in model_card(manifest, HP)
    assert "several digits" not in model_card(manifest, HP, "black")
    assert "several digits" not in model_card(manifest, {**HP, "in_channels": 3})
    assert "several digits" not in model_card(dataclasses.replace(manifest, dataset="kmnist"), HP)


def test_the_card_names_the_temperature() -> None:
    about = {"max_difference": 1e-7, "verified_on_pictures": 201}
    calibration = {"by": "validation", "temperature": 0.473}
    manifest = dataclasses.replace(MANIFEST, calibration=calibration, picture=about)
    text = "Divide them by the temperature 0.473 before the softmax, as `picture.onnx` does."
    assert text in model_card(manifest, HP)
    alone = model_card(dataclasses.replace(manifest, picture=None), HP)
    assert "Divide them by the temperature 0.473 before the softmax.\n" in alone
    for none in (None, {"by": "none", "temperature": 1.0}):
        card = model_card(dataclasses.replace(manifest, calibration=none), HP)
        assert "temperature" not in card
        assert "compared with those of `model.onnx`" not in card  # which gives logits


def test_folders_of_a_person_are_not_in_the_card() -> None:
    manifest = dataclasses.replace(MANIFEST, dataset="folder:/home/anna/Thesis/shapes")
    card = model_card(manifest, HP, "black")
    assert "anna" not in card
    assert "A classifier of folder:shapes images" in card
    assert "Trained on folder:shapes alone" in card


def test_grey_pictures_of_ones_own_are_not_called_bright_on_black() -> None:
    card = model_card(MANIFEST, HP, "white")
    assert "pixels in [0, 1] (as the training pictures; normalisation is inside)" in card
    assert "bright on black" not in card
