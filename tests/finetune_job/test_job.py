"""finetune() called in this process; the chain runs here instead of in a Ray task."""

import dataclasses
import json
import re
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image

from mnist_ray import cluster, data, load_model
from mnist_ray.errors import SettingsError, WorkError
from mnist_ray.export.write import export
from mnist_ray.finetune_job import job
from mnist_ray.finetune_job.recipe import ChainTask
from mnist_ray.finetune_job.start import Start
from mnist_ray.models import Committee
from mnist_ray.run import layout, lease
from mnist_ray.run.about import About, Finished
from mnist_ray.run.publication import Manifest, read_verified
from mnist_ray.settings import (
    EvaluateSettings,
    FinetuneSettings,
    SearchSettings,
    parse,
    resolved,
)
from mnist_ray.storage import RunStorage
from tests.finetune_job.test_card import MANIFEST
from tests.support.networks import EPOCH as ROW
from tests.support.networks import SEARCHED as HP
from tests.support.networks import network

STAGES = (
    "stages:\n  - {epochs: 1, batch_size: 64, optimizer: sgd, lr: 0.02, weight_decay: 0, seed: 1}\n"
)


@pytest.fixture(scope="module")
def best() -> bytes:
    from mnist_ray.training.trainer import Trainer

    return Trainer(HP, epochs=1, seed=0).weights_bytes({"number": 7, "row": ROW})


@pytest.fixture
def run(tmp_path: Path, best: bytes) -> RunStorage:
    """A run whose search is done."""
    settings = SearchSettings(dataset="digits", precision="fp32", train_images=200, val_by="class")
    images = data.load("digits", "train")
    storage = RunStorage(str(tmp_path / "run"))
    described = {
        "name": "run",
        "state": "searched",
        "settings": resolved(settings),
        "data": {
            "name": "digits",
            "sha256": images.sha256,
            "train": 200,
            "val": 215,
            "classes": list(images.classes),
        },
        "start": "2026-01-02T03:04:05+00:00",
        "trials": 4,
    }
    About.claim(storage, described, "there is one already")
    storage.write_bytes(layout.BEST_NETWORK, best)
    return storage


@pytest.fixture
def stages(tmp_path: Path) -> str:
    path = tmp_path / "stages.yaml"
    path.write_text(STAGES)
    return str(path)


def test_a_run_that_is_searched_is_not_fine_tuned_beside(run: RunStorage, stages: str) -> None:
    about = About.read(run, "--run")
    settings = FinetuneSettings(run=run.uri, stages=stages)
    with lease.held(run, "search") as held:
        # A search that has just begun has not noted it; "finetuning" may be a killed job's.
        for state in ("searched", "done", "finetuning", "searching"):
            about.patch(state=state)
            before = run.read_bytes(layout.RUN)
            with pytest.raises(SettingsError, match="^--run: another search is at work at "):
                job.finetune(settings)
            assert run.read_bytes(layout.RUN) == before
            assert not run.exists(layout.lease_file("fine-tuning"))
        held.allow("fine-tuning")  # as the search whose second job it is
        with job._held(run):
            pass


def test_a_run_whose_settings_lack_one_is_named(run: RunStorage, stages: str) -> None:
    for key in ("stages", "data_dir", "precision", "train_images", "val_images"):
        settings = dict(About.read(run, "--run").settings)
        whole = dict(settings)
        del settings[key]
        About.read(run, "--run").patch(settings=settings)
        with pytest.raises(SettingsError, match=f"^--run: .*run.json is damaged: .* lack {key}"):
            job.finetune(FinetuneSettings(run=run.uri, stages=stages))
        About.read(run, "--run").patch(settings=whole)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("train_images", "400"),
        ("val_images", [200]),
        ("val_images", 2.5),
        ("folds", "5"),
        ("folds", 1),
        ("seed", -1),
        ("image_size", "a"),
        ("val_by", "writer"),
        ("precision", 16),
        ("committee", "2"),
        ("calibrate", ["auto"]),
        ("constraint", 3),
    ],
)
def test_a_run_with_a_setting_of_another_type_or_range_is_named(
    run: RunStorage, stages: str, key: str, value: Any
) -> None:
    about = About.read(run, "--run")
    about.patch(settings={**about.settings, key: value})
    with pytest.raises(SettingsError, match="^--run: .*run.json is damaged: .*is not allowed"):
        job.finetune(FinetuneSettings(run=run.uri, stages=stages))


