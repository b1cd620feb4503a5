"""When a trial counts as hanging, and how often its worker may die. (On a real Ray:
tests/faults/test_workers.py.)
"""

from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.tune.experiment import Trial

from mnist_ray.errors import SettingsError
from mnist_ray.settings import SearchSettings, check_search, parse
from mnist_ray.tune import watch


class Clock:
    now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(watch, "time", clock)
    return clock


class Searcher:
    def __init__(self) -> None:
        self.given_up: list[tuple[str, str]] = []

    def give_up(self, trial_id: str, reason: str) -> None:
        self.given_up.append((trial_id, reason))

    def begun(self, trial_id: str) -> None:
        pass


def trial(trial_id: str) -> Any:
    class Hashable(SimpleNamespace):
        __hash__ = object.__hash__  # type: ignore[assignment]

    return Hashable(
        trial_id=trial_id,
        status=Trial.RUNNING,
        max_failures=8,
        run_metadata=SimpleNamespace(num_failures=0),
        temporary_state=SimpleNamespace(ray_actor=f"actor of {trial_id}"),
    )


def test_only_a_trial_that_says_nothing_is_given_up(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed: list[str] = []
    monkeypatch.setattr(ray, "kill", killed.append)
    searcher = Searcher()
    seen = watch.Watch(searcher, 10.0, "10s")  # type: ignore[arg-type]
    talks, hangs = trial("talks"), trial("hangs")
    for one in (talks, hangs):
        seen.on_trial_start(0, [], one)
    for step in range(1, 241):
        clock.now += 0.1
        seen.on_step_begin(step, [])
        if step % 50 == 0:
            seen.on_trial_result(step, [], talks, {"epoch": step // 50})
    assert killed == ["actor of hangs"]
    assert searcher.given_up == [("hangs", "reported no epoch for 10s (--trial-timeout)")]
    assert hangs.run_metadata.num_failures > hangs.max_failures
    assert talks.max_failures == 8


def test_what_the_driver_sleeps_is_not_the_trials_fault(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed: list[str] = []
    monkeypatch.setattr(ray, "kill", killed.append)
    seen = watch.Watch(Searcher(), 10.0, "10s")  # type: ignore[arg-type]
    seen.on_trial_start(0, [], trial("a"))
    for step in range(5):
        clock.now += 3600  # the storage was away, or the machine asleep: results may be waiting
        seen.on_step_begin(step, [])
    assert killed == []


def test_only_new_epochs_make_up_for_lost_workers() -> None:
    seen = watch.Watch(Searcher(), None, None)  # type: ignore[arg-type]
    one = trial("a")
    counts = []
    for epoch in (1, 1, 2, 2, 2, 3):
        one.run_metadata.num_failures += 1
        seen.on_trial_result(0, [], one, {"epoch": epoch})
        counts.append(one.run_metadata.num_failures)
    assert counts == [0, 1, 0, 1, 2, 0]


def test_the_time_is_checked() -> None:
    check_search(parse(SearchSettings, ["--trial-timeout", "10m"]))
    with pytest.raises(SettingsError, match="--trial-timeout: 'soon' is not a duration"):
        check_search(parse(SearchSettings, ["--trial-timeout", "soon"]))
