"""onnxruntime-web, which runs the model in the browser: fetched by npm once, then kept."""

import hashlib
import os
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

from mnist_ray.errors import CorruptFileError, SettingsError
from mnist_ray.settings.text import CACHE
from mnist_ray.storage import RunStorage

PACKAGE = "onnxruntime-web@1.30.0"
# The package's smallest build that runs on the CPU, with the SHA-256 of each file.
RUNTIME = {
    "ort.wasm.min.js": "faece07e84faa9001f5104bbe4e5c70861d06cb2376a0dea1fa0ad33a67adc81",
    "ort-wasm-simd-threaded.mjs": (
        "e13f7f94fc51b4ca72b12faeb1ee95f4ace6dfbc8939bc718aabdc0a27c4299b"
    ),
    "ort-wasm-simd-threaded.wasm": (
        "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2"
    ),
}


def runtime() -> dict[str, bytes]:
    """onnxruntime-web's files by name, from ~/.cache/mnist_ray; npm fetches them the first time.

    Raises:
        SettingsError: npm is missing, or fetches nothing.
        CorruptFileError: The files are not those of PACKAGE.
    """
    home = os.path.expanduser(CACHE)
    if home.startswith("~"):
        raise SettingsError(f"{home}: this user has no home folder for {PACKAGE}; set HOME")
    cache = RunStorage(os.path.join(home, PACKAGE.replace("@", "-")))
    files = {name: cache.read_bytes(name) for name in RUNTIME if cache.exists(name)}
    if not _is_runtime(files):
        files = _fetched()
        if not _is_runtime(files):
            raise CorruptFileError(
                f"npm fetched a package {PACKAGE} of other content than it is known to have"
            )
        for name, content in files.items():
            cache.write_bytes(name, content)
    return files


def _is_runtime(files: dict[str, bytes]) -> bool:
    return {name: hashlib.sha256(content).hexdigest() for name, content in files.items()} == RUNTIME


def _fetched() -> dict[str, bytes]:
    npm = shutil.which("npm")
    if npm is None:
        raise SettingsError(
            f"npm was not found: it is needed once, to fetch {PACKAGE}, "
            "which runs the model in the browser"
        )
    print(f"fetching {PACKAGE} with npm (33 MB, once)", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        command = [npm, "pack", PACKAGE, "--pack-destination", folder]
        command += ["--ignore-scripts", "--loglevel=error", "--fetch-retries=1"]
        result = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        if result.returncode:
            raise SettingsError(f"npm could not fetch {PACKAGE}: {_reason(result.stderr)}")
        with tarfile.open(next(Path(folder).glob("*.tgz"))) as archive:
            members = {name: archive.extractfile(f"package/dist/{name}") for name in RUNTIME}
            return {name: member.read() for name, member in members.items() if member}


def _reason(stderr: str) -> str:
    """The line of npm's output that says most: a sentence rather than a code."""
    lines = [
        line.removeprefix("npm error").removeprefix("npm ERR!").strip()
        for line in stderr.splitlines()
    ]
    sentences = [
        line for line in lines if line and line.split()[0] not in ("code", "errno", "syscall")
    ]
    return (sentences or ["it gave no reason"])[0]
