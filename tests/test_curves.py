"""The published learning curves: what their card says, and the loader that it shows."""

import math
import re
import runpy
import statistics

import pytest

from tests.support import ROOT

FOLDER = ROOT / "benchmarks" / "curves"


def test_the_curves_are_as_their_card_says() -> None:
    program = FOLDER / "load.py"
    module = runpy.run_path(str(program))
    curves = module["load"]()
    card = (FOLDER / "README.md").read_text()
    assert len(program.read_text().splitlines()) <= 40
    assert [curve.number for curve in curves] == list(range(200))
    assert {len(curve.val_accuracy) for curve in curves} <= set(range(9))
    last = sorted((curve.val_accuracy or [0.1])[-1] for curve in curves)
    assert f"median of {(last[99] + last[100]) / 2:.4f}" in card
    assert f"largest value of {last[-1]:.4f}" in re.sub(r"\s+", " ", card)
    assert all(math.isfinite(s) for curve in curves for s in curve.seconds)
    assert "lr" in " ".join(curves[0].params)


def test_the_settings_of_the_recording_are_in_the_file() -> None:
    made = runpy.run_path(str(FOLDER / "load.py"))["made_with"]()
    assert (made["dataset"], made["epochs"], made["train_images"], made["val_images"]) == (
        "mnist",
        "8",
        "1000",
        "5000",
    )


@pytest.mark.parametrize("space", ["", "mlp-", "cnn-"])
def test_the_other_files_hold_the_same_draws_and_what_the_card_says(space: str) -> None:
    module = runpy.run_path(str(FOLDER / "load.py"))
    card = (FOLDER / "README.md").read_text()
    first = module["load"](FOLDER / f"{space}digits.parquet")
    for name in (f"{space}digits", f"{space}clothes", f"{space}letters"):
        curves = module["load"](FOLDER / f"{name}.parquet")
        assert all(a.params == b.params for a, b in zip(curves, first, strict=False))
        last = [(curve.val_accuracy or [0.1])[-1] for curve in curves]
        row = next(line for line in card.splitlines() if line.startswith(f"| `{name}.parquet`"))
        said = f"| {len(curves)} | {statistics.median(last):.4f}, {max(last):.4f} |"
        assert row.endswith(said), said
