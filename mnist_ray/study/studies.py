"""Where a search's Optuna study lives, whether it is the right one, and what of it belongs to a run. Knows nothing of Ray.

A study may be shared by several searches at once. What tells their trials apart is kept in Optuna's own attributes, so that every
tool of Optuna's reads the study as it is.
"""

import contextlib
import functools
import importlib.util
import json
import math
import os
import re
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn, cast

import optuna
from optuna.distributions import (
    BaseDistribution,
    FloatDistribution,
    IntDistribution,
    distribution_to_json,
    json_to_distribution,
)
from optuna.storages import BaseStorage, InMemoryStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock, JournalRedisBackend
from optuna.storages.journal._file import get_lock_file
from optuna.storages.journal._storage import JournalOperation
from optuna.trial import FrozenTrial, TrialState

from mnist_ray.errors import SettingsError, WorkError
from mnist_ray.processes import temporary_folder
from mnist_ray.run.records import HISTORY, INTERRUPTED, Record, rows_from
from mnist_ray.settings import load_yaml, packaged, without_password
from mnist_ray.settings import objectives as several
from mnist_ray.storage import RunStorage

RUN = "mnist_ray:run"  # user attribute of every trial: the run that it belongs to
SUMMARY = "mnist_ray:summary"  # user attribute of every settled trial: Record.summary()
POINT = "mnist_ray:point"  # user attribute of a trial from --points: the run that named the point, and its place in the list
AGAIN = "mnist_ray:again"  # user attribute of a trial that tries another's values again: the other's number
SOURCE = "mnist_ray:source"  # user attribute of a trial that --warm-start took over: the study that it is from, and its number there
PURPOSE = "mnist_ray:purpose"  # user attribute of the study: what makes the values of its trials comparable

Space = Callable[[optuna.Trial], dict[str, Any]]

# ---- storage

ALLOWED = "sqlite:///FILE, postgresql://…, mysql://…, redis://…, FILE.journal or memory"
# kind of database, which is also the extra of this package that is needed, and the module that speaks to it
DRIVERS = {"sqlite": "sqlite3", "postgresql": "psycopg2", "mysql": "pymysql", "redis": "redis"}
ALIASES = {"postgres": "postgresql", "mariadb": "mysql", "rediss": "redis"}
SCHEMES = {*DRIVERS, *ALIASES}
PATIENCE = 120.0  # seconds that a server may be away, as for a restart


@contextlib.contextmanager
def opened(place: str, flag: str = "--study") -> Iterator[BaseStorage]:
    """Optuna's storage at a URL, a FILE.journal or "memory"; ${VAR} in it stands for an environment variable's value.

    A server may be away for PATIENCE seconds; after that every call raises WorkError, one line without password.
    Raises SettingsError naming the flag where the place is unknown, its driver is missing or nothing answers there.
    """
    url = expanded(place, flag)
    shown = without_password(url)
    scheme, separator, rest = url.partition("://")
    kind, _, driver = scheme.partition("+")
    kind = ALIASES.get(kind, kind) if separator else ""

    def refuse(why: str) -> NoReturn:
        raise SettingsError(f"{flag}: {shown} cannot be opened: {why}")

    if url == "memory":
        yield InMemoryStorage()
    elif url.endswith(".journal") and not separator:
        yield _journal_file(Path(url), refuse)
    elif kind not in DRIVERS or (kind == "sqlite" and rest in ("", "/", "/:memory:")):
        raise SettingsError(f"{flag}: {shown!r} is not allowed; expected {ALLOWED}")
    else:
        if not driver and importlib.util.find_spec(DRIVERS[kind]) is None:
            refuse(f"the package {DRIVERS[kind]} is missing; pip install 'mnist_ray[{kind}]'")
        if kind == "redis":
            storage: BaseStorage = _redis(url, refuse)
        else:
            storage = _sql(
                url if kind == "sqlite" else f"{kind}+{driver or DRIVERS[kind]}://{rest}", refuse
            )
        try:
            yield cast(BaseStorage, Patient(storage, shown))
        finally:
            if isinstance(storage, RDBStorage):
                storage.engine.dispose()


