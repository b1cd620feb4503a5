"""--portfolio: whose points are tried first, and which are left out."""

import functools
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from mnist_ray.errors import SettingsError
from mnist_ray.settings import SearchSettings, parse
from mnist_ray.settings.text import RECIPES
from mnist_ray.spaces import DataShape, find
from mnist_ray.study.portfolio import FAMILIES, FILE, starting_points
from mnist_ray.study.suggestions import Space
from tests.support import ROOT

SHAPE = DataShape(1, (28, 28), 10, (0.5,), (0.5,))
MADE = yaml.safe_load(Path(FILE).read_text())


def space(name: str = "convnet", **options: Any) -> Space:
    return functools.partial(find(name), data=SHAPE, **options)


def points(**options: Any) -> list[dict[str, Any]]:
    return starting_points(SearchSettings(**options), space(options.get("space", "convnet")))


@pytest.mark.parametrize("name", ["convnet", "mlp", "cnn"])
@pytest.mark.parametrize("dataset", [*FAMILIES, "folder:/photos"])
def test_a_data_set_gets_what_was_made_without_its_family(dataset: str, name: str) -> None:
    family = FAMILIES.get(dataset, "none")
    assert points(dataset=dataset, space=name) == MADE[name][family]
    assert points(dataset=dataset, space=name, portfolio="none") == []


def test_a_space_without_a_portfolio_is_told_to_who_asked(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert points(dataset="mnist", space="vgg") == []
    assert capsys.readouterr().out == ""
    asked = parse(SearchSettings, ["--dataset", "mnist", "--space", "vgg", "--portfolio", "auto"])
    assert starting_points(asked, space()) == []
    assert "there is none for space 'vgg' and data set 'mnist'" in capsys.readouterr().out


def test_the_recipes_of_published_results_begin_with_none() -> None:
    published = ["augmented", "compact", "default", "fast", "mixed", "record", "small", "tiny"]
    published += [path.stem for path in RECIPES.glob("s[0-9]-*.yaml")]
    assert len(published) == 15
    for name in published:
        assert parse(SearchSettings, ["--config", name]).portfolio == "none"
    assert parse(SearchSettings, ["--config", "demo"]).portfolio == "auto"


def test_a_packaged_portfolio_is_small_and_of_its_space() -> None:
    for made in MADE.values():
        assert all(1 <= len(own) <= 4 for own in made.values())
    settings = SearchSettings(dataset="mnist", portfolio="auto")
    assert starting_points(settings, space(min_width=24)) == []  # all are of width 16


@pytest.mark.parametrize(
    ("options", "left_out"),
    [
        ({"pooling": "blur", "pool_position": "first"}, {"pooling", "pool_position"}),
        ({"blocks": 3, "min_width": 24, "max_width": 24}, {"blocks", "width"}),
    ],
)
def test_what_the_space_fixes_is_left_out_of_a_point(
    options: dict[str, Any], left_out: set[str]
) -> None:
    found = starting_points(SearchSettings(dataset="mnist"), space(**options))
    whole = MADE["convnet"]["digits"]
    assert found == [{k: v for k, v in each.items() if k not in left_out} for each in whole]


def test_points_come_first_and_none_twice(tmp_path: Path) -> None:
    first, second = {"blocks": 2, "width": 16}, {"blocks": 3, "width": 20}
    (tmp_path / "a.yaml").write_text(yaml.safe_dump([first]))
    (tmp_path / "b.yaml").write_text(yaml.safe_dump([second, first]))
    found = points(points=str(tmp_path / "a.yaml"), portfolio=str(tmp_path / "b.yaml"))
    assert found == [first, second]


@pytest.mark.parametrize("text", ["- {nothing: 1}", "5", "- {width: 1000000}"])
def test_a_wrong_file_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(SettingsError, match=r"^--portfolio: .*a\.yaml") as caught:
        points(portfolio=str(tmp_path / "a.yaml"))
    assert "\n" not in str(caught.value)
    with pytest.raises(SettingsError, match=r"^--portfolio: "):
        points(portfolio=str(tmp_path / "missing.yaml"))


def test_the_next_point_is_the_one_that_helps_most(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    from portfolio import greedy  # type: ignore[import-not-found]

    one = {0: 0.0, 1: 0.9, 2: 0.3, 3: 0.5}
    other = {0: 1.0, 1: 0.0, 2: 0.3, 3: 0.2, 9: 0.0}  # 9 was trained on one of them only
    assert greedy([one, other], 4) == [2, 0, 1]
    assert greedy([one], 4) == [0]
    sys.modules.pop("portfolio")


@pytest.mark.parametrize(
    ("dataset", "expected"),
    [
        ("mnist", "digits"),
        ("npz:DIR/clothes.npz", "clothes"),
        ("npz:letters.npz", "characters"),
        ("npz:DIR/own.npz", "own"),
    ],
)
def test_curves_know_their_family(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dataset: str, expected: str
) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    from replay_curves import family, write  # type: ignore[import-not-found]

    write(tmp_path / "curves.parquet", [], {"dataset": dataset})
    assert family(tmp_path / "curves.parquet") == expected
    sys.modules.pop("replay_curves")


def test_a_portfolio_is_made_of_the_same_draws(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    from portfolio import PortfolioSettings, measure

    files = PortfolioSettings().curves
    made = {"file": str(tmp_path / "made.yaml"), "out": str(tmp_path / "made.md")}
    for space in ("", "mlp-", "cnn-"):
        own = tuple(str(Path(file).with_name(space + Path(file).name)) for file in files)
        measure(PortfolioSettings(curves=own, **made))
    assert yaml.safe_load((tmp_path / "made.yaml").read_text()) == MADE
    with pytest.raises(SettingsError, match=r"^--curves: .*curves\.parquet holds other draws"):
        older = str(Path(files[0]).with_name("curves.parquet"))
        measure(PortfolioSettings(curves=(*files, older), **made))
    for module in ("portfolio", "replay_curves"):
        sys.modules.pop(module)


def test_a_file_of_older_draws_is_not_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import pyarrow.parquet as pq
    from replay_curves import CurveSettings, read, record, write

    file, kept = tmp_path / "digits.parquet", ROOT / "benchmarks" / "curves" / "digits.parquet"
    made_with = {k.decode(): v.decode() for k, v in pq.read_schema(kept).metadata.items()}
    rows = read(kept)
    numbers = {"train_images": 500, "val_images": 500, "configurations": 201}
    rows[0]["params"]["width"] = 17
    write(file, rows, made_with)
    before = file.read_bytes()
    with pytest.raises(SettingsError, match=r"^--out: .*digits\.parquet was recorded before"):
        record(CurveSettings(out=str(file), dataset="digits", **numbers))
    assert file.read_bytes() == before
    sys.modules.pop("replay_curves")


@pytest.mark.parametrize("variant", ["stock", "shipped", "promote", "random:3"])
def test_a_replay_can_begin_with_the_portfolio(
    monkeypatch: pytest.MonkeyPatch, variant: str
) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    from replay import make_side  # type: ignore[import-not-found]

    point = {"blocks": 3, "width": 20, "kernel_size": 3}
    for name, begins in ((variant, False), (f"{variant}+portfolio", True)):
        side = make_side(name, 8, 3, [point])
        trial = side.start()
        trials = getattr(side.searcher, "trials", None) or side.searcher._ot_trials
        params = trials[trial.trial_id].params
        assert ({key: params.get(key) for key in point} == point) is begins
    for module in ("replay", "replay_curves"):
        sys.modules.pop(module)
