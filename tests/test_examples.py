"""examples/: each part is used as a search uses it, and the notebook runs from end to end."""

import re
import time
from pathlib import Path

import nbformat
import onnxruntime
import optuna
import pytest
import torch
from nbclient import NotebookClient
from optuna.study import StudyDirection
from safetensors.torch import save_file

from mnist_ray import data, models, open_run
from mnist_ray.errors import SettingsError
from mnist_ray.export.write import export
from mnist_ray.run import layout
from mnist_ray.search_job.plan import prepare
from mnist_ray.settings import SearchSettings
from mnist_ray.trials.function import FunctionTrial
from mnist_ray.tune.trial import NUMBER, TrialContext
from tests.support import ROOT
from tests.support.runs import ended, finish, flags, load_study, search, wait_for

STAGES = (
    "stages: [{epochs: 1, batch_size: 64, optimizer: adam, lr: 0.001, weight_decay: 0, seed: 1}]"
)


@pytest.fixture(autouse=True)
def _in_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT)


def test_the_parts_make_a_plan_together(tmp_path: Path) -> None:
    """Data set, space, network, sampler and pruner of the examples, through every refusal."""
    settings = SearchSettings.of(
        dataset="examples.shapes:shapes",
        space="examples.residual:space",
        space_args={"max_depth": 2},
        sampler="examples.simulated_annealing:SimulatedAnnealing",
        scheduler="examples.behind_best:BehindBest",
        scheduler_args={"margin": 0.1},
        storage=tmp_path,
        name="own",
    )
    plan = prepare(settings)
    hp = plan.space(optuna.create_study().ask())
    assert (hp["classes"], hp["depth"] <= 2) == (3, True)
    logits = models.build(hp)(torch.rand(4, 1, 28, 28))
    assert logits.shape == (4, 3)
    logits.sum().backward()


def test_a_pretrained_network_begins_with_the_weights_of_a_file(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm", reason="timm is not installed")
    torch.manual_seed(0)
    weights = timm.create_model("test_resnet").state_dict()
    file = tmp_path / "weights.safetensors"
    save_file(weights, file)
    settings = SearchSettings.of(
        dataset="digits",
        space="examples.pretrained:space",
        space_args={"model": "test_resnet", "weights": file},
        storage=tmp_path,
        name="begun",
    )
    hp = prepare(settings).space(optuna.create_study().ask())
    network = models.build(hp).eval()
    begun = network.get_submodule("1").state_dict()
    # three colours become one channel, a thousand classes ten; the rest is the file's
    changed = {name for name in weights if not weights[name].equal(begun[name])}
    assert changed == {"conv1.0.weight", "fc.weight", "fc.bias"} & set(weights)
    images = torch.rand(3, 1, *hp["image_size"])
    session = onnxruntime.InferenceSession(export(network, hp, {"classes": '["0", "1"]'}))
    (logits,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})[:1]
    assert logits == pytest.approx(network(images).detach().numpy(), abs=1e-4)
    # rebuilt elsewhere, for a checkpoint, without the file
    file.unlink()
    models.build(hp).load_state_dict(network.state_dict())
    with pytest.raises(SettingsError, match=r"--space-args: weights=.*: expected a file"):
        prepare(settings)


def test_the_data_set_is_as_it_says() -> None:
    train = data.load("examples.shapes:shapes", "train")
    pixels = train.images / 255
    assert train.shape == (1, 28, 28)
    assert pixels.mean() == pytest.approx(train.mean[0], abs=0.01)
    assert pixels.std() == pytest.approx(train.std[0], abs=0.01)
    test = data.load("examples.shapes:shapes", "test")
    assert not {image.tobytes() for image in test.images} & {i.tobytes() for i in train.images}


@pytest.mark.parametrize(
    ("direction", "sign"), [(StudyDirection.MAXIMIZE, 1), (StudyDirection.MINIMIZE, -1)]
)
def test_the_pruner_stops_a_trial_far_behind(direction: StudyDirection, sign: int) -> None:
    from examples.behind_best import BehindBest

    study = optuna.create_study(direction=direction, pruner=BehindBest(margin=0.2))
    stopped = []
    for level in (0.5, 0.9, 0.6, 0.8):
        trial = study.ask()
        trial.report(sign * level, 1)
        stopped.append(trial.should_prune())
        study.tell(trial, sign * level)
    assert stopped == [False, False, True, False]  # the first two are needed for a comparison


