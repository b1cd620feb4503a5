"""The head of a run's page: its result, its model, what was run when, where and on what, and the command that gives it again."""

from datetime import datetime
from typing import Any

from mnist_ray.export.onnx_model import confidence_interval
from mnist_ray.report.page import Markup, esc, facts, percent, span
from mnist_ray.report.read import Run


def header_part(run: Run, out: str | None) -> Markup:
    """out: the local folder that the page will lie in; None: the run's own directory, beside the model."""
    command = run.about.get("command", "")
    again = f"<p>The command that gives it again:</p><pre>{esc(command if command.startswith('python') else f'python {command}')}</pre>"
    pairs = [(key, value) for key, value in _facts(run) if value]
    return Markup(f"{_result(run)}{_model(run, out)}{facts(pairs)}{again if command else ''}")


def _result(run: Run) -> str:
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


def _model(run: Run, out: str | None) -> str:
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


def _facts(run: Run) -> list[tuple[str, Any]]:
    about, s, m, images = run.about, run.settings, run.manifest, run.about["data"]
    test = f", {m['test_images']:,} test" if m else ""
    space = " ".join([s["space"], *s.get("space_args", [])])
    sampler = " ".join([s["sampler"], *s.get("sampler_args", [])])
    scheduler = " ".join([s["scheduler"], *s.get("scheduler_args", [])])
    if s["scheduler"] == "asha":
        scheduler += (
            f" (grace period {s['grace_period']}, reduction factor {s['reduction_factor']:g})"
        )
    searched = (
        f"space {space}, sampler {sampler}, scheduler {scheduler}, {s['trials']:,} trials of at most {s['max_epochs']} epochs, "
        f"metric {run.metric}, seed {s['seed']}"
    )
    tuned = (
        f"recipe {m['recipe']}, on {'all training images' if m['train_on'] == 'all' else 'the training part'}"
        if m
        else ""
    )
    nodes = {row["node"] for row in run.trials if row["node"]}
    machine = about.get("machine") or {}
    cpus = f"{machine['cpus']} CPUs" if machine.get("cpus") else None
    where = ", ".join(str(v) for v in (machine.get("node"), cpus, machine.get("system")) if v)
    versions = {"Python": about.get("python"), **(about.get("versions") or {})}
    sizes = f"{images['name']}: {images['train']:,} training and {images['val']:,} validation images{test}"
    return [
        ("Data", f"{sizes}; SHA-256 {images['sha256'][:16]}…"),
        ("Search", searched if run.trials else ""),
        ("Fine-tuning", tuned),
        ("When", f"{_when(about)} ({about.get('state', 'state unknown')})"),
        ("Where", where + (f"; trials on {len(nodes)} nodes" if len(nodes) > 1 else "")),
        ("Versions", ", ".join(f"{k} {v}" for k, v in versions.items() if v)),
        ("Commit", about.get("git_commit") or ""),
    ]


def _when(about: dict[str, Any]) -> str:
    start, end = (
        datetime.fromisoformat(about[key]) if about.get(key) else None for key in ("start", "end")
    )
    if start is None or end is None:
        return f"from {start:%Y-%m-%d %H:%M} UTC" if start else ""
    same_day = end.date() == start.date()
    return f"{start:%Y-%m-%d %H:%M} to {end:{'%H:%M' if same_day else '%Y-%m-%d %H:%M'}} UTC, {span((end - start).total_seconds())}"
