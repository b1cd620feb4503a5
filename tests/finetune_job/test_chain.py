"""The chain, called in this process: from a start network to a published file, without Ray."""

import dataclasses
import json
from collections.abc import Generator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch

from mnist_ray import data
from mnist_ray.export import quantize
from mnist_ray.export.picture_model import PictureSession
from mnist_ray.export.quantize import Compared
from mnist_ray.export.session import Session
from mnist_ray.export.write import rebuild
from mnist_ray.finetune_job import chain, gate, judging, negatives
from mnist_ray.finetune_job.recipe import ChainTask, Recipe, Stage
from mnist_ray.run import checkpoint, layout
from mnist_ray.run.publication import Manifest, read_picture, read_verified
from mnist_ray.storage import RunStorage
from mnist_ray.training.trainer import Trainer
from tests.support.networks import EPOCH as ROW
from tests.support.networks import SEARCHED as HP

STAGES = (
    Stage(1, 64, 0.02, 1e-4, "sgd", seed=1, label_smoothing=0.1, dropout=0.25, schedule="cosine"),
    Stage(1, 50, 0.005, 0.0, "rmsprop", seed=2, dropout=0.125, ema=0.5),
    Stage(1, None, 0.001, 0.0, None, seed=3),  # keeps the search's optimiser and dropout
)


@pytest.fixture(scope="module")
def parts() -> tuple[data.Split, data.Images]:
    train, test = data.load("digits", "train"), data.load("digits", "test")
    return data.Split(train, np.arange(300), np.arange(300, 400), "class"), test


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The search's best checkpoint."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    return Trainer(HP, epochs=1, seed=0).weights_bytes({"number": 7, "row": ROW})


def task_of(folder: Path, begun: bytes, **changes: Any) -> ChainTask:
    storage = RunStorage(str(folder))
    storage.write_bytes(layout.BEST_NETWORK, begun)
    task = ChainTask(
        uri=storage.uri,
        run="first",
        dataset="digits",
        recipe=Recipe("three", "best", "train", STAGES),
        committee=1,
        onnx=None,
        network=None,
        precision="fp32",
    )
    return dataclasses.replace(task, **changes)


def hyperparameters(model: bytes) -> Any:
    """Those that an ONNX file carries."""
    return json.loads(Session(model, "it").metadata["hyperparameters"])


def dropout_rates(model: bytes) -> set[float]:
    """Of the network that is rebuilt from an ONNX file."""
    network, _ = rebuild(model, "it")
    return {module.p for module in network.modules() if isinstance(module, torch.nn.Dropout)}


@pytest.fixture(scope="module")
def finished(
    tmp_path_factory: pytest.TempPathFactory, begun: bytes, parts: tuple[data.Split, data.Images]
) -> tuple[ChainTask, list[str | Manifest]]:
    """A chain that ran to its end: its task, and all that it yielded."""
    task = task_of(tmp_path_factory.mktemp("runs") / "first", begun)
    return task, list(chain.run_chain(task, *parts))


def published(lines: list) -> Manifest:
    """The last of what a chain yields."""
    assert isinstance(lines[-1], Manifest)
    return lines[-1]


@pytest.mark.parametrize("number", [1, 2, 3])
def test_each_stage_is_exported_with_the_hyperparameters_that_it_trained_with(
    finished: tuple[ChainTask, list], parts: tuple[data.Split, data.Images], number: int
) -> None:
    storage = RunStorage(finished[0].uri)
    task = dataclasses.replace(finished[0], recipe=finished[0].recipe.resolved(HP))
    step = chain.trained(task, chain.begin(task, storage), storage)[number]
    assert step.facts["step"] == f"stage-{number}"
    file = judging.judge(step, {}, parts[0].images.images[:20], parts[1]).file
    found, stage = hyperparameters(file), task.recipe.stages[number - 1]
    for key in ("batch_size", "lr", "weight_decay", "optimizer", "label_smoothing", "ema"):
        assert found[key] == getattr(stage, key), key
    rate = HP["dropout"] if stage.dropout is None else stage.dropout
    assert found["dropout"] == rate
    assert dropout_rates(file) == {rate}
    name = f"{layout.stage_folder(number)}/{layout.STAGE_NETWORK}"
    assert found == checkpoint.unpack(storage.read_bytes(name), name)[1]["hyperparameters"]


