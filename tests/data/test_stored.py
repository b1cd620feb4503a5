"""Sources of one's own without code: folders, npz files, tables and Hugging Face's library."""

import csv
import json
import logging
import os
import shutil
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mnist_ray.data import Images, Reading, decoding, digest, load, load_split, stored
from mnist_ray.errors import SettingsError
from tests.support.pictures import CLASSES, by_class, coloured, in_folders, in_parquet, png


def write_csv(file: Path, header: list[str], rows: list[list[Any]]) -> None:
    with file.open("w", newline="", encoding="utf-8") as opened:
        csv.writer(opened).writerows([header, *rows])


def test_the_same_images_from_every_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = {"train": coloured(40), "test": coloured(16, seed=1)}
    in_folders(tmp_path / "folder", parts)
    arrays: dict[str, np.ndarray] = {}
    rows: list[list[Any]] = []
    (tmp_path / "parquet").mkdir()
    for part, images in parts.items():
        ordered, labels = by_class(images)
        arrays |= {f"x_{part}": ordered, f"y_{part}": np.array(labels)}
        in_parquet(tmp_path / "parquet" / f"{part}-00000-of-00001.parquet", ordered, labels)
        for i, (image, label) in enumerate(zip(ordered, labels, strict=True)):
            (tmp_path / f"{part}{i}.png").write_bytes(png(image))
            rows.append([f"{part}{i}.png", label, part])
    np.savez_compressed(tmp_path / "arrays.npz", allow_pickle=False, **arrays)
    write_csv(tmp_path / "table.csv", ["path", "label", "split"], rows)
    names = ["folder:folder", "npz:arrays.npz", "csv:table.csv", "parquet:parquet"]
    monkeypatch.chdir(tmp_path)
    found = {name: [load(name, part) for part in parts] for name in names}
    train, test = found["folder:folder"]
    assert train.shape == (3, 12, 10)
    assert train.classes == tuple(sorted(CLASSES))
    assert train.padding == "black"
    assert train.images[:10].tobytes() == parts["train"][::4].transpose(0, 3, 1, 2).tobytes()
    for one, other in found.values():
        assert (one.sha256, other.sha256) == (train.sha256, test.sha256)
        assert (one.classes, one.mean, one.std) == (train.classes, train.mean, train.std)
        assert digest(one.images, one.labels) == one.sha256

    def function(part: str, data_dir: str | None) -> Images:
        images, labels = by_class(parts[part])
        places = np.array([sorted(CLASSES).index(label) for label in labels])
        return Images("", part, images, places, sorted(CLASSES), train.mean, train.std)  # type: ignore[arg-type]

    monkeypatch.setattr("tests.support.pictures.function", function, raising=False)
    own = "tests.support.pictures:function"
    assert load(own, "train").sha256 == train.sha256
    splits = [load_split(name, seed=3) for name in [*names, own]]
    for each in splits:
        assert each.val_by == "class"
        assert np.array_equal(each.train, splits[0].train)
        assert np.array_equal(each.val, splits[0].val)


def test_a_folder_that_hugging_faces_library_saved(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        image=datasets.Image(), label=datasets.ClassLabel(names=["b", "a"])
    )
    made = {}
    for part, n in {"train": 40, "validation": 8, "test": 16}.items():
        pictures = [Image.fromarray(image) for image in coloured(n)]
        rows = {"image": pictures, "label": [i % 2 for i in range(n)]}
        made[part] = datasets.Dataset.from_dict(rows, features=features)
    datasets.DatasetDict(made).save_to_disk(str(tmp_path / "library"))
    train, test = (load(f"hf:{tmp_path / 'library'}", part) for part in ("train", "test"))
    assert (train.shape, train.classes) == ((3, 12, 10), ("b", "a"))
    assert (len(train.labels), len(test.labels)) == (48, 16)
    assert train.val is not None
    assert len(train.val) == 8
    assert train.images[:40].tobytes() == coloured(40).transpose(0, 3, 1, 2).tobytes()


