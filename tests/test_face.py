"""What `import mnist_ray` gives."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from PIL import Image

import mnist_ray as mr
from mnist_ray import data
from mnist_ray.run import layout
from mnist_ray.run.tables import HISTORY
from mnist_ray.storage import RunStorage
from tests.support.processes import own_ray
from tests.support.published import HEAVY, published

PROGRAMS = Path(__file__).parent / "programs"


def test_the_face_is_sorted_and_whole() -> None:
    assert mr.__all__ == sorted(mr.__all__)
    for name in mr.__all__:
        assert getattr(mr, name).__doc__, name
    assert set(mr.__all__) <= set(dir(mr))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        mr.nothing  # noqa: B018


def test_importing_is_quick_and_light() -> None:
    done = subprocess.run(
        [sys.executable, str(PROGRAMS / "light_import.py")],
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(done.stdout)
    assert not set(HEAVY) & set(found["modules"])
    assert found["seconds"] < 0.3


# ---- a run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of two trials, written as the search writes it."""
    storage = RunStorage(str(tmp_path / "runs" / "first"))
    settings = {
        "dataset": "digits",
        "metric": "val_accuracy",
        "max_epochs": 2,
        "trials": 2,
        "seed": 0,
        "study": None,
        "study_name": None,
    }
    facts = {
        "name": "digits",
        "sha256": "0",
        "train": 100,
        "val": 50,
        "classes": list("0123456789"),
    }
    about = {"name": "first", "state": "searched", "settings": settings, "data": facts}
    storage.write_json(layout.RUN, {**about, "start": "2026-01-01T00:00:00+00:00"})
    journal = tmp_path / "study.journal"
    backend = optuna.storages.journal.JournalFileBackend(str(journal))
    study = optuna.create_study(
        study_name="first",
        storage=optuna.storages.JournalStorage(backend),
        direction="maximize",
    )
    rows = []
    for number, curve in enumerate([(0.5, 0.7), (0.9, 0.8)]):
        trial = study.ask()
        trial.suggest_float("lr", 0.1, 0.2)
        trial.suggest_categorical("kind", [None])
        study.tell(trial, max(curve))
        for epoch, accuracy in enumerate(curve, start=1):
            measured = {"val_accuracy": accuracy, "val_loss": 1.0}
            rows.append(
                {**dict.fromkeys(HISTORY, 0.5), "number": number, "epoch": epoch, **measured}
            )
    storage.write_bytes(layout.JOURNAL, journal.read_bytes())
    trials = [
        {"number": t.number, "state": "COMPLETE", "value": t.value, "params_lr": t.params["lr"]}
        | {"n_parameters": 9, "epochs": 2, "seconds": 1.0, "node": "here", "reason": ""}
        | {"params_only_of_the_first": 1 if t.number == 0 else None}
        for t in study.trials
    ]
    storage.write_bytes(layout.TRIALS, parquet(trials))
    storage.write_bytes(layout.HISTORY, parquet(rows))
    return Path(storage.uri)


def test_the_best_so_far_may_be_a_trial_that_runs(run: Path) -> None:
    """trials.parquet has no row of it; without a study in the run, its values are not known."""
    kept = parquet(mr.open_run(run).trials.query("number == 0").to_dict("records"))
    (run / layout.TRIALS).write_bytes(kept)
    assert mr.open_run(run).best.params["kind"] is None
    (run / layout.JOURNAL).unlink()
    assert mr.open_run(run).best.params == {}


def parquet(rows: list[dict[str, Any]]) -> bytes:
    import pyarrow as pa

    from mnist_ray.run.tables import parquet

    return parquet(pa.Table.from_pylist(rows))


def test_a_run_is_read_from_its_directory(run: Path) -> None:
    found = mr.open_run(run)
    assert (found.uri, found.name, found.state) == (str(run), "first", "searched")
    assert repr(found) == f"Run({str(run)!r}, state='searched')"
    assert found.settings["dataset"] == "digits"
    assert (found.best.number, found.best.epoch, found.best.value) == (1, 1, 0.9)
    assert found.best.params == {"lr": found.study.trials[1].params["lr"], "kind": None}
    assert found.trials["number"].tolist() == [0, 1]
    assert found.history.groupby("number")["val_accuracy"].max().tolist() == [0.7, 0.9]
    assert found.report_path is None
    (run / layout.REPORT).write_text("<html>")
    assert found.report_path == run / layout.REPORT