def test_the_start_is_exported_with_the_searchs_hyperparameters(
    finished: tuple[ChainTask, list], parts: tuple[data.Split, data.Images]
) -> None:
    start = chain.begin(finished[0], RunStorage(finished[0].uri))
    found = hyperparameters(judging.judge(start, {}, parts[0].images.images[:20], parts[1]).file)
    assert {key: found[key] for key in HP} == HP


def test_the_published_file_carries_the_last_stages(
    tmp_path: Path, begun: bytes, parts: tuple[data.Split, data.Images]
) -> None:
    task = task_of(tmp_path, begun, recipe=Recipe("one", "best", "all", STAGES[:1]))
    manifest = published(list(chain.run_chain(task, *parts)))
    described, model = read_verified(RunStorage(task.uri))
    assert described == json.loads(json.dumps(manifest.to_json()))
    assert dropout_rates(model) == {0.25}
    found = hyperparameters(model)
    assert (found["lr"], found["batch_size"], found["label_smoothing"]) == (0.02, 64, 0.1)


def test_a_committee_carries_the_hyperparameters_of_each_member(
    tmp_path: Path, begun: bytes, parts: tuple[data.Split, data.Images]
) -> None:
    recipe = Recipe("one", "best", "train", STAGES[:1])
    task = task_of(tmp_path, begun, recipe=recipe, committee=2)
    storage = RunStorage(task.uri)
    start = chain.begin(task, storage)
    lines = list(chain.train(task, start, storage, parts[0]))
    assert "network 2 of 2" in lines
    # The second had diverged, and was begun again.
    name = f"{layout.stage_folder(1, member=2)}/{layout.STAGE_NETWORK}"
    tensors, metadata = checkpoint.unpack(storage.read_bytes(name), name)
    metadata["hyperparameters"]["lr"] = 0.02 / 3
    storage.write_bytes(name, checkpoint.pack(tensors, metadata))
    steps = chain.trained(task, start, storage)
    assert [step.facts["step"] for step in steps] == ["search", "stage-1", "member-2", "committee"]
    judged = [judging.judge(step, {}, parts[0].images.images[:20], parts[1]) for step in steps]
    found = [hyperparameters(each.file) for each in judged]
    assert found[3] == [found[1], found[2]]
    assert [each["lr"] for each in found[3]] == [0.02, 0.02 / 3]
    assert {each["dropout"] for each in found[3]} == {0.25}
    weights = [step.facts["weights_sha256"] for step in steps[1:3]]
    assert weights[0] != weights[1]
    described = judging.manifest(task, judged, judged[-1], parts[1])
    assert described.n_parameters == 2 * sum(each.numel() for each in start.network.parameters())
    assert described.lineage[3]["networks"] == 2


@pytest.mark.parametrize("calibrate", ["auto", "none"])
def test_a_committee_s_validation_accuracy_is_no_single_network_s(
    tmp_path: Path, begun: bytes, parts: tuple[data.Split, data.Images], calibrate: str
) -> None:
    """It is its own, or none where nothing has asked it about the validation images."""
    recipe = Recipe("one", "best", "train", STAGES[:1])
    task = task_of(tmp_path, begun, recipe=recipe, committee=2, calibrate=calibrate)
    manifest = published(list(chain.run_chain(task, *parts)))
    images, val = parts[0].images, parts[0].val
    session = Session(read_verified(RunStorage(task.uri))[1], "model")
    own = session.evaluate(images.images[val], images.labels[val]).accuracy
    expected = own if calibrate == "auto" else None
    assert manifest.val_accuracy == expected
    assert manifest.lineage[-1]["val_accuracy"] == expected
    assert json.loads(session.metadata["val_accuracy"]) == expected
    assert manifest.lineage[1]["val_accuracy"] is not None


