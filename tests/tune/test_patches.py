"""Ray's private parts: the fault that each patch mends is still there, and the patch mends it.

A test of a fault ("stock …") fails where Ray has mended it: then the patch goes.
"""

import subprocess
import sys
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import optuna
import pytest
import ray
from ray import _raylet, tune
from ray.air._internal import usage as air_usage
from ray.exceptions import ActorDiedError, RayTaskError
from ray.tune.execution.tune_controller import TuneController
from ray.tune.experiment import Trial
from ray.tune.schedulers import ASHAScheduler, PopulationBasedTraining
from ray.tune.search import SearchGenerator
from ray.tune.search.optuna import OptunaSearch

from mnist_ray.errors import raise_if_ended
from mnist_ray.tune import patches
from mnist_ray.tune.trial import NUMBER
from tests.support.tune_loop import FakeTrial, TuneLoop, result

optuna.logging.set_verbosity(optuna.logging.ERROR)


# ---- the controller


def die_between_trials() -> tuple[MagicMock, str]:
    """A controller whose worker has died while it was made ready for a trial; the trial."""
    worker = MagicMock()
    controller = MagicMock(
        _actor_to_trial={worker: "trial"},
        _resetting_trials={"trial"},
        _pending_trials={"trial"},
        _paused_trials=set(),
    )

    def set_status(trial: str, status: str) -> None:
        if status == Trial.RUNNING:
            controller._pending_trials.discard(trial)

    controller._set_trial_status.side_effect = set_status
    TuneController._actor_failed(controller, worker, RuntimeError())
    return controller, "trial"


def test_stock_counts_a_death_between_two_trials_twice() -> None:
    controller, trial = die_between_trials()
    # Once here, and once more by the failure of the task that resets the worker.
    assert controller._trial_task_failure.call_args.args == (trial,)
    with patches.deaths_between_trials_handled_once():
        controller, trial = die_between_trials()
    assert not controller._trial_task_failure.called
    controller._set_trial_status.assert_called_once_with(trial, Trial.RUNNING)
    controller._unstage_trial_with_resources.assert_called_once_with(trial)


