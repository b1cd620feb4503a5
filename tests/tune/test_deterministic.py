"""--deterministic: the same search whatever trial is faster, and whenever it is killed."""

import contextlib
import functools
import json
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages import InMemoryStorage

from mnist_ray.errors import CorruptFileError, SettingsError
from mnist_ray.run.records import Records
from mnist_ray.search_job.resumed import resumed_settings
from mnist_ray.settings import SearchSettings, check_search, parse, resolved
from mnist_ray.settings.constraints import read
from mnist_ray.study import studies
from mnist_ray.study.front import FrontHalving
from mnist_ray.study.pruners import read_scheduler
from mnist_ray.study.samplers import make_sampler
from mnist_ray.study.trials import LEGS, PAUSED, read_trials, remaining_points
from mnist_ray.tune import schedulers
from mnist_ray.tune.deterministic import OrderedSearch
from mnist_ray.tune.ordered_promotion import OrderedPromotion
from mnist_ray.tune.trial import ended
from tests.support import ROOT
from tests.support.processes import own_ray
from tests.support.runs import results
from tests.support.tune_loop import FakeTrial, TuneLoop, result

optuna.logging.set_verbosity(optuna.logging.ERROR)
RUN = "r"
EPOCHS = 5
SCHEDULERS = {
    "asha": (),
    "none": (),
    "hyperband": (),
    "median": ("n_startup_trials=2",),
    "percentile": ("n_startup_trials=2", "percentile=40"),
    "threshold": ("lower=0.45",),
    "patient": ("n_startup_trials=2", "patience=0"),
    "asha-promote": (),
}


def space(trial: optuna.Trial) -> dict[str, Any]:
    return {"x": trial.suggest_float("x", 0, 1, step=1 / 64), "n": trial.suggest_int("n", 0, 9)}


def value(x: float, epoch: int) -> float:
    return 0.5 + (x - 0.5) * epoch / 10


class Machine(TuneLoop):
    """Tune and its workers, with trials that end in an order of chance. Checkpoints outlive it."""

    searcher: OrderedSearch

    def __init__(
        self,
        storage: InMemoryStorage,
        checkpoints: dict[int, int],
        *,
        scheduler: str,
        sampler: str,
        slots: int,
        chance: random.Random,
        trials: int,
        of: Any = None,
        objectives: tuple[str, ...] = (),
        limits: tuple[str, ...] = (),
    ) -> None:
        s = SearchSettings(
            scheduler=scheduler,
            scheduler_args=SCHEDULERS[scheduler],
            max_epochs=EPOCHS,
            deterministic=True,
            objectives=",".join(objectives) or None,
        )
        args = {"n_startup_trials": "4"} if sampler in ("tpe", "cmaes", "gp") else {}
        study = studies.open_study(
            storage,
            "s",
            "val_accuracy",
            make_sampler("random", 0),
            read_scheduler(s).pruner(),
            objectives=objectives,
        )
        records, continued = Records("val_accuracy", trials, objectives), []
        past: dict[int, Any] = {}
        for frozen, record in read_trials(study, RUN, "val_accuracy"):
            past[record.number] = frozen.intermediate_values
            if record.state == "RUNNING":
                continued.append(frozen)
                if not frozen.user_attrs.get(PAUSED):
                    record.rows = {}
            records.add(record)
        self.settled: list[int] = []
        kind: Any = OrderedSearch
        if scheduler == "asha-promote":
            rungs = read_scheduler(s).rungs(maximize=True)
            kind = functools.partial(OrderedPromotion, rungs=rungs, past=past)
        search = kind(
            study,
            of or space,
            records,
            run=RUN,
            max_epochs=EPOCHS,
            on_settled=self.settled.append,
            continued=continued,
            points=remaining_points(study, RUN, [{"x": 0.5, "n": 3}]),
            window=slots,
            sampler=lambda place: make_sampler(sampler, 1000 + place, args),
            limits=read(limits),
            front=FrontHalving(objectives, EPOCHS, 1, 3) if objectives else None,
        )
        super().__init__(search, schedulers.make_scheduler(read_scheduler(s), {}, search), slots)
        self.checkpoints, self.chance = checkpoints, chance
        self.fresh: set[str] = set()  # trials whose worker has just started

    def search_on(self, die_after: float = float("inf")) -> None:
        """Trains an epoch of any live trial, again and again.

        After `die_after` of them the process is gone.
        """
        steps = 0
        while self.fill() and steps < die_after:
            self.step(self.chance.choice(self.live))
            steps += 1
        if not self.live:
            self.searcher.close()

    def start(self) -> FakeTrial | None:
        """The next trial, on a worker that has just started."""
        trial = super().start()
        if trial:
            self.fresh.add(trial.trial_id)
        return trial

    def step(self, trial: FakeTrial) -> None:
        """An epoch of the trial; its result may be lost on the way with the worker."""
        number, x = trial.number, trial.config["x"]
        rows: dict[str, Any] = {"n_parameters": 10 + 10 * trial.config["n"]}
        if trial.trial_id in self.fresh and number in self.checkpoints:
            trial.epoch = self.checkpoints[number]
            rows["rows"] = [result(e, value(x, e)) for e in range(1, trial.epoch + 1)]
        else:
            trial.epoch += 1
        fails = trial.config["n"] == 7 and trial.epoch == 2
        self.checkpoints[number] = trial.epoch - fails
        self.fresh.discard(trial.trial_id)
        if self.chance.random() < 0.05:
            self.fresh.add(trial.trial_id)  # Tune starts the trial again
        elif fails:
            self.report(trial, {**ended(reason="RuntimeError: of the test")})
        else:
            done = trial.epoch >= EPOCHS
            self.report(trial, result(trial.epoch, value(x, trial.epoch), done=done, **rows))