def test_the_study_is_a_copy(run: Path) -> None:
    before = (run / layout.JOURNAL).read_bytes()
    study = mr.open_run(run).study
    assert study.best_trial.number == 1
    study.enqueue_trial({"lr": 0.15})
    study.tell(study.ask(), 1.0)
    assert (run / layout.JOURNAL).read_bytes() == before


def test_a_study_elsewhere_is_opened_only_where_the_person_names_it(run: Path) -> None:
    raw = json.loads((run / layout.RUN).read_text())
    place = f"sqlite:///{run.parent}/studies.db"
    raw["settings"]["study"] = place
    (run / layout.RUN).write_text(json.dumps(raw))
    with pytest.raises(mr.SettingsError, match=r"^study: .* name it: open_run\(uri, study=…\)$"):
        mr.open_run(run).study  # noqa: B018
    with pytest.raises(mr.SettingsError, match="there is no such file$"):
        mr.open_run(run, study=place).study  # noqa: B018
    optuna.create_study(study_name="second", storage=place)
    with pytest.raises(mr.SettingsError, match="no study 'first'"):
        mr.open_run(run, study=place).study  # noqa: B018
    optuna.create_study(study_name="first", storage=place).add_trial(
        optuna.trial.create_trial(value=3.0)
    )
    assert mr.open_run(run, study=place).study.best_value == 3.0


def test_the_best_trials_values_are_read_from_a_study_elsewhere(run: Path) -> None:
    """trials.parquet cannot tell None from no choice; choices of several types are texts there."""
    place = f"sqlite:///{run.parent}/studies.db"
    study = optuna.create_study(study_name="first", storage=place, direction="maximize")
    (run / layout.JOURNAL).unlink()
    for _ in range(2):
        trial = study.ask()
        trial.suggest_categorical("kind", [None])
        trial.suggest_categorical("steps", [2, "2", True])
        study.tell(trial, 1.0)
    assert mr.open_run(run, study=place).best.params == study.trials[1].params
    assert mr.open_run(run, study="memory").best.params.keys() == {"lr"}
    for gone in ("sqlite:///" + str(run.parent / "gone.db"), str(run.parent / "gone.journal")):
        moved = mr.open_run(run, study=gone)
        assert moved.best.params.keys() == {"lr"}  # of the table
        with pytest.raises(mr.SettingsError, match=r"^study: .*gone\.\w+: there is no such file$"):
            moved.study  # noqa: B018
    assert not [*run.parent.glob("gone*")]


def test_what_is_not_there_yet_is_one_line(run: Path, tmp_path: Path) -> None:
    with pytest.raises(mr.SettingsError, match=r"there is no run at .*none$"):
        mr.open_run(tmp_path / "none")
    with pytest.raises(mr.SettingsError, match="no model"):
        mr.open_run(run).model  # noqa: B018
    (run / layout.HISTORY).unlink()
    with pytest.raises(mr.WorkError, match=r"has no history.parquet yet$"):
        mr.open_run(run).best  # noqa: B018
    (run / layout.TRIALS).write_bytes(b"nothing of Parquet")
    with pytest.raises(mr.WorkError, match=r"trials.parquet is not a Parquet file or is damaged"):
        mr.open_run(run).trials  # noqa: B018


# ---- a model


