"""examples/: each part is used as a search uses it, and the notebook runs from end to end."""

from pathlib import Path

import nbformat
import optuna
import pytest
import torch
from nbclient import NotebookClient
from optuna.study import StudyDirection

from mnist_ray import data, models
from mnist_ray.search_job.plan import prepare
from mnist_ray.settings import SearchSettings
from tests.support import ROOT

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
