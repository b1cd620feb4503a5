"""Runs on S3: requests, whole objects or none, patience with a server that is away for a moment."""

import signal
import subprocess
import sys
import threading
import time
import urllib.request
import uuid
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from mnist_ray.errors import SettingsError, WorkError
from mnist_ray.storage import RunStorage, check_writable
from tests.support.s3_proxy import Proxy

PROGRAMS = Path(__file__).parents[1] / "programs"


def test_a_missing_bucket_is_not_made(s3_server: str) -> None:
    missing = s3_server.replace("s3://bucket", "s3://nobody-made-me/runs")
    with pytest.raises(
        SettingsError,
        match=r"--storage: cannot write to s3://nobody-made-me/runs.*bucket does not exist$",
    ):
        check_writable(missing)
    with pytest.raises(WorkError, match=r"nobody-made-me.*bucket does not exist$"):
        RunStorage(missing).write_bytes("a", b"x")
    assert not RunStorage(missing).exists()


def test_a_right_to_one_prefix_alone_is_enough(proxy: Proxy) -> None:
    prefix = proxy.uri.split("/")[3].split("?")[0]
    proxy.rule = lambda method, path: (
        403 if method == "PUT" and not path.startswith(f"/bucket/{prefix}/") else None
    )
    check_writable(proxy.uri)
    assert not RunStorage(proxy.uri).exists()
    assert [line for line in proxy.seen if line.startswith(f"PUT /bucket/{prefix}/.mnist_ray-")]
    proxy.rule = lambda method, path: 403 if method == "PUT" else None
    with pytest.raises(SettingsError, match=r"--storage: cannot write to .*403 Forbidden"):
        check_writable(proxy.uri)