@pytest.fixture(scope="module")
def model_of(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return published(tmp_path_factory.mktemp("models") / "first")


def test_a_model_predicts_files_arrays_and_pictures(model_of: Path, tmp_path: Path) -> None:
    test = data.load("digits", "test")
    model = mr.load_model(model_of)
    right = 0
    for image, label in zip(test.images[:10], test.labels[:10], strict=True):
        picture = Image.fromarray(255 - image[0]).resize((90, 90))
        picture.save(tmp_path / "a.png")
        prediction = model.predict(tmp_path / "a.png")
        name, probability = prediction
        assert (name, probability) == (prediction.label, prediction.probability)
        assert prediction.known
        assert model.predict(str(tmp_path / "a.png")) == prediction
        assert model.predict(picture) == prediction
        assert model.predict(np.asarray(picture)) == prediction
        assert model.predict(np.asarray(picture.convert("RGB"))) == prediction
        assert model.predict(np.asarray(picture.convert("RGBA"))) == prediction
        right += name == model.classes[label]
    assert right >= 9
    found = model.probabilities(test.images[:10])
    assert found.argmax(1).tolist() == [
        model.classes.index(model.predict(image).label) for image in test.images[:10]
    ]


def test_a_folder_of_some_classes_is_judged_by_their_names(
    model_of: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its labels are numbered anew: 7 and 3 as 1 and 0."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    test = data.load("digits", "test")
    for part, number in (("train", 3), ("test", 3), ("train", 7), ("test", 7)):
        folder = tmp_path / "some" / part / str(number)
        folder.mkdir(parents=True)
        for i, image in enumerate(test.images[test.labels == number]):
            Image.fromarray(image[0]).save(folder / f"{i}.png")
    model, name = mr.load_model(model_of), f"folder:{tmp_path / 'some'}"
    found = model.evaluate(name)
    assert found.accuracy > 0.9
    assert np.flatnonzero(~np.isnan(found.per_class)).tolist() == [3, 7]
    for part in ("train", "test"):
        (tmp_path / "some" / part / "7").rename(tmp_path / "some" / part / "ten")
    message = re.escape(f"--dataset: {name} has the class 'ten', and {model_of} has not; expected ")
    with pytest.raises(mr.SettingsError, match=message):
        model.evaluate(name)


@pytest.fixture
def new_photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Digits' test images in a folder a class, ten of each; "five" is the model's name of 5."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    test = data.load("digits", "test")
    for number in range(10):
        folder = tmp_path / "new" / ("five" if number == 5 else str(number))
        folder.mkdir(parents=True)
        for i, image in enumerate(test.images[test.labels == number][:10]):
            Image.fromarray(image[0]).save(folder / f"{i}.png")
    return tmp_path / "new"


def test_new_photos_without_parts_are_all_judged(model_of: Path, new_photos: Path) -> None:
    model = mr.load_model(model_of)
    for part in ("test", "train"):
        found = model.evaluate(f"folder:{new_photos}", part)
        assert (found.n, found.accuracy > 0.9) == (100, True)
    for number in (0, 1, 2, 3, 4, "five", 6, 8):
        shutil.rmtree(new_photos / str(number))
    for number in (7, 9):
        for file in sorted((new_photos / str(number)).iterdir())[1:]:
            file.unlink()
    assert model.evaluate(f"folder:{new_photos}").n == 2  # too few to split
    shutil.rmtree(new_photos / "9")
    assert model.evaluate(f"folder:{new_photos}").n == 1  # one class


def test_new_photos_in_parts_are_judged_by_the_part(model_of: Path, new_photos: Path) -> None:
    """A test part alone is enough, and it may have classes that the training part has not."""
    model = mr.load_model(model_of)
    (new_photos.parent / "parts").mkdir()
    new_photos.rename(new_photos.parent / "parts" / "test")
    name = f"folder:{new_photos.parent / 'parts'}"
    assert model.evaluate(name).n == 100
    with pytest.raises(mr.SettingsError, match="has no picture in its train part$"):
        model.evaluate(name, "train")
    train = new_photos.parent / "parts" / "train" / "1"
    train.mkdir(parents=True)
    (new_photos.parent / "parts" / "test" / "1" / "0.png").rename(train / "0.png")
    assert [model.evaluate(name, part).n for part in ("test", "train")] == [99, 1]
    with pytest.raises(mr.SettingsError, match="has no training picture of class '0'$"):
        data.load(name, "train")


def test_the_model_s_own_images_elsewhere_are_judged_by_their_test_part(
    model_of: Path, new_photos: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """Four fifths of them are what it was trained on."""
    name = f"folder:{new_photos}"
    reading = data.Reading((28, 28), "grey", "black")
    monkeypatch.chdir(new_photos.parent)
    model = mr.load_model(model_of)
    own = {"dataset": name, "data_sha256": data.load(name, "train", reading=reading).sha256}
    model.session.metadata.update(own)
    assert [model.evaluate(n).n for n in (name, "folder:new")] == [20, 20]
    assert "these are not the images" not in caplog.text
    model.session.metadata.update({"data_sha256": "0"})
    assert [model.evaluate(n).n for n in ("folder:new", name)] == [100, 100]
    assert caplog.text.count("these are not the images that the model was made with") == 1
    assert f"{name}: these are not" in caplog.text
    with pytest.raises(mr.SettingsError, match="SHA-256 differs"):
        model.evaluate()


def test_the_model_s_own_folder_that_has_grown_is_read_at_its_size(
    model_of: Path, new_photos: Path
) -> None:
    """And as it was read then: broken pictures are left out. The median is another size now."""
    name, how = f"folder:{new_photos}", data.Reading(skip_broken=True)
    (new_photos / "1" / "broken.png").write_bytes(b"")
    sha256 = data.load(name, "train", reading=how).sha256
    model = mr.load_model(model_of)
    own = {"dataset": name, "data_sha256": sha256, "reading": how.to_json()}
    model.session.metadata.update(own)
    assert model.evaluate(name).n == model.evaluate().n == 19  # of 20 test images one is broken
    for i in range(150):
        Image.new("RGB", (40, 50), (i, 0, 255)).save(new_photos / "2" / f"large{i}.png")
    assert model.evaluate(name).n == 250
    (new_photos.parent / "elsewhere").mkdir()
    new_photos.rename(new_photos.parent / "elsewhere" / "new")
    message = r"mend or remove them \(a search can leave them out: --skip-broken\)$"
    with pytest.raises(mr.SettingsError, match=message):  # they are no images of its own
        model.evaluate(f"folder:{new_photos.parent / 'elsewhere' / 'new'}")


def test_a_model_knows_where_it_comes_from(model_of: Path, tmp_path: Path) -> None:
    model = mr.load_model(model_of)
    assert model.path == str(model_of)
    assert model.manifest["file"] == "model.onnx"
    assert mr.load_model(model_of / "model.onnx").manifest == model.manifest
    (tmp_path / "model.onnx").write_bytes((model_of / "model.onnx").read_bytes())
    assert mr.load_model(tmp_path / "model.onnx").manifest == {}
    assert model.evaluate().n == 360
    assert model.evaluate("digits", "train").accuracy > 0.9


def test_nothing_drawn_is_known_not_to_be_a_digit(model_of: Path) -> None:
    prediction = mr.load_model(model_of).predict(Image.new("L", (40, 30), 255))
    assert (tuple(prediction), prediction.known) == (("", 0.0), False)


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        (np.zeros((28, 28), np.float32), "an array of float32; expected uint8"),
        (np.zeros((5, 1, 28, 28), np.uint8), r"an array of shape \(5, 1, 28, 28\); expected "),
        ("none.png", "none.png cannot be read"),
        (b"PNG", "a bytes; expected a file's path"),
        ([[0, 1]], "a list; expected a file's path"),
        (None, "a NoneType; expected a file's path"),
        (np.broadcast_to(np.uint8(0), (10**5, 10**5)), "has 100000 x 100000 pixels; at most 50,0"),
        (np.zeros((1, 70_000), np.uint8), "has 70000 x 1 pixels; at most .* 65,500 a side"),
        (Image.new("L", (0, 9)), "has 0 x 9 pixels"),
    ],
)
def test_no_picture_is_one_line(model_of: Path, picture: Any, message: str) -> None:
    with pytest.raises(mr.SettingsError, match=message):
        mr.load_model(model_of).predict(picture)


@pytest.mark.parametrize(
    "images",
    [np.zeros((3, 1, 28, 28), np.float32), np.zeros((0, 1, 28, 28), np.uint8), [[1]], None],
)
def test_no_images_are_one_line(model_of: Path, images: Any) -> None:
    """Floats in [0, 1] would be divided by 255 again, and answered wrong without a word."""
    with pytest.raises(mr.SettingsError, match=r"^images: .* expected uint8 \[n, C, H, W\]$"):
        mr.load_model(model_of).probabilities(images)


# ---- a search


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"trails": 3}, r"^trails: there is no such option; did you mean trials\?$"),
        ({"trials": "3"}, r"^trials: '3' is not allowed; expected a whole number$"),
        ({"trials": 0}, "trials: 0 is not allowed"),
        ({"space": "nothing", "dataset": "digits"}, "space: 'nothing' is unknown"),
        ({"config": "none.yaml"}, r"^none\.yaml: cannot be read"),
    ],
)
def test_wrong_options_are_an_error_that_names_them(options: dict[str, Any], message: str) -> None:
    with pytest.raises(mr.SettingsError, match=message):
        mr.search(**options)


