"""A run as one page: `report.html`. It stands alone (no network, figures and pictures inside) and is readable without JavaScript.

The search writes it, the fine-tuning completes it, `jobs/report.py` makes it again. Nothing here trains; the test images are looked at
only where `model.json` exists, that is, after the chain has ended and its figure on them is public.
"""

import importlib
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mnist_ray.errors import MnistRayError, SettingsError
from mnist_ray.storage import RunStorage

if TYPE_CHECKING:
    from mnist_ray.data import Images
    from mnist_ray.report.page import Markup
    from mnist_ray.report.read import Run

FILE = "report.html"
# What a report can fail with without being wrong itself: the extra is not installed, the storage or a file of the run fails, or Optuna,
# plotly or torch refuse what the trials are made of.
FAILURES = (MnistRayError, ImportError, OSError, ArithmeticError, LookupError, RuntimeError, TypeError, ValueError)


def build(runs: Sequence[RunStorage], data_dir: str | None = None, test: "Images | None" = None, out: str | None = None) -> str:
    """The page of one run, or of several with a comparison first, as HTML.

    data_dir: where the test images lie (None: where the run had them). test: the test images, where the caller has them already.
    out: the local folder that the page will lie in, for links to the models; None: the run's own directory.
    Raises SettingsError where there is no run or the extra `report` is not installed, CorruptFileError where a file of the run is damaged.
    """
    _check_installed("plotly")
    from mnist_ray.report.compare_part import compare_part
    from mnist_ray.report.page import esc, page
    from mnist_ray.report.read import read_run

    found = [read_run(storage) for storage in runs]
    if len(found) == 1:
        return page(f"{found[0].name} – mnist_ray", _run(found[0], data_dir, test, "", 1, out))
    names = _names(found)
    links = "".join(f'<a href="#r{i}-top">{esc(name)}</a>' for i, name in enumerate(names, start=1))
    parts = [f"<header><h1>{len(found)} runs compared</h1><nav>{links}</nav></header>", compare_part(found, names)]
    parts += [_run(run, data_dir, test, f"r{i}-", 2, out or ".", name) for i, (run, name) in enumerate(zip(found, names, strict=True), start=1)]
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
        raise SettingsError(f"the report needs {module}: pip install 'mnist_ray[report]'") from error


def _names(runs: Sequence["Run"]) -> list[str]:
    """The runs' names; where two are the same, each with its place among them."""
    names = [run.name for run in runs]
    return [name if names.count(name) == 1 else f"{name} ({names[: i + 1].count(name)})" for i, name in enumerate(names)]


# ---- one run


def _run(run: "Run", data_dir: str | None, test: "Images | None", prefix: str, level: int, out: str | None, name: str = "") -> str:
    from mnist_ray.report.chain_part import chain_part
    from mnist_ray.report.cost_part import cost_part
    from mnist_ray.report.page import esc
    from mnist_ray.report.search_part import search_part

    parts = [("search", "The search", search_part(run, prefix)), ("chain", "The chain", chain_part(run, prefix))]
    if run.manifest is not None:
        from mnist_ray.report.model_part import model_part

        why_not = ""
        if test is None:
            test, why_not = _test_images(run, data_dir)
        parts.append(("model", "The model", model_part(run, test, why_not, prefix)))
    parts.append(("cost", "The cost", cost_part(run)))
    links = "".join(f'<a href="#{prefix}{key}">{title}</a>' for key, title, _ in parts)
    h, sub = f"h{level}", f"h{level + 1 if level > 1 else 2}"
    head = f'<header id="{prefix}top"><{h}>{esc(name or run.name)}</{h}>{_header(run, out)}<nav>{links}</nav></header>'
    return "\n".join([head, *(f'<section id="{prefix}{key}"><{sub}>{title}</{sub}>\n{text}</section>' for key, title, text in parts)])


def _test_images(run: "Run", data_dir: str | None) -> "tuple[Images | None, str]":
    """The run's test images, or why there are none. Called for runs with model.json only."""
    from mnist_ray import data

    name = run.about["data"]["name"]
    if name not in data.DATASETS:
        # run.json may come from elsewhere: it must not choose what code runs here.
        return None, f"the data set {name} is not one of this package’s"
    try:
        return data.load(name, "test", data_dir or run.settings["data_dir"], download=False), ""
    except SettingsError as error:
        return None, f"the test images are not here ({error})"


def _header(run: "Run", out: str | None) -> "Markup":
    from mnist_ray.report.page import Markup, esc, facts

    command = run.about.get("command", "")
    again = f"<p>The command that gives it again:</p><pre>{esc(command if command.startswith('python') else f'python {command}')}</pre>"
    pairs = [(key, value) for key, value in _facts(run) if value]
    return Markup(f"{_result(run)}{_model(run, out)}{facts(pairs)}{again if command else ''}")


