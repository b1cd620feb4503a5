"""Storage that fails: S3 away, slow or broken while files are written, and full disks."""

import os
import random
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from mnist_ray.errors import WorkError
from mnist_ray.run.publication import publish, read_verified
from mnist_ray.storage import RunStorage, open_run
from tests.faults.tools import (
    TINY,
    Network,
    Rays,
    can_mount,
    no_open_trial,
    no_secret,
    paced,
    small_disk,
)
from tests.support import PROGRAMS, ROOT
from tests.support.processes import nothing_of, own_ray
from tests.support.runs import check_run, ended, finish, flags, load_study, search, wait_for

SEARCH = [*TINY, *flags(trials=6, max_epochs=8, scheduler="none")]


def runs_folder(bucket: str, name: str) -> str:
    return str(open_run(bucket, name).uri)


def test_s3_fails_while_checkpoints_are_written(
    rays: Rays, network: Network, bucket: str, tmp_path: Path
) -> None:
    arguments = [*paced(tmp_path), *flags(trials=6, max_epochs=24, scheduler="none")]
    process = search(rays.env, *arguments, *flags(storage=bucket, name="away"), cwd=tmp_path)
    seen = wait_for(process, "epochs=")
    network.met.clear()
    for mode in ("down", "error", "slow"):
        with network.failing(mode):
            time.sleep(3)
            assert process.poll() is None, f"the search ended before S3 was {mode}"
        time.sleep(0.5)
    assert network.met["error"] > 0
    assert network.met["slow"] > 0
    code, output = finish(process)
    assert code == 0, seen + output
    assert "6 complete, 0 pruned, 0 failed" in output
    check_run(runs_folder(bucket, "away"), 6)
    no_secret(seen + output, RunStorage(runs_folder(bucket, "away")))


@pytest.mark.slow
def test_s3_is_away_for_30_seconds(network: Network, bucket: str) -> None:
    """With the waiting time of 60 s that users have, also in the workers' environment."""
    env = own_ray(MNIST_RAY_STORAGE_RETRY_SECONDS="60")
    for mode in ("down", "silent"):
        process = search(env, *SEARCH, *flags(storage=bucket, name=f"long-{mode}"))
        seen = wait_for(process, "epochs=")
        with network.failing(mode):
            time.sleep(30)
        code, output = finish(process)
        assert code == 0, seen + output
        assert "6 complete, 0 pruned, 0 failed" in output
        check_run(runs_folder(bucket, f"long-{mode}"), 6)


@pytest.mark.slow
def test_s3_stays_away(rays: Rays, network: Network, bucket: str) -> None:
    process = search(rays.env, *SEARCH, *flags(storage=bucket, name="gone"))
    seen = wait_for(process, "epochs=")
    started = time.monotonic()
    with network.failing("down"):
        code, output = finish(process, 120)
    assert code == 1, seen + output
    last = output.splitlines()[-1]
    assert last.startswith("search.py: storage failed: cannot "), output
    assert "--name gone --resume" in last
    assert "Traceback" not in output
    assert time.monotonic() - started < 60
    code, output = finish(search(rays.env, *flags(storage=bucket, name="gone", resume=True)))
    assert code == 0, output
    check_run(runs_folder(bucket, "gone"), 6)