def test_the_networks_of_a_committee_may_differ(
    tmp_path: Path, begun: bytes, parts: tuple[data.Split, data.Images]
) -> None:
    members = ({"augment": "shift"}, {"label_smoothing": 0.05, "epochs": 2})
    recipe = Recipe("one", "best", "train", STAGES[:1], members)
    task = task_of(tmp_path, begun, recipe=recipe, committee=3)
    storage = RunStorage(task.uri)
    start = chain.begin(task, storage)
    lines = list(chain.train(task, start, storage, parts[0]))
    steps = chain.trained(task, start, storage)
    hps = [step.hyperparameters[0] for step in steps[1:4]]
    assert [hp.get("augment") for hp in hps] == ["shift", None, "shift"]
    assert [hp["label_smoothing"] for hp in hps] == [0.1, 0.05, 0.1]
    assert sum("stage 1 epoch 2/2" in line for line in lines) == 1
    assert steps[1].facts["augment"] == "shift"
    assert steps[2].facts.items() >= members[1].items()
    assert steps[3].facts["augment"] == "shift"
    assert list(chain.train(task, start, storage, parts[0])).count("stage 1: done already") == 3


def test_the_manifest_says_what_it_said_before(finished: tuple[ChainTask, list]) -> None:
    """Runs, reports and scripts read these keys."""
    task, (*lines, manifest) = finished
    assert isinstance(manifest, Manifest)
    assert all(isinstance(line, str) for line in lines)
    assert lines[0].endswith("3 stages of recipe three on cpu")
    described, _ = read_verified(RunStorage(task.uri))
    assert list(described) == [
        "file",
        "sha256",
        "n_parameters",
        "val_accuracy",
        "test_accuracy",
        "test_images",
        "test_errors",
        "test_accuracy_interval",
        "max_difference_from_torch",
        "verified_on_images",
        "latency_ms",
        "dataset",
        "classes",
        "run",
        "recipe",
        "train_on",
        "lineage",
        "calibration",
        "picture",
        "known",
        "smaller",
        "files",
        "metric",
        "val_metric",
        "test_metric",
    ]
    storage = RunStorage(task.uri)
    assert described["picture"]["verified_on_pictures"] == 201
    assert described["picture"]["max_difference"] < 1e-4
    assert read_picture(storage, described)
    search, *stages = described["lineage"]
    # The published file alone is evaluated on the test set.
    assert [line for line in lines if ": test accuracy" in line] == [lines[-1]]
    assert search == {"step": "search", "trial": 7, **ROW}
    assert list(stages[0]) == [
        "step",
        "epochs",
        "batch_size",
        "lr",
        "weight_decay",
        "optimizer",
        "seed",
        "schedule",
        "label_smoothing",
        "ema",
        "dropout",
        "augment",
        "pool_jitter",
        "seconds",
        "val_accuracy",
        "weights_sha256",
    ]
    assert stages[2]["test_accuracy"] == described["test_accuracy"]
    assert (stages[2]["optimizer"], stages[2]["batch_size"], stages[2]["dropout"]) == (
        "adam",
        32,
        None,
    )
    assert described["val_accuracy"] == stages[2]["val_accuracy"]
    assert described["test_errors"] == round(360 * (1 - described["test_accuracy"]))


def test_a_chain_that_stopped_goes_on_to_the_same_file(
    tmp_path: Path,
    begun: bytes,
    parts: tuple[data.Split, data.Images],
    finished: tuple[ChainTask, list],
) -> None:
    task = task_of(tmp_path, begun)
    lines = cast(Generator[object, None, None], chain.run_chain(task, *parts))
    for line in lines:
        if str(line).startswith("stage 2 epoch 1/1"):
            break
    lines.close()
    again = list(chain.run_chain(task, *parts))
    assert "stage 1: done already" in again
    assert published(again).sha256 == published(finished[1]).sha256