def test_the_run_of_a_dry_run_can_be_shown(tmp_path: Path) -> None:
    """A notebook shows what a call returns."""
    found = mr.search(dataset="digits", storage=tmp_path, name="dry", trials=1, dry_run=True)
    assert repr(found) == f"Run({str(tmp_path / 'dry')!r}, no run there)"
    assert not (tmp_path / "dry").exists()


@pytest.mark.parametrize("handler", [False, True])
def test_notes_on_own_images_are_told_in_python_too(handler: bool, tmp_path: Path) -> None:
    """Unless the caller handles logging already; here by a handler that drops all."""
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8), np.uint8)
    np.savez(tmp_path / "own.npz", images=images, labels=[0, 1] * 20)
    code = "import logging; logging.root.addHandler(logging.NullHandler())\n" if handler else ""
    code += "import mnist_ray\nmnist_ray.search(dataset='npz:own.npz', trials=1, dry_run=True)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert ("it has no test part" in done.stdout) is not handler, done.stdout


@pytest.mark.parametrize("settings", ["digits", mr.FinetuneSettings(), {"trials": 3}])
def test_a_search_by_place_takes_settings_alone(settings: Any) -> None:
    with pytest.raises(mr.SettingsError, match=r"^search: .* expected SearchSettings, or options"):
        mr.search(settings)