def test_a_run_of_before_has_the_split_that_it_had(run: RunStorage, stages: str) -> None:
    """It records no val_by, and how its ONNX file's images were read."""
    about = About.read(run, "--run")
    kept = {key: value for key, value in about.settings.items() if key != "val_by"}
    about = about.patch(settings={**kept, "folds": None, "image_size": 20, "padding": "edge"})
    task, split, _ = job._prepare(FinetuneSettings(run=run.uri, stages=stages), about)
    assert (split.val_by, len(split.train), len(split.val)) == ("class", 200, 215)
    assert task.reading == data.Reading(image_size=20, padding="edge")


Body = Callable[[ChainTask, data.Split, data.Images], Manifest]


def run_here(task: ChainTask, split: data.Split, test: data.Images) -> Manifest:
    from mnist_ray.finetune_job.chain import run_chain

    *_, manifest = run_chain(task, split, test)
    assert isinstance(manifest, Manifest)
    return manifest


def test_it_publishes_and_ends_as_done(
    run: RunStorage, stages: str, in_task: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    in_task(run_here)
    finished = job.finetune(FinetuneSettings(run=run.uri, stages=stages))
    assert finished == Finished(0, run.uri)
    manifest, _ = read_verified(run)
    assert manifest["recipe"] == "stages"
    assert f"{manifest['test_errors']} errors" in capsys.readouterr().out
    assert About.read(run, "--run").state == "done"


@pytest.mark.parametrize("ends", [KeyboardInterrupt, WorkError])
def test_a_run_stays_what_it_is_where_no_ray_is_joined(
    run: RunStorage, stages: str, in_task: Any, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, ends: type[BaseException],
) -> None:  # fmt: skip
    """A published run stays so, with its end; a run that was just begun has failed."""
    in_task(run_here)
    job.finetune(FinetuneSettings(run=run.uri, stages=stages))
    run.write_json(layout.RUN, {**run.read_json(layout.RUN), "end": "2026-01-02T03:04:05+00:00"})
    before = run.read_json(layout.RUN)

    def connected(verbose: bool) -> Any:
        raise ends("Ray cannot be joined")

    monkeypatch.setattr(cluster, "connected", connected)
    with pytest.raises(ends):
        job.finetune(FinetuneSettings(run=run.uri, stages=stages), handle_signals=False)
    assert run.read_json(layout.RUN) == before
    new = FinetuneSettings(
        onnx=run.join(layout.MODEL), storage=str(tmp_path), name="new", stages=stages
    )
    with pytest.raises(ends):
        job.finetune(new, handle_signals=False)
    about = About.read(RunStorage(str(tmp_path / "new")), "--run")
    assert about.state == ("failed" if ends is WorkError else "interrupted")


def test_what_others_change_in_run_json_meanwhile_stays(
    run: RunStorage, stages: str, in_task: Any
) -> None:
    """A search that was resumed with more trials, say."""

    def meanwhile(*arguments: Any) -> Manifest:
        raw = run.read_json(layout.RUN)
        run.write_json(layout.RUN, {**raw, "trials": 99, "state": "searching"})
        return run_here(*arguments)

    in_task(meanwhile)
    before = run.read_json(layout.RUN)
    job.finetune(FinetuneSettings(run=run.uri, stages=stages))
    after = run.read_json(layout.RUN)
    assert {key for key in after if after[key] != before.get(key)} == {"state", "end", "trials"}
    assert (after["trials"], after["state"]) == (99, "done")


def test_an_interrupt_is_an_exit_code_or_the_callers(
    run: RunStorage, stages: str, in_task: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: Any) -> Manifest:
        signal.raise_signal(signal.SIGTERM)
        raise AssertionError("unreachable")

    settings = FinetuneSettings(run=run.uri, stages=stages)
    in_task(interrupted)
    before = signal.getsignal(signal.SIGTERM)
    assert job.finetune(settings) == Finished(130, run.uri)
    assert f"--run {run.uri}" in capsys.readouterr().out
    assert signal.getsignal(signal.SIGTERM) is before

    def by_caller(*_: Any) -> Manifest:
        assert signal.getsignal(signal.SIGTERM) is before  # its own handlers stay
        raise KeyboardInterrupt

    in_task(by_caller)
    with pytest.raises(KeyboardInterrupt):
        job.finetune(settings, handle_signals=False)
    assert About.read(run, "--run").state == "interrupted"
    assert not run.exists(layout.lease_file("fine-tuning"))


def test_it_works_in_a_thread(run: RunStorage, stages: str, in_task: Any) -> None:
    in_task(run_here)
    done: list[Finished] = []
    settings = FinetuneSettings(run=run.uri, stages=stages)
    thread = threading.Thread(target=lambda: done.append(job.finetune(settings)))
    thread.start()
    thread.join(120)
    assert done == [Finished(0, run.uri)]


@pytest.fixture
def started(in_task: Any) -> list[ChainTask]:
    """The tasks that are begun; each is interrupted at once."""
    begun: list[ChainTask] = []

    def start(task: ChainTask, *_: Any) -> Manifest:
        begun.append(task)
        raise KeyboardInterrupt

    in_task(start)
    return begun


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, None),
        ({"committee": 0}, r"--committee: 0 is not allowed"),
        ({"stages": "other"}, "--stages: 'other' is neither"),
        ({"cpus": 2.0}, "^--cpus: 2 wanted"),
        ({"name": "other"}, "^--name: is for a new run, which begins with --onnx; --run names"),
        ({"storage": "elsewhere"}, "^--storage: is for a new run, .*, and its model is replaced"),
        ({"finetune_epochs": 5}, "^--finetune-epochs: is for runs of --train"),
        ({"train_data": "own:data"}, "^--train-data: is for runs of --train"),
        (
            {"gpus": 1.0},
            "^--gpus: 1 wanted, but no node has more than 0 GPUs; allowed is at most 0",
        ),
    ],
)
def test_wrong_settings_start_nothing(
    run: RunStorage, stages: str, started: list[ChainTask], changes: dict, message: str | None
) -> None:
    settings = FinetuneSettings(**{"run": run.uri, "stages": stages} | changes)
    if message is None:
        job.finetune(settings)
        assert (started[0].committee, started[0].cpus, started[0].gpus) == (1, 1.0, 0.0)
        return
    with pytest.raises(SettingsError, match=message):
        job.finetune(settings)
    assert started == []
    assert About.read(run, "--run").state == "searched"


