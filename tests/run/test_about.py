"""run.json: claimed once, read whole or refused in one line, changed field by field."""

import json
from pathlib import Path
from typing import Any

import pytest

from mnist_ray.errors import SettingsError
from mnist_ray.run.about import About
from mnist_ray.storage import RunStorage
from tests.support.about import facts


def test_one_of_two_claims_the_name(tmp_path: Path) -> None:
    storage = RunStorage(str(tmp_path))
    assert About.claim(storage, facts(), "taken").data.train == 3
    with pytest.raises(SettingsError, match="^taken$"):
        About.claim(storage, facts(), "taken")


def test_a_patch_changes_its_own_fields_only(tmp_path: Path) -> None:
    storage = RunStorage(str(tmp_path))
    search = About.claim(storage, facts(), "taken")
    finetuning = About.read(storage, "--run")
    search.patch(settings={**facts()["settings"], "trials": 4}, ours=1)
    assert finetuning.ended("done").settings["trials"] == 4
    raw = storage.read_json("run.json")
    assert (raw["state"], raw["ours"]) == ("done", 1)


def test_a_run_json_that_was_cut_short_is_named(tmp_path: Path) -> None:
    whole = json.dumps(facts()).encode()
    for length in range(0, len(whole) - 1, len(whole) // 60):
        (tmp_path / "run.json").write_bytes(whole[:length])
        with pytest.raises(SettingsError, match=r"^--resume: [^\n]*run.json is not JSON[^\n]*$"):
            About.read(RunStorage(str(tmp_path)), "--resume")


@pytest.mark.parametrize(
    ("where", "value"),
    [
        (["data"], []),
        (["data", "sha256"], 3),
        (["data", "classes"], "ab"),
        (["settings"], None),
        (["settings", "metric"], 1),
        (["name"], {}),
        (["points"], "x"),
        (["points"], [[1]]),
        (["settings", "data_dir"], 1e308),
        (["settings", "objectives"], 10**30),
        (["settings", "stages"], None),
        (["trackers"], [1]),
    ],
)
def test_a_field_of_another_type_is_named(tmp_path: Path, where: list[str], value: Any) -> None:
    raw = facts()
    inner = raw
    for key in where[:-1]:
        inner = inner[key]
    inner[where[-1]] = value
    (tmp_path / "run.json").write_text(json.dumps(raw))
    with pytest.raises(SettingsError, match=rf"^--run: [^\n]*run.json is damaged: {where[-1]} is "):
        About.read(RunStorage(str(tmp_path)), "--run")


def test_no_run_is_said(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="^--run: there is no run at "):
        About.read(RunStorage(str(tmp_path)), "--run")
