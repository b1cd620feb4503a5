"""A run as one page: `report.html`. It stands alone (no network, figures and pictures inside) and is readable without JavaScript.

The search writes it, the fine-tuning completes it, `jobs/report.py` makes it again. Nothing here trains; the test images are looked at
only where `model.json` exists, that is, after the chain has ended and its figure on them is public.
"""

import importlib
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mnist_ray.errors import MnistRayError, SettingsError
from mnist_ray.storage import RunStorage

if TYPE_CHECKING:
    from mnist_ray.data import Images
    from mnist_ray.report.model_part import Tested
    from mnist_ray.report.read import Run

FILE = "report.html"
# What a report can fail with without being wrong itself: the extra is not installed, the storage or a file of the run fails, or Optuna,
# plotly or torch refuse what the trials are made of.
FAILURES = (
    MnistRayError,
    ImportError,
    OSError,
    ArithmeticError,
    AttributeError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)


def build(
    runs: Sequence[RunStorage],
    data_dir: str | None = None,
    test: "Images | None" = None,
    out: str | None = None,
) -> str:
    """The page of one run, or of several with a comparison first, as HTML.

    data_dir: where the test images lie (None: where the run had them). test: the test images, where the caller has them already.
    out: the local folder that the page will lie in, for links to the models; None: the run's own directory.
    Raises SettingsError where there is no run or the extra `report` is not installed, CorruptFileError where a file of the run is damaged.
    """
    _check_installed("plotly")
    from mnist_ray.report.page import esc, page
    from mnist_ray.report.read import quiet_optuna, read_run

    with quiet_optuna():
        found = [read_run(storage) for storage in runs]
        names, tests = _names(found), [_test(run, data_dir, test) for run in found]
        if len(found) == 1:
            return page(f"{names[0]} – mnist_ray", _run(found[0], names[0], tests[0], "", 1, out))
        from mnist_ray.report.compare_part import compare_part

        links = "".join(
            f'<a href="#r{i}-top">{esc(name)}</a>' for i, name in enumerate(names, start=1)
        )
        parts = [f"<header><h1>{len(found)} runs compared</h1><nav>{links}</nav></header>"]
        parts.append(compare_part(found, names, [part.answers if part else None for part in tests]))
        for i, (run, name, part) in enumerate(zip(found, names, tests, strict=True), start=1):
            parts.append(_run(run, name, part, f"r{i}-", 2, out or "."))
        return page(f"{', '.join(names)} – mnist_ray", "\n".join(parts))


def write(storage: RunStorage, data_dir: str | None = None, test: "Images | None" = None) -> str:
    """Writes `report.html` into the run's directory, in place of an earlier one; returns its URI. Raises as build does."""
    storage.write_bytes(FILE, build([storage], data_dir, test).encode())
    return storage.join(FILE)


def write_or_warn(storage: RunStorage, test: "Images | None" = None) -> str:
    """`write` for the end of a job: one line to print, which says where the report is or why there is none. Raises none of FAILURES."""
    try:
        return f"report: {write(storage, test=test)}"
    except FAILURES as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        return f"no report: {reason}; again: python jobs/report.py {shlex.quote(storage.uri)}"


def _check_installed(module: str) -> None:
    try:
        importlib.import_module(module)
    except ImportError as error:
        raise SettingsError(
            f"the report needs {module}: pip install 'mnist_ray[report]'"
        ) from error


def _names(runs: Sequence["Run"]) -> list[str]:
    """The runs' names; where two are the same, each with its place among them."""
    names = [run.name for run in runs]
    return [
        name if names.count(name) == 1 else f"{name} ({names[: i + 1].count(name)})"
        for i, name in enumerate(names)
    ]


# ---- one run


def _run(
    run: "Run", name: str, test: "Tested | None", prefix: str, level: int, out: str | None
) -> str:
    from mnist_ray.report.chain_part import chain_part
    from mnist_ray.report.cost_part import cost_part
    from mnist_ray.report.header_part import header_part
    from mnist_ray.report.page import esc
    from mnist_ray.report.search_part import search_part

    parts = [
        ("search", "The search", search_part(run, prefix)),
        ("chain", "The chain", chain_part(run, prefix)),
    ]
    if test is not None:
        from mnist_ray.report.model_part import model_part

        parts.append(("model", "The model", model_part(run, test, prefix)))
    parts.append(("cost", "The cost", cost_part(run)))
    links = "".join(f'<a href="#{prefix}{key}">{title}</a>' for key, title, _ in parts)
    h, sub = f"h{level}", f"h{level + 1 if level > 1 else 2}"
    head = f'<header id="{prefix}top"><{h}>{esc(name)}</{h}>{header_part(run, out)}<nav>{links}</nav></header>'
    return "\n".join(
        [
            head,
            *(
                f'<section id="{prefix}{key}"><{sub}>{title}</{sub}>\n{text}</section>'
                for key, title, text in parts
            ),
        ]
    )


def _test(run: "Run", data_dir: str | None, images: "Images | None" = None) -> "Tested | None":
    """The only way to the test images: it ends where model.json is missing."""
    if run.manifest is None:
        return None
    from mnist_ray.report.model_part import load_tested

    return load_tested(run, data_dir, images)


# ---- pictures for papers


def write_png(storage: RunStorage, folder: str, data_dir: str | None = None) -> list[Path]:
    """The main figures as PNG files in a local folder, drawn by matplotlib (no browser); returns them. Raises as build does."""
    _check_installed("matplotlib")
    from mnist_ray.report.png import draw
    from mnist_ray.report.read import read_run

    run = read_run(storage)
    try:
        return draw(run, Path(folder), _test(run, data_dir))
    except OSError as error:
        raise SettingsError(
            f"--png: {folder} cannot be written: {error.strerror or error}"
        ) from error


# ---- the job


def make(runs: Sequence[str], out: str | None, png: str | None, data_dir: str | None) -> int:
    """What jobs/report.py does; returns the exit code. Raises SettingsError naming the argument that is wrong."""
    if not runs:
        raise SettingsError("RUN: no run is given; expected one or more run directories")
    storages = [RunStorage(run) for run in runs]
    for storage in storages:  # said at once, not after seconds of imports
        if not storage.exists("run.json"):
            raise SettingsError(f"RUN: there is no run at {storage.uri}")
    if out is None and len(runs) == 1:
        print(f"report: {write(storages[0], data_dir)}", flush=True)
    else:
        path = Path(out or FILE)
        folder = RunStorage(str(path.parent))
        folder.write_bytes(path.name, build(storages, data_dir, out=str(path.parent)).encode())
        print(f"report: {path}", flush=True)
    if png is not None:
        for i, storage in enumerate(storages, start=1):
            for file in write_png(
                storage,
                png if len(storages) == 1 else str(Path(png, f"{i}-{Path(storage.uri).name}")),
                data_dir,
            ):
                print(f"figure: {file}", flush=True)
    return 0