def test_pictures_of_every_kind(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Formats and modes; those of other shapes are fitted and padded."""
    caplog.set_level(logging.INFO)
    base = coloured(1, (40, 20))[0]
    picture = Image.fromarray(base)
    folder = tmp_path / "kinds" / "a"
    folder.mkdir(parents=True)
    for name, made in {
        "rgb.png": picture, "grey.png": picture.convert("L"), "bit.png": picture.convert("1"),
        "palette.png": picture.quantize(64), "alpha.png": picture.convert("RGBA"),
        "la.png": picture.convert("LA"), "photo.jpg": picture, "cmyk.jpg": picture.convert("CMYK"),
        "web.webp": picture, "map.bmp": picture, "tag.tiff": picture, "move.gif": picture,
        "deep.png": Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) * 257),
    }.items():  # fmt: skip
        made.save(folder / name)
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.rotate(90, expand=True).save(folder / "turned.jpg", exif=exif, quality=100)
    (folder / "notes.txt").write_text("no picture")
    (folder / ".hidden.png").write_text("")
    (tmp_path / "kinds" / "b").mkdir()
    for i in range(4):
        Image.fromarray(coloured(1, (20, 40), i)[0]).save(tmp_path / "kinds" / "b" / f"{i}.png")
    name = f"folder:{tmp_path / 'kinds'}"
    found = load(name, "train")
    assert found.shape == (3, 40, 20)
    said = caplog.text
    assert "pictures of 20..40 x 20..40 pixels are read as 40 x 20 (their median" in said
    assert "1 files are no pictures and left out, as a/notes.txt" in said
    assert "18 images in 2 classes: a, b\n" in said
    assert "no test part: 4 of 18 pictures are split off in the classes' proportions" in said
    # Every `a` is the same picture: within what JPEG, the palette and one bit lose.
    whole = [load(name, part) for part in ("train", "test")]
    images = np.concatenate([each.images[each.labels == 0] for each in whole]).astype(int)
    middle = np.median(images, axis=0)
    assert sum(np.abs(image - middle).mean() < 30 for image in images) >= 12
    wide = np.concatenate([each.images[each.labels == 1] for each in whole])
    assert (wide[:, :, :15] == 0).all()  # 20 x 40 becomes 10 x 20 on black
    assert (wide[:, :, 15:25].mean() > 30).all()
    grey = load(name, "train", reading=Reading(image_size=8, channels="grey", padding="white"))
    assert grey.shape == (1, 8, 8)
    assert (grey.images[grey.labels == 0][:, :, :, :2] == 255).all()
    stretched = load(name, "train", reading=Reading(image_size=8, padding="stretch"))
    assert stretched.shape == (3, 8, 8)
    edge = load(name, "train", reading=Reading(image_size=8, padding="edge"))
    assert (edge.images[:, :, 0] == edge.images[:, :, 1]).all() or edge.shape == (3, 8, 8)


def test_grey_is_found_out_and_large_pictures_are_made_smaller(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    images = np.repeat(coloured(12, (200, 100))[..., :1], 3, axis=3)
    in_folders(tmp_path / "d", {"": images})
    found = load(f"folder:{tmp_path / 'd'}", "train")
    assert found.shape == (1, 64, 32)
    assert "every picture is grey" in caplog.text
    colour = load(f"folder:{tmp_path / 'd'}", "train", reading=Reading(channels="colour"))
    assert colour.shape == (3, 64, 32)
    assert (colour.images[:, 0] == found.images[:, 0]).all()


def test_a_validation_part_of_its_own(tmp_path: Path) -> None:
    in_folders(
        tmp_path / "d",
        {"train": coloured(40), "Validation": coloured(12, seed=1), "test": coloured(8, seed=2)},
    )
    name = f"folder:{tmp_path / 'd'}"
    part, train, val, rule, _ = load_split(name)
    assert (rule, len(part.labels), len(train), len(val)) == ("own", 52, 40, 12)
    assert part.val is not None
    assert val.tolist() == part.val.tolist() == list(range(40, 52))
    only_train = load_split(name, val_by="class", val_images=8)
    assert (only_train.val_by, len(only_train.val)) == ("class", 8)
    fewer = load_split(name, val_images=4, train_images=8)
    assert (len(fewer.train), len(fewer.val)) == (8, 4)
    assert set(fewer.val) <= set(val)
    with pytest.raises(SettingsError, match="--val-images 13: allowed are 4 to 12"):
        load_split(name, val_images=13)
    for flag in ("train_images", "val_images"):
        with pytest.raises(SettingsError, match=f"^--{flag.replace('_', '-')} 3: allowed are 4 to"):
            load_split(name, **{flag: 3})  # type: ignore[arg-type]


def test_a_part_of_its_own_training_images_keeps_each_class(tmp_path: Path) -> None:
    """Of classes as unequal as this, a draw in their proportions takes none of the rarest."""
    labels = np.array([0] * 90 + [1] * 8 + [2] * 2)
    np.savez(
        tmp_path / "a.npz", x_train=coloured(100), y_train=labels, x_val=coloured(100, seed=1),
        y_val=labels, x_test=coloured(9, seed=2), y_test=np.arange(9) % 3,
    )  # fmt: skip
    found = load_split(f"npz:{tmp_path / 'a.npz'}", train_images=12, val_images=11)
    for side, count in ((found.train, 12), (found.val, 11)):
        assert len(side) == count
        assert set(found.images.labels[side]) == {0, 1, 2}
    with pytest.raises(SettingsError, match="^--val-images 2: allowed are 3 to 100 "):
        load_split(f"npz:{tmp_path / 'a.npz'}", val_images=2)
    older = load_split(f"npz:{tmp_path / 'a.npz'}", val_images=2, each_class=False)
    assert len(older.val) == 2


def test_a_validation_part_that_is_the_training_part_is_refused(tmp_path: Path) -> None:
    images, labels = coloured(40), np.arange(40) % 4
    parts = {"x_train": images, "y_train": labels, "x_val": images[:30], "y_val": labels[:30]}
    np.savez(tmp_path / "a.npz", **parts, x_test=coloured(8, seed=1), y_test=labels[:8])  # type: ignore[arg-type]
    name = f"npz:{tmp_path / 'a.npz'}"
    message = f"^--dataset: {name}: all 30 validation images are training images; give others, or "
    with pytest.raises(SettingsError, match=f"{message}--val-by class$"):
        load_split(name)
    assert load_split(name, val_by="class").val_by == "class"


def test_groups_weights_and_split_of_a_table(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    images = coloured(200)
    rows = []
    for i, image in enumerate(images):
        (tmp_path / f"{i}.png").write_bytes(png(image))
        rows.append([f"{i}.png", i % 4, f"patient {i // 10}", 1 + i % 2])
    write_csv(tmp_path / "t.csv", ["file_name", "label", "group", "weight"], rows)
    name = f"csv:{tmp_path / 't.csv'}"
    train, test = load(name, "train"), load(name, "test")
    assert "are split off by groups" in caplog.text
    assert train.groups is not None
    assert test.groups is not None
    assert not set(train.groups) & set(test.groups)
    assert 30 <= len(test.labels) <= 50
    assert train.classes == ("0", "1", "2", "3")
    assert train.weights is not None
    assert set(train.weights) == {1.0, 2.0}
    split = load_split(name)
    assert split.val_by == "group"
    assert not set(train.groups[split.train]) & set(train.groups[split.val])


def test_labels_are_ordered_as_people_count(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=coloured(60), labels=np.arange(60) % 4 * 5)
    assert load(f"npz:{tmp_path / 'a.npz'}", "train").classes == ("0", "5", "10", "15")


def test_a_table_may_have_spaces_after_its_commas(tmp_path: Path) -> None:
    pixels = coloured(40, (4, 4))[..., 0]
    rows = [f"{i % 4}, {', '.join(map(str, each.ravel()))}" for i, each in enumerate(pixels)]
    header = ", ".join(["label", *(f"pixel{i}" for i in range(16))])
    (tmp_path / "a.csv").write_text("\n".join([header, *rows]))
    (tmp_path / "a.png").write_bytes(png(coloured(1)[0]))
    (tmp_path / "b.png").write_bytes(png(coloured(2)[1]))
    lines = [f"{name}.png, {name}" for name in "ab"] * 20
    (tmp_path / "b.csv").write_text("\n".join(["path, label", *lines]))
    whole = [
        np.concatenate([load(f"csv:{tmp_path / name}.csv", p).images for p in ("train", "test")])
        for name in "ab"
    ]
    assert [len(each) for each in whole] == [40, 40]
    assert sorted(map(bytes, whole[0])) == sorted(map(bytes, pixels))


def test_pixels_in_a_table(tmp_path: Path) -> None:
    pixels = np.arange(20 * 9).reshape(20, 9) % 256
    rows = [[i % 2, *line] for i, line in enumerate(pixels.tolist())]
    write_csv(tmp_path / "t.csv", ["label", *(f"pixel{i}" for i in range(9))], rows)
    train = load(f"csv:{tmp_path / 't.csv'}", "train")
    assert train.shape == (1, 3, 3)
    assert train.images[0].reshape(-1).tolist() == pixels[0].tolist()
    backwards = [[line[0], *line[:0:-1]] for line in rows]
    header = ["label", *(f"pixel{i}" for i in reversed(range(9)))]
    write_csv(tmp_path / "backwards.csv", header, backwards)
    again = load(f"csv:{tmp_path / 'backwards.csv'}", "train")
    np.testing.assert_array_equal(again.images, train.images)


@pytest.mark.parametrize(
    ("images", "labels", "shape"),
    [
        (np.random.default_rng(0).random((20, 6, 5)), np.arange(20) % 2, (1, 6, 5)),
        (np.random.default_rng(0).random((20, 6, 5, 3)), (np.arange(20) % 2)[:, None], (3, 6, 5)),
        (coloured(20).transpose(0, 3, 1, 2), np.eye(2)[np.arange(20) % 2], (3, 12, 10)),
        (coloured(20).astype(np.float32), (np.arange(20) % 2).astype(float), (3, 12, 10)),
        (coloured(20)[..., 0].astype(np.int64), np.arange(20) % 2 == 1, (1, 12, 10)),
        (coloured(20)[..., 0] > 60, np.arange(20) % 2, (1, 12, 10)),
    ],
)
def test_arrays_as_people_have_them(
    tmp_path: Path, images: np.ndarray, labels: np.ndarray, shape: tuple[int, int, int]
) -> None:
    np.savez(tmp_path / "a.npz", train_images=images, train_labels=labels)
    found = load(f"npz:{tmp_path / 'a.npz'}", "train")
    assert (found.shape, len(found.classes)) == (shape, 2)
    assert found.images.max() > 100


@pytest.mark.parametrize("kind", [np.uint8, np.int64])
def test_whole_numbers_up_to_1_are_told_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: type
) -> None:
    caplog.set_level(logging.INFO)
    images = np.random.default_rng(0).integers(0, 2, (40, 6, 5))
    np.savez(tmp_path / "a.npz", x=images.astype(kind), y=np.arange(40) % 2)
    assert load(f"npz:{tmp_path / 'a.npz'}", "train").images.max() == 1
    assert "whole numbers up to 1 are read as values of 0..255, nearly black" in caplog.text


def test_groups_and_weights_of_the_only_part_need_not_name_it(tmp_path: Path) -> None:
    numbers = np.arange(200)
    own = {"groups": numbers // 10, "weights": 1.0 + numbers % 2}
    named = {f"{kind}_train": values for kind, values in own.items()}
    for images, labels, beside in (
        ("x_train", "y_train", own), ("images", "labels", own), ("images", "labels", named),
        ("x_train", "y_train", named),
    ):  # fmt: skip
        np.savez(tmp_path / "a.npz", **{images: coloured(200), labels: numbers % 4, **beside})  # type: ignore[arg-type]
        found = load_split(f"npz:{tmp_path / 'a.npz'}")
        assert found.val_by == "group"
        assert found.images.groups is not None
        assert not {*found.images.groups[found.train]} & {*found.images.groups[found.val]}
        assert found.images.weights is not None
        assert np.unique(found.images.weights).size == 2


@pytest.mark.parametrize("kind", ["groups", "weights"])
def test_groups_of_several_parts_must_name_theirs(tmp_path: Path, kind: str) -> None:
    parts = {"x_train": coloured(60), "y_train": np.arange(60) % 4}
    tested = {"x_test": coloured(8), "y_test": np.arange(8) % 4}
    np.savez(tmp_path / "a.npz", **parts, **tested, **{kind: np.ones(60)})  # type: ignore[arg-type]
    message = rf"^--dataset: npz:.*a.npz: {kind} may be of train or test; expected {kind}_train"
    with pytest.raises(SettingsError, match=message):
        load(f"npz:{tmp_path / 'a.npz'}", "train")


def test_arrays_that_are_left_out_are_told_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    np.savez(
        tmp_path / "a.npz", x_train=coloured(60), y_train=np.arange(60) % 4, x_test=coloured(8),
        y_val=np.arange(8) % 4, groups_val=np.arange(8), images=coloured(9), ids=np.arange(60),
    )  # fmt: skip
    load(f"npz:{tmp_path / 'a.npz'}", "train")
    assert "x_test is left out: it has no labels" in caplog.text
    assert "y_val, groups_val are left out: they have no images" in caplog.text
    assert "images is left out: it has no labels" in caplog.text
    assert "ids" not in caplog.text
    np.savez(
        tmp_path / "b.npz", x_train=coloured(60), y_train=np.arange(60) % 4, images=coloured(9),
        labels=np.arange(9), groups=np.arange(9),
    )  # fmt: skip
    assert load(f"npz:{tmp_path / 'b.npz'}", "train").groups is None
    assert "images, labels, groups are left out: others name the training part" in caplog.text


@pytest.mark.parametrize("first", [True, False])
def test_four_channels_are_told_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, first: bool
) -> None:
    """They may be red, green, blue and near infrared."""
    caplog.set_level(logging.INFO)
    images = np.random.default_rng(0).integers(0, 256, (40, 12, 12, 4), np.uint8)
    images = images.transpose(0, 3, 1, 2) if first else images
    np.savez(tmp_path / "a.npz", x=images, y=np.arange(40) % 2)
    assert load(f"npz:{tmp_path / 'a.npz'}", "train").shape == (3, 12, 12)
    said = "four channels are read as red, green, blue and opacity, on white; a function passes"
    assert said in caplog.text


@pytest.mark.parametrize("labels", [[b"cat", "hündin".encode()], [b"hund ", b"cat"]])
def test_bytes_are_read_as_text(tmp_path: Path, labels: list[bytes]) -> None:
    parts, groups = [b"train"] * 30 + [b"test"] * 10, [b"camera 1"] * 20 + [b"camera 2"] * 20
    names = sorted(each.decode().strip() for each in labels)
    images = coloured(40)
    np.savez(tmp_path / "a.npz", x=images, y=np.array(labels * 20), groups=np.array(groups))
    assert list(load(f"npz:{tmp_path / 'a.npz'}", "train").classes) == names
    np.savez(tmp_path / "b.npz", x=images, classes=np.array(labels), y=np.arange(40) % 2)
    assert [each.strip() for each in load(f"npz:{tmp_path / 'b.npz'}", "train").classes] == [
        each.decode().strip() for each in labels
    ]
    table = tmp_path / "a.parquet"
    in_parquet(table, images, labels * 20, split=parts, group=groups)
    found = load(f"parquet:{table}", "train")
    assert (list(found.classes), len(found.labels)) == (names, 30)
    in_parquet(table, images, [b"\xff\xfe", b"cat"] * 20)
    with pytest.raises(SettingsError, match=r"has the label b'.xff.xfe'; expected UTF-8"):
        load(f"parquet:{table}", "train")


# ---- broken pictures and other mistakes


BROKEN = (
    r"^--dataset: 3 of 43 pictures .*; mend or remove them \(a search can leave them out: "
    r"--skip-broken\)$"
)


@pytest.fixture
def with_broken(tmp_path: Path) -> str:
    in_folders(tmp_path / "d", {"": coloured(40)})
    (tmp_path / "d" / "été" / "empty.png").write_bytes(b"")
    (tmp_path / "d" / "été" / "text.jpg").write_text("not a picture")
    (tmp_path / "d" / "犬" / "cut.png").write_bytes(png(coloured(1)[0])[:-60])
    return f"folder:{tmp_path / 'd'}"


def test_broken_pictures_are_named(with_broken: str, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(SettingsError, match=BROKEN) as e:
        load(with_broken, "train")
    assert "\n" not in str(e.value)
    lines = [record.message for record in caplog.records]
    assert len(lines) == 3
    for line, file in zip(lines, ("été/empty.png", "été/text.jpg", "犬/cut.png"), strict=True):
        assert line.startswith("broken: ")
        assert file in line
    part, test = (
        load(with_broken, p, reading=Reading(skip_broken=True)) for p in ("train", "test")
    )
    assert len(part.labels) + len(test.labels) == 40
    again = load(with_broken, "train", reading=Reading(skip_broken=True))
    assert again.sha256 == part.sha256


def test_pictures_that_are_left_out_are_told_of_in_every_run(
    with_broken: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The second one has them from the cache."""
    caplog.set_level(logging.INFO)
    broken = Path(with_broken.partition(":")[2]) / "zebra" / "a.png"
    broken.parent.mkdir()
    broken.write_bytes(b"")
    for _ in range(2):
        load(with_broken, "train", reading=Reading(skip_broken=True))
        assert f"{with_broken}: 40 images in 5 classes" in caplog.text
        assert "4 broken pictures are left out, all of class 'zebra' among them" in caplog.text
        caplog.clear()
        stored._noted.clear()


def test_what_cannot_be_read_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    images = coloured(8)
    (tmp_path / "empty").mkdir()
    in_folders(tmp_path / "one", {"a": images[:1]})
    (tmp_path / "flat").mkdir()
    (tmp_path / "flat" / "a.png").write_bytes(png(images[0]))
    in_folders(tmp_path / "strange", {"train": images, "test": images, "extra": images})
    in_folders(tmp_path / "new-class", {"train": images, "test": images})
    (tmp_path / "new-class" / "test" / "zebra").mkdir()
    (tmp_path / "new-class" / "test" / "zebra" / "z.png").write_bytes(png(images[0]))
    (tmp_path / "text.npz").write_text("no")
    np.savez(tmp_path / "strange.npz", apples=images)
    np.savez(tmp_path / "short.npz", x_train=images, y_train=np.arange(7))
    np.savez(tmp_path / "odd.npz", x=images.astype(float) - 9, y=np.arange(8) % 2)
    np.savez(tmp_path / "axes.npz", x=np.zeros((8, 3, 5, 3), np.uint8), y=np.arange(8) % 2)
    np.savez(tmp_path / "objects.npz", x=images, y=np.array([{}, []] * 4, dtype=object))
    np.savez(tmp_path / "fractions.npz", x=images, y=np.arange(8) / 4)
    np.savez(tmp_path / "equal.npz", x=images * 0, y=np.arange(8) % 2)
    np.savez(tmp_path / "few.npz", x=images[:4], y=np.arange(4) % 2)
    (tmp_path / "one.npy").write_bytes(b"\x93NUMPY")
    np.save(tmp_path / "array.npy", images)
    write_csv(tmp_path / "gone.csv", ["path", "label"], [["a.png", 0], ["b.png", 1]] * 4)
    write_csv(tmp_path / "columns.csv", ["apple", "pear"], [[1, 2]])
    write_csv(tmp_path / "label.csv", ["path", "label"], [["flat/a.png", 0], ["flat/a.png", ""]])
    write_csv(
        tmp_path / "part.csv",
        ["path", "label", "split"],
        [["flat/a.png", 0, "train"], ["flat/a.png", 1, "monday"]],
    )
    write_csv(
        tmp_path / "weight.csv",
        ["path", "label", "weight"],
        [["flat/a.png", 0, "-1"], ["flat/a.png", 1, 1]],
    )
    write_csv(tmp_path / "ragged.csv", ["path", "label"], [["a"], ["a", 1, 2]])
    (tmp_path / "latin.csv").write_bytes("path,label\n\xe9,1\n".encode("latin-1"))
    (tmp_path / "text.parquet").write_text("no")
    for name, said in {
        "folder:nowhere": "there is no folder",
        "folder:": "there is no folder",
        "folder:empty": "holds no pictures in folders",
        "folder:one": "one class",
        "folder:flat": "expected one folder for each class",
        "folder:strange": "beside train only val and test",
        "folder:new-class": "no training picture of class 'zebra'",
        "npz:nowhere.npz": "no such file",
        "npz:text.npz": "cannot be read as npz",
        "npz:strange.npz": "holds apples; expected x_train",
        "npz:short.npz": "x_train has 8 images, y_train 7 labels",
        "npz:odd.npz": "certainly of",
        "npz:axes.npz": "not certain which axis",
        "npz:objects.npz": "cannot be read as npz",
        "npz:fractions.npz": "expected whole numbers or names",
        "npz:equal.npz": "all training pixels of a channel are equal",
        "npz:few.npz": "no test part, and too few pictures",
        "npz:one.npy": "cannot be read as npz",
        "npz:array.npy": "no archive of arrays",
        "csv:nowhere.csv": "there is no CSV file",
        "csv:flat": "there is no CSV file",
        "csv:gone.csv": "none of 8 pictures .* No such file",
        "csv:columns.csv": "columns apple, pear; expected one of image",
        "csv:label.csv": "a picture without a label",
        "csv:part.csv": "the part 'monday'; expected train, val or test",
        "csv:weight.csv": "weights must be finite numbers of at least 0",
        "csv:ragged.csv": "cannot be read as CSV",
        "csv:latin.csv": "cannot be read as CSV",
        "parquet:nowhere": "there is no Parquet file",
        "parquet:text.parquet": "cannot be read as Parquet",
        "parquet:empty": "there is no Parquet file",
    }.items():
        with pytest.raises(SettingsError, match=f"^--dataset: .*{said}") as caught:
            load(name, "train")
        assert "\n" not in str(caught.value), name


def odd_sources(folder: Path) -> dict[str, str]:
    """Files that other programs write or that somebody has prepared -> the fault that is named."""
    images, two, pixels = coloured(8), np.arange(8) % 2, coloured(8)[..., 0]
    arrays: dict[str, dict[str, Any]] = {
        "named": {"classes": np.array(["a", "b"]), "y": np.array(["a", "b"] * 4)},
        "scalar": {"classes": np.array("a"), "y": two},
        "twice": {"classes": np.array(["a", "a"]), "y": two},
        "none": {"classes": np.array([], "U1"), "y": two},
        "groups": {"groups": np.zeros((8, 2)), "y": two},
        "short": {"weights": np.ones(7), "y": two},
        "wide": {"weights": np.ones((8, 2)), "y": two},
        "scalar-group": {"groups": np.array(1), "y": two},
    }
    for name, found in arrays.items():
        np.savez(folder / f"{name}.npz", x=images, **found)
    whole = (folder / "named.npz").read_bytes()
    for name, at, value in (("secret", 6, 1), ("packed", 8, 99)):  # bits and method of zip's header
        central = whole.index(b"PK\1\2") + at + 2
        changed = bytearray(whole)
        changed[at], changed[central] = value, value
        (folder / f"{name}.npz").write_bytes(bytes(changed))
    header = b"{'descr': '|u1', 'fortran_order': False, 'shape': (%d, 9, 9), }\n"
    for name, n in (("huge", 2**40), ("negative", -1)):
        with zipfile.ZipFile(folder / f"{name}.npz", "w") as file:
            text = header % n
            file.writestr("x.npy", b"\x93NUMPY\1\0" + len(text).to_bytes(2, "little") + text)
            file.writestr("y.npy", b"")
    write_csv(folder / "twice.csv", ["path", "label", "label"], [["a.png", 0, 1]] * 4)
    write_csv(folder / "null.csv", ["label", *(f"pixel{i}" for i in range(4))], [[0, 1, 2, 3, ""]])
    write_csv(folder / "same.csv", ["label", "p0", "p1", "p2", "p2"], [[0, 1, 2, 3, 4]])
    cells = [{"bytes": png(image), "path": None} for image in images]
    flat = [each.ravel().tolist() for each in pixels]
    deep = [each[None].tolist() for each in images]
    label = two.tolist()
    for name, columns in {
        "text": {"image": cells, "label": ["a", "b"] * 4},
        "flat": {"image": flat, "label": label},
        "deep": {"image": deep, "label": label},
        "shares": {"image": (pixels / 255).tolist(), "label": label},
        "bright": {"image": (pixels + 300.0).astype(int).tolist(), "label": label},
        "cut": {"image": cells, "label": label},
    }.items():
        pq.write_table(pa.table(columns), folder / f"{name}.parquet")
    table = pq.read_table(folder / "text.parquet")
    features = {"info": {"features": {"label": {"names": ["a", "b"]}}}}
    pq.write_table(
        table.replace_schema_metadata({"huggingface": json.dumps(features)}),
        folder / "text.parquet",
    )
    cut = bytearray((folder / "cut.parquet").read_bytes())
    cut[200:900] = bytes(700)  # within the pictures' pages
    (folder / "cut.parquet").write_bytes(bytes(cut))
    equal = pa.DictionaryArray.from_arrays(pa.array(np.zeros(20_000_000, np.int8)), ["a"])
    pq.write_table(pa.table({"image": equal, "label": equal}), folder / "long.parquet")
    (folder / "pipe").mkdir()
    shutil.copy(folder / "text.parquet", folder / "pipe" / "train.parquet")
    os.mkfifo(folder / "pipe" / "test.parquet")
    (folder / "parts").mkdir()
    for part, columns in (("train", {"image": cells}), ("test", {"pictures": cells})):
        parquet = folder / "parts" / f"{part}.parquet"
        pq.write_table(pa.table({**columns, "label": label}), parquet)
    return {
        "npz:named.npz": "has the label 'a'; allowed are 0..1",
        "npz:scalar.npz": r"has the label '1'; allowed are 0\.\.0",
        "npz:twice.npz": "two classes 'a'",
        "npz:none.npz": "no class",
        "npz:groups.npz": r"groups the shape \[8, 2\]",
        "npz:short.npz": "8 images, weights 7 weights",
        "npz:wide.npz": r"weights the shape \[8, 2\]",
        "npz:scalar-group.npz": r"groups the shape \[\]",
        "npz:secret.npz": "cannot be read as npz: .*encrypted",
        "npz:packed.npz": "cannot be read as npz: .*compression",
        "npz:huge.npz": "cannot be read as npz: ",
        "npz:negative.npz": "cannot be read as npz: ",
        "csv:twice.csv": "2 columns 'label'",
        "csv:null.csv": "a value of pixel3 is missing",
        "csv:same.csv": "2 columns 'p2'",
        "parquet:text.parquet": "has the label 'a'; allowed are 0..1",
        "parquet:flat.parquet": r"an array of \[120\]",
        "parquet:deep.parquet": r"an array of \[1, 12, 10, 3\]",
        "parquet:cut.parquet": "cannot be read",
        "parquet:shares.parquet": "an array of float64; expected whole numbers from 0 to 255",
        "parquet:bright.parquet": "an array of int64; expected whole numbers from 0 to 255",
        "parquet:long.parquet": "20,000,000 rows; at most 10,000,000 are allowed",
        "parquet:pipe": "there is no Parquet file .*test.parquet",
        "parquet:parts": "test.parquet has no column 'image'",
    }


def test_odd_files_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, said in odd_sources(tmp_path).items():
        with pytest.raises(SettingsError, match=f"^--dataset: .*{said}") as caught:
            load(name, "train")
        assert "\n" not in str(caught.value), name


def test_images_of_any_memory_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=coloured(40), y=np.arange(40) % 2)
    with pytest.raises(SettingsError, match="^--image-size: 50000 is not allowed; expected at"):
        load(f"npz:{tmp_path / 'a.npz'}", "train", reading=Reading(image_size=50_000))


