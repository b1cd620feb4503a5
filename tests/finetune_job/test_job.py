"""finetune() called in this process; the chain runs here instead of in a Ray task."""

import json
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

from mnist_ray import cluster, data
from mnist_ray.errors import SettingsError
from mnist_ray.export.write import export
from mnist_ray.finetune_job import job
from mnist_ray.finetune_job.recipe import ChainTask
from mnist_ray.models import Committee
from mnist_ray.run import layout, lease
from mnist_ray.run.about import About, Finished
from mnist_ray.run.publication import Manifest, read_verified
from mnist_ray.settings import FinetuneSettings, SearchSettings, resolved
from mnist_ray.storage import RunStorage
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
    with lease.held(run, "search"):
        about.patch(state="searching")
        before = run.read_bytes(layout.RUN)
        with pytest.raises(SettingsError, match="^--run: another search is at work at "):
            job.finetune(settings)
        assert run.read_bytes(layout.RUN) == before
        assert not run.exists(layout.lease_file("fine-tuning"))
        about.patch(state="finetuning")  # as by the search whose second job it is
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


def test_an_autoscaler_may_bring_the_gpu(
    run: RunStorage, stages: str, started: list[ChainTask], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "autoscaler_maximum", lambda: {"CPU": 8.0, "GPU": 1.0})
    job.finetune(FinetuneSettings(run=run.uri, stages=stages, gpus=1.0))
    assert (started[0].cpus, started[0].gpus) == (1.0, 1.0)


def test_a_run_that_cannot_be_fine_tuned_is_refused(run: RunStorage, in_task: Any) -> None:
    settings = FinetuneSettings(run=run.uri)
    raw = run.read_json(layout.RUN)
    run.write_json(layout.RUN, {**raw, "data": {**raw["data"], "sha256": "0" * 64}})
    with pytest.raises(SettingsError, match=r"--data-dir: .* not those that the run was searched"):
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