def expanded(place: str, flag: str) -> str:
    """The text with ${VAR} replaced by environment variables; SettingsError where one is missing, or the password is."""

    def value(match: re.Match) -> str:
        if match[1] not in os.environ:
            raise SettingsError(
                f"{flag}: {without_password(place)}: the environment variable {match[1]} is not set"
            )
        return os.environ[match[1]]

    if ":***@" in place:
        raise SettingsError(
            f"{flag}: the password of {place} is kept nowhere: give it again, best as ${{VAR}} of the environment"
        )
    return re.sub(r"\$\{(\w+)\}", value, place)


def _journal_file(path: Path, refuse: Callable[[str], NoReturn]) -> BaseStorage:
    if not path.parent.is_dir():
        refuse("its folder does not exist")
    try:
        return journal_file(path)
    except (OSError, ValueError, KeyError, TypeError) as error:
        refuse(f"it is no journal of Optuna's: {_first_line(error)}")


def journal_file(path: Path) -> JournalStorage:
    """The journal in a local file, made if there is none. What a full disk or a killed process left of its last line is cut off."""
    lock = JournalFileOpenLock(str(path))
    log = _FileLog(str(path), lock_obj=lock)
    if _torn(path.read_bytes()):
        with get_lock_file(lock), path.open("r+b") as file:  # nobody writes now
            content = file.read()
            if _torn(content):
                file.truncate(content.rfind(b"\n") + 1)
    return JournalStorage(log)


def _torn(content: bytes) -> bool:
    """Whether it is a journal without the end of its last line."""
    beginning = b'{"op_code"'
    return (
        content != b""
        and not content.endswith(b"\n")
        and content[: len(beginning)] == beginning[: len(content)]
    )


class _FileLog(JournalFileBackend):
    """Optuna's, naming the file where it cannot be written, and waiting for the disk less often.

    Optuna's waits for it (fsync) after each parameter: a dozen times a trial, 2 ms each and more. Here a trial is on the disk, all of it,
    before it is handed out (`on_disk`), after each epoch, and when it has ended. A killed process loses nothing either way: what has
    been written is the operating system's.
    """

    LATER = (
        JournalOperation.CREATE_TRIAL,
        JournalOperation.SET_TRIAL_PARAM,
        JournalOperation.SET_TRIAL_USER_ATTR,
        JournalOperation.SET_TRIAL_SYSTEM_ATTR,
    )

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        lines = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs)
        with self._named(), get_lock_file(self._lock), open(self._file_path, "ab") as file:
            file.write(lines.encode())
            file.flush()
            if any(log["op_code"] not in self.LATER for log in logs):
                os.fsync(file.fileno())

    def sync(self) -> None:
        with self._named(), open(self._file_path, "ab") as file:
            os.fsync(file.fileno())

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise WorkError(f"cannot write {self._file_path}: {error.strerror or error}") from error


def on_disk(study: optuna.Study) -> None:
    """Returns when what was written to the study's journal is on the disk. WorkError where that fails. (Servers see to it themselves.)"""
    backend = getattr(study._storage, "_backend", None)
    if isinstance(backend, _FileLog):
        backend.sync()


class _RedisLog(JournalRedisBackend):
    """The journal alone: Optuna's snapshots are pickles, and whoever writes to the server could run code here."""

    def load_snapshot(self) -> None:
        return None

    def save_snapshot(self, snapshot: bytes) -> None:
        pass


def _redis(url: str, refuse: Callable[[str], NoReturn]) -> BaseStorage:
    import redis

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return JournalStorage(_RedisLog(url))
    except (redis.exceptions.RedisError, ValueError, OSError) as error:
        refuse(_first_line(error))


def _sql(url: str, refuse: Callable[[str], NoReturn]) -> RDBStorage:
    from sqlalchemy.exc import ArgumentError, SQLAlchemyError

    options: dict[str, Any] = {
        "pool_pre_ping": True
    }  # connections that a restarted server has forgotten are replaced
    if url.startswith("sqlite"):
        options["connect_args"] = {"timeout": 60}  # seconds to wait for another process that writes
    for attempt in range(5):
        try:
            return RDBStorage(url, engine_kwargs=options)
        except (
            ArgumentError,
            ImportError,
            RuntimeError,
            ValueError,
        ) as error:  # RuntimeError: tables of another version of Optuna's
            refuse(_first_line(error))
        except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
            # Of two searches that start on an empty database both make the tables, and one fails.
            if attempt == 4:
                refuse(_first_line(error))
            time.sleep(0.3)
    raise AssertionError