def test_s3_fails_while_a_model_is_published(
    network: Network, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut off anywhere, a publication leaves the old model or the new one, never a mixture."""
    run = open_run(bucket, "model")
    old, new = os.urandom(200_000), os.urandom(200_000)
    publish(run, {"model.onnx": old, "README.md": b"old"}, {"file": "model.onnx", "which": "old"})
    outcomes = []
    for after in (0.0, 1.0, 2.0, 3.0):
        monkeypatch.setenv("MNIST_RAY_STORAGE_RETRY_SECONDS", "0.3")
        network.set("slow")
        cut = threading.Timer(after, network.set, ("down",))
        cut.start()
        try:
            publish(
                open_run(bucket, "model"),
                {"model.onnx": new, "README.md": b"new"},
                {"file": "model.onnx", "which": "new"},
            )
        except WorkError as error:
            assert str(error).count("\n") == 0
            assert "://bucket/faults/model" in str(error)
        cut.join()
        network.set("up")
        monkeypatch.setenv("MNIST_RAY_STORAGE_RETRY_SECONDS", "20")
        manifest, data = read_verified(run)
        assert data == (new if manifest["which"] == "new" else old)
        outcomes.append(manifest["which"])
        publish(
            run, {"model.onnx": old, "README.md": b"old"}, {"file": "model.onnx", "which": "old"}
        )
        assert sorted(run.list()) == ["README.md", "model.json", "model.onnx"]
    assert outcomes[0] == "old"
    back = threading.Timer(2, network.set, ("up",))
    network.set("down")
    back.start()
    publish(run, {"model.onnx": new}, {"file": "model.onnx", "which": "new"})
    assert read_verified(run)[1] == new


@pytest.mark.parametrize("kills", [6, pytest.param(60, marks=pytest.mark.slow)])
def test_killed_while_it_publishes(tmp_path: Path, kills: int) -> None:
    run, chance = RunStorage(str(tmp_path)), random.Random(0)
    publish(run, {"model.onnx": bytes([1]) * 3_000_000}, {"file": "model.onnx", "which": 1})
    for _ in range(kills):
        process = subprocess.Popen(
            [sys.executable, str(PROGRAMS / "publish_again.py"), run.uri],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        wait_for(process, "begins")
        time.sleep(chance.uniform(0.01, 0.3))
        process.kill()
        process.communicate()
        manifest, data = read_verified(run)
        assert data == bytes([manifest["which"]]) * 3_000_000
    publish(run, {"model.onnx": b"last"}, {"file": "model.onnx"})
    assert read_verified(run)[1] == b"last"
    assert [name for name in run.list() if "model" in name] == ["model.json", "model.onnx"]


@pytest.mark.skipif(
    not can_mount(), reason="needs root and a mount of its own, for a disk that is small"
)
def test_the_disk_is_full(rays: Rays, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "24m") as disk:
        process = search(rays.env, *SEARCH, *flags(storage=disk, name="full"))
        seen = wait_for(process, "epochs=")
        filler = disk / "filler"
        subprocess.run(
            ["dd", "if=/dev/zero", f"of={filler}", "bs=4096"], capture_output=True
        )  # until there is no space
        code, output = finish(process, 120)
        assert code == 1, seen + output
        last = output.splitlines()[-1]
        assert last.startswith("search.py: storage failed: cannot "), output
        assert f"{disk}/full" in last
        assert "No space left on device" in last
        assert "Traceback" not in output
        finished = {t.number for t in load_study(disk / "full").trials if t.state.is_finished()}
        code, output = finish(search(rays.env, *flags(storage=disk, name="full", resume=True)), 60)
        assert code != 0  # still full: one line again
        assert "Traceback" not in output
        assert str(disk) in output.splitlines()[-1]
        filler.unlink()
        code, output = finish(search(rays.env, *flags(storage=disk, name="full", resume=True)))
        assert code == 0, output
        assert not ended(output) & finished
        check_run(str(disk / "full"), 6)
        no_open_trial(disk / "full")


@pytest.mark.slow
@pytest.mark.skipif(
    not can_mount(), reason="needs root and a mount of its own, for a disk that is small"
)
def test_the_disk_of_rays_temporary_files_is_full(tmp_path: Path) -> None:
    folder = Path("/tmp") / f"mrf-disk-{os.getpid()}"  # short, as Ray's sockets need
    try:
        with small_disk(folder, "64k") as disk:
            process = search(
                own_ray(TMPDIR=str(disk)), *SEARCH, *flags(storage=tmp_path, name="full")
            )
            code, output = finish(process, 200)
            assert code == 1, output
            assert str(disk) in output.splitlines()[-1]
            assert "Traceback" not in output
        assert nothing_of(str(folder))
    finally:
        folder.rmdir()
