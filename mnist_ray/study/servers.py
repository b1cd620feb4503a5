"""A study on a server: PostgreSQL, MySQL or Redis, and SQLite, which is reached in the same way.

A server may be away for PATIENCE seconds. After that every call raises WorkError, one line without
the password.
"""

import contextlib
import copy
import functools
import time
import uuid
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NoReturn, cast

import optuna
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalRedisBackend
from optuna.trial import FrozenTrial, TrialState, create_trial
from sqlalchemy import exc

from mnist_ray.errors import WorkError, first_line
from mnist_ray.settings import scrubbed
from mnist_ray.study.optuna_private import trial_id_of

try:
    import redis
    import redis.backoff
    import redis.retry
except ImportError:  # the extra `redis`
    redis = None  # type: ignore[assignment]

PATIENCE = 120.0  # seconds that a server may be away, as for a restart
MARK = "mnist_ray:asked"  # system attribute: an id of the request that made the trial

AWAY: tuple[type[BaseException], ...] = (exc.OperationalError, exc.InterfaceError)
FAILED: tuple[type[BaseException], ...] = (
    exc.SQLAlchemyError,
    optuna.exceptions.StorageInternalError,
)
if redis is not None:
    AWAY += (redis.exceptions.ConnectionError, redis.exceptions.TimeoutError)
    FAILED += (redis.exceptions.RedisError,)

Refuse = Callable[[str], NoReturn]


@contextlib.contextmanager
def opened(url: str, shown: str, refuse: Refuse) -> Iterator[BaseStorage]:
    """The storage at a URL; shown: the URL without its password. `refuse` raises for the caller."""
    if url.startswith("redis"):
        yield cast(BaseStorage, Patient(_redis(url, refuse), url, shown))
        return
    storage = _sql(url, refuse)
    try:
        yield cast(BaseStorage, Patient(storage, url, shown))
    finally:
        storage.engine.dispose()


class _RedisLog(JournalRedisBackend):
    """The journal alone. Optuna's snapshots are pickles (optuna pull request 4102).

    Anyone who writes to the server could run code here.
    """

    def __init__(self, url: str) -> None:
        super().__init__(url)
        # The client repeats what was not answered: a line of the journal would stand there twice.
        self._redis = redis.Redis.from_url(
            url, retry=redis.retry.Retry(redis.backoff.NoBackoff(), 0)
        )

    def load_snapshot(self) -> None:
        return None

    def save_snapshot(self, snapshot: bytes) -> None:
        pass


def _redis(url: str, refuse: Refuse) -> BaseStorage:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return JournalStorage(_RedisLog(url))
    except (redis.exceptions.RedisError, ValueError, OSError) as error:
        refuse(_message(error))


def _sql(url: str, refuse: Refuse) -> RDBStorage:
    # Connections that a restarted server has forgotten are replaced.
    options: dict[str, Any] = {"pool_pre_ping": True}
    if url.startswith("sqlite"):
        options["connect_args"] = {"timeout": 60}  # seconds to wait for another process that writes
    for attempt in range(5):
        try:
            return RDBStorage(url, engine_kwargs=options)
        except (exc.ArgumentError, ImportError, RuntimeError, ValueError) as error:
            refuse(_message(error))  # RuntimeError: tables of another version of Optuna's
        except FAILED as error:
            # Of two searches that start on an empty database both make the tables, and one fails.
            if attempt == 4:
                refuse(_message(error))
            time.sleep(0.3)
    raise AssertionError


class Patient:
    """A storage on a server that may be away: every call is repeated until it answers.

    It cannot be pickled, since it knows the password.
    """

    def __init__(self, storage: BaseStorage, url: str, shown: str) -> None:
        # As Optuna does it for a URL: with a cache of the trials that have ended.
        self._storage, self._shown = optuna.storages.get_storage(storage), shown
        self._url = url

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._storage, name)
        return functools.partial(self._patiently, attribute) if callable(attribute) else attribute

    def __reduce__(self) -> NoReturn:
        raise TypeError("a study's storage must not be pickled: it may hold a password")

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        """As a storage's. A trial that was made, though the answer was lost, is not made again."""
        mark = uuid.uuid4().hex
        template = copy.copy(template_trial or create_trial(state=TrialState.RUNNING))
        template.system_attrs = {**template.system_attrs, MARK: mark}
        asked: list[bool] = []

        def create() -> int:
            if asked:
                for trial in self._storage.get_all_trials(study_id, deepcopy=False):
                    if trial.system_attrs.get(MARK) == mark:
                        return trial_id_of(trial)
            asked.append(True)
            return self._storage.create_new_trial(study_id, template_trial=template)

        return int(self._patiently(create))

    def _patiently(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        start, pause, repeated = time.monotonic(), 0.1, False
        while True:
            try:
                return call(*args, **kwargs)
            except optuna.exceptions.UpdateFinishedTrialError:
                if not repeated:
                    raise
                return True  # it had arrived the first time, and only the answer was lost
            except Exception as error:
                away = _is_away(error)
                if not (away or isinstance(error, FAILED)):
                    raise
                if not away or time.monotonic() - start > PATIENCE:
                    says = "does not answer" if away else "cannot be written or read"
                    why = scrubbed(_message(error), self._url)
                    raise WorkError(f"the study at {self._shown} {says}: {why}") from None
            repeated = True
            time.sleep(pause)
            pause = min(2 * pause, 5)


def _is_away(error: BaseException) -> bool:
    return isinstance(error, AWAY) or isinstance(error.__cause__, AWAY)  # a commit's are wrapped


def _message(error: BaseException) -> str:
    """The driver's message in a line, without the SQL statement that SQLAlchemy adds."""
    driver = getattr(error, "orig", None) or getattr(error.__cause__, "orig", None)
    return first_line(driver or error)
