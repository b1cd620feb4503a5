"""Who may pass a rung, where trials wait for their promotion."""

import random

import pytest

from mnist_ray.study.rungs import Rungs, rungs_of


@pytest.mark.parametrize(
    ("options", "rungs"),
    [
        ((10, 1, 3), [1, 3, 9]),
        ((243, 1, 3), [1, 3, 9, 27, 81]),
        ((9, 2, 2), [2, 4, 8]),
        ((8, 1, 1.5), [1, 2, 3, 4, 6]),
        ((3, 3, 3), []),
    ],
)
def test_rungs(options: tuple[int, int, float], rungs: list[int]) -> None:
    assert rungs_of(*options) == rungs


def test_the_best_third_goes_on_and_each_new_trial_makes_room() -> None:
    rungs = Rungs([1, 3], 3, maximize=True)
    everybody = set(range(10))
    for number, value in enumerate([0.2, 0.9, 0.5]):
        assert rungs.candidate(everybody) is None
        assert rungs.enter(number, 1, value)
    assert rungs.candidate(everybody) == (1, 1)
    assert rungs.candidate({0, 2}) is None  # the best one is not among those that can
    rungs.passed(1, 1)
    assert rungs.candidate(everybody) is None
    for number, value in enumerate([0.1, 0.1, 0.1], start=3):
        rungs.enter(number, 1, value)
    assert rungs.candidate(everybody) == (2, 1)


def test_the_highest_rung_comes_first() -> None:
    rungs = Rungs([1, 3], 2, maximize=False)
    for number, value in enumerate([0.1, 0.2, 0.3, 0.4]):
        rungs.enter(number, 1, value)
    for number, value in ((2, 0.3), (3, 0.2)):  # out of turn
        rungs.enter(number, 3, value)
    assert rungs.candidate(set(range(4))) == (3, 3)
    assert rungs.candidate({0, 1, 2}) == (0, 1)
    assert rungs.candidate({2}) is None  # it has passed the first one already
    assert rungs.candidate({2}, out_of_turn=True) == (2, 3)


def test_a_value_that_is_no_number_is_the_worst_and_an_epoch_counts_once() -> None:
    rungs = Rungs([2], 2, maximize=True)
    assert not rungs.enter(0, 1, 0.5)  # no rung
    assert rungs.enter(0, 2, float("nan"))
    assert not rungs.enter(0, 2, 0.9)
    assert rungs.enter(1, 2, 0.0)
    assert rungs.candidate({0, 1}) == (1, 2)


def test_as_the_paper_says() -> None:
    """Against a plain reading of algorithm 2, at random."""
    chance = random.Random(0)
    for _ in range(50):
        epochs = [1, 2, 4]
        values: dict[int, dict[int, float]] = {rung: {} for rung in epochs}
        passed: dict[int, set[int]] = {rung: set() for rung in epochs}
        rungs, factor = Rungs(epochs, 2, maximize=True), 2
        for number in range(40):
            expected = None
            for rung in reversed(epochs):
                best = sorted(values[rung], key=values[rung].__getitem__, reverse=True)
                free = [n for n in best[: len(best) // factor] if n not in passed[rung]]
                if free:
                    expected = free[0], rung
                    break
            assert rungs.candidate(set(range(40))) == expected
            if expected is None:
                number, rung, value = number, 1, chance.random()
            else:
                passed[expected[1]].add(expected[0])
                rungs.passed(*expected)
                if expected[1] == epochs[-1]:
                    continue
                number, value = expected[0], chance.random()
                rung = epochs[epochs.index(expected[1]) + 1]
            values[rung][number] = value
            rungs.enter(number, rung, value)


def test_a_resume_knows_who_waits_and_who_has_passed() -> None:
    rungs = Rungs([1, 3], 2, maximize=True)
    rungs.restore(0, {1: 0.9}, waits=True, runs=False)
    rungs.restore(1, {1: 0.8, 2: 0.8}, waits=False, runs=True)
    rungs.restore(2, {1: 0.5, 2: 0.5, 3: 0.5}, waits=True, runs=False)
    rungs.restore(3, {}, waits=False, runs=True)
    assert rungs.candidate({0, 1, 2}) == (0, 1)
    assert rungs.candidate({1, 2}) is None
    rungs.enter(1, 3, 0.1)
    assert rungs.candidate({1, 2}) == (2, 3)


def test_a_rung_that_was_reached_at_the_moment_of_a_kill_is_decided_again() -> None:
    rungs = Rungs([1, 3], 2, maximize=True)
    rungs.restore(0, {1: 0.9, 2: 0.9, 3: 0.1}, waits=False, runs=True)
    rungs.restore(1, {1: 0.8, 2: 0.8, 3: 0.9}, waits=True, runs=False)
    assert rungs.candidate({0, 1}) is None
    assert rungs.enter(0, 3, 0.1)
    assert rungs.candidate({0, 1}) == (1, 3)