class Patient:
    """A storage on a server that may be away for a while: every call is repeated until it answers.

    Not to be pickled: it knows the password.
    """

    def __init__(self, storage: BaseStorage, shown: str) -> None:
        # As Optuna does it for a URL: with a cache of the trials that have ended.
        self._storage, self._shown = optuna.storages.get_storage(storage), shown

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._storage, name)
        return functools.partial(self._patiently, attribute) if callable(attribute) else attribute

    def __reduce__(self) -> NoReturn:
        raise TypeError("a study's storage must not be pickled: it may hold a password")

    def _patiently(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        start, pause = time.monotonic(), 0.1
        repeated = False
        while True:
            try:
                return call(*args, **kwargs)
            except optuna.exceptions.UpdateFinishedTrialError:
                if not repeated:
                    raise
                return True  # it had arrived the first time, and only the answer was lost
            except Exception as error:
                away, failed = _server_away(error), _server_failed(error)
                if not (away or failed):
                    raise
                if not away or time.monotonic() - start > PATIENCE:
                    says = "does not answer" if away else "cannot be written or read"
                    raise WorkError(
                        f"the study at {self._shown} {says}: {_first_line(error)}"
                    ) from None
            repeated = True
            time.sleep(pause)
            pause = min(2 * pause, 5)


def _server_away(error: BaseException) -> bool:
    from sqlalchemy.exc import InterfaceError, OperationalError

    kinds: tuple[type[BaseException], ...] = (OperationalError, InterfaceError)
    if importlib.util.find_spec("redis"):
        from redis.exceptions import ConnectionError as NoConnection
        from redis.exceptions import TimeoutError as NoAnswer

        kinds += (NoConnection, NoAnswer)
    return isinstance(error, kinds) or isinstance(
        error.__cause__, kinds
    )  # Optuna wraps those of a commit


def _server_failed(error: BaseException) -> bool:
    from sqlalchemy.exc import SQLAlchemyError

    kinds: tuple[type[BaseException], ...] = (
        SQLAlchemyError,
        optuna.exceptions.StorageInternalError,
    )
    if importlib.util.find_spec("redis"):
        from redis.exceptions import RedisError

        kinds += (RedisError,)
    return isinstance(error, kinds)


def _first_line(error: BaseException) -> str:
    """What the driver said, without the SQL statement that SQLAlchemy adds."""
    text = str(getattr(error, "orig", None) or getattr(error.__cause__, "orig", None) or error)
    return next((line.strip() for line in text.splitlines() if line.strip()), type(error).__name__)


# ---- the right study


def open_study(
    storage: BaseStorage,
    name: str,
    metric: str,
    sampler: optuna.samplers.BaseSampler,
    pruner: optuna.pruners.BasePruner | None = None,
    purpose: Mapping[str, Any] | None = None,
    objectives: Sequence[str] = (),
) -> optuna.Study:
    """The study of that name, made if there is none. Raises SettingsError where it is another's (see check_study).

    purpose: what is compared in it (data set, space, metric, …), noted in a new study and compared with an old one's.
    objectives: names of objectives.py where it is to have several; () for the metric alone.
    """
    study = optuna.create_study(
        storage=storage,
        study_name=name,
        sampler=sampler,
        pruner=pruner or optuna.pruners.NopPruner(),
        load_if_exists=True,
        directions=_directions(metric, objectives),
    )
    check_study(study, metric, purpose, objectives=objectives)
    if objectives and not study.metric_names:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            study.set_metric_names(list(objectives))
    if purpose and PURPOSE not in study.user_attrs:
        study.set_user_attr(PURPOSE, dict(purpose))
    if isinstance(study.pruner, optuna.pruners.HyperbandPruner):
        # It lays out its brackets when it is first asked; until then the sampler would be shown other trials than after a resume.
        study.pruner.prune(study, optuna.trial.create_trial(state=TrialState.RUNNING))
    return study


def existing(storage: BaseStorage, name: str) -> optuna.Study | None:
    """The study of that name, or None."""
    try:
        return optuna.load_study(
            study_name=name, storage=storage, sampler=optuna.samplers.RandomSampler()
        )
    except KeyError:
        return None


def check_study(
    study: optuna.Study,
    metric: str,
    purpose: Mapping[str, Any] | None = None,
    space: Space | None = None,
    objectives: Sequence[str] = (),
) -> None:
    """SettingsError where the study optimises the other way, was made for another purpose, or its trials contradict the space."""
    name = study.study_name
    directions = [d.name.lower() for d in study.directions]
    wanted = _directions(metric, objectives)
    if directions != wanted and (objectives or len(directions) > 1):
        here = ",".join(objectives) or metric
        raise SettingsError(
            f"--objectives: {here} is to {', '.join(wanted)}, but study {name!r} is to {', '.join(directions)} already; "
            "give another --study-name"
        )
    if directions != wanted:
        raise SettingsError(
            f"--metric: {metric} is to {_direction(metric)}, but study {name!r} is to {', '.join(directions)} already"
        )
    noted = study.user_attrs.get(PURPOSE, {})
    if purpose and noted and noted != purpose:
        differing = ", ".join(
            f"{key}={noted.get(key)!r}" for key in purpose if noted.get(key) != purpose[key]
        )
        raise SettingsError(
            f"--study-name: study {name!r} is there already for {differing}, unlike this search; give another name"
        )
    if space:
        check_space(name, study.get_trials(deepcopy=False), space)


def check_space(name: str, trials: Sequence[FrozenTrial], space: Space) -> None:
    """SettingsError where the trials of study `name` were suggested from other ranges than the space has."""
    found: dict[str, set[str]] = {}
    for trial in trials:
        for parameter, distribution in trial.distributions.items():
            found.setdefault(parameter, set()).add(distribution_to_json(distribution))
    if not found:
        return
    known = ranges(space)
    if not found.keys() & known.keys():
        raise SettingsError(
            f"--space: study {name!r} knows none of the parameters of this space, but {', '.join(sorted(found)[:5])}"
        )
    for parameter in sorted(found.keys() & known.keys()):
        # A define-by-run space may give one name several ranges; the study's need not be among those that were met here.
        if found[parameter].isdisjoint(known[parameter]):
            here, there = (json_to_distribution(min(each[parameter])) for each in (known, found))
            raise SettingsError(
                f"--space: {parameter!r} is {there} in study {name!r}, but {here} in this space; give another --study-name"
            )


def ranges(space: Space, samples: int = 50) -> dict[str, set[str]]:
    """Each parameter that random suggestions meet, with its distributions as JSON."""
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    result: dict[str, set[str]] = {}
    for _ in range(samples):
        trial = study.ask()
        space(trial)
        for parameter, distribution in trial.distributions.items():
            result.setdefault(parameter, set()).add(distribution_to_json(distribution))
    return result


def check_run(study: optuna.Study, run: str) -> None:
    """SettingsError where a run of that name, unlike the one that begins now, has trials in the study."""
    if any(trial.user_attrs.get(RUN) == run for trial in study.get_trials(deepcopy=False)):
        raise SettingsError(
            f"--name: a run {run!r} has trials in study {study.study_name!r} already; give another --name or --study-name"
        )


def check_alone(study: optuna.Study, run: str) -> None:
    """SettingsError where other searches have trials in the study."""
    trials = [trial for trial in study.get_trials(deepcopy=False) if SOURCE not in trial.user_attrs]
    others = sorted({trial.user_attrs.get(RUN, "unknown") for trial in trials} - {run})
    if others:
        raise SettingsError(
            f"--deterministic: study {study.study_name!r} has trials of {others[0]!r}; give a --study-name of its own"
        )


def _directions(metric: str, objectives: Sequence[str]) -> list[several.Direction]:
    return several.directions(objectives) if objectives else [_direction(metric)]


def _direction(metric: str) -> Literal["minimize", "maximize"]:
    return "minimize" if metric == "val_loss" else "maximize"


# ---- a run's trials


def ask(
    study: optuna.Study, attributes: Mapping[str, Any], values: Mapping[str, Any]
) -> optuna.Trial:
    """study.ask() for a trial that has its attributes, and values that are given, from its first moment on.

    Optuna's own way, to queue the values and to ask, is no good where a study is shared: whatever waits in it is taken by the next that
    asks, which may be another search, and on SQLite by two at once.
    """
    template = optuna.trial.create_trial(
        state=TrialState.RUNNING,
        user_attrs=dict(attributes),
        system_attrs={"fixed_params": dict(values)} if values else {},
    )
    study._thread_local.cached_all_trials = (
        None  # as study.ask does: the sampler must see what others have done
    )
    return optuna.Trial(
        study, study._storage.create_new_trial(study._study_id, template_trial=template)
    )


def read_trials(
    study: optuna.Study, run: str, metric: str | None = None
) -> list[tuple[FrozenTrial, Record]]:
    """The run's trials in a study, with what the study knows of them. metric: the run's; a study with one objective tells it itself."""
    pairs = []
    for frozen in study.get_trials(deepcopy=False):
        if frozen.user_attrs.get(RUN) != run:
            continue
        summary: Mapping[str, Any] = frozen.user_attrs.get(SUMMARY, {})
        record = Record(
            frozen.number,
            dict(frozen.params),
            state=frozen.state.name if frozen.state.is_finished() else "RUNNING",
            reason=summary.get("reason", ""),
            n_parameters=summary.get("n_parameters"),
            latency_ms=summary.get("latency_ms"),
            exploits=summary.get("exploits", []),
            node=summary.get("node", ""),
            rows=rows_from(summary),
        )
        if not summary:  # cut off: of its epochs the study has the metric alone
            empty = dict.fromkeys(HISTORY, math.nan)
            metric = metric or (
                "val_loss" if study.direction.name == "MINIMIZE" else "val_accuracy"
            )
            record.rows = {
                e: {**empty, "epoch": e, metric: v} for e, v in several.curve(frozen).items()
            }
        pairs.append((frozen, record))
    return pairs


def close_interrupted(study: optuna.Study, frozen: FrozenTrial, record: Record) -> None:
    """A trial that a killed run left RUNNING without a checkpoint: FAIL in the study, with the reason."""
    record.state, record.reason = "FAIL", INTERRUPTED
    trial = optuna.Trial(study, frozen._trial_id)
    trial.set_user_attr(SUMMARY, record.summary())
    study.tell(trial, state=TrialState.FAIL)


def to_try_again(study: optuna.Study, run: str) -> list[tuple[int, dict[str, Any]]]:
    """Number and values of the run's interrupted trials that no other trial has taken up yet."""
    trials = study.get_trials(deepcopy=False)
    again = {trial.user_attrs.get(AGAIN) for trial in trials}
    return [
        (trial.number, {**trial.system_attrs.get("fixed_params", {}), **trial.params})
        for trial in trials
        if trial.user_attrs.get(RUN) == run
        and trial.user_attrs.get(SUMMARY, {}).get("reason") == INTERRUPTED
        and trial.number not in again
    ]


# ---- points


def read_points(path: str, space: Space) -> list[dict[str, Any]]:
    """The configurations of a YAML file: a list of mappings from parameters, by their suggested names, to values.

    A point may leave parameters out: the sampler suggests those. Raises SettingsError naming file and point where a name is unknown
    to the space or a value is outside its range.
    """
    points = load_yaml(packaged(path), f"--points: {path}")
    if (
        not isinstance(points, list)
        or not points
        or not all(isinstance(p, dict) and p for p in points)
    ):
        raise SettingsError(
            f"--points: {path}: expected a list of mappings from parameters to values"
        )
    return [
        _checked(f"--points: {path}: point {i}", point, space)
        for i, point in enumerate(points, start=1)
    ]


def _checked(where: str, point: dict[Any, Any], space: Space) -> dict[str, Any]:
    """The point with its values in the space's types."""
    sampler = optuna.samplers.RandomSampler(seed=0)
    study = optuna.create_study(sampler=sampler)
    result: dict[str, Any] = {}
    met: dict[str, BaseDistribution] = {}
    for _ in range(50):  # what is left out may decide which parameters there are
        study.enqueue_trial({str(k): v for k, v in point.items()})
        trial = study.ask()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # values out of range are refused below
            try:
                space(trial)
            except (ValueError, TypeError, KeyError) as error:
                raise SettingsError(f"{where}: {_first_line(error)}") from error
        met |= trial.distributions
        for name in trial.distributions.keys() & point.keys():
            result[name] = _value(f"{where}: {name}", point[name], trial.distributions[name])
        if point.keys() <= result.keys():
            return {name: result[name] for name in point}
    unknown = sorted(map(str, point.keys() - result.keys()))
    raise SettingsError(
        f"{where}: unknown parameter {unknown[0]!r}; with the point's other values the space has {', '.join(sorted(met))}"
    )


def _value(where: str, value: Any, distribution: BaseDistribution) -> Any:
    try:
        internal = distribution.to_internal_repr(value)
        inside = distribution._contains(internal)
    except (ValueError, TypeError):
        inside = False
    if not inside or (
        isinstance(value, bool) and isinstance(distribution, FloatDistribution | IntDistribution)
    ):
        raise SettingsError(f"{where}: {value!r} is not allowed; expected {distribution}")
    return distribution.to_external_repr(internal)


def remaining_points(
    study: optuna.Study, run: str, points: Sequence[dict[str, Any]]
) -> list[tuple[int, dict[str, Any]]]:
    """The points, with their places in the list, that the run has not tried yet, in this process or an earlier one."""
    tried = {
        tuple(trial.user_attrs[POINT])
        for trial in study.get_trials(deepcopy=False)
        if POINT in trial.user_attrs
    }
    return [(i, point) for i, point in enumerate(points) if (run, i) not in tried]


# ---- warm start


def older_trials(
    text: str, metric: str, purpose: Mapping[str, Any], space: Space, objectives: Sequence[str] = ()
) -> list[FrozenTrial]:
    """The finished trials of the run or study that --warm-start names, each with SOURCE as its only attribute.

    Where the older search differs in its images or epochs, its curves must not be compared with this one's: then only complete trials
    are returned, without intermediate values. Raises SettingsError where data set, space or metric are others.
    """
    flag = "--warm-start"
    place, _, name = text.rpartition("#") if "#" in text else (text, "", "")
    with _older_study(place, name, flag) as study:
        name = study.study_name
        noted = study.user_attrs.get(PURPOSE, {})
        same = {
            key: purpose[key]
            for key in ("dataset", "space", "metric", "objectives")
            if key in purpose
        }
        check_study(study, metric, None, space, objectives)
        for key, value in same.items():
            if noted.get(key, value) != value:
                raise SettingsError(
                    f"{flag}: study {name!r} is for {key}={noted[key]!r}, unlike this search with {value!r}"
                )
        comparable = not noted or noted == purpose
        label = f"{without_password(place)}#{name}"
        return [
            optuna.trial.create_trial(
                state=trial.state,
                values=trial.values,
                params=trial.params,
                distributions=trial.distributions,
                intermediate_values=trial.intermediate_values if comparable else {},
                user_attrs={SOURCE: [label, trial.number]},
            )
            for trial in study.get_trials(
                states=(TrialState.COMPLETE, TrialState.PRUNED)
                if comparable
                else (TrialState.COMPLETE,)
            )
            if trial.params
        ]


@contextlib.contextmanager
def _older_study(place: str, name: str, flag: str) -> Iterator[optuna.Study]:
    if (
        place.partition("://")[0].partition("+")[0] in SCHEMES
        or place.endswith(".journal")
        or place.startswith("${")
    ):
        if place.endswith(".journal") and "://" not in place and not Path(place).is_file():
            raise SettingsError(f"{flag}: {place}: there is no such file")
        with opened(place, flag) as storage:
            yield _named(storage, name, without_password(place), flag)
        return
    run = RunStorage(place)
    if not run.exists("run.json"):
        raise SettingsError(
            f"{flag}: {place!r} is neither a run's directory nor a study's place ({ALLOWED})"
        )
    settings = run.read_json("run.json").get("settings", {})
    if settings.get("study"):
        raise SettingsError(
            f"{flag}: the run's study is at {settings['study']}: give that, with #STUDY_NAME behind it"
        )
    with temporary_folder("mray-study-") as folder:
        copy = (
            folder / "study.journal"
        )  # a copy, also of a local one: nothing is written beside an older run
        copy.write_bytes(run.read_bytes("study.journal"))
        with opened(str(copy), flag) as storage:
            yield _named(
                storage, name or settings.get("study_name") or settings.get("name", ""), place, flag
            )


def _named(storage: BaseStorage, name: str, shown: str, flag: str) -> optuna.Study:
    names = optuna.get_all_study_names(storage)
    study = existing(storage, name or names[0]) if name or len(names) == 1 else None
    if study is None:
        raise SettingsError(
            f"{flag}: give one of the studies at {shown} as #STUDY_NAME; it has {', '.join(sorted(names)) or 'none'}"
        )
    return study


def take_over(study: optuna.Study, trials: Sequence[FrozenTrial]) -> int:
    """Adds older trials that the study does not have yet; how many."""
    known = {
        tuple(trial.user_attrs[SOURCE])
        for trial in study.get_trials(deepcopy=False)
        if SOURCE in trial.user_attrs
    }
    new = [trial for trial in trials if tuple(trial.user_attrs[SOURCE]) not in known]
    study.add_trials(new)
    return len(new)
