"""A run's trials in a study: read back, closed, and tried again."""

import optuna

from mnist_ray.run.records import INTERRUPTED
from mnist_ray.study.optuna_private import started
from mnist_ray.study.trials import AGAIN, RUN, close_interrupted, read_trials, to_try_again
from tests.support.studies import new_study, space


def test_only_the_run_s_own_trials_are_read_and_closed() -> None:
    study = new_study(optuna.storages.InMemoryStorage())
    for run in ("mine", "yours", "mine"):
        trial = study.ask()
        space(trial)
        trial.set_user_attr(RUN, run)
        trial.report(0.5, 1)
    pairs = read_trials(study, "mine", "val_accuracy")
    assert [(frozen.number, record.state, list(record.rows)) for frozen, record in pairs] == [
        (0, "RUNNING", [1]),
        (2, "RUNNING", [1]),
    ]
    close_interrupted(study, *pairs[0])
    assert [t.state.name for t in study.get_trials()] == ["FAIL", "RUNNING", "RUNNING"]
    assert read_trials(study, "mine", "val_accuracy")[0][1].reason == INTERRUPTED
    # its values are tried again once, and not twice where the run is cut off before they are handed
    # out
    assert to_try_again(study, "yours") == []
    assert to_try_again(study, "mine") == [(0, study.trials[0].params)]
    started(study, {AGAIN: 0}, study.trials[0].params)
    assert to_try_again(study, "mine") == []