def outcome(storage: InMemoryStorage) -> list[tuple[Any, ...]]:
    trials = optuna.load_study(study_name="s", storage=storage).trials
    assert all(t.state.is_finished() for t in trials)
    return [
        (t.number, t.params, t.state.name, t.values, {**t.intermediate_values, **t.constraints})
        for t in trials
    ]


def searched(
    seed: int, kills: int = 0, trials: int = 18, slots: int = 3, **what: Any
) -> tuple[list[tuple[Any, ...]], list[int]]:
    """A whole search, killed so often; the order of the ends comes from the seed alone."""
    chance = random.Random(seed)
    storage = InMemoryStorage()
    checkpoints: dict[Any, Any] = {}
    settled: list[int] = []
    for turn in range(kills + 1):
        machine = Machine(storage, checkpoints, chance=chance, slots=slots, trials=trials, **what)
        machine.search_on(chance.randrange(1, 25) if turn < kills else float("inf"))
        settled += machine.settled
    return outcome(storage), settled


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_neither_speed_nor_kills_change_anything(scheduler: str) -> None:
    expected, order = searched(0, scheduler=scheduler, sampler="tpe")
    states = {state for _, _, state, _, _ in expected}
    assert states >= ({"COMPLETE"} if scheduler == "none" else {"COMPLETE", "PRUNED"})
    assert sorted(order) == list(range(18))
    assert (order == sorted(order)) == (scheduler != "asha-promote")
    assert expected[0][1] == {"x": 0.5, "n": 3}
    for seed in range(1, 5):
        found, settled = searched(seed, kills=seed - 1, scheduler=scheduler, sampler="tpe")
        assert found == expected
        assert settled == order


class Killed(BaseException):
    """The process ends in the middle of a write to the study."""


def killed_at_writes(seed: int, kills: int, **what: Any) -> list[tuple[Any, ...]]:
    """A whole search whose process was killed so often at a write of chance."""
    chance, left = random.Random(seed), 0
    storage = InMemoryStorage()

    def mortal(write: Callable[..., Any]) -> Callable[..., Any]:
        def written(*args: Any, **options: Any) -> Any:
            nonlocal left
            left -= 1
            if left < 0:
                raise Killed
            return write(*args, **options)

        return written

    for name in ("create_new_trial", *(name for name in dir(storage) if "set_trial" in name)):
        setattr(storage, name, mortal(getattr(storage, name)))
    checkpoints: dict[int, int] = {}
    for turn in range(kills + 1):
        left = chance.randrange(1, 150) if turn < kills else sys.maxsize
        with contextlib.suppress(Killed):
            Machine(storage, checkpoints, chance=chance, slots=3, trials=18, **what).search_on()
    return outcome(storage)


