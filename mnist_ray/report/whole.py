"""The whole page: one run's parts, or the comparison of several runs and then each."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from mnist_ray.data import Images
from mnist_ray.report.chain_part import chain_part
from mnist_ray.report.compare_part import compare_part
from mnist_ray.report.cost_part import cost_part
from mnist_ray.report.header_part import details_part, header_part
from mnist_ray.report.page import page, render
from mnist_ray.report.read import RunData, quiet_optuna, read_run
from mnist_ray.report.search_part import search_part
from mnist_ray.storage import RunStorage

if TYPE_CHECKING:
    from mnist_ray.report.model_part import Tested


def build(
    storages: Sequence[RunStorage], data_dir: str | None, images: Images | None, out: str | None
) -> str:
    """See mnist_ray.report.build."""
    with quiet_optuna():
        found = [read_run(storage) for storage in storages]
        runs = dict(zip(_names(found), found, strict=True))
        # The only way to the test images: it ends if model.json is missing.
        tests = {
            n: _of_models().load_tested(r, data_dir, images) for n, r in runs.items() if r.manifest
        }
        if len(found) == 1:
            parts = [_run(found[0], found[0].name, tests.get(found[0].name), "", 1, out)]
        else:
            answers = {name: test.answers for name, test in tests.items() if test.answers}
            parts = [compare_part(runs, answers)]
            for i, (name, run) in enumerate(runs.items(), start=1):
                parts.append(_run(run, name, tests.get(name), f"r{i}-", 2, out or "."))
        return page(f"{', '.join(runs)} – mnist_ray", Markup("\n").join(parts))


def _of_models() -> Any:
    """The part that needs torch, which the report of a mere search does without."""
    from mnist_ray.report import model_part  # noqa: PLC0415 (seconds at start)

    return model_part


def _names(runs: Sequence[RunData]) -> list[str]:
    """The runs' names; if two are the same, each with its place among them."""
    names = [run.name for run in runs]
    return [
        name if names.count(name) == 1 else f"{name} ({names[: i + 1].count(name)})"
        for i, name in enumerate(names)
    ]


def _run(
    run: RunData, name: str, test: "Tested | None", prefix: str, level: int, out: str | None
) -> Markup:
    parts = [
        ("search", "Search", search_part(run, prefix)),
        ("cost", "Cost", cost_part(run)),
        ("run", "Run", details_part(run)),
    ]
    if test is not None:
        parts.insert(0, ("model", "Model", _of_models().model_part(run, test, prefix)))
    if not run.own:
        parts.insert(0, ("chain", "Training", chain_part(run, prefix)))
    return render(
        "run.html",
        name=name,
        prefix=prefix,
        level=level,
        header=header_part(run, out, prefix),
        parts=parts,
    )
