"""A run as one page, `report.html`: it stands alone and is readable without JavaScript.

The search writes it, the fine-tuning completes it, `mnist-ray report` makes it again. Nothing here
trains. The test images are read only if `model.json` exists: the chain has then ended, and its
accuracy on them is public.
"""

import importlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mnist_ray.errors import SettingsError, shortened
from mnist_ray.run import layout
from mnist_ray.settings import command
from mnist_ray.settings.text import local
from mnist_ray.storage import RunStorage
from mnist_ray.storage.folder import Folder

if TYPE_CHECKING:
    from mnist_ray.data import Images

__all__ = ["build", "make", "write", "write_or_warn", "write_png"]


def _heavy(module: str, package: str) -> Any:
    """A module of this room that draws, imported when it is used: it takes seconds.

    Raises:
        SettingsError: The extra `report` is not installed.
    """
    try:
        importlib.import_module(package)
    except ImportError as error:
        raise SettingsError(
            f"the report needs {package}: pip install 'mnist_ray[report]'"
        ) from error
    return importlib.import_module(f"mnist_ray.report.{module}")


def build(
    runs: Sequence[RunStorage],
    data_dir: str | None = None,
    test: "Images | None" = None,
    out: str | None = None,
) -> str:
    """The page of one run, or of several with a comparison first, as HTML.

    Args:
        runs: The runs' directories.
        data_dir: The folder of the test images; None: the runs' own.
        test: The test images, if the caller has them already.
        out: The local folder of the page, for links to the models; None: the run's own directory.

    Raises:
        SettingsError: There is no run, or the extra `report` is not installed.
        CorruptFileError: A file of a run is damaged.
    """
    return str(_heavy("whole", "plotly").build(runs, data_dir, test, out))


def write(storage: RunStorage, data_dir: str | None = None, test: "Images | None" = None) -> str:
    """Writes `report.html` into the run's directory; returns its URI. Raises as build does."""
    storage.write_bytes(layout.REPORT, build([storage], data_dir, test).encode())
    return storage.join(layout.REPORT)


def write_or_warn(storage: RunStorage, test: "Images | None" = None) -> str:
    """Writes the report at the end of a job, which it cannot make fail.

    Returns:
        A line to print: the report's place, or why there is none.
    """
    try:
        return f"report: {write(storage, test=test)}"
    except Exception as error:
        reason = shortened(" ".join(str(error).split()), 300) or type(error).__name__
        return f"no report: {reason}; again: {command('report', storage.uri)}"


def write_png(storage: RunStorage, folder: str, data_dir: str | None = None) -> list[Path]:
    """The main figures as PNG files for papers, drawn by matplotlib into a local folder.

    Raises:
        SettingsError: The folder cannot be written; and as build does.
    """
    draw = _heavy("png", "matplotlib").draw_run
    try:
        return list(draw(storage, Path(folder), data_dir))
    except OSError as error:
        raise SettingsError(
            f"--png: {folder} cannot be written: {error.strerror or error}"
        ) from error


def make(runs: Sequence[str], out: str | None, png: str | None, data_dir: str | None) -> None:
    """The command `report`.

    Args:
        runs: The runs' directories: folders or s3://bucket/path/name.
        out: The page's file; None: report.html, of one run in its directory.
        png: A folder for the figures as PNG files; None: none are drawn.
        data_dir: The folder of the test images; None: the runs' own.

    Raises:
        SettingsError: An argument is wrong; names it.
    """
    if not runs:
        raise SettingsError("RUN: no run is given; expected one or more run directories")
    storages = [RunStorage(run) for run in runs]
    for storage in storages:  # refused at once, not after seconds of imports
        if not storage.exists(layout.RUN):
            raise SettingsError(f"RUN: there is no run at {storage.uri}")
    if out is None and len(runs) == 1:
        print(f"report: {write(storages[0], data_dir)}", flush=True)
    else:
        path = _page_file(out or layout.REPORT)
        page = build(storages, data_dir, out=str(path.parent))
        try:
            Folder(path.parent.absolute()).write(path.name, page.encode())
        except OSError as error:
            raise SettingsError(f"--out: {path} cannot be written: {error.strerror}") from error
        print(f"report: {path}", flush=True)
    for i, storage in enumerate(storages if png is not None else [], start=1):
        own = Path(png or "", f"{i}-{Path(storage.uri).name}" if len(runs) > 1 else "")
        for file in write_png(storage, str(own), data_dir):
            print(f"figure: {file}", flush=True)


def _page_file(out: str) -> Path:
    """The page's file. A device or a pipe is not replaced by it.

    Raises:
        SettingsError: It can be no file.
    """
    path = Path(local(out, "--out"))
    if not path.name.isprintable() or path.name in ("", "..") or "\\" in path.name:
        raise SettingsError(f"--out: {out!r} is no name of a file on this machine")
    if os.path.exists(path) and not os.path.isfile(path):
        raise SettingsError(f"--out: {out} is there, and is no regular file; give another name")
    return path
