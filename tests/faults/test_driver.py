"""A search killed again and again, started twice, taken over; a fine-tuning started twice."""

import random
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mnist_ray.run import checkpoint, layout
from mnist_ray.run.publication import read_verified
from mnist_ray.storage import RunStorage
from tests.faults.tools import TINY, Rays, no_open_trial, no_secret
from tests.support.processes import kill_tree, own_ray, stop
from tests.support.runs import (
    check_run,
    ended,
    finetune,
    finish,
    flags,
    load_study,
    results,
    search,
    tables,
    wait_for,
)

STAGES = """
train_on: train
stages:
  - {epochs: 2, batch_size: 64, optimizer: sgd, lr: 0.02, weight_decay: 5.0e-4,
     schedule: one_cycle, seed: 1}
"""


@pytest.mark.parametrize(
    ("kills", "trials"), [(3, 12), pytest.param(20, 70, marks=pytest.mark.slow)]
)
def test_killed_at_random_moments_it_finds_the_same(
    rays: Rays, tmp_path: Path, kills: int, trials: int
) -> None:
    arguments = [
        *TINY,
        *flags(trials=trials, max_epochs=6, deterministic=True, max_concurrent=2, seed=5),
    ]
    began = time.monotonic()
    code, output = finish(
        search(rays.env, *arguments, *flags(storage=tmp_path / "whole", name="d")), 600
    )
    assert code == 0, output
    whole, chance = time.monotonic() - began, random.Random(kills)
    over: set[int] = set()
    folder = tmp_path / "cut" / "d"
    process = search(rays.env, *arguments, *flags(storage=tmp_path / "cut", name="d"))
    for kill in range(kills):
        # Some moments lie anywhere in the start, and the others where trials end: at most three
        # end before each, so that some are left for the last kill, on any machine.
        seen = ""
        if kill and chance.random() < 0.3:
            time.sleep(chance.uniform(0, 0.3 * whole))
        else:
            seen = wait_for(process, "epochs=")
            time.sleep(chance.uniform(0, min(0.3, 0.02 * whole)))
        assert process.poll() is None, f"the search ended before kill {kill + 1} of {kills}"
        output = seen + stop(process)
        assert not ended(output) & over  # none of them ran again
        if (folder / "study.journal").exists():
            over |= {t.number for t in load_study(folder).trials if t.state.is_finished()}
        again = ["--resume"] if (folder / "run.json").exists() else arguments
        process = search(rays.env, *again, *flags(storage=tmp_path / "cut", name="d"))
    code, output = finish(process, 600)
    assert code == 0, output
    assert not ended(output) & over
    check_run(str(folder), trials)
    no_open_trial(folder)
    assert [t.number for t in load_study(folder).trials] == list(range(trials))
    assert results(tmp_path / "cut") == results(tmp_path / "whole")


@pytest.fixture(scope="module")
def at_work(
    rays: Rays, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Path, subprocess.Popen]]:
    """A search that is at work."""
    folder = tmp_path_factory.mktemp("work")
    arguments = [
        *TINY,
        *flags(trials=300, max_epochs=8, scheduler="none", storage=folder, name="one"),
    ]
    process = search(rays.env, *arguments)
    wait_for(process, "epochs=")
    yield folder, process
    process.kill()
    finish(process, 30)


@pytest.mark.parametrize("flag", ["", "--resume", "--overwrite"])
def test_a_run_that_is_at_work_is_left_alone(
    rays: Rays, at_work: tuple[Path, subprocess.Popen], flag: str
) -> None:
    folder, first = at_work
    second = search(
        rays.env,
        *(TINY if flag != "--resume" else []),
        *flags(storage=folder, name="one"),
        *[flag] * bool(flag),
    )
    code, output = finish(second, 60)
    assert (code, output.count("\n")) == (2, 1), output
    assert "--name" in output
    if flag:
        assert f"another search is at work at {folder}/one (process {first.pid} on " in output
    assert first.poll() is None