def test_the_test_set_is_looked_at_after_the_last_stage(
    tmp_path: Path, begun: bytes, parts: tuple[data.Split, data.Images]
) -> None:
    class Looked(Exception):
        pass

    class Sealed(data.Images):
        @property
        def images(self) -> np.ndarray:  # type: ignore[override]
            raise Looked

        labels = images

    sealed = object.__new__(Sealed)
    object.__setattr__(sealed, "classes", parts[1].classes)
    task = task_of(tmp_path, begun)
    lines: list[object] = []
    with pytest.raises(Looked):
        lines.extend(chain.run_chain(task, parts[0], sealed))
    assert str(lines[-1]).startswith("stage 3 epoch 1/1")


def test_a_chain_begins_with_a_published_file(
    tmp_path: Path,
    begun: bytes,
    parts: tuple[data.Split, data.Images],
    finished: tuple[ChainTask, list],
) -> None:
    before, model = read_verified(RunStorage(finished[0].uri))
    recipe = Recipe("one", "best", "all", STAGES[2:])
    options = {"onnx": model, "recipe": recipe, "test_steps": True, "calibrate": "auto"}
    lines = list(chain.run_chain(task_of(tmp_path, begun, **options), *parts))
    manifest = published(lines)
    # Its network was trained on all images: none is left to calibrate on.
    assert manifest.calibration is not None
    assert manifest.calibration["by"] == "none"
    assert any("the file of --onnx may have been trained on" in str(line) for line in lines)
    assert sum(": test accuracy" in str(line) for line in lines) == 2
    start = manifest.lineage[0]
    assert start["step"] == "onnx"
    assert start["sha256"] == before["sha256"]
    assert start["test_accuracy"] == before["test_accuracy"]
    assert manifest.val_accuracy is None  # nothing measured it


@pytest.mark.parametrize(("start", "by"), [("best", "none"), ("random", "validation")])
def test_a_chain_after_a_search_that_began_with_a_file_is_calibrated_from_random_weights_only(
    tmp_path: Path, begun: bytes, parts: tuple[data.Split, data.Images], start: str, by: str
) -> None:
    recipe = Recipe("one", start, "train", STAGES[:1])
    options = {"recipe": recipe, "calibrate": "auto", "began_with_file": True}
    lines = list(chain.run_chain(task_of(tmp_path, begun, **options), *parts))
    calibration = published(lines).calibration
    assert calibration is not None
    assert calibration["by"] == by
    refused = any("the file of --onnx may have been trained on" in str(line) for line in lines)
    assert refused == (by == "none")


