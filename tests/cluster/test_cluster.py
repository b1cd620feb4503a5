"""What a cluster can hold, and whether all of it sees the storage."""

import importlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from mnist_ray import cluster
from mnist_ray.errors import SettingsError
from tests.support.runs import SMALL, finish, search

CPU, GPU = {"CPU": 4.0}, {"CPU": 8.0, "GPU": 2.0}


@pytest.mark.parametrize(
    ("cpus", "gpus", "nodes", "maximum", "expected"),
    [
        (1, 0, [CPU], {}, 4),
        (0.5, 0, [CPU], {}, 8),
        (3, 0, [CPU, GPU], {}, 3),  # one and two: what is left over on a node cannot be added up
        (1, 0.25, [CPU, GPU], {}, 8),
        (1, 0.4, [GPU], {}, 4),  # twice in each GPU
        (4, 0.25, [GPU], {}, 2),
        (1, 2, [GPU], {}, 1),
        (1, 0.5, [CPU], {"CPU": 32.0, "GPU": 8.0}, 16),
    ],
)
def test_capacity(cpus: float, gpus: float, nodes: list, maximum: dict, expected: int) -> None:
    assert cluster.capacity(cpus, gpus, nodes, maximum) == expected


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_waits_for_the_end_of_an_import(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    handlers = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(KeyboardInterrupt), cluster.interruptible():
        signal.raise_signal(number)
    monkeypatch.syspath_prepend(str(tmp_path))
    within = f"import signal, time\nsignal.raise_signal({int(number)})\ntime.sleep(%s)\n"
    names = [f"interrupted_{number}_{kind}" for kind in ("soon_over", "endless")]
    for name, seconds in zip(names, (0.2, 30), strict=True):
        (tmp_path / f"{name}.py").write_text(within % seconds)

    def import_and_go_on(name: str) -> None:
        importlib.import_module(name)
        time.sleep(30)

    with pytest.raises(KeyboardInterrupt), cluster.interruptible():
        import_and_go_on(names[0])
    assert names[0] in sys.modules  # as only what ended well is
    monkeypatch.setattr(cluster, "IMPORT_SECONDS", 0.3)
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt), cluster.interruptible():
        import_and_go_on(names[1])
    assert 0.3 < time.monotonic() - started < 20
    assert names[1] not in sys.modules
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == handlers


def test_what_fits_nowhere_is_named() -> None:
    cluster.check_fits(8, 2, [CPU, GPU], {})
    cluster.check_fits(1, 3, [CPU], {"GPU": 4.0, "CPU": 16.0})
    with pytest.raises(SettingsError, match="--cpus-per-trial: 9 wanted"):
        cluster.check_fits(9, 0, [CPU, GPU], {})
    with pytest.raises(
        SettingsError, match="--gpus-per-trial: 3 wanted, but no node has more than 2 GPUs"
    ):
        cluster.check_fits(1, 3, [CPU, GPU], {})


def test_a_request_without_the_token_is_refused(ray_head: dict[str, str]) -> None:
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(ray_head["RAY_API_SERVER_ADDRESS"] + "/api/jobs/", timeout=10)
    assert caught.value.code == 401


def test_a_ray_of_our_own_leaves_nothing(tmp_path: Path) -> None:
    """No process, no session folder, no token: after success, and after SIGINT."""
    env = {
        k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")
    }
    env |= {"HOME": str(tmp_path), "TMPDIR": tempfile.mkdtemp(prefix="t")}
    try:
        arguments = [
            *SMALL,
            "--trials",
            "1",
            "--max-epochs",
            "1",
            "--no-finetune",
            "--storage",
            str(tmp_path / "runs"),
        ]
        code, output = finish(search(env, *arguments))
        assert code == 0, output
        assert [name for name in os.listdir(env["TMPDIR"]) if name.startswith("mray-")] == []
        assert not (tmp_path / ".ray").exists()
        assert (
            env["TMPDIR"]
            not in subprocess.run(
                ["ps", "-eo", "args"], capture_output=True, text=True, check=True
            ).stdout
        )
    finally:
        shutil.rmtree(env["TMPDIR"])


def can_mount() -> bool:
    command = ["unshare", "-m", "mount", "-t", "tmpfs", "none", "/mnt"]
    return (
        shutil.which("unshare") is not None
        and subprocess.run(command, capture_output=True).returncode == 0
    )


@pytest.mark.skipif(
    not can_mount(), reason="needs root and mount namespaces, to hide a folder from one node"
)
def test_storage_that_a_node_does_not_see_is_refused(
    ray_head: dict[str, str], tmp_path: Path
) -> None:
    storage = tmp_path / "runs"
    storage.mkdir()
    start = (
        f"ray start --address={ray_head['RAY_ADDRESS']} --num-cpus=1 --block --disable-usage-stats"
    )
    env = {k: v for k, v in ray_head.items() if k not in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")}
    node = subprocess.Popen(
        ["unshare", "-m", "sh", "-c", f"mount -t tmpfs none {storage} && exec {start}"], env=env,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        count = (
            "import ray, time; ray.init(address='auto', logging_level='ERROR', log_to_driver=False)\n"
            "while sum(n['Alive'] for n in ray.nodes()) < 2: time.sleep(0.3)"
        )
        subprocess.run([sys.executable, "-c", count], env=ray_head, timeout=60, check=True)
        code, output = finish(
            search(
                ray_head, *SMALL, "--trials", "1", "--storage", str(storage), "--name", "unseen"
            ),
            90,
        )
        assert code == 2, output
        assert "is not seen by 1 of 2 nodes" in output
        assert output.count("\n") == 1
        assert list(storage.iterdir()) == []
    finally:
        node.terminate()
        node.wait(20)
        time.sleep(1)  # the head notices