FUNCTIONS = {
    "sklearn_mlp": ({"train_data": "examples.sklearn_mlp:data"}, 0.6, True),
    "torch_mnist": ({"train_data": "images", "dataset": "digits"}, 0.6, True),
    "tiny_transformer": ({"metric": "loss", "metric_mode": "min"}, 2.4, False),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_training_function_learns_and_goes_on(name: str, tmp_path: Path) -> None:
    """As the engine calls it: five epochs, and after an interruption from its state."""
    options, reached, has_state = FUNCTIONS[name]
    module = f"examples.{name}"
    common = {"train": f"{module}:train", "space": f"{module}:space", "metric": "accuracy"}
    plan = prepare(SearchSettings.of(**{**common, **options, "storage": tmp_path, "name": "own"}))
    context = TrialContext(str(tmp_path), plan.settings.goal, 9, 0, "fp32", 1, 0)
    values = {"lr": 0.05 if name != "tiny_transformer" else 0.01, "momentum": 0.9, "width": 32}
    hp = plan.space(optuna.trial.FixedTrial({**values, "alpha": 1e-4}))

    class Here(FunctionTrial):
        def setup(self, config: dict) -> None:  # type: ignore[override]
            super().setup(config, context, **plan.work.parameters())

    first = Here({**hp, NUMBER: 0})
    results = [first.train()["val_metric"] for _ in range(5)]
    first.stop()
    less = plan.settings.metric_mode == "min"
    assert results[-1] < reached if less else results[-1] > reached
    second = Here({**hp, NUMBER: 0})
    again = second.train()
    second.stop()
    assert ("rows" in again) == has_state
    assert again["val_metric"] == results[-1 if has_state else 0]


@pytest.mark.slow  # a whole search, killed and resumed; .ci/run calls it
def test_a_search_over_a_function_is_killed_and_goes_on(
    ray_head: dict[str, str], tmp_path: Path
) -> None:
    own = flags(
        train="examples.sklearn_mlp:train",
        train_data="examples.sklearn_mlp:data",
        space="examples.sklearn_mlp:space",
        finetune_with="examples.sklearn_mlp:train",
    )
    run = flags(storage=tmp_path, name="own")
    limits = flags(metric="accuracy", trials=8, max_epochs=60, scheduler="none", finetune_epochs=3)
    killed = search(ray_head, *own, *run, *limits)
    seen = wait_for(killed, " COMPLETE ")
    # A trial goes on with its state: one must have one by now.
    folder = tmp_path / "own"
    while not any(
        (folder / layout.trial_folder(trial.number) / FunctionTrial.LATEST).exists()
        for trial in load_study(folder).trials
        if trial.state.name == "RUNNING"
    ):
        assert killed.poll() is None, "the search ended before it was killed"
        time.sleep(0.02)
    killed.kill()
    killed.wait()
    code, output = finish(search(ray_head, *own, *run, "--resume"))
    assert code == 0, output
    done, go_on = map(int, re.findall(r"(\d+) of 8 trials are done, (\d+) go on", output)[0])
    assert done >= 1
    assert go_on >= 1
    assert not ended(seen) & ended(output)
    found = open_run(tmp_path / "own")
    assert len(found.trials) == 8
    assert found.best.value > 0.9
    assert (tmp_path / "own" / "best" / "state").stat().st_size > 100
    # The second job went on with the best trial's state.
    assert found.state == "done"
    tuned = found.tuned.manifest
    assert (tuned["epochs"], tuned["trial"]) == (3, found.best.number)
    assert tuned["value"] > 0.9
    assert "By the second function" in (tmp_path / "own" / "report.html").read_text()
    assert "the best of 8 trials" in (tmp_path / "own" / "report.html").read_text()


@pytest.mark.slow  # a whole search with its second job; .ci/run calls it
def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = nbformat.read(ROOT / "examples" / "quickstart.ipynb", as_version=4)
    assert all(not cell.get("outputs") for cell in notebook.cells), "clear its outputs"
    (tmp_path / "one.yaml").write_text(STAGES)
    small = ("trials=8, max_epochs=6", "trials=2, max_epochs=1, stages='one.yaml'")
    changed = [cell for cell in notebook.cells if small[0] in cell.source]
    assert len(changed) == 1
    changed[0].source = changed[0].source.replace(*small)
    client = NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}})
    client.execute()
    outputs = [out for cell in notebook.cells for out in cell.get("outputs", ())]
    assert sum("image/png" in out.get("data", {}) for out in outputs) == 3  # 2 figures, 1 picture
    assert outputs[-1]["data"]["text/plain"].startswith("('")