def test_the_endpoint_may_come_from_the_environment(
    s3_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint = parse_qs(urlsplit(s3_server).query)["endpoint_override"][0]
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{endpoint}")
    check_writable(f"s3://bucket/{uuid.uuid4().hex}")


def test_a_small_object_is_one_put(proxy: Proxy) -> None:
    RunStorage(proxy.uri).write_bytes("a.gz", b"x" * 100_000)
    assert len(proxy.seen) == 1
    assert proxy.seen[0].startswith("PUT /bucket/")
    assert RunStorage(proxy.uri).read_bytes("a.gz") == b"x" * 100_000


def test_a_large_object_without_one_of_its_parts_never_appears(proxy: Proxy) -> None:
    run = RunStorage(proxy.uri)
    run.write_bytes("model.onnx", b"old")
    proxy.rule = lambda method, path: 500 if "partNumber=2" in path else None
    with pytest.raises(WorkError, match=r"cannot write s3://.*model\.onnx\?endpoint_override"):
        run.write_bytes("model.onnx", b"new" * 7_100_000)
    assert [line for line in proxy.seen if "partNumber=1" in line]
    assert run.read_bytes("model.onnx") == b"old"
    proxy.rule = lambda method, path: None
    run.write_bytes("model.onnx", b"new" * 7_100_000)
    assert run.read_bytes("model.onnx") == b"new" * 7_100_000


@pytest.mark.parametrize("size", [1000, 21_000_000])
def test_a_writer_killed_while_it_uploads_leaves_the_old_object(proxy: Proxy, size: int) -> None:
    run = RunStorage(proxy.uri)
    run.write_bytes("model.onnx", b"old")
    program = str(PROGRAMS / "write_zeros.py")
    writer = subprocess.Popen([sys.executable, program, proxy.uri, str(size)])

    def kill(method: str, path: str) -> int | None:
        if method == "PUT" and ("partNumber=2" in path or size == 1000):
            writer.kill()
            return 500  # a server that has not got the whole object drops it
        return None

    proxy.rule = kill
    assert writer.wait(30) == -signal.SIGKILL
    proxy.rule = lambda method, path: None
    assert run.read_bytes("model.onnx") == b"old"


@pytest.mark.parametrize("size", [1000, 21_000_000])
def test_a_ctrl_c_within_an_upload_leaves_no_half_object(proxy: Proxy, size: int) -> None:
    run = RunStorage(proxy.uri)
    run.write_bytes("model.onnx", b"old")

    def interrupt(method: str, path: str) -> None:
        if ("uploads" not in path and "uploadId" not in path) or "partNumber=2" in path:
            proxy.rule = lambda method, path: None
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    proxy.rule = interrupt
    new = b"n" * size

    def write() -> None:
        run.write_bytes("model.onnx", new)
        time.sleep(5)  # a C call ends first

    with pytest.raises(KeyboardInterrupt):
        write()
    assert run.read_bytes("model.onnx") in (b"old", new)


def test_an_answer_that_was_lost_does_not_take_the_name_from_its_owner(
    proxy: Proxy, s3_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MNIST_RAY_STORAGE_RETRY_SECONDS", "5")
    run = RunStorage(proxy.uri)
    direct = RunStorage(s3_server.replace("s3://bucket", proxy.uri.split("?")[0]))

    def lose(method: str, path: str) -> int | None:
        if method == "PUT":
            proxy.rule = lambda method, path: None
            direct.write_bytes("lock", b"mine")
            return 500
        return None

    proxy.rule = lose
    assert run.create_exclusive("lock", b"mine")
    assert not run.create_exclusive("lock", b"yours")
    proxy.rule = lambda method, path: 501 if method == "PUT" else None
    with pytest.raises(WorkError, match="501 Not Implemented"):  # without a condition too
        run.create_exclusive("other", b"mine")


def test_the_markers_of_folders_are_not_files(proxy: Proxy) -> None:
    """Arrow leaves one in place of the parent of what it deletes."""
    run = RunStorage(proxy.uri)
    run.write_bytes("empty", b"")
    for name in ("tune/", "best/"):
        url = f"http://{proxy.behind}/{proxy.prefix}/{name}"
        urllib.request.urlopen(urllib.request.Request(url, b"", method="PUT")).close()
    run.write_bytes("best/model", b"x")
    assert run.list() == ["best/model", "empty"]
    assert not run.exists("tune")
    run.delete("best")
    assert run.list() == ["empty"]


def test_keys_come_from_a_profile_too(
    proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "credentials"
    file.write_text("[mine]\naws_access_key_id = PROFILEKEY\naws_secret_access_key = secret\n")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    monkeypatch.setenv("AWS_PROFILE", "mine")
    RunStorage(proxy.uri).write_bytes("a", b"x")
    assert "Credential=PROFILEKEY/" in proxy.keys[-1]
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "missing"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "missing"))
    with pytest.raises(WorkError, match="403 Forbidden"):
        RunStorage(proxy.uri).write_bytes("a", b"x")
    assert proxy.keys[-1] == ""  # as anybody: AWS_EC2_METADATA_DISABLED is set
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    monkeypatch.setenv("AWS_PROFILE", "nope")
    with pytest.raises(WorkError, match=r"AWS_PROFILE: .*\(nope\)"):
        RunStorage(proxy.uri).write_bytes("a", b"x")
    file.write_text("no file of AWS's")
    with pytest.raises(WorkError, match="AWS_PROFILE: Unable to parse"):
        RunStorage(proxy.uri).write_bytes("a", b"x")


# ---- a server that is away ----


def test_a_server_that_comes_back_after_three_seconds(
    proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MNIST_RAY_STORAGE_RETRY_SECONDS", "20")
    run = RunStorage(proxy.uri)
    run.write_bytes("before", b"x")
    proxy.stop()
    back = threading.Timer(3.0, proxy.start)
    back.start()
    began = time.monotonic()
    run.write_bytes("after", b"y")
    assert time.monotonic() - began > 2.5
    back.join()
    assert run.list() == ["after", "before"]


def test_an_overloaded_server_is_asked_again(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MNIST_RAY_STORAGE_RETRY_SECONDS", "20")
    answers = [503, 500, 503, 429, 503]
    proxy.rule = lambda method, path: answers.pop() if answers else None
    run = RunStorage(proxy.uri)
    run.write_bytes("a", b"x")
    assert answers == []
    assert run.read_bytes("a") == b"x"


def test_a_server_that_stays_away_is_one_clear_error(proxy: Proxy) -> None:
    run = RunStorage(proxy.uri)
    proxy.stop()
    began = time.monotonic()
    operations = (
        lambda: run.write_bytes("a", b"x"),
        lambda: run.read_bytes("a"),
        run.list,
        lambda: run.exists("a"),
    )
    for operation in operations:
        with pytest.raises(
            WorkError, match=r"^cannot .* s3://bucket/.*cannot be reached \(Connection refused\)$"
        ) as caught:
            operation()
        assert "\n" not in str(caught.value)
    with pytest.raises(SettingsError, match="--storage: cannot write to"):
        check_writable(proxy.uri)
    assert time.monotonic() - began < 20


def test_a_refusal_is_not_repeated(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MNIST_RAY_STORAGE_RETRY_SECONDS", "20")
    proxy.rule = lambda method, path: 403
    with pytest.raises(WorkError, match=r"HTTP status 403 Forbidden$"):
        RunStorage(proxy.uri).write_bytes("a", b"x")
    assert len(proxy.seen) == 1


def test_patience_must_be_a_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MNIST_RAY_STORAGE_RETRY_SECONDS", "soon")
    with pytest.raises(SettingsError, match="MNIST_RAY_STORAGE_RETRY_SECONDS=soon"):
        RunStorage(str(tmp_path)).exists()


def test_a_process_that_used_s3_ends_quietly(s3_server: str) -> None:
    command = [sys.executable, str(PROGRAMS / "use_s3.py"), s3_server]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")