def test_the_library_is_optional(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(
        SettingsError, match=r"--dataset: hf:x needs .* pip install 'mnist_ray\[hf\]'"
    ):
        load("hf:x", "train")


# ---- the cache


def test_pictures_are_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_folders(tmp_path / "d", {"": coloured(40)})
    name = f"folder:{tmp_path / 'd'}"
    first = load(name, "train")
    assert not first.images.flags.writeable
    decoded: list[str] = []
    original = decoding._decode

    def counted(listing: Any, *rest: Any) -> Any:
        decoded.append(listing.source)
        return original(listing, *rest)

    monkeypatch.setattr(decoding, "_decode", counted)
    assert load(name, "train").sha256 == first.sha256
    assert load(name, "test").images.shape[0] + len(first.labels) == 40
    assert not decoded
    # A change that keeps size and time is seen by --verify-data, another one always.
    file = next((tmp_path / "d").rglob("*.png"))
    status = file.stat()
    Image.fromarray(coloured(1, seed=9)[0]).save(tmp_path / "other.png")
    changed = (tmp_path / "other.png").read_bytes()
    file.write_bytes(changed)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    load(name, "train")
    assert len(decoded) == 1
    load(name, "train", reading=Reading(verify_data=True))
    load(name, "test", reading=Reading(verify_data=True))
    assert len(decoded) == 2
    cached = next((tmp_path / "cache").rglob("*.images"))
    for damaged in (b"", cached.read_bytes()[:-40], b"x" * 4000):
        for each in (tmp_path / "cache").rglob("*.images"):
            each.write_bytes(damaged)
        load(name, "train")
    assert len(decoded) == 5


def test_the_cache_tells_files_of_equal_names_sizes_and_times_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As two archives give them that were unpacked in two folders, or one over the other."""
    found = []
    for folder, seed in (("a", 1), ("b", 2), ("b", 3)):
        (tmp_path / folder).mkdir(exist_ok=True)
        monkeypatch.chdir(tmp_path / folder)
        np.savez("images.npz", x=coloured(40, seed=seed), y=np.arange(40) % 4)
        os.utime("images.npz", (0, 0))
        found.append(load("npz:images.npz", "train").sha256)
    assert len(set(found)) == 3


def _saved_by_hugging_face(place: Path, cells: list[Any]) -> None:
    datasets = pytest.importorskip("datasets")
    rows = {"image": cells, "label": [i % 2 for i in range(len(cells))]}
    datasets.Dataset.from_dict(rows).save_to_disk(str(place))


@pytest.mark.parametrize("cell", [str, lambda name: {"path": name, "bytes": None}])
@pytest.mark.parametrize("kind", ["parquet", "hf"])
def test_the_cache_notices_pictures_that_a_table_names(
    tmp_path: Path, kind: str, cell: Callable[[str], Any]
) -> None:
    place = tmp_path / "table"
    place.mkdir()
    names = [f"{i}.png" for i in range(40)]
    cells, found = [cell(name) for name in names], []
    if kind == "hf":
        _saved_by_hugging_face(place, cells)
    else:
        columns = pa.table({"image": cells, "label": [i % 2 for i in range(40)]})
        pq.write_table(columns, place / "t.parquet")
    for seed in (1, 2):
        for name, image in zip(names, coloured(40, seed=seed), strict=True):
            Image.fromarray(image).save(place / name)
        stored._of_train.clear()
        found.append(load(f"{kind}:{place}", "train").sha256)
    assert found[0] != found[1]


def test_without_a_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_folders(tmp_path / "d", {"": coloured(20)})
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert len(load(f"folder:{tmp_path / 'd'}", "train").labels) == 16


def test_the_cache_keeps_the_last_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "KEPT", 2)
    in_folders(tmp_path / "d", {"": coloured(20)})
    for size in (4, 5, 6, 7):
        load(f"folder:{tmp_path / 'd'}", "train", reading=Reading(image_size=size))
    assert len(list((tmp_path / "cache").rglob("*.images"))) == 2
    assert not list((tmp_path / "cache").rglob(".new-*"))
    folder = next((tmp_path / "cache").rglob("*.images")).parent
    for name, age in ((".new-killed", 2 * decoding.LEFT), (".new-at-work", 0)):
        (folder / name).write_bytes(b"half")
        os.utime(folder / name, (time.time() - age,) * 2)
    load(f"folder:{tmp_path / 'd'}", "train", reading=Reading(image_size=8))
    assert [file.name for file in folder.glob(".new-*")] == [".new-at-work"]
