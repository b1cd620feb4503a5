"""The trainable as an object, without a cluster: epochs, reuse, restarts, and trials that cannot go
on.
"""

import math
import os
import re
import subprocess
import sys
import urllib.error
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mnist_ray import models
from mnist_ray.errors import CaptureError
from mnist_ray.export.write import export
from mnist_ray.finetune_job.recipe import Stage
from mnist_ray.run import checkpoint
from mnist_ray.run.layout import error_file, trial_folder
from mnist_ray.run.records import epoch_row, rank
from mnist_ray.settings.constraints import read
from mnist_ray.storage import RunStorage
from mnist_ray.training.folds import FoldTrainer, mean_row
from mnist_ray.training.trainer import Trainer
from mnist_ray.trials.network import TrainTrial
from mnist_ray.tune.trial import NUMBER, TrialContext
from tests.support import ROOT
from tests.support.trials import HP, IMAGES, LABELS, Here


def fails(hp: dict[str, Any]) -> torch.nn.Module:
    """A network of a person's own."""
    return torch.nn.Linear(hp["channels"], 2)


@pytest.fixture
def trial_class(tmp_path: Path) -> type[Here]:
    context = TrialContext(str(tmp_path), "val_accuracy", 3, 0, "fp32", 1, 0)
    return type("HereAtTmp", (Here,), {"context_of_test": context})


def test_every_epoch_is_reported_and_the_last_is_done(
    trial_class: type[Here], tmp_path: Path
) -> None:
    trial = trial_class({**HP, NUMBER: 7})
    results = [trial.train() for _ in range(3)]
    trial.stop()
    assert [r["epoch"] for r in results] == [1, 2, 3]
    assert [r["done"] for r in results] == [False, False, True]
    assert all(0 <= r["val_accuracy"] <= 1 and r["n_parameters"] > 0 and r["node"] for r in results)
    storage = RunStorage(str(tmp_path))
    names = storage.list(trial_folder(7))
    assert sorted(Path(n).name for n in names) == [
        "best.safetensors",
        "latest.safetensors",
        "optimizer.safetensors",
    ]
    _, story = checkpoint.unpack(storage.read_bytes(f"{trial_folder(7)}/best.safetensors"), "x")
    best = max(results, key=lambda r: (r["val_accuracy"], -r["val_loss"]))
    assert (story["number"], story["row"]["epoch"]) == (7, best["epoch"])
    assert story["hyperparameters"] == HP


def test_started_again_it_goes_on_and_reports_what_may_be_lost(trial_class: type[Here]) -> None:
    whole = trial_class({**HP, NUMBER: 1})
    expected = [whole.train() for _ in range(3)]
    whole.stop()
    first = trial_class({**HP, NUMBER: 2})
    first.train()
    first.train()
    first.stop()
    second = trial_class({**HP, NUMBER: 2})
    again = second.train()
    assert again["epoch"] == 2
    assert [row["epoch"] for row in again["rows"]] == [1, 2]
    last = second.train()
    second.stop()
    assert last["epoch"] == 3
    assert last["done"]
    assert last["val_loss"] == expected[2]["val_loss"]


def test_one_actor_serves_several_trials(trial_class: type[Here]) -> None:
    trial = trial_class({**HP, NUMBER: 1})
    trial.train()
    assert trial.reset_config({**HP, "lr": 0.5, NUMBER: 2})
    result = trial.train()
    trial.stop()
    assert result["epoch"] == 1
    assert result["lr"] > 0.3


def test_nan_ends_the_trial_with_a_reason(trial_class: type[Here]) -> None:
    trial = trial_class({**HP, "lr": 1e30, "schedule": "constant", NUMBER: 1})
    result = trial.train()
    trial.stop()
    assert result["done"]
    assert math.isnan(result["val_accuracy"])
    assert result["reason"] == "the loss is not finite at epoch 1"


def test_an_error_ends_the_trial_with_a_reason_and_leaves_its_traceback(
    trial_class: type[Here], tmp_path: Path
) -> None:
    trial = trial_class({**HP, "model": f"{__name__}:fails", NUMBER: 1})
    result = trial.train()
    trial.stop()
    assert result["done"]
    assert re.fullmatch(r"KeyError: 'channels' \(trials/test_network\.py:\d+\)", result["reason"])
    text = (tmp_path / error_file(1)).read_text()
    assert text.startswith("Traceback (most recent call last)")
    assert 'hp["channels"]' in text