@pytest.mark.parametrize(
    ("searched", "flags", "evaluated"),
    [
        (False, [], False),
        (True, [], True),
        (True, ["--no-test-steps"], False),
        (False, ["--test-steps"], True),
    ],
)
def test_the_stages_are_evaluated_as_given_else_as_in_the_search(
    run: RunStorage, stages: str, started: list[ChainTask], searched: bool, flags: list[str],
    evaluated: bool, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    about = About.read(run, "--run")
    about.patch(settings={**about.settings, "test_steps": searched})
    words = ["--run", run.uri, "--stages", stages, *flags]
    job.finetune(parse(FinetuneSettings, words))
    assert started[0].test_steps is evaluated
    _, _, command = capsys.readouterr().out.partition("to go on: ")
    assert command.split()[-5 - len(flags) :] == ["finetune", *words]


def test_the_chain_is_told_that_the_search_began_with_a_file(
    run: RunStorage, stages: str, started: list[ChainTask]
) -> None:
    about = About.read(run, "--run")
    for file, began in ((None, False), ("model.onnx", True)):
        about.patch(settings={**about.settings, "onnx": file})
        job.finetune(FinetuneSettings(run=run.uri, stages=stages))
        assert (started[-1].began_with_file, started[-1].onnx) == (began, None)


def test_an_autoscaler_may_bring_the_gpu(
    run: RunStorage, stages: str, started: list[ChainTask], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "autoscaler_maximum", lambda: {"CPU": 8.0, "GPU": 1.0})
    job.finetune(FinetuneSettings(run=run.uri, stages=stages, gpus=1.0))
    assert (started[0].cpus, started[0].gpus) == (1.0, 1.0)


HEAD = {"memory": 8e9, "node:__internal_head__": 1.0}  # of a cluster that scales: without CPUs


@pytest.mark.parametrize(
    ("nodes", "gpus_per_trial", "expected"),
    [
        ([HEAD], 0.25, (1.0, 1.0)),
        ([HEAD], 0, (1.0, 0.0)),
        ([HEAD, {"CPU": 4.0}], 0.25, (1.0, 1.0)),
        ([HEAD, {"CPU": 4.0}], 0, (4.0, 0.0)),
        ([HEAD, {"CPU": 4.0, "GPU": 1.0}], 0, (4.0, 1.0)),
    ],
)
def test_an_autoscaler_is_asked_for_what_the_trials_had(
    run: RunStorage,
    stages: str,
    started: list[ChainTask],
    monkeypatch: pytest.MonkeyPatch,
    nodes: list[dict[str, float]],
    gpus_per_trial: float,
    expected: tuple[float, float],
) -> None:
    raw = run.read_json(layout.RUN)
    settings = {**raw["settings"], "gpus_per_trial": gpus_per_trial}
    run.write_json(layout.RUN, {**raw, "settings": settings})
    monkeypatch.setattr(cluster, "nodes", lambda: nodes)
    monkeypatch.setattr(cluster, "scales", lambda: True)
    job.finetune(FinetuneSettings(run=run.uri, stages=stages))
    assert (started[0].cpus, started[0].gpus) == expected


def test_a_head_without_cpus_trains_nothing(
    run: RunStorage, stages: str, started: list[ChainTask], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "nodes", lambda: [HEAD])
    with pytest.raises(SettingsError, match="^--cpus: 1 wanted, but no node has more than 0 CPUs"):
        job.finetune(FinetuneSettings(run=run.uri, stages=stages))
    assert started == []


def test_a_run_that_cannot_be_fine_tuned_is_refused(run: RunStorage, in_task: Any) -> None:
    settings = FinetuneSettings(run=run.uri)
    raw = run.read_json(layout.RUN)
    run.write_json(layout.RUN, {**raw, "data": {**raw["data"], "sha256": "0" * 64}})
    with pytest.raises(
        SettingsError, match=r"--data-dir: .* not those that the run at .* began with"
    ):
        job.finetune(settings)
    run.write_bytes(layout.RUN, json.dumps(raw).encode()[:-5])
    with pytest.raises(SettingsError, match=r"--run: .*run\.json"):
        job.finetune(settings)
    run.write_json(layout.RUN, raw)
    run.delete(layout.BEST)
    with pytest.raises(SettingsError, match="has no best checkpoint yet"):
        job.finetune(settings)
    run.write_bytes(layout.BEST_TREES, b"trees")
    with pytest.raises(SettingsError, match="is a LightGBM model"):
        job.finetune(settings)


def test_an_onnx_file_begins_a_run_of_its_own(
    run: RunStorage, stages: str, in_task: Any, tmp_path: Path
) -> None:
    in_task(run_here)
    job.finetune(FinetuneSettings(run=run.uri, stages=stages))
    settings = FinetuneSettings(
        onnx=run.join(layout.MODEL), storage=str(tmp_path), name="again", stages=stages
    )
    # The run has images of its own choice: all that digits has.
    assert job.finetune(settings) == Finished(0, str(tmp_path / "again"))
    manifest, _ = read_verified(RunStorage(str(tmp_path / "again")))
    assert [entry["step"] for entry in manifest["lineage"]] == ["onnx", "stage-1"]
    with pytest.raises(SettingsError, match="--name: a run is there already"):
        job.finetune(settings)
    assert job.finetune(FinetuneSettings(run=str(tmp_path / "again"), stages=stages)).exit_code == 0


def test_a_new_run_takes_no_stages_of_an_old_one(
    run: RunStorage, stages: str, in_task: Any, tmp_path: Path
) -> None:
    in_task(run_here)
    job.finetune(FinetuneSettings(run=run.uri, stages=stages))
    run.delete(layout.RUN)
    again = FinetuneSettings(
        onnx=run.join(layout.MODEL), storage=str(tmp_path), name="run", stages=stages
    )
    with pytest.raises(SettingsError, match="^--name: files of a run without its run.json lie at"):
        job.finetune(again)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stages": "other"}, "^--stages: 'other' is neither"),
        ({"committee": 0}, "^--committee: 0 is not allowed"),
        ({"cpus": -1.0}, "^--cpus: -1 is not allowed"),
        ({"onnx": "several.onnx"}, "^--onnx: .* is a committee of 2 networks; expected"),
        ({"onnx": "anothers.onnx"}, "^--onnx: .* is of another program; expected"),
    ],
)
def test_wrong_settings_leave_no_new_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], message: str
) -> None:
    model = network(HP)
    monkeypatch.chdir(tmp_path)
    Path("model.onnx").write_bytes(export(model, HP, {"dataset": "digits"}))
    several = export(Committee([model, model]), [HP, HP], {"dataset": "digits"})
    Path("several.onnx").write_bytes(several)
    anothers = onnx.load_model_from_string(several)
    anothers.producer_name = "another"
    del anothers.metadata_props[:]
    Path("anothers.onnx").write_bytes(anothers.SerializeToString())
    settings = {"onnx": "model.onnx", "storage": "runs", "name": "new", "dataset": "digits"}
    with pytest.raises(SettingsError, match=message):
        job.finetune(FinetuneSettings(**settings | changes))
    assert not Path("runs", "new").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classes": 5}, "classes 5, but the data set has 10"),
        (
            {"in_channels": 3, "mean": [0.5] * 3, "std": [0.5] * 3},
            "in_channels 3, but the data set has 1",
        ),
        ({"image_size": [20, 20]}, r"image_size \[20, 20\], but the data set has \[28, 28\]"),
    ],
)
def test_a_file_for_other_images_begins_no_run(
    started: list[ChainTask], tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    hp = {**HP, **changes}
    (tmp_path / "model.onnx").write_bytes(export(network(hp), hp, {"dataset": "digits"}))
    settings = FinetuneSettings(
        onnx=str(tmp_path / "model.onnx"), storage=str(tmp_path / "runs"), name="new"
    )
    with pytest.raises(SettingsError, match=f"^--onnx: its network has {message}$"):
        job.finetune(settings)
    assert started == []
    assert not (tmp_path / "runs" / "new").exists()


def test_a_file_for_other_classes_begins_no_run(started: list[ChainTask], tmp_path: Path) -> None:
    """Images of another size and colour are read as the file's network takes them."""
    images = np.random.default_rng(0).integers(0, 256, (200, 20, 20, 3), np.uint8)
    np.savez(tmp_path / "own.npz", x_train=images, y_train=np.arange(200) % 5)
    (tmp_path / "model.onnx").write_bytes(export(network(HP), HP, {"dataset": "digits"}))
    settings = FinetuneSettings(
        onnx=str(tmp_path / "model.onnx"), dataset=f"npz:{tmp_path / 'own.npz'}",
        storage=str(tmp_path / "runs"), name="new",
    )  # fmt: skip
    with pytest.raises(SettingsError, match="^--onnx: its network has classes 10, but the data se"):
        job.finetune(settings)
    assert started == []
    assert not (tmp_path / "runs" / "new").exists()


@pytest.mark.parametrize(
    ("size", "padding", "message"),
    [
        ([28], "black", r"--onnx: the file's image_size is \[28\]; expected height and width"),
        ([28, "a"], "black", "--onnx: the file's image_size is .*: expected a list, each value a"),
        (None, "black", "--onnx: the file's image_size is None: expected a list"),
        ([28, 28], "odd", "a.onnx does not say how images are read: padding: 'odd' is not allowed"),
    ],
)
def test_a_file_that_does_not_say_for_what_images_it_is(
    size: Any, padding: str, message: str
) -> None:
    start = Start(b"", {"padding": padding}, {**HP, "image_size": size})
    with pytest.raises(SettingsError, match=f"^{message}"):
        start.reading("a.onnx", "folder:/new", named=True)


def test_the_size_of_images_that_are_not_square_is_found_out() -> None:
    start = Start(b"", {}, {**HP, "image_size": [28, 20]})
    found = start.reading("a.onnx", "folder:/new", named=True)
    assert found == data.Reading(channels="grey")


def own_digits(size: tuple[int, int], part: str, count: int) -> tuple[list[np.ndarray], list[int]]:
    """Pictures of digits, of that size in pixels."""
    found = data.load("digits", part)
    pictures = [Image.fromarray(image[0]).resize(size) for image in found.images[:count]]
    return [np.asarray(picture) for picture in pictures], found.labels[:count].tolist()


def test_other_images_are_not_read_as_the_file_s_own_were(
    started: list[ChainTask], stages: str, tmp_path: Path
) -> None:
    """But at its size, and in its colours: its class weights and broken pictures are its own."""
    pictures, labels = own_digits((40, 30), "train", 300)
    np.savez(tmp_path / "new.npz", x_train=np.stack(pictures), y_train=labels)
    reading = data.Reading(
        channels="grey", padding="edge", skip_broken=True, class_weights='{"9": 2.0}'
    )
    facts = {"reading": reading.to_json(), "data_sha256": "0" * 64, "padding": "edge"}
    expected = data.Reading(28, "grey", "edge")
    for dataset, want in ((f"npz:{tmp_path / 'new.npz'}", expected), ("digits", data.Reading())):
        file = export(network(HP), HP, {"dataset": "folder:/elsewhere", **facts})
        (tmp_path / "model.onnx").write_bytes(file)
        settings = FinetuneSettings(
            onnx=str(tmp_path / "model.onnx"), dataset=dataset, stages=stages,
            storage=str(tmp_path), name=dataset.partition(":")[0],
        )  # fmt: skip
        job.finetune(settings)
        assert started[-1].reading == want
        assert About.read(RunStorage(str(tmp_path / str(settings.name))), "").state == "interrupted"


def test_the_file_s_own_images_are_read_as_they_were(
    started: list[ChainTask], stages: str, tmp_path: Path
) -> None:
    """At its size, though the median of a folder that has grown is another."""
    pictures, labels = own_digits((40, 30), "train", 300)
    np.savez(tmp_path / "own.npz", x_train=np.stack(pictures), y_train=labels)
    name = f"npz:{tmp_path / 'own.npz'}"
    reading = data.Reading(padding="white", skip_broken=True, class_weights="balanced")
    file = export(network(HP), HP, {"dataset": name, "reading": reading.to_json()})
    (tmp_path / "model.onnx").write_bytes(file)
    job.finetune(
        FinetuneSettings(
            onnx=str(tmp_path / "model.onnx"), dataset=name, stages=stages,
            storage=str(tmp_path), name="new",
        )
    )  # fmt: skip
    expected = dataclasses.replace(reading, image_size=28, channels="grey")
    assert started[-1].reading == expected


def test_a_model_of_a_hub_s_images_reads_them_again_as_it_did(
    stages: str, best: bytes, in_task: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Size and padding are no code: the name alone is given again."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    features = datasets.Features(
        image=datasets.Image(), label=datasets.ClassLabel(names=[*"0123456789"])
    )
    made = {}
    for part, count in (("train", 300), ("test", 100)):
        pictures, labels = own_digits((40, 30), part, count)
        rows = {"image": [Image.fromarray(each) for each in pictures], "label": labels}
        made[part] = datasets.Dataset.from_dict(rows, features=features)
    monkeypatch.setattr(datasets, "load_dataset", lambda name: datasets.DatasetDict(made))
    name = "hf:someone/digits"
    searched = SearchSettings(dataset=name, precision="fp32", image_size=28, padding="stretch")
    split = data.load_split(name, reading=data.Reading.of(resolved(searched)))
    storage = RunStorage(str(tmp_path / "run"))
    described = {
        "name": "run", "state": "searched", "settings": resolved(searched),
        "data": split.facts(), "start": "2026-01-02T03:04:05+00:00",
    }  # fmt: skip
    About.claim(storage, described, "there is one already")
    storage.write_bytes(layout.BEST_NETWORK, best)
    in_task(run_here)
    job.finetune(FinetuneSettings(run=storage.uri, stages=stages, dataset=name))
    manifest, _ = read_verified(storage)
    model = load_model(storage.uri)
    metadata = model.session.metadata
    found = model.evaluate(name)
    assert (found.n, found.accuracy) == (100, manifest["test_accuracy"])
    with pytest.raises(SettingsError, match="a file does not choose code"):
        model.evaluate()
    assert metadata["data_sha256"] == split.images.sha256
    del metadata["reading"], metadata["data_sha256"]  # as files of before
    assert model.evaluate(name).right == found.right


def test_a_file_for_other_images_does_not_replace_a_model(
    run: RunStorage, stages: str, started: list[ChainTask], tmp_path: Path
) -> None:
    """Beside --run, and as the file that the run began with."""
    hp = {**HP, "classes": 5}
    for file, given in ((tmp_path / "five.onnx", True), (Path(run.uri, layout.START), False)):
        file.write_bytes(export(network(hp), hp, {"dataset": "digits"}))
        settings = FinetuneSettings(run=run.uri, stages=stages, onnx=str(file) if given else None)
        message = "^--onnx: its network has classes 5, but the data set has 10$"
        with pytest.raises(SettingsError, match=message):
            job.finetune(settings)
    assert started == []
    assert About.read(run, "--run").state == "searched"


@pytest.mark.parametrize(
    ("dataset", "searched_in", "settings", "flags"),
    [
        ("digits", "/data", {}, []),
        ("mnist", "/data", {}, []),
        ("mnist", "/other", {}, ["--data-dir", "/other"]),
        ("mnist", "/data", {"data_dir": "/new"}, ["--data-dir", "/new"]),
        ("mine:f", "/data", {}, ["--dataset", "mine:f", "--data-dir", "/data"]),
        ("mine:f", "/data", {"data_dir": "/new"}, ["--dataset", "mine:f", "--data-dir", "/new"]),
    ],
)
def test_the_printed_evaluation_looks_in_the_folder_of_the_images(
    run: RunStorage, monkeypatch: pytest.MonkeyPatch, dataset: str, searched_in: str,
    settings: dict[str, Any], flags: list[str],
) -> None:  # fmt: skip
    monkeypatch.setenv("MNIST_RAY_DATA", "/data")
    about = About.read(run, "--run")
    searched = {**about.settings, "dataset": dataset, "data_dir": searched_in}
    about = dataclasses.replace(about, settings=searched)
    given = FinetuneSettings(run=run.uri, **settings)
    words = ["model.onnx", *job._data_flags(given, about)]
    assert words[1:] == flags
    parse(EvaluateSettings, words)


@pytest.mark.parametrize("picture", [None, {"file": "picture.onnx"}])
def test_the_next_commands_are_those_that_the_model_can_follow(picture: Any) -> None:
    said = job.summary(dataclasses.replace(MANIFEST, picture=picture), "runs/a/model.onnx")
    named = re.findall(r"mnist[-_]ray (\w+) runs", said.partition("next: ")[2])
    assert named == (["predict", "draw", "evaluate"] if picture else ["evaluate"])


def test_the_command_to_go_on_repeats_what_was_given(run: RunStorage) -> None:
    about = About.read(run, "--run")
    assert job.resume_command(FinetuneSettings(run=run.uri), about).endswith(
        f" finetune --run {run.uri}"
    )
    given = FinetuneSettings(
        run=run.uri, stages="my stages.yaml", committee=2, network="mine:net", gpus=0.5
    )
    assert job.resume_command(given, about).endswith(
        f" finetune --run {run.uri} --network mine:net --stages 'my stages.yaml' --committee 2 "
        "--gpus 0.5"
    )
    for given in (FinetuneSettings(run=run.uri, test_steps=each) for each in (True, False)):
        switch = "--test-steps" if given.test_steps else "--no-test-steps"
        assert job.resume_command(given, about).endswith(f" finetune --run {run.uri} {switch}")
    new = FinetuneSettings(onnx="a.onnx", storage="x", name="run")  # it keeps a copy of the file
    assert "--onnx" not in job.resume_command(new, about)


@pytest.mark.parametrize(
    ("options", "flag"),
    [({"gpus": 2.0}, "--gpus"), ({"gpus": -1.0}, "--gpus"), ({"cpus": 0.0}, "--cpus")],
)
def test_resources_that_would_not_be_used_are_refused(
    run: RunStorage, options: dict[str, float], flag: str
) -> None:
    with pytest.raises(SettingsError, match=f"^{flag}: .* is not allowed; expected "):
        job.finetune(FinetuneSettings(run=run.uri, **options))  # type: ignore[arg-type]


def test_fewer_cpus_than_a_node_has_are_told_of(
    in_task: Callable[[Any], None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A stage on one of eight CPUs takes hours, and nothing else says why."""

    @dataclasses.dataclass(frozen=True)
    class Task:
        cpus: float = 0.0
        gpus: float = 0.0

    in_task(None)
    monkeypatch.setattr(cluster, "nodes", lambda: [{"CPU": 8.0}])  # for check_fits
    settings = FinetuneSettings(run="run", gpus=0.0)
    for free, line in (
        (8.0, ""),
        (1.0, "finetune: takes 1 CPUs, as others of the 8 are taken; --cpus N waits for N\n"),
    ):
        monkeypatch.setattr(cluster, "most_cpus", lambda gpus, nodes, n=free: (n, 8.0))
        task: Any = Task()
        assert job._with_resources(task, settings).cpus == free
        assert capsys.readouterr().out == line