def test_the_files_are_compared_on_images_of_all_classes(
    tmp_path: Path,
    begun: bytes,
    parts: tuple[data.Split, data.Images],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also where they are sorted by class, as those of a folder are."""
    images = parts[0].images
    order = np.argsort(images.labels, kind="stable")
    images = dataclasses.replace(images, images=images.images[order], labels=images.labels[order])
    held = np.arange(len(order)) % 5 == 0
    split = data.Split(images, np.flatnonzero(~held), np.flatnonzero(held), "class")
    label_of = {
        image.tobytes(): int(label)
        for image, label in zip(images.images, images.labels, strict=True)
    }
    seen: dict[str, tuple[int, set[int]]] = {}

    def note(name: str, given: np.ndarray) -> None:
        seen[name] = (len(given), {label_of[image.tobytes()] for image in given})

    def smaller(model: bytes, kind: str, given: np.ndarray) -> tuple[bytes, Compared]:
        note("smaller", given)
        return model, Compared(kind, len(given), 1.0, 1, 1.0, 1.0, 1.0, "too large")

    def verify(_file: bytes, _network: torch.nn.Module, given: np.ndarray) -> float:
        note("verify", given)
        return 0.0

    def verify_pictures(_file: bytes, _model: bytes, given: np.ndarray, _: Any) -> float:
        note("pictures", given)
        return 0.0

    monkeypatch.setattr(quantize, "smaller", smaller)
    monkeypatch.setattr(judging, "verify", verify)
    monkeypatch.setattr(judging, "verify_pictures", verify_pictures)
    monkeypatch.setattr(chain, "VERIFIED_ON", 100)
    monkeypatch.setattr(chain, "COMPARED_ON", 150)
    monkeypatch.setattr(judging, "PICTURES", 50)
    recipe = Recipe("one", "best", "train", STAGES[:1])
    task = task_of(tmp_path, begun, recipe=recipe, quantize="int8")
    manifest = published(list(chain.run_chain(task, split, parts[1])))
    every = set(range(10))
    assert seen == {"verify": (100, every), "smaller": (150, every), "pictures": (50, every)}
    assert manifest.picture is not None
    assert manifest.picture["verified_on_pictures"] == 51


def test_a_twin_calibrates_where_all_images_are_trained_on(
    begun: bytes, parts: tuple[data.Split, data.Images], tmp_path: Path
) -> None:
    """The network itself is the same with and without; only its probabilities differ."""
    recipe = Recipe("one", "best", "all", STAGES[:1])
    chains = []
    for name, calibrate in (("plain", "none"), ("twin", "auto")):
        task = task_of(tmp_path / name, begun, recipe=recipe, calibrate=calibrate)
        lines = list(chain.run_chain(task, *parts))
        chains.append((lines, published(lines)))
    (plain, without), (lines, with_twin) = chains
    assert without.calibration is not None
    assert without.calibration["by"] == "none"
    assert without.calibration["temperature"] == 1.0
    assert not any("calibration" in str(line) for line in plain[:-1])
    assert "calibration: a second network is trained, without the validation images" in lines
    assert with_twin.calibration is not None
    assert with_twin.calibration["by"] == "twin"
    assert with_twin.calibration["images"] == 100
    assert with_twin.calibration["ece_after"] < with_twin.calibration["ece_before"]
    assert with_twin.lineage[-1]["weights_sha256"] == without.lineage[-1]["weights_sha256"]
    assert with_twin.test_errors == without.test_errors
    stages = RunStorage(str(tmp_path / "twin"))
    assert stages.exists(f"{layout.stage_folder(1, twin=True)}/{layout.STAGE_NETWORK}")


def check_gate_and_smaller(manifest: Manifest, storage: RunStorage) -> None:
    """The other files of a chain with a gate and int8."""
    assert manifest.known is not None
    assert manifest.known.declined <= 0.02  # of 100 images
    assert set(manifest.known.kinds) == set(negatives.DRAWN)
    assert set(manifest.known.errors_left) == {"0.002", "0.005", "0.01"}
    card = storage.read_bytes(layout.CARD).decode()
    assert "### None of these\n" in card
    assert "\n\n\n" not in card
    picture = read_picture(storage, manifest.to_json())
    assert picture is not None
    facts = PictureSession(picture, "picture.onnx").metadata
    assert float(facts["foreign_above"]) == manifest.known.foreign_above
    assert manifest.smaller is not None
    name = layout.smaller_model("int8")
    assert manifest.smaller["file"] == name
    assert storage.exists(name) == (not manifest.smaller["refused"])
    files = {each["file"]: each for each in manifest.files}
    assert {layout.MODEL, layout.PICTURE} <= files.keys()
    assert (name in files) == storage.exists(name)
    assert all(files[name]["bytes"] == len(storage.read_bytes(name)) for name in files)
    assert all(each["latency_ms"] > 0 for each in files.values())


def test_validation_images_calibrate_where_they_are_left_out(
    begun: bytes,
    parts: tuple[data.Split, data.Images],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gate, "FEWEST_STEPS", 30)
    monkeypatch.setattr(gate, "MOST_STEPS", 30)
    recipe = Recipe("one", "best", "train", STAGES[:1])
    task = task_of(tmp_path, begun, recipe=recipe, calibrate="auto", gate="auto", quantize="int8")
    lines = list(chain.run_chain(task, *parts))
    manifest = published(lines)
    check_gate_and_smaller(manifest, RunStorage(task.uri))
    assert manifest.calibration is not None
    assert (manifest.calibration["by"], manifest.calibration["seconds"]) == ("validation", 0.0)
    assert any(str(line).startswith("calibration: temperature ") for line in lines)
    _, file = read_verified(RunStorage(task.uri))
    assert (
        float(Session(file, "model").metadata["temperature"])
        == (manifest.calibration["temperature"])
    )