@pytest.mark.parametrize("part", ["val", None, 3])
def test_a_part_that_is_none_is_named(model_of: Path, part: Any) -> None:
    with pytest.raises(mr.SettingsError, match=r"^part: .* is not allowed; expected train or test"):
        mr.load_model(model_of).evaluate(part=part)


def test_settings_and_keywords_exclude_each_other() -> None:
    with pytest.raises(mr.SettingsError, match=r"^trials: give either settings or keywords"):
        mr.search(mr.SearchSettings(), trials=3)
    with pytest.raises(mr.SettingsError, match=r"^stages: give either settings or keywords"):
        mr.finetune(mr.FinetuneSettings(), stages="default")


def test_a_file_of_options_lies_under_the_keywords(tmp_path: Path) -> None:
    from mnist_ray.settings import search_settings

    (tmp_path / "my.yaml").write_text("trials: 7\nmax_epochs: 3\nspace_args: {width: 8}\n")
    found = search_settings(config=tmp_path / "my.yaml", trials=50, seed=0)
    assert (found.trials, found.max_epochs, found.space_args) == (50, 3, ("width=8",))
    assert found.given == {"config", "trials", "seed", "max_epochs", "space_args"}


def test_a_finetuning_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(mr.SettingsError, match="there is no run at"):
        mr.finetune(tmp_path / "none", committee=2)


def test_a_fine_tuned_run_keeps_the_study_that_was_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mnist_ray.finetune_job import job
    from mnist_ray.run.about import Finished

    uri = str(tmp_path / "run")
    monkeypatch.setattr(job, "finetune", lambda *_, **__: Finished(0, uri))
    place = f"sqlite:///{tmp_path}/s.db"
    assert mr.finetune(mr.Run(uri, study=place))._place == place
    assert mr.finetune(uri)._place is None


def test_the_second_job_finds_modules_beside_a_script_elsewhere(tmp_path: Path) -> None:
    for name in ("elsewhere.py", "paced.py"):
        (tmp_path / "src").mkdir(exist_ok=True)
        shutil.copy(PROGRAMS / name, tmp_path / "src")
    done = subprocess.run(
        [sys.executable, "src/elsewhere.py", "runs"],
        cwd=tmp_path,
        env=own_ray(),
        capture_output=True,
        text=True,
        check=False,
        timeout=480,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "done"


def test_two_searches_in_one_process_and_a_ray_of_the_caller_s(tmp_path: Path) -> None:
    """With every submodule imported, in a thread too; signal handlers and the caller's Ray stay."""
    done = subprocess.run(
        [sys.executable, str(PROGRAMS / "face_searches.py"), str(tmp_path / "runs")],
        capture_output=True,
        text=True,
        check=False,
        timeout=480,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == {
        "uris": [str(tmp_path / "runs" / "first"), str(tmp_path / "runs" / "second")],
        "states": ["searched", "searched"],
        "numbers": [0, 1],
        "handlers": [True, True],
        "left_no_ray": True,
        "kept_ray": True,
    }