def test_of_two_that_go_on_with_a_killed_run_one_does(
    rays: Rays, at_work: tuple[Path, subprocess.Popen]
) -> None:
    folder, first = at_work
    stop(first)
    trials = len(load_study(folder / "one").trials) + 4
    arguments = flags(storage=folder, name="one", resume=True, trials=trials)
    both = [search(rays.env, *arguments) for _ in range(2)]
    ends = sorted((finish(each, 240) for each in both), key=lambda end: end[0])
    assert [code for code, _ in ends] == [0, 2], ends
    assert "another search is at work" in ends[1][1]
    assert "waiting" not in ends[0][1]  # its process is known to be gone
    check_run(str(folder / "one"), trials)
    no_open_trial(folder / "one")
    assert not (folder / "one" / "search.lease").exists()


def test_of_two_fine_tunings_one_publishes(
    rays: Rays, at_work: tuple[Path, subprocess.Popen]
) -> None:
    """After the search above, whose run they share."""
    folder = at_work[0]
    assert (folder / "one" / "best" / "model.safetensors").exists(), "the test before makes it"
    (folder / "stages.yaml").write_text(STAGES)
    shutil.copytree(folder / "one", folder / "tuned")
    (folder / "tuned" / "search.lease").unlink(missing_ok=True)
    arguments = [
        *flags(run=folder / "tuned", stages=folder / "stages.yaml", cpus=1),
    ]
    ends = sorted(
        (finish(each, 240) for each in [finetune(rays.env, *arguments) for _ in range(2)]),
        key=lambda end: end[0],
    )
    assert [code for code, _ in ends] == [0, 2], ends
    assert "--run: another fine-tuning is at work" in ends[1][1]
    run = RunStorage(str(folder / "tuned"))
    read_verified(run)
    assert "fine-tuning.lease" not in run.list()
    no_secret(ends[0][1] + ends[1][1], run)


@pytest.mark.slow
def test_a_host_that_is_lost_in_the_first_trial_loses_the_running_epoch_only(
    bucket: str, tmp_path: Path
) -> None:
    """The run lies on S3 alone, and the host takes its Ray with it."""
    base, _, query = bucket.partition("?")
    run = RunStorage(f"{base}/lost/first?{query}")
    own = flags(trials=2, max_epochs=40, max_concurrent=1, storage=f"{base}/lost?{query}")
    process = search(own_ray(), *TINY, *own, *flags(name="first"))
    latest = f"{layout.trial_folder(0)}/latest.safetensors"
    deadline = time.monotonic() + 120
    kept = 0
    while kept < 3 and time.monotonic() < deadline:
        if run.exists(latest):
            kept = checkpoint.unpack(run.read_bytes(latest), latest)[1]["epoch"]
        time.sleep(0.05)
    kill_tree(process.pid)
    finish(process, 60)
    kept = checkpoint.unpack(run.read_bytes(latest), latest)[1]["epoch"]
    assert 3 <= kept < 40
    again = search(own_ray(), *flags(storage=f"{base}/lost?{query}", name="first", resume=True))
    code, output = finish(again, 300)
    assert code == 0, output
    assert "0 of 2 trials are done, 1 go on" in output
    rows, history = tables(run)
    assert (rows[0]["number"], rows[0]["epochs"]) == (0, 40)
    first = [row["epoch"] for row in history if row["number"] == 0]
    assert first == list(range(1, 41))
    # The epochs before the loss were not trained again: their times are those of the checkpoint.
    no_secret(output, run)


@pytest.mark.slow
def test_a_folder_that_is_moved_in_mid_search_ends_it_in_one_line(tmp_path: Path) -> None:
    own = flags(trials=30, max_epochs=6, storage=tmp_path, name="moved")
    process = search(own_ray(), *TINY, *own)
    begun = wait_for(process, "trial 1 ")
    moved = time.monotonic()
    (tmp_path / "moved").rename(tmp_path / "elsewhere")
    code, output = finish(process, 60)
    assert time.monotonic() - moved < 30
    assert code == 1, begun + output
    assert "Traceback" not in output
    assert output.splitlines()[-1].startswith("search.py: "), output
    assert "deleted" in output.splitlines()[-1]
    assert not (tmp_path / "moved").exists()
    records = (tmp_path / "elsewhere" / "study.journal").read_text().splitlines()
    assert '"op_code":0' in records[0]  # with its beginning
