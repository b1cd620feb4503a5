"""The images of a search are those of its fine-tuning and of --resume, or they are refused."""

import csv
import dataclasses
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mnist_ray import data
from mnist_ray.errors import SettingsError
from mnist_ray.finetune_job import job
from mnist_ray.run import layout
from mnist_ray.run.about import About
from mnist_ray.search_job import work
from mnist_ray.settings import FinetuneSettings, SearchSettings, resolved
from mnist_ray.storage import RunStorage
from tests.support import PROGRAMS
from tests.support.about import facts
from tests.support.pictures import coloured, png

FINETUNED = ("stages", "data_dir", "precision", "train_images", "val_images")


@pytest.fixture(autouse=True)
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(PROGRAMS / "my_stripes.py", tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "my_stripes", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


# ---- a function that answers differently each time


@pytest.mark.parametrize("name", ["shuffled", "regrouped", "reweighted"])
def test_a_function_that_answers_otherwise_each_time_is_refused(name: str) -> None:
    dataset = f"my_stripes:{name}"
    message = f"^--dataset: {dataset} gives other {{}} each time that it is called; fix its random"
    what = "images" if name == "shuffled" else "groups, weights or validation images"
    with pytest.raises(SettingsError, match=message.format(what)):
        work.load_split(SearchSettings(dataset=dataset), None)


def test_a_function_that_answers_alike_is_searched_on() -> None:
    for name in ("stripes", "convertible"):
        settings = SearchSettings(dataset=f"my_stripes:{name}", class_weights="balanced")
        assert work.load_split(settings, None).images.name == settings.dataset


# ---- images of a run that have changed


def begun(settings: SearchSettings, **changes: Any) -> About:
    """A run as its search claims it."""
    split = work.load_split(settings, None)
    storage = RunStorage(str(Path("run").absolute()))
    described = {
        **facts(),
        "settings": {**resolved(settings), "val_by": split.val_by},
        "data": {**split.facts(), **changes},
    }
    return About.claim(storage, described, "taken")


def resumes(settings: SearchSettings, about: About) -> None:
    work.load_split(dataclasses.replace(settings, val_by=about.settings["val_by"]), about)


def table(groups: list[int], weights: list[float], parts: list[str]) -> str:
    """A CSV file of 120 pictures of four classes."""
    with open("table.csv", "w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["path", "label", "group", "weight", "split"])
        for i, image in enumerate(coloured(120)):
            if not Path(f"{i}.png").exists():
                Path(f"{i}.png").write_bytes(png(image))
            rows.writerow([f"{i}.png", i % 4, groups[i], weights[i], parts[i]])
    return f"csv:{Path('table.csv').absolute()}"


GROUPS = [i // 6 for i in range(120)]
WEIGHTS = [1.0 + i % 2 for i in range(120)]
PARTS = ["train"] * 96 + ["test"] * 24


@pytest.mark.parametrize(
    ("groups", "weights", "parts"),
    [
        (GROUPS[::-1], WEIGHTS, PARTS),
        ([(i + 3) // 6 for i in range(120)], WEIGHTS, PARTS),
        (GROUPS, WEIGHTS[1:] + WEIGHTS[:1], PARTS),
    ],
)
def test_groups_and_weights_that_have_changed_are_refused(
    groups: list[int], weights: list[float], parts: list[str]
) -> None:
    """The best network was trained on what would be validation images now."""
    settings = SearchSettings(dataset=table(GROUPS, WEIGHTS, PARTS))
    about = begun(settings)
    assert about.settings["val_by"] == "group"
    resumes(settings, about)
    changed = work.load_split(
        dataclasses.replace(settings, dataset=table(groups, weights, parts)), None
    )
    if changed.facts()["split_sha256"] == about.data.split_sha256:
        pytest.fail("the example changes nothing")
    message = (
        f"^--dataset: {settings.dataset}: its groups, weights or validation part are not those"
    )
    with pytest.raises(SettingsError, match=message):
        resumes(settings, about)
    with pytest.raises(SettingsError, match=message):
        job._images(FinetuneSettings(run=about.storage.uri), about)
    table(GROUPS, WEIGHTS, PARTS)
    resumes(settings, about)
    job._images(FinetuneSettings(run=about.storage.uri), about)


def test_images_that_have_changed_are_named_by_their_data_set() -> None:
    settings = SearchSettings(dataset=table(GROUPS, WEIGHTS, PARTS))
    about = begun(settings)
    Path("3.png").write_bytes(png(coloured(1, seed=9)[0]))
    message = f"^--dataset: {settings.dataset}: its images are not those that the run at .* began "
    with pytest.raises(SettingsError, match=message + r"with \(SHA-256 differs\)$"):
        resumes(settings, about)
    with pytest.raises(SettingsError, match=message):
        job._images(FinetuneSettings(run=about.storage.uri), about)


def test_a_run_of_before_records_no_split(tmp_path: Path) -> None:
    settings = SearchSettings(dataset=table(GROUPS, WEIGHTS, PARTS))
    about = begun(settings)
    raw = about.storage.read_json(layout.RUN)
    del raw["data"]["split_sha256"]
    about.storage.write_json(layout.RUN, raw)
    table(GROUPS[::-1], WEIGHTS, PARTS)
    resumes(settings, About.read(about.storage, "--resume"))


def test_a_run_of_before_may_lack_classes_in_its_validation_part(tmp_path: Path) -> None:
    """It cannot be divided otherwise any more."""
    parts = ["train" if i % 3 else "val" for i in range(len(GROUPS))]
    settings = SearchSettings(dataset=table(GROUPS, WEIGHTS, parts), val_by="own", val_images=1)
    with pytest.raises(SettingsError, match="^--val-images 1: allowed are "):
        work.load_split(settings, None)
    about = begun(dataclasses.replace(settings, val_images=None))
    raw = about.storage.read_json(layout.RUN)
    del raw["data"]["split_sha256"]
    raw["settings"]["val_images"] = 1
    about.storage.write_json(layout.RUN, raw)
    resumed = About.read(about.storage, "--resume")
    assert len(work.load_split(settings, resumed).val) == 1


def test_the_split_s_digest_is_of_its_values_alone() -> None:
    split = data.load_split(
        "digits", val_images=200, reading=data.Reading(class_weights="balanced")
    )
    folds = data.load_split("digits", folds=3)
    found = [
        each.facts()["split_sha256"]
        for each in (
            split,
            split._replace(val=split.val.astype(">i8"), train=split.train.astype(np.int32)),
            split._replace(val=split.val[1:]),
            split._replace(train=split.train[1:]),
            split._replace(images=dataclasses.replace(split.images, weights=None)),
            split._replace(train=np.append(split.train, split.val[0]), val=split.val[1:]),
            folds,
            folds._replace(folds=()),
        )
    ]
    assert found[0] == found[1]
    assert len(set(found)) == 7