def _result(run: "Run") -> str:
    from mnist_ray.onnx_model import confidence_interval
    from mnist_ray.report.page import percent

    if run.manifest is not None:
        n, errors = run.manifest["test_images"], run.manifest["test_errors"]
        low, high = run.manifest["test_accuracy_interval"]
        return (
            f"<p class=result><strong>{percent((n - errors) / n)}</strong> of {n:,} test images right: {errors:,} "
            f"error{'' if errors == 1 else 's'}, 95 % interval {percent(low)} to {percent(high)}</p>"
        )
    if run.best is None:
        return "<p class=result>No trial has ended yet.</p>"
    n = run.about["data"]["val"]
    accuracy = run.best["val_accuracy"]
    low, high = confidence_interval(round(accuracy * n), n)
    return (
        f"<p class=result><strong>{percent(accuracy)}</strong> of {n:,} validation images right, 95 % interval {percent(low)} to "
        f"{percent(high)}</p><p class=note>Of trial {run.best['number']} after epoch {run.best['epoch']}, the best of {len(run.trials)} "
        "trials on these very images, so rather too high. The test images are looked at when the fine-tuning has ended.</p>"
    )


def _model(run: "Run", out: str | None) -> str:
    from mnist_ray.report.page import esc

    if run.manifest is None:
        return ""
    uri, local = run.storage.join("model.onnx"), run.storage.local_path
    if out is None:
        link = f'<a href="model.onnx">{esc(uri)}</a> (<a href="README.md">its card</a>)'
    elif local is not None:
        link = f'<a href="{esc((local / "model.onnx").as_uri())}">{esc(uri)}</a>'
    else:
        link = esc(uri)
    return f"<p>Model: {link}, {run.manifest['n_parameters']:,} parameters<br><code>SHA-256 {esc(run.manifest['sha256'])}</code></p>"


def _facts(run: "Run") -> list[tuple[str, Any]]:
    from datetime import datetime

    from mnist_ray.report.page import count, span

    about, s, m = run.about, run.settings, run.manifest
    images = about["data"]
    arguments = [*s.get("space_args", []), *s.get("sampler_args", [])]
    test = f", {m['test_images']:,} test" if m else ""
    scheduler = f"asha (grace period {s['grace_period']}, reduction factor {s['reduction_factor']:g})" if s["scheduler"] == "asha" else s["scheduler"]
    start, end = (datetime.fromisoformat(about[key]) if about.get(key) else None for key in ("start", "end"))
    when = f"{start:%Y-%m-%d %H:%M} UTC" if start else ""
    if start and end:
        when += f" to {end:%H:%M} UTC, {span((end - start).total_seconds())}" if end.date() == start.date() else f" to {end:%Y-%m-%d %H:%M} UTC"
    machine = about.get("machine", {})
    nodes = sorted({row["node"] for row in run.trials if row["node"]})
    where = ", ".join(str(v) for v in (machine.get("node"), f"{machine.get('cpus')} CPUs", machine.get("system")) if v)
    versions = ", ".join(f"{k} {v}" for k, v in about.get("versions", {}).items())
    return [
        ("Data", f"{images['name']}: {images['train']:,} training and {images['val']:,} validation images{test}; SHA-256 {images['sha256'][:16]}…"),
        ("Search", f"space {s['space']}{' (' + ', '.join(arguments) + ')' if arguments else ''}, sampler {s['sampler']}, scheduler {scheduler}, "
                   f"{count(s['trials'])} trials of at most {s['max_epochs']} epochs, metric {run.metric}, seed {s['seed']}"),
        ("Fine-tuning", f"recipe {m['recipe']}, on {'all training images' if m['train_on'] == 'all' else 'the training part'}" if m else ""),
        ("When", f"{when} ({about.get('state', '')})"),
        ("Where", where + (f"; trials on {len(nodes)} nodes" if len(nodes) > 1 else "")),
        ("Versions", f"Python {about.get('python')}, {versions}"),
        ("Commit", about.get("git_commit") or ""),
    ]  # fmt: skip


# ---- pictures for papers


def write_png(storage: RunStorage, folder: str, data_dir: str | None = None) -> list[Path]:
    """The main figures as PNG files in a local folder, drawn by matplotlib (no browser); returns them. Raises as build does."""
    _check_installed("matplotlib")
    from mnist_ray.report.png import draw
    from mnist_ray.report.read import read_run

    run = read_run(storage)
    test = _test_images(run, data_dir)[0] if run.manifest is not None else None
    try:
        return draw(run, Path(folder), test)
    except OSError as error:
        raise SettingsError(f"--png: {folder} cannot be written: {error.strerror}") from error


# ---- the job


def make(runs: Sequence[str], out: str | None, png: str | None, data_dir: str | None) -> int:
    """What jobs/report.py does; returns the exit code. Raises SettingsError naming the argument that is wrong."""
    if not runs:
        raise SettingsError("RUN: no run is given; expected one or more run directories")
    storages = [RunStorage(run) for run in runs]
    if out is None and len(runs) == 1:
        print(f"report: {write(storages[0], data_dir)}", flush=True)
    else:
        path = Path(out or FILE)
        folder = RunStorage(str(path.parent))
        folder.write_bytes(path.name, build(storages, data_dir, out=str(path.parent)).encode())
        print(f"report: {path}", flush=True)
    if png is not None:
        for i, storage in enumerate(storages, start=1):
            for file in write_png(storage, png if len(storages) == 1 else str(Path(png, f"{i}-{Path(storage.uri).name}")), data_dir):
                print(f"figure: {file}", flush=True)
    return 0