def test_stock_tells_callbacks_no_exception(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "exception" not in tune.Callback.on_trial_recover.__code__.co_varnames
    deaths: list[tuple[str, str, str]] = []
    with patches.worker_deaths_told(lambda *death: deaths.append(death)):
        TuneController._process_trial_failure(
            MagicMock(), MagicMock(trial_id="t1"), RuntimeError("out of memory")
        )
        TuneController._process_trial_failure(
            MagicMock(), MagicMock(trial_id="t2"), cannot_begin("no driver")
        )
    assert deaths[0] == ("t1", "out of memory", "")
    assert deaths[1][:2] == ("t2", "it could not begin: RuntimeError: no driver")
    assert "in setup" in deaths[1][2]
    assert "\x1b" not in deaths[1][2]


def test_stock_tells_a_searcher_nothing_of_trials_that_a_stopper_ends() -> None:
    """Else StudySearch.close need not end them."""
    trial = MagicMock(status=Trial.RUNNING, is_saving=False)
    controller = MagicMock(_trials=[trial], _fail_fast=False, _should_stop_experiment=False)
    controller._stopper.stop_all.return_value = True
    controller._schedule_trial_stop = lambda t: TuneController._schedule_trial_stop(controller, t)
    TuneController._stop_experiment_if_needed(controller)
    controller._set_trial_status.assert_called_once_with(trial, Trial.TERMINATED)
    assert not controller._search_alg.on_trial_complete.called


def reuse(state: str, resetting: bool = False) -> tuple[bool, MagicMock]:
    """Whether a free worker goes to a trial that has one of its own: it "starts" or "waits"."""
    trial = MagicMock()
    controller = MagicMock(
        _trial_to_actor={trial: f"worker that {state}"},
        _actor_to_trial={f"worker that {state}": trial},
        _resetting_trials={trial} if resetting else set(),
    )
    controller._actor_manager.is_actor_started = "worker that starts".__eq__
    reused = TuneController._maybe_reuse_cached_actor(controller, trial)
    return reused, controller


def test_stock_stops_a_worker_that_starts() -> None:
    reused, controller = reuse("starts")
    assert reused
    controller._remove_actor.assert_called_once_with(tracked_actor="worker that starts")
    with patches.starting_workers_kept():
        assert [reuse("starts")[0], reuse("waits")[0], reuse("starts", True)[0]] == [
            False,
            True,
            True,
        ]


def test_stock_imports_trackers_to_count_callbacks() -> None:
    code = (
        "import sys; from ray import tune; from ray.air._internal import usage\n"
        "usage.tag_callbacks([tune.Callback()])\n"
        "print('ray.air.integrations.mlflow' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True"


def test_all_patches_are_taken_back() -> None:
    names = ("_actor_failed", "_process_trial_failure", "_maybe_reuse_cached_actor")
    stock = [getattr(TuneController, name) for name in names] + [air_usage.tag_callbacks]
    with pytest.raises(KeyboardInterrupt), patches.patched_tune(lambda *death: None):
        changed = [getattr(TuneController, name) for name in names]
        assert not set(changed) & set(stock)
        assert air_usage.tag_callbacks is not stock[-1]
        raise KeyboardInterrupt
    assert stock == [
        *(getattr(TuneController, name) for name in names),
        air_usage.tag_callbacks,
    ]


def test_a_trial_has_what_is_changed_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    killed: list[Any] = []
    monkeypatch.setattr(ray, "kill", killed.append)
    trial = Trial("of the test", stub=True, max_failures=8)
    trial.run_metadata.num_failures = 3
    patches.forget_failures(trial)
    assert trial.run_metadata.num_failures == 0
    trial.temporary_state.ray_actor = "actor"
    patches.end_worker(trial)
    assert killed == ["actor"]
    assert not trial.should_recover()


def cannot_begin(message: str) -> ActorDiedError:
    """As Ray reports an error of a worker's setup."""
    frame = (
        '  File "/home/ray/anaconda3/lib/python3.11/site-packages/ray/tune/trainable/util.py", '
        "line 101, in setup\n    super(_Inner, self).setup(config, **setup_kwargs)\n"
    )
    error = RuntimeError(message)
    text = f"Traceback (most recent call last):\n{3 * frame}RuntimeError: {message}"
    return ActorDiedError(
        RayTaskError("__init__", text, error, proctitle="ray::TrainTrial.__init__", pid=4711)
    )


def test_rays_reasons_are_one_line() -> None:
    error = RuntimeError(
        "The actor died unexpectedly before finishing this task.\n\tclass_name: A\n"
        "The actor is dead because its worker process has died. "
        "Worker exit type: SYSTEM_ERROR Worker exit detail: "
        "Worker unexpectedly exits with a connection error code 2. End of file. "
        "There are some potential root causes. (1) The process is killed by SIGKILL."
    )
    expected = "Worker unexpectedly exits with a connection error code 2. End of file"
    assert patches.how_it_died(error) == expected
    assert patches.how_it_died(RuntimeError("a\nb")) == "a b"
    old = "The NVIDIA driver on your system is too old (found version 11040)"
    expected = f"it could not begin: RuntimeError: {old}"
    assert patches.how_it_died(cannot_begin(old)) == expected
    assert patches.how_it_died(cannot_begin(f"{old}\nSee\n  the manual")) == expected
    coloured = patches.how_it_died(cannot_begin(f"\x1b[31m{old}\x1b[2J" + 300 * "x"))
    assert coloured.startswith(f"{expected}\\x1b[2Jxx")
    assert len(coloured) == 300


def test_ray_marks_the_end_of_a_process() -> None:
    """By it errors.raise_if_ended tells a SIGTERM from a person's sys.exit."""
    with pytest.raises(SystemExit) as ended:
        _raylet.raise_sys_exit_with_custom_error_message(  # type: ignore[attr-defined]
            "The process receives a SIGTERM."
        )
    with pytest.raises(SystemExit):
        raise_if_ended(ended.value)
    raise_if_ended(SystemExit(1))


# ---- the searcher


def test_stock_optuna_search_reports_a_stopped_trial_as_complete_and_never_closes_a_failed_one() -> (  # noqa: E501
    None
):
    """Why tune/searcher.py is there."""
    search = OptunaSearch(
        space=lambda trial: {"x": trial.suggest_float("x", 0, 1)},  # type: ignore[arg-type,return-value]
        metric="val_accuracy",
        mode="max",
    )
    loop = TuneLoop(search, ASHAScheduler(time_attr="epoch", max_t=9, reduction_factor=2), slots=3)
    loop.fill()
    good, bad, broken = loop.live
    loop.report(good, result(1, 0.9))
    assert loop.report(bad, result(1, 0.1))  # stopped
    loop.report(broken, result(1, float("nan"), done=True))
    states = [trial.state.name for trial in search._ot_study.trials]
    assert states == ["RUNNING", "COMPLETE", "RUNNING"]


# ---- schedulers


def asha(kind: type[ASHAScheduler]) -> Any:
    scheduler = kind(time_attr="epoch", max_t=9, grace_period=1, reduction_factor=2)
    scheduler.set_search_properties("val_accuracy", "max")
    return scheduler


def test_stock_asha_has_empty_rungs_after_a_restart() -> None:
    bad = FakeTrial("bad", {NUMBER: 9})
    decisions = []
    for kind in (ASHAScheduler, patches.OpenASHA):
        scheduler = asha(kind)
        scheduler.on_trial_add(None, bad)
        if isinstance(scheduler, patches.OpenASHA):
            scheduler.enter("earlier", {1: 0.9, 2: 0.95})
            assert scheduler.rungs()[1] == {"earlier": 0.9}
        decisions.append(scheduler.on_trial_result(None, bad, result(1, 0.1)))
    assert decisions == ["CONTINUE", "STOP"]
    assert not hasattr(ASHAScheduler, "enter")


def test_stock_asha_fails_for_a_trial_that_has_reported_its_end() -> None:
    for kind, fails in ((ASHAScheduler, True), (patches.OpenASHA, False)):
        scheduler, trial = asha(kind), FakeTrial("t", {NUMBER: 1})
        scheduler.on_trial_add(None, trial)
        scheduler.on_trial_complete(None, trial, result(1, 0.5))
        if fails:
            with pytest.raises(KeyError):
                scheduler.on_trial_remove(None, trial)
        else:
            scheduler.on_trial_remove(None, trial)


def pbt(kind: type[PopulationBasedTraining]) -> Any:
    scheduler = kind(
        time_attr="epoch", perturbation_interval=2, synch=True, hyperparam_mutations={"lr": [1]}
    )
    scheduler.set_search_properties("val_accuracy", "max")
    return scheduler


def test_stock_pbt_refuses_a_searcher() -> None:
    controller = SimpleNamespace(search_alg=MagicMock(spec=SearchGenerator))
    trial: Any = MagicMock(config={"lr": 1})
    with pytest.raises(ValueError, match="Search algorithms cannot be used"):
        pbt(PopulationBasedTraining).on_trial_add(controller, trial)
    pbt(patches.OpenPBT).on_trial_add(controller, trial)


@pytest.mark.parametrize("ended", ["on_trial_complete", "on_trial_error"])
@pytest.mark.parametrize("kind", [PopulationBasedTraining, patches.OpenPBT])
def test_stock_pbt_waits_for_a_trial_that_has_failed(
    kind: type[PopulationBasedTraining], ended: str
) -> None:
    scheduler = pbt(kind)
    trials = [Trial("of the test", stub=True, config={"lr": 1}) for _ in range(3)]
    controller = MagicMock(search_alg=None)
    controller.get_live_trials.return_value = controller.get_trials.return_value = trials
    for trial in trials:
        scheduler.on_trial_add(controller, trial)
    for trial in trials[:2]:
        trial.status = Trial.PAUSED
        assert scheduler.on_trial_result(controller, trial, result(2, 0.5)) == "NOOP"
    getattr(scheduler, ended)(
        controller, trials[2], *([{}] if ended == "on_trial_complete" else [])
    )
    trials.pop()
    chosen = scheduler.choose_trial_to_run(controller)
    assert (chosen is None) == (kind is PopulationBasedTraining)