def unreachable(*_: Any) -> Any:
    """A network, an augmentation and a metric of a person's own."""
    raise urllib.error.URLError("no route to the weights")


@pytest.mark.parametrize("part", ["model", "augment", "metric"])
def test_a_download_that_fails_is_not_the_storages_fault(tmp_path: Path, part: str) -> None:
    """URLError is an OSError, and one of the storage ends the whole search."""
    own = f"{__name__}:unreachable"
    metric = f"{own}@max" if part == "metric" else "val_accuracy"
    context = TrialContext(str(tmp_path), metric, 3, 0, "fp32", 1, 0)
    trial = type("Away", (Here,), {"context_of_test": context})(
        {**HP, **({} if part == "metric" else {part: own}), NUMBER: 1}
    )
    result = trial.train()
    trial.stop()
    assert result["reason"].startswith("URLError: <urlopen error no route to the weights>")
    assert "storage_error" not in result


@pytest.mark.parametrize(
    ("error", "broken"),
    [
        (RuntimeError("CUDA error: device-side assert triggered\nCompile with"), True),
        (type("AcceleratorError", (RuntimeError,), {})("an illegal access"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), True),
        (CaptureError("a step cannot be captured as a CUDA graph: no"), True),
        (torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), False),
        (RuntimeError("shape '[-1, 100]' is invalid"), False),
        (SystemExit(1), False),
    ],
)
def test_after_an_error_of_the_gpu_the_next_trial_has_another_worker(
    trial_class: type[Here], monkeypatch: pytest.MonkeyPatch, error: BaseException, broken: bool
) -> None:
    def fails(hp: dict[str, Any]) -> torch.nn.Module:
        try:
            raise error
        except RuntimeError as cause:
            if "AcceleratorError" not in type(cause).__name__:
                raise
            raise ValueError("a library's own") from cause

    codes: list[int] = []
    monkeypatch.setitem(globals(), "fails", fails)
    monkeypatch.setattr(os, "_exit", codes.append)
    trial = trial_class({**HP, "model": f"{__name__}:fails", NUMBER: 1})
    result = trial.train()
    assert result["reason"]
    assert "storage_error" not in result
    assert trial.reset_config({**HP, NUMBER: 2})
    assert codes == [1] * broken
    trial.stop()


def test_a_wrong_value_is_named(trial_class: type[Here]) -> None:
    trial = trial_class({**HP, "kernel_size": "three", NUMBER: 1})
    result = trial.train()
    trial.stop()
    assert result["done"]
    assert result["reason"].startswith("hyperparameter kernel_size is 'three'")


