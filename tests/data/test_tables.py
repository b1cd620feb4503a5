"""Tables: parts that folders name, parts with classes of their own, and cells that say NA."""

import json
import logging
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from PIL import Image

from mnist_ray.data import load
from mnist_ray.data.listing import part_in
from mnist_ray.errors import SettingsError
from tests.support.pictures import coloured, in_parquet, png


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("train", "train"),
        ("TRAIN-00000-of-00001-1f2e.parquet", "train"),
        ("partial-train", "train"),
        ("training_images", "train"),
        ("trainingset", "train"),
        ("testset.parquet", "test"),
        ("test-00000-of-00001.parquet", "test"),
        ("test_0", "test"),
        ("my_test.parquet", "test"),
        ("test2", "test"),
        ("eval.parquet", "test"),
        ("validation-data", "val"),
        ("devset", "val"),
        ("0000.parquet", None),
        ("testimony", None),
        ("trainer.parquet", None),
        ("latest", None),
        ("dataset", None),
        ("images", None),
        ("interval.parquet", None),
    ],
)
def test_the_part_that_a_name_tells(name: str, part: str | None) -> None:
    assert part_in(name) == part


@pytest.mark.parametrize(
    "files",
    [
        ("default/train/0000.parquet", "default/test/0000.parquet"),
        ("default/partial-train/0000.parquet", "default/partial-test/0000.parquet"),
        ("trainset.parquet", "testset.parquet"),
        ("test/train.parquet", "test/eval.parquet"),
        ("data.parquet", "my_test.parquet"),
    ],
)
def test_parts_of_parquet_files_and_folders(
    tmp_path: Path, files: tuple[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    for file, n in zip(files, (40, 16), strict=True):
        place = tmp_path / "train" / file  # the names above the folder that is given tell nothing
        place.parent.mkdir(parents=True, exist_ok=True)
        in_parquet(place, coloured(n, seed=n), [i % 2 for i in range(n)])
    name = f"parquet:{tmp_path / 'train'}"
    assert [len(load(name, part).labels) for part in ("train", "test")] == [40, 16]
    told = "1 files name no part and are for training, as data.parquet" in caplog.text
    assert told == ("data.parquet" in files)


# ---- parts with classes of their own


def saved(place: Path, names: dict[str, list[str]], labels: dict[str, list[int]]) -> list[str]:
    """A data set of Hugging Face's library, and its Parquet files: the sources."""
    datasets = pytest.importorskip("datasets")
    parts, folder = {}, place / "parquet"
    folder.mkdir()
    for part, numbers in labels.items():
        features = datasets.Features(
            image=datasets.Image(), label=datasets.ClassLabel(names=names[part])
        )
        pictures = [Image.fromarray(each) for each in coloured(len(numbers))]
        rows = {"image": pictures, "label": numbers}
        parts[part] = datasets.Dataset.from_dict(rows, features=features)
        parts[part].to_parquet(str(folder / f"{part}.parquet"))
    datasets.DatasetDict(parts).save_to_disk(str(place / "library"))
    return [f"hf:{place / 'library'}", f"parquet:{folder}"]


def test_each_part_may_number_its_classes_itself(tmp_path: Path) -> None:
    names = {"train": ["a", "b", "c"], "validation": ["c", "b", "a"], "test": ["a", "c", "never"]}
    labels = {"train": [0, 1, 2] * 10, "validation": [0, 2] * 3, "test": [0, 1] * 8}
    for source in saved(tmp_path, names, labels):
        train, test = load(source, "train"), load(source, "test")
        assert train.classes == test.classes == ("a", "b", "c"), source
        assert test.labels.tolist() == [0, 2] * 8, source
        assert train.labels.tolist() == [0, 1, 2] * 10 + [2, 0] * 3, source


def test_a_class_that_the_training_part_has_not_is_refused(tmp_path: Path) -> None:
    names = {"train": ["a", "b"], "test": ["a", "zebra"]}
    for source in saved(tmp_path, names, {"train": [0, 1] * 10, "test": [0, 1] * 8}):
        with pytest.raises(
            SettingsError, match="has the class 'zebra' in one part; the first part has a, b$"
        ):
            load(source, "train")


@pytest.mark.parametrize("column", ["label", "image"])
def test_a_part_without_a_column_is_one_line(tmp_path: Path, column: str) -> None:
    datasets = pytest.importorskip("datasets")
    names, labels = {part: ["a", "b"] for part in ("train", "test")}, [0, 1] * 10
    source, parquet = saved(tmp_path, names, {"train": labels, "test": labels})
    whole = datasets.load_from_disk(source.partition(":")[2])
    lacking = datasets.DatasetDict(train=whole["train"], test=whole["test"].remove_columns(column))
    lacking.save_to_disk(str(tmp_path / "lacking"))
    lacking["test"].to_parquet(str(tmp_path / "parquet" / "test.parquet"))
    for name, part in ((f"hf:{tmp_path / 'lacking'}", "test"), (parquet, "test.parquet")):
        with pytest.raises(SettingsError, match=f"{part} has no column '{column}', as others have"):
            load(name, "train")


def test_columns_of_other_types_are_one_line(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    parts: dict[str, Any] = {}
    (tmp_path / "parquet").mkdir()
    for part, label in (("train", 1), ("test", "cat")):
        cells = [{"bytes": png(each), "path": None} for each in coloured(8)]
        parts[part] = datasets.Dataset.from_dict({"image": cells, "label": [label] * 8})
        parts[part].to_parquet(str(tmp_path / "parquet" / f"{part}.parquet"))
    datasets.DatasetDict(parts).save_to_disk(str(tmp_path / "library"))
    for kind, place in (("hf", "library"), ("parquet", "parquet")):
        with pytest.raises(SettingsError, match="have columns of different types: ") as caught:
            load(f"{kind}:{tmp_path / place}", "train")
        assert "\n" not in str(caught.value)


def test_parts_that_are_left_out_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    parts = ("train", "eval", "unsupervised")
    names, labels = {part: ["a", "b"] for part in parts}, {part: [0, 1] * 10 for part in parts}
    source, _ = saved(tmp_path, names, labels)
    assert len(load(source, "test").labels) == 20
    assert "parts that are none of train, val and test are left out: unsupervised" in caplog.text


def test_names_in_the_metadata_of_one_file_alone(tmp_path: Path) -> None:
    """A part that names no classes has the numbers of the first."""
    for part, n in (("train", 20), ("test", 8)):
        in_parquet(tmp_path / f"{part}.parquet", coloured(n), [i % 2 for i in range(n)])
    table = pq.read_table(tmp_path / "train.parquet")
    features = {"info": {"features": {"label": {"names": ["a", "b"]}}}}
    table = table.replace_schema_metadata({"huggingface": json.dumps(features)})
    pq.write_table(table, tmp_path / "train.parquet")
    test = load(f"parquet:{tmp_path}", "test")
    assert (test.classes, test.labels[:2].tolist()) == (("a", "b"), [0, 1])


# ---- cells


def test_a_class_may_be_called_na(tmp_path: Path) -> None:
    names = ["NA", "N/A", "null", "nan"]
    for i, image in enumerate(coloured(40)):
        (tmp_path / f"{i}.png").write_bytes(png(image))
    rows = [f"{i}.png,{names[i % 4]}" for i in range(40)]
    (tmp_path / "a.csv").write_text("\n".join(["path,label", *rows]))
    assert load(f"csv:{tmp_path / 'a.csv'}", "train").classes == tuple(sorted(names))


@pytest.mark.parametrize("row", [",1,2,3,4", '"",1,2,3,4', "a,1,2,,4", "a,1,2,NA,4"])
def test_an_empty_cell_is_refused(tmp_path: Path, row: str) -> None:
    lines = ["label,p0,p1,p2,p3", *["a,1,2,3,4", "b,4,3,2,1"] * 10, row]
    (tmp_path / "a.csv").write_text("\n".join(lines))
    said = "without a label|a value of p2 is missing|cannot be read as CSV: .*conversion error"
    with pytest.raises(SettingsError, match=f"^--dataset: .*({said})") as caught:
        load(f"csv:{tmp_path / 'a.csv'}", "train")
    assert "\n" not in str(caught.value)
