"""Early stopping by non-dominated rank: who goes on at a rung."""

import random

import pytest

from mnist_ray.run.records import Record, epoch_row
from mnist_ray.study import front
from mnist_ray.study.front import COMPARED, FrontHalving

BOTH = ("accuracy", "parameters")
RULE = FrontHalving(BOTH, 10, 1, 3)


def record(number: int, accuracy: float, size: int | None, epochs: int = 1) -> Record:
    rows = {
        epoch: epoch_row({"epoch": epoch, "val_accuracy": accuracy, "val_loss": 1 - accuracy})
        for epoch in range(1, epochs + 1)
    }
    return Record(number, {}, rows=rows, n_parameters=size)


def goes_on(points: list[tuple[float, int]]) -> list[int]:
    values = dict(enumerate(points))
    return [number for number in values if RULE.goes_on(number, values)]


@pytest.mark.parametrize(
    ("rule", "rungs"),
    [
        (RULE, [1, 3, 9]),
        (FrontHalving(BOTH, 243, 1, 3), [1, 3, 9, 27, 81]),
        (FrontHalving(BOTH, 9, 2, 2), [2, 4, 8]),
        (FrontHalving(BOTH, 8, 1, 1.5), [1, 2, 3, 4, 6]),
        (FrontHalving(BOTH, 3, 3, 3), []),
    ],
)
def test_rungs(rule: FrontHalving, rungs: list[int]) -> None:
    assert rule.rungs == rungs


def test_nobody_on_the_front_is_stopped() -> None:
    # accuracy falls with the size: all are on the front
    assert goes_on([(0.9, 900), (0.8, 800), (0.7, 700), (0.6, 600)]) == [0, 1, 2, 3]
    # one is better in both: it alone
    assert goes_on([(0.9, 10), (0.8, 20), (0.7, 30)]) == [0]


def test_as_many_fronts_as_hold_a_third() -> None:
    # fronts: {0}, {1, 2}, {3, 4, 5}, …: a third of nine are the first two
    points = [(0.9, 10), (0.8, 20), (0.85, 30), (0.7, 40), (0.75, 50), (0.78, 60)]
    assert goes_on([*points, (0.1, 70), (0.1, 80), (0.1, 90)]) == [0, 1, 2]
    assert goes_on(points) == [0, 1, 2]
    assert goes_on(points[:3]) == [0]


def test_equal_trials_go_on_together() -> None:
    assert goes_on([(0.5, 10)] * 5) == list(range(5))


def test_only_trials_at_the_rung_are_compared() -> None:
    weak, strong = record(1, 0.5, 100, epochs=3), record(0, 0.9, 50, epochs=1)
    assert RULE.stops(weak, 1, [strong])
    assert not RULE.stops(weak, 2, [strong])  # no rung
    assert not RULE.stops(weak, 3, [strong])  # the other is not there yet
    assert RULE.stops(weak, 3, [record(0, 0.9, 50, epochs=3)])
    assert not RULE.stops(strong, 1, [])
    assert not RULE.stops(record(2, 0.5, None), 1, [strong])  # its size is not known


def test_a_trial_is_compared_with_the_newest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(front, "COMPARED", 2)
    strong, weak, new = record(0, 0.9, 10), record(1, 0.1, 90), record(2, 0.5, 50)
    assert RULE.stops(new, 1, [strong])
    assert not RULE.stops(new, 1, [strong, weak])


def test_a_million_parameters_and_a_thousand_trials_take_no_time() -> None:
    chance = random.Random(0)
    many = [record(n, chance.random(), chance.randrange(10**6)) for n in range(3 * COMPARED)]
    stopped = sum(RULE.stops(each, 1, many) for each in many[-30:])
    assert 15 <= stopped <= 25  # two thirds