@pytest.mark.parametrize("sampler", ["tpe", "random"])
@pytest.mark.parametrize("scheduler", ["median", "asha-promote", "asha", "hyperband"])
def test_a_kill_at_any_write_to_the_study_changes_nothing(scheduler: str, sampler: str) -> None:
    """Also between two values of a trial, and between the notes of its end and the end itself."""
    options: dict[str, Any] = {"scheduler": scheduler, "sampler": sampler, "of": refusing}
    expected, _ = searched(0, **options)
    for seed in range(1, 16):
        assert killed_at_writes(seed, kills=seed, **options) == expected, seed


@pytest.mark.parametrize("legs", [[0, 1, 2, 3, 4], [5], [-1], []])
def test_places_that_contradict_are_damage(legs: list[int]) -> None:
    storage = InMemoryStorage()
    options: dict[str, Any] = {"scheduler": "asha-promote", "sampler": "random", "slots": 3}
    searched = functools.partial(Machine, storage, {}, chance=random.Random(0), trials=9, **options)
    searched().search_on(die_after=9)
    trials = storage.get_all_trials(0)
    trial = next(t for t in trials if len(t.user_attrs[LEGS]) > 1 and not t.state.is_finished())
    searched()
    storage.set_trial_user_attr(trial._trial_id, LEGS, legs)
    with pytest.raises(CorruptFileError, match="study 's' is damaged"):
        searched()


@pytest.mark.parametrize("sampler", ["cmaes", "gp", "random", "grid", "nsga2"])
def test_with_every_sampler_that_is_allowed(sampler: str) -> None:
    expected, _ = searched(0, trials=12, scheduler="median", sampler=sampler)
    assert len({str(params) for _, params, _, _, _ in expected}) == 12
    assert searched(1, trials=12, scheduler="median", sampler=sampler)[0] == expected
    assert searched(2, trials=12, kills=3, scheduler="median", sampler=sampler)[0] == expected


@pytest.mark.parametrize("limits", [(), ("parameters<=80", "accuracy>=0.45")])
@pytest.mark.parametrize("sampler", ["tpe", "nsga2"])
def test_with_several_objectives_and_limits(sampler: str, limits: tuple[str, ...]) -> None:
    options: dict[str, Any] = {"scheduler": "asha", "sampler": sampler, "limits": limits}
    options["objectives"] = ("accuracy", "parameters")
    expected, _ = searched(0, **options)
    assert {state for _, _, state, _, _ in expected} >= {"COMPLETE", "PRUNED"}
    assert any(limits) == any("parameters" in beyond for *_, beyond in expected)
    for seed in range(1, 4):
        found, settled = searched(seed, kills=seed - 1, **options)
        assert found == expected
        assert settled == list(range(18))


def refusing(trial: optuna.Trial) -> dict[str, Any]:
    """Prunes where n is 1 or 2, and fails where it is 4."""
    hp = space(trial)
    if hp["n"] in (1, 2):
        raise optuna.TrialPruned
    return hp if hp["n"] != 4 else {"x": trial.params["y"]}


def test_a_space_that_prunes_and_fails_changes_nothing_of_that() -> None:
    options: dict[str, Any] = {"scheduler": "median", "sampler": "tpe", "of": refusing}
    expected, _ = searched(0, **options)
    states = [state for _, _, state, _, _ in expected]
    assert states.count("FAIL") >= 1
    assert any(s == "PRUNED" and not curve for _, _, s, _, curve in expected)
    for seed in range(1, 5):
        found, settled = searched(seed, kills=seed - 1, **options)
        assert found == expected
        assert settled == list(range(18))


def test_without_order_the_same_search_differs() -> None:
    """That the tests above can fail: with a window of all trials everything is known as soon as it
    happens to be.
    """
    outcomes = {
        str(
            [
                (p, s)
                for _, p, s, _, _ in searched(seed, scheduler="median", sampler="tpe", slots=slots)[
                    0
                ]
            ]
        )
        for seed, slots in ((0, 2), (0, 4))
    }
    assert len(outcomes) == 2