def test_a_failing_storage_is_not_the_trials_fault(
    trial_class: type[Here], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MNIST_RAY_STORAGE_RETRY_SECONDS", "0.1")
    (tmp_path / "tune").write_text("a file where the folder should be")
    trial = trial_class({**HP, NUMBER: 1})
    result = trial.train()
    trial.stop()
    assert result["done"]
    assert "reason" not in result
    assert str(tmp_path) in result["storage_error"]


def test_a_damaged_checkpoint_is_named(trial_class: type[Here], tmp_path: Path) -> None:
    RunStorage(str(tmp_path)).write_bytes(f"{trial_folder(3)}/latest.safetensors", b"no checkpoint")
    trial = trial_class({**HP, NUMBER: 3})
    result = trial.train()
    trial.stop()
    assert result["done"]
    assert "latest.safetensors" in result["storage_error"]


def test_every_trial_begins_with_the_start_and_augments(tmp_path: Path) -> None:
    torch.manual_seed(3)
    start = {name: tensor.numpy() for name, tensor in models.build(HP).state_dict().items()}
    for array in start.values():
        array.flags.writeable = False  # as they come from the object store
    context = TrialContext(str(tmp_path), "val_accuracy", 1, 0, "fp32", 1, 0, augment="shift")

    class Started(TrainTrial):
        def setup(self, config: dict) -> None:  # type: ignore[override]
            super().setup(config, context, IMAGES, LABELS, np.arange(90), np.arange(90, 120), start)

    trial = Started({**HP, "lr": 1e-30, "ema": 0, NUMBER: 1})
    trial.train()
    assert trial.reset_config({**HP, "lr": 1e-30, "ema": 0, NUMBER: 2})
    trial.train()
    trial.stop()
    for number in (1, 2):
        weights, story = checkpoint.unpack(
            (tmp_path / trial_folder(number) / "best.safetensors").read_bytes(), "x"
        )
        learnt = [name for name in weights if name.endswith(("weight", "bias"))]
        assert all(
            np.allclose(weights[name].numpy(), start[name], rtol=0, atol=1e-12) for name in learnt
        )
        assert story["hyperparameters"]["augment"] == "shift"


def test_a_trial_s_graph_is_drawn_in_a_process_of_its_own(tmp_path: Path) -> None:
    """Where torch's compiler is left out, TensorBoard's graph cannot be traced."""
    program = [sys.executable, "-m", "tests.programs.trial_with_graph", str(tmp_path)]
    subprocess.run(program, cwd=ROOT, check=True, capture_output=True, timeout=120)
    [file] = tmp_path.glob("tensorboard/00001/*")
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(file)).Reload()
    assert events.Tags()["graph"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_a_trial_that_outgrows_its_share_of_the_gpu_fails_alone(
    trial_class: type[Here], tmp_path: Path
) -> None:
    share = 1e-4  # of 80 GB: 8 MB
    large = type(
        "Large",
        (trial_class,),
        {"context_of_test": TrialContext(str(tmp_path), "val_accuracy", 1, 0, "fp32", 1, share)},
    )
    try:
        result = large({**HP, "width": 1024, NUMBER: 1}).train()
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert "out of memory" in result["reason"]
    assert result["done"]


def test_its_best_files_name_their_epoch(trial_class: type[Here], tmp_path: Path) -> None:
    storage = RunStorage(str(tmp_path))
    trial = trial_class({**HP, NUMBER: 1})
    assert trial_class.best_row(storage, 1) is None
    rows = [epoch_row(trial.train()) for _ in range(2)]
    trial.stop()
    found = trial_class.best_row(storage, 1)
    assert found == max(rows, key=lambda row: rank(row, "val_accuracy"))
    name = f"{trial_folder(1)}/best.safetensors"
    for damaged in (b"", b"\xff" * 99, storage.read_bytes(name)[:50]):
        storage.write_bytes(name, damaged)
        assert trial_class.best_row(storage, 1) is None


# ---- limits


def limited(tmp_path: Path, *limits: str, **options: Any) -> type[Here]:
    context = TrialContext(
        str(tmp_path), "val_accuracy", 3, 0, "fp32", 1, 0, constraints=read(limits), **options
    )
    return type("Limited", (Here,), {"context_of_test": context})


def test_a_network_beyond_a_limit_is_not_trained(tmp_path: Path) -> None:
    size = models.n_parameters(models.build(HP))
    trial = limited(tmp_path, f"parameters<={size - 1}")({**HP, NUMBER: 1})
    result = trial.train()
    trial.stop()
    assert (result["done"], result["epoch"], result["n_parameters"]) == (True, 0, size)
    assert result["unfit"] == f"parameters={size:,}, not parameters<={size - 1:,}"
    assert RunStorage(str(tmp_path)).list(trial_folder(1)) == []
    fits = limited(tmp_path, f"parameters<={size}")({**HP, NUMBER: 2})
    result = fits.train()
    fits.stop()
    assert (result["epoch"], result["violation"]) == (1, 0)
    assert "unfit" not in result


def test_a_sampler_that_learns_from_complete_trials_has_it_trained(tmp_path: Path) -> None:
    trial = limited(tmp_path, "parameters<=10", train_unfit=True)({**HP, NUMBER: 1})
    result = trial.train()
    trial.stop()
    assert result["epoch"] == 1
    assert result["violation"] > 0
    assert result["unfit"].startswith("parameters=")


def test_an_accuracy_is_judged_at_every_epoch_and_survives_a_restart(tmp_path: Path) -> None:
    kind = limited(tmp_path, "accuracy>=1")
    trial = kind({**HP, NUMBER: 1})
    rows = [trial.train() for _ in range(2)]
    trial.stop()
    for row in rows:
        assert row["violation"] == pytest.approx(1 - row["val_accuracy"])
        assert "unfit" not in row
    again = kind({**HP, NUMBER: 1})
    found = again.train()
    again.stop()
    assert [row["violation"] for row in found["rows"]] == [row["violation"] for row in rows]


def test_the_size_is_at_least_that_of_the_file_that_is_published(tmp_path: Path) -> None:
    facts = {"dataset": "digits", "run": "a", "classes": "[]"}
    trial = limited(tmp_path, "size<=1MB", "latency<=1000", facts=facts, latency=True)(
        {**HP, NUMBER: 1}
    )
    result = trial.train()
    trial.stop()
    stage = Stage(25, 64, 0.1, 5.0e-4, "sgd", 100, "one_cycle", 0.1, 0.998, 0.25, "affine", 1)
    network = trial.worker.trainer.eval_model()
    published = {**facts, "val_accuracy": "0.97", "temperature": "1.2345678"}
    file = export(network, stage.hyperparameters(HP), published)
    assert len(file) <= result["size"] <= len(file) + 2048
    assert result["latency_ms"] > 0


# ---- folds


def test_a_trial_of_folds_reports_their_mean_and_goes_on_to_the_bit(tmp_path: Path) -> None:
    folds = [
        (np.setdiff1d(np.arange(120), held), held)
        for held in (np.arange(i, 120, 3) for i in range(3))
    ]

    def made(folder: str) -> Here:
        class OfFolds(Here):
            def setup(self, config: dict) -> None:  # type: ignore[override]
                context = TrialContext(
                    str(tmp_path / folder), "val_accuracy", 3, 0, "fp32", 1, 0,
                    constraints=read(["accuracy>=1"]),
                )  # fmt: skip
                TrainTrial.setup(self, config, context, IMAGES, LABELS, *folds[0], folds=folds)

        (tmp_path / folder).mkdir(exist_ok=True)
        return OfFolds({**HP, NUMBER: 1})

    whole = made("whole")
    expected = [whole.train() for _ in range(3)]
    trainer = whole.worker.trainer
    assert isinstance(trainer, FoldTrainer)
    for i, row in enumerate(expected):
        each = [other.rows[i]["val_accuracy"] for other in trainer.others]
        assert row["val_accuracy"] > 0
        assert min(each) <= 1.5 * row["val_accuracy"]
        assert row["violation"] == pytest.approx(1 - row["val_accuracy"])
    own = Trainer(HP, epochs=3, seed=0, precision="fp32")
    parts = [torch.from_numpy(part) for part in folds[1]]
    images, labels = torch.tensor(IMAGES), torch.tensor(LABELS)
    alone = [own.run_epoch(images, labels, *parts)["val_loss"] for _ in range(3)]
    assert [row["val_loss"] for row in trainer.others[0].rows] == alone
    whole.stop()
    first = made("cut")
    first.train()
    first.stop()
    second = made("cut")
    assert second.train()["epoch"] == 1
    rest = [second.train() for _ in range(2)]
    second.stop()
    assert [row["val_loss"] for row in rest] == [row["val_loss"] for row in expected[1:]]
    names = ("latest.safetensors", "best.safetensors")
    for name in names:
        file = f"{trial_folder(1)}/{name}"
        tensors = [
            checkpoint.unpack(RunStorage(str(tmp_path / f)).read_bytes(file), "x")[0]
            for f in ("whole", "cut")
        ]
        assert all(torch.equal(tensors[0][k], tensors[1][k]) for k in tensors[0] if k[0] != "f")


def test_the_mean_of_rows() -> None:
    rows = [
        {"epoch": 2, "val_loss": loss, "seconds": 3.0, "lr": 0.5, "val_metric": 1.0}
        for loss in (0.2, 0.4)
    ]
    mean = mean_row(rows)  # type: ignore[arg-type]
    assert mean == {"epoch": 2, "val_loss": pytest.approx(0.3), "seconds": 6, "lr": 0.5,
                    "val_metric": 1}  # fmt: skip
