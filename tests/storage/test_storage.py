"""Runs on disk and on S3: whole files or none, clear refusals, patience with a server that is away for a moment."""

import contextlib
import errno
import http.client
import http.server
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mnist_ray import storage
from mnist_ray.errors import CorruptFileError, SettingsError, WorkError
from mnist_ray.storage import (
    RunStorage,
    check_writable,
    open_run,
    refuse_credentials,
)


@pytest.fixture(autouse=True)
def little_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MNIST_RAY_STORAGE_RETRY_SECONDS", "0.3")


@pytest.fixture(params=["path", "file", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A storage URI of each kind, empty."""
    if request.param == "path":
        return str(tmp_path / "my runs")
    if request.param == "file":
        return f"file://{tmp_path}/my%20runs"
    base, query = request.getfixturevalue("s3_server").split("?")
    return f"{base}/my%20runs/{uuid.uuid4().hex}?{query}"


class Proxy:
    """Stands before the S3 server: notes the requests and answers some of them itself, or kills, as `rule` says."""

    def __init__(self, s3_uri: str) -> None:
        self.seen: list[str] = []
        self.rule: Callable[[str, str], int | None] = lambda method, path: None
        self.server: http.server.ThreadingHTTPServer | None = None
        self.connections: list[socket.socket] = []
        self.behind = parse_qs(urlsplit(s3_uri).query)["endpoint_override"][0]
        self.port = 0
        self.start()
        self.uri = (
            f"s3://bucket/{uuid.uuid4().hex}?endpoint_override=127.0.0.1:{self.port}&scheme=http"
        )

    def start(self) -> None:
        proxy = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_any(self) -> None:
                body = b""
                if self.headers.get("Transfer-Encoding") == "chunked":
                    while size := int(self.rfile.readline().split(b";")[0], 16):
                        body += self.rfile.read(size)
                        self.rfile.readline()
                    self.rfile.readline()
                else:
                    body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                proxy.seen.append(f"{self.command} {self.path}")
                status = proxy.rule(self.command, self.path)
                if status is not None:
                    self.send_response(status)
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                hop = ("transfer-encoding", "expect", "content-length")
                headers = {
                    key: value for key, value in self.headers.items() if key.lower() not in hop
                }
                behind = http.client.HTTPConnection(proxy.behind)
                behind.request(
                    self.command, self.path, body, {**headers, "Content-Length": str(len(body))}
                )
                answer = behind.getresponse()
                data = answer.read()
                behind.close()
                self.send_response(answer.status)
                for key, value in answer.getheaders():
                    if key.lower() not in (
                        "transfer-encoding",
                        "connection",
                        "content-length",
                        "date",
                        "server",
                    ):
                        self.send_header(key, value)
                length = answer.getheader("Content-Length") if self.command == "HEAD" else None
                self.send_header("Content-Length", length or str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def setup(self) -> None:
                super().setup()
                proxy.connections.append(self.connection)

            do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = handle_any

            def log_message(self, *args: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self) -> None:
        if self.server:
            self.server.shutdown()
            self.server.server_close()
            self.server = None
        while self.connections:  # those kept alive would go on being served
            with contextlib.suppress(OSError):
                self.connections.pop().shutdown(socket.SHUT_RDWR)


@pytest.fixture
def proxy(s3_server: str) -> Iterator[Proxy]:
    proxy = Proxy(s3_server)
    yield proxy
    proxy.stop()


# ---- the same on disk and on S3 ----


def test_files_of_a_run(place: str) -> None:
    run = open_run(place, "first")
    assert not run.exists()
    assert run.list() == []
    run.write_bytes("best/model.safetensors", b"one")
    run.write_bytes("best/model.safetensors", b"three")
    run.write_bytes("finetune/stage-1/curve one.parquet", b"")
    run.write_json("run.json", {"z": 1, "a": "größer"})
    assert run.exists()
    assert run.exists("best")
    assert run.exists("run.json")
    assert not run.exists("run.jso")
    assert run.read_bytes("best/model.safetensors") == b"three"
    assert run.read_bytes("finetune/stage-1/curve one.parquet") == b""
    assert list(run.read_json("run.json")) == ["z", "a"]
    assert run.read_bytes("run.json") == '{\n "z": 1,\n "a": "größer"\n}\n'.encode()
    everything = ["best/model.safetensors", "finetune/stage-1/curve one.parquet", "run.json"]
    assert run.list() == everything
    assert run.list("best") == everything[:1]
    run.delete("best")
    run.delete("run.json")
    run.delete("run.json")
    run.delete("never/was")
    assert run.list() == everything[1:2]
    run.delete("")
    assert run.list() == []


def test_missing_and_damaged_files_have_their_own_errors(place: str) -> None:
    run = open_run(place, "first")
    with pytest.raises(FileNotFoundError, match=r"run\.json"):
        run.read_json("run.json")
    run.write_bytes("run.json", b'{"half": ')
    with pytest.raises(CorruptFileError, match=r"run\.json.* is not JSON"):
        run.read_json("run.json")
    with pytest.raises(ValueError, match="not JSON compliant"):
        run.write_json("run.json", {"loss": float("nan")})


def test_a_uri_of_a_file_opens_that_file(place: str) -> None:
    run = open_run(place, "first")
    run.write_bytes("best/a b", b"x")
    assert RunStorage(run.join("best")).read_bytes("a b") == b"x"
    assert run.join("") == run.uri


def test_only_the_first_takes_a_name(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "_SETTLE_SECONDS", 0.0)
    run = open_run(place, "first")
    assert run.create_exclusive("lock", b"mine")
    assert not run.create_exclusive("lock", b"yours")
    assert run.read_bytes("lock") == b"mine"


def test_of_writers_at_the_same_moment_one_wins(place: str) -> None:
    run = open_run(place, "first")
    won: list[int] = []

    def take(number: int) -> None:
        if run.create_exclusive("lock", str(number).encode()):
            won.append(number)

    threads = [threading.Thread(target=take, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [str(number).encode() for number in won] == [run.read_bytes("lock")]


def test_pickled_it_is_its_uri(place: str) -> None:
    run = open_run(place, "first")
    run.write_bytes("a", b"x")
    data = pickle.dumps(run)
    assert b"test-secret-of-s3-server" not in data
    assert pickle.loads(data).read_bytes("a") == b"x"


def test_a_writable_place_is_left_as_it_was(place: str, tmp_path: Path) -> None:
    check_writable(place)
    assert RunStorage(place).list() == []
    assert not RunStorage(place).exists()
    assert list(tmp_path.iterdir()) == []
    RunStorage(place).write_bytes("a", b"x")
    check_writable(place)
    assert RunStorage(place).list() == ["a"]


# ---- names and URIs ----


@pytest.mark.parametrize(
    "name", ["", ".", "..", ".hidden", "a..b", "a/b", "a b", "ä", "a\n", "a\\b", "x" * 201]
)
def test_run_names_that_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="--name"):
        open_run(str(tmp_path), name)


@given(st.text(max_size=30))
@settings(max_examples=100, deadline=None)
def test_no_run_name_leads_out_of_the_storage(name: str) -> None:
    try:
        run = open_run("/storage/runs", name)
    except SettingsError:
        return
    assert run.uri == f"/storage/runs/{name}"
    assert os.path.normpath(run.uri) == run.uri


@given(
    st.one_of(
        st.text(max_size=20),
        st.lists(st.sampled_from(["a", "..", ".", "", "b c", "\\", "x" * 9])).map("/".join),
    )
)
@settings(max_examples=150, deadline=None)
def test_no_file_name_leads_out_of_the_run(name: str) -> None:
    for run in (RunStorage("/storage/runs/first"), RunStorage("s3://bucket/runs/first")):
        try:
            path = run._key(name)
        except ValueError:
            continue
        assert os.path.normpath(path) == path
        assert path == run._root or path.startswith(f"{run._root}/")


@pytest.mark.parametrize("name", ["../x", "/x", "a/../b", "a//b", "a/", ".", "a\\b", "a\0b"])
def test_names_that_lead_out_of_a_run_are_refused(name: str, tmp_path: Path) -> None:
    run = RunStorage(str(tmp_path))
    operations: list[Callable[[], object]] = [
        lambda: run.read_bytes(name),
        lambda: run.write_bytes(name, b""),
        lambda: run.delete(name),
        lambda: run.exists(name),
        lambda: run.list(name),
        lambda: run.join(name),
        lambda: run.create_exclusive(name, b""),
    ]
    for operation in operations:
        with pytest.raises(ValueError, match="not a name inside"):
            operation()


def test_the_query_stays_at_the_end() -> None:
    query = "?endpoint_override=127.0.0.1:9000&scheme=http"
    run = open_run(f"s3://bucket/runs/{query}", "first")
    assert run.uri == f"s3://bucket/runs/first{query}"
    assert run.join("best/a b") == f"s3://bucket/runs/first/best/a%20b{query}"
    assert (run.is_local, run.local_path) == (False, None)
    assert open_run("s3://bucket", "first").uri == "s3://bucket/first"


def test_local_paths_are_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert open_run("runs", "first").uri == str(tmp_path / "runs" / "first")
    assert open_run("~/runs/", "first").local_path == tmp_path / "home" / "runs" / "first"
    assert open_run(f"file://{tmp_path}/a%20b", "first").local_path == tmp_path / "a b" / "first"
    assert (
        open_run(str(tmp_path / "50%20?x=#1"), "first").local_path
        == tmp_path / "50%20?x=#1" / "first"
    )


@pytest.mark.parametrize(
    "uri",
    ["", "a\nb", "a\0b", "s3:/bucket/runs", "file:runs", "http://host/runs", "S3://bucket", "file://otherhost/runs", "file:///a?b=c",
     "s3://", "s3:///runs", "s3://bucket/a/../b", "s3://bucket//a", "s3://bucket/a b", "s3://bucket/a#b", "s3://bucket?endpoint=x",
     "s3://bucket?scheme=ftp", "s3://bucket?allow_bucket_creation=true", "s3://[bucket/a"],
)  # fmt: skip
def test_uris_that_are_refused(uri: str) -> None:
    with pytest.raises(SettingsError, match="--storage"):
        RunStorage(uri)


@pytest.mark.parametrize(
    "uri",
    ["s3://AKIA7:hunter2@bucket/runs", "s3://hunter2@bucket/runs", "s3://bucket/runs?access_key=AKIA7&secret_key=hunter2",
     "s3://bucket/runs?Secret%5FKey=hunter2", "s3://bucket/runs?session_token=hunter2", "gs://user:hunter2@bucket/runs",
     "s3://bucket/runs?endpoint_override=AKIA7:hunter2@host:9000", "s3://bucket?X-Amz-Signature=hunter2"],
)  # fmt: skip
def test_credentials_in_a_uri_are_refused_and_not_repeated(uri: str) -> None:
    for refuse in (
        refuse_credentials,
        RunStorage,
        check_writable,
        lambda uri: open_run(uri, "first"),
    ):
        with pytest.raises(
            SettingsError, match=r"--storage .*environment, IAM or files only"
        ) as caught:
            refuse(uri)
        assert "hunter2" not in str(caught.value)
        assert "AKIA7" not in str(caught.value)


def test_all_of_a_bucket_or_disk_is_never_deleted() -> None:
    for uri in ("/", "s3://bucket"):
        with pytest.raises(ValueError, match="will not delete all"):
            RunStorage(uri).delete("")


# ---- places that cannot be written ----


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("x")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    for uri in (
        f"{file}",
        f"{file}/runs",
        "/proc/runs",
        "/proc/1/runs/a",
        f"{tmp_path}/dangling",
        f"{tmp_path}/{'x' * 300}",
    ):
        with pytest.raises(SettingsError, match="--storage: cannot write to"):
            check_writable(uri)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dangling", "file"]


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
    assert [line for line in proxy.seen if line.startswith(f"DELETE /bucket/{prefix}/.mnist_ray-")]
    proxy.rule = lambda method, path: 403 if method == "PUT" else None
    with pytest.raises(SettingsError, match=r"--storage: cannot write to .*ACCESS_DENIED"):
        check_writable(proxy.uri)


def test_the_endpoint_may_come_from_the_environment(
    s3_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint = parse_qs(urlsplit(s3_server).query)["endpoint_override"][0]
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{endpoint}")
    check_writable(f"s3://bucket/{uuid.uuid4().hex}")


# ---- whole files or none ----


def run_python(code: str, *args: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", code, *args], capture_output=True, text=True, timeout=60
    )


def test_a_writer_killed_half_way_leaves_the_old_file(tmp_path: Path) -> None:
    run = RunStorage(str(tmp_path))
    run.write_bytes("model.onnx", b"old")
    # fsync comes when the data are in the temporary file and the final name is still the old one's.
    code = (
        "import os, sys; from mnist_ray.storage import RunStorage; os.fsync = lambda fd: os.kill(os.getpid(), 9)\n"
        "RunStorage(sys.argv[1]).write_bytes('model.onnx', b'new' * 1000000)"
    )
    assert run_python(code, str(tmp_path)).returncode == -signal.SIGKILL
    assert run.read_bytes("model.onnx") == b"old"
    assert run.list() == ["model.onnx"]
    run.write_bytes("model.onnx", b"new")
    assert run.read_bytes("model.onnx") == b"new"


def test_a_full_disk_leaves_the_old_file_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunStorage(str(tmp_path))
    run.write_bytes("model.onnx", b"old")
    calls = []

    def full(descriptor: int) -> None:
        calls.append(descriptor)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(
        WorkError, match=f"cannot write {tmp_path}/model.onnx: No space left on device"
    ):
        run.write_bytes("model.onnx", b"new")
    assert len(calls) == 1  # not tried again
    with pytest.raises(WorkError, match="No space left"):
        run.create_exclusive("lock", b"x")
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    assert run.read_bytes("model.onnx") == b"old"


def test_a_disk_that_stumbles_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace, failures = os.replace, [errno.ESTALE, errno.EIO]

    def stumble(source: Path, target: Path) -> None:
        if failures:
            code = failures.pop()
            raise OSError(code, os.strerror(code))
        replace(source, target)

    monkeypatch.setattr(os, "replace", stumble)
    monkeypatch.setenv("MNIST_RAY_STORAGE_RETRY_SECONDS", "5")
    run = RunStorage(str(tmp_path))
    run.write_bytes("a", b"x")
    assert failures == []
    assert run.read_bytes("a") == b"x"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


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
    assert [line for line in proxy.seen if "partNumber=3" in line]
    assert run.read_bytes("model.onnx") == b"old"
    proxy.rule = lambda method, path: None
    run.write_bytes("model.onnx", b"new" * 7_100_000)
    assert run.read_bytes("model.onnx") == b"new" * 7_100_000


@pytest.mark.parametrize("size", [1000, 21_000_000])
def test_a_writer_killed_while_it_uploads_leaves_the_old_object(proxy: Proxy, size: int) -> None:
    run = RunStorage(proxy.uri)
    run.write_bytes("model.onnx", b"old")
    code = "import sys; from mnist_ray.storage import RunStorage\nRunStorage(sys.argv[1]).write_bytes('model.onnx', b'n' * int(sys.argv[2]))"
    writer = subprocess.Popen([sys.executable, "-c", code, proxy.uri, str(size)])

    def kill(method: str, path: str) -> int | None:
        if method == "PUT" and ("partNumber=2" in path or size == 1000):
            writer.kill()
            return 500  # a server that has not got the whole object drops it
        return None

    proxy.rule = kill
    assert writer.wait(30) == -signal.SIGKILL
    proxy.rule = lambda method, path: None
    assert run.read_bytes("model.onnx") == b"old"


def test_a_ctrl_c_within_an_upload_leaves_no_half_object(
    s3_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = open_run(s3_server, uuid.uuid4().hex)
    real = run._fs

    class Interrupted:
        def open_output_stream(self, *args: object, **named: object) -> object:
            stream = real.open_output_stream(*args, **named)
            signal.raise_signal(
                signal.SIGINT
            )  # in this thread, so that it is raised here and not within some destructor
            return stream

    run.__dict__["_fs"] = Interrupted()
    with pytest.raises(KeyboardInterrupt):
        run.write_bytes("model.onnx", b"whole")
    run.__dict__["_fs"] = real
    time.sleep(0.5)
    assert not run.exists("model.onnx") or run.read_bytes("model.onnx") == b"whole"


def test_an_object_replaced_by_a_longer_one_is_not_read_in_part(
    proxy: Proxy, s3_server: str
) -> None:
    run = RunStorage(proxy.uri)
    run.write_bytes("run.json", b"short")
    direct = RunStorage(s3_server.replace("s3://bucket", proxy.uri.split("?")[0]))
    assert not direct.exists(
        "other"
    )  # connects: Arrow cannot open a connection while another one is in use
    pending = [b"much longer"]

    def replace(method: str, path: str) -> int | None:
        if method == "GET" and pending:  # after the length was asked for, before the content is
            direct.write_bytes("run.json", pending.pop())
        return None

    proxy.rule = replace
    assert run.read_bytes("run.json") == b"much longer"


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
            WorkError, match=r"^cannot .* s3://bucket/.*NETWORK_CONNECTION"
        ) as caught:
            operation()
        assert "\n" not in str(caught.value)
    with pytest.raises(SettingsError, match="--storage: cannot write to"):
        check_writable(proxy.uri)
    assert time.monotonic() - began < 20


def test_a_refusal_is_not_repeated(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MNIST_RAY_STORAGE_RETRY_SECONDS", "20")
    proxy.rule = lambda method, path: 403
    with pytest.raises(WorkError, match="ACCESS_DENIED"):
        RunStorage(proxy.uri).write_bytes("a", b"x")
    assert len(proxy.seen) == 1


def test_patience_must_be_a_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MNIST_RAY_STORAGE_RETRY_SECONDS", "soon")
    with pytest.raises(SettingsError, match="MNIST_RAY_STORAGE_RETRY_SECONDS=soon"):
        RunStorage(str(tmp_path)).exists()


def test_a_process_that_used_s3_ends_quietly(s3_server: str) -> None:
    code = (
        "import sys; from mnist_ray.storage import RunStorage; run = RunStorage(sys.argv[1])\n"
        "run.write_bytes('quiet/a', b'x'); run.read_bytes('quiet/a'); run.delete('quiet'); print('done')"
    )
    began = time.monotonic()
    done = run_python(code, s3_server)
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")
    assert time.monotonic() - began < 15