def test_each_epoch_is_known_when_its_turn_comes() -> None:
    """Trial k is suggested when exactly the trials up to k - c are known."""
    seen: dict[int, set[int]] = {}
    chance = random.Random(5)
    machine = Machine(
        InMemoryStorage(),
        {},
        scheduler="median",
        sampler="random",
        slots=3,
        chance=chance,
        trials=12,
    )
    study = machine.searcher.study
    original = machine.searcher.sampler

    def watching(place: int) -> optuna.samplers.BaseSampler:
        trials = study.get_trials()
        seen[place] = {t.number for t in trials if t.state.is_finished()}
        assert all(not t.intermediate_values for t in trials if not t.state.is_finished())
        return original(place)

    machine.searcher.sampler = watching
    machine.search_on()
    assert {place: seen[place] for place in range(12)} == {
        place: set(range(place - 2)) for place in range(12)
    }


def test_another_search_on_the_study_is_noticed() -> None:
    storage = InMemoryStorage()
    machine = Machine(
        storage, {}, scheduler="none", sampler="random", slots=2, chance=random.Random(0), trials=4
    )
    optuna.load_study(study_name="s", storage=storage).ask()
    with pytest.raises(SettingsError, match="another search writes"):
        machine.search_on()
    study = studies.open_study(storage, "s", "val_accuracy", make_sampler("random", 0))
    with pytest.raises(SettingsError, match="--deterministic: study 's' has trials of 'unknown'"):
        studies.check_alone(study, RUN)


def test_what_contradicts_it_is_refused() -> None:
    for flags in (["--sampler", "qmc"], ["--sampler", "my:Own"], ["--time-budget", "5m"]):
        with pytest.raises(SettingsError, match="deterministic"):
            check_search(parse(SearchSettings, ["--deterministic", *flags]))
    before = resolved(
        parse(SearchSettings, ["--deterministic", "--name", "a", "--max-concurrent", "2"])
    )
    for flags in (["--max-concurrent", "3"], ["--cpus-per-trial", "2"], ["--no-deterministic"]):
        with pytest.raises(SettingsError, match=flags[0].removeprefix("--no-").removeprefix("--")):
            resumed_settings(parse(SearchSettings, ["--name", "a", "--resume", *flags]), before)
    assert (
        resumed_settings(
            parse(SearchSettings, ["--name", "a", "--resume", "--trials", "7"]), before
        ).max_concurrent
        == 2
    )


# ---- on a real Ray


def start(storage: Path, *arguments: str) -> subprocess.Popen:
    env = own_ray()
    command = [
        sys.executable,
        "jobs/search.py",
        "--storage",
        str(storage),
        "--name",
        "d",
        "--no-finetune",
        *arguments,
    ]
    return subprocess.Popen(
        command, cwd=ROOT, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


@pytest.mark.slow
@pytest.mark.parametrize("scheduler", ["asha", "asha-promote"])
def test_two_workers_give_one_result_twice_and_after_a_kill(tmp_path: Path, scheduler: str) -> None:
    arguments = [
        "--dataset",
        "digits",
        "--train-images",
        "300",
        "--space-args",
        "max_width=24",
        "--trials",
        "8",
        "--max-epochs",
        "4",
        "--deterministic",
        "--max-concurrent",
        "2",
        "--seed",
        "5",
        "--scheduler",
        scheduler,
    ]
    for name in ("one", "two"):
        process = start(tmp_path / name, *arguments)
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 0, output
    expected = results(tmp_path / "one")
    assert {trial["state"] for trial in expected[0]} == {"COMPLETE", "PRUNED"}
    assert results(tmp_path / "two") == expected
    settings = json.loads((tmp_path / "one" / "d" / "run.json").read_text())["settings"]
    assert (settings["max_concurrent"], settings["precision"]) == (2, "fp32")

    process = start(tmp_path / "cut", *arguments)
    assert process.stdout is not None
    for line in process.stdout:
        if re.match(r"trial \d+ ", line):
            break
    time.sleep(0.5)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    process = start(tmp_path / "cut", "--resume")
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    assert results(tmp_path / "cut") == expected
