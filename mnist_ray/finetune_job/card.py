"""The model card, a README.md after Hugging Face's conventions: `card.md.jinja` filled in."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
import yaml

from mnist_ray.export.picture_model import OF_ONE_STROKE
from mnist_ray.run.publication import Manifest
from mnist_ray.settings import is_stored

COLUMNS = ("step", "epochs", "lr", "val_accuracy", "test_accuracy")  # of the table of steps


def model_card(manifest: Manifest, hp: Mapping[str, Any], padding: str | None = None) -> str:
    """The card's Markdown.

    Args:
        manifest: of the model.
        hp: hyperparameters of the network that the chain began with.
        padding: of the training images (see `data.Images.padding`).
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        undefined=jinja2.StrictUndefined,
        autoescape=False,  # Markdown: see as_text
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["text"] = as_text
    low, high = manifest.test_accuracy_interval
    height, width = hp["image_size"]
    calibration = manifest.calibration or {}
    grey = hp["in_channels"] == 1
    digit = grey and padding is None  # prepared as MNIST was
    # From random weights, stage 0, nothing is left of the training that the search did.
    anew = any(step["step"] == "stage-0" for step in manifest.lineage)
    trained = manifest.lineage if anew else (hp, *manifest.lineage)
    return environment.get_template("card.md.jinja").render(
        m=manifest,
        header=_header(manifest),
        low=low,
        high=high,
        dataset=without_folder(manifest.dataset),  # the card is uploaded
        look="bright on black; " if digit else "as the training pictures; " if grey else "",
        temperature=calibration.get("temperature") if calibration.get("by") != "none" else None,
        channels=hp["in_channels"],
        height=height,
        width=width,
        steps=[[_cell(step.get(key)) for key in COLUMNS] for step in manifest.lineage],
        augmentations=sorted({str(each.get("augment", "none")) for each in trained} - {"none"}),
        unseen_by=_unseen_by(manifest),
        known=_known(manifest, digit),
    )


def _known(manifest: Manifest, digit: bool) -> str:
    """When `known` of `picture.onnx` is false. Whether an empty picture counts was tried.

    digit: whether pictures are prepared as MNIST was.
    """
    several = digit and manifest.dataset in OF_ONE_STROKE  # as picture_file decides
    false = [
        *(["where nothing is drawn"] * bool((manifest.picture or {}).get("declines_empty"))),
        *(["where several digits are drawn"] * several),
        *(["for a picture that is none of the classes"] * (manifest.known is not None)),
    ]
    return f"false {', and '.join(false)}" if false else "always true"


def _unseen_by(manifest: Manifest) -> str:
    """Which networks had not seen the images that set the thresholds."""
    if manifest.known is None or not manifest.known.unsure_below:
        return "that network"
    twin = (manifest.calibration or {}).get("by") == "twin"  # the published one has seen them
    return "neither that network nor a twin of the model" if twin else "neither network"


def without_folder(dataset: str) -> str:
    """A data set's name; of files of one's own without the folders that they lie in."""
    if not is_stored(dataset):
        return dataset
    kind, _, path = dataset.partition(":")
    return f"{kind}:{os.path.basename(path)}"


def as_text(text: str) -> str:
    """Text of others, such as a class's name, so that Markdown shows it as it is, on one line."""
    printable = "".join(c if c.isprintable() else " " for c in str(text))
    return re.sub(r"([\\`*_{}\[\]<>#|~&!$])", r"\\\1", " ".join(printable.split()))


def _header(manifest: Manifest) -> str:
    """The YAML between the dashes. safe_dump quotes names that YAML would take for other types."""
    name = without_folder(manifest.dataset)
    dataset = {"name": name, "type": name, "split": "test"}
    result = {
        "task": {"type": "image-classification"},
        "dataset": dataset,
        "metrics": [{"type": "accuracy", "value": manifest.test_accuracy}],
    }
    header = {
        "library_name": "onnx",
        "pipeline_tag": "image-classification",
        "datasets": [name],
        "metrics": ["accuracy"],
        "model-index": [{"name": manifest.run, "results": [result]}],
    }
    return yaml.safe_dump(header, sort_keys=False, allow_unicode=True)


def _cell(value: Any) -> str:
    return "–" if value is None else value if isinstance(value, str) else f"{value:g}"
