"""The interface of a tracker, and the commands that show a search while it runs."""

import importlib.metadata
import re
import shlex
import shutil
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from mnist_ray.run import layout
from mnist_ray.run.best import Confirmed
from mnist_ray.run.records import Records
from mnist_ray.settings import SearchSettings, masked
from mnist_ray.storage import RunStorage

PATIENCE = 60.0  # seconds that the end of a search waits for a tracker


class Tracker(Protocol):
    """A service that a search is written to. Only one thread at a time calls it."""

    flag: str
    """The option that asks for it, as "--mlflow"."""
    viewer: str
    """A command or an address that shows it."""

    def begin(
        self, name: str, settings: Mapping[str, Any], folder: RunStorage, earlier: str | None
    ) -> str:
        """Makes the search known, or finds it again.

        Args:
            name: The run's name.
            settings: The resolved settings, without passwords.
            folder: The run's directory.
            earlier: The id that this returned to an earlier process of the same run.

        Returns:
            The id under which a later process finds the search.
        """
        ...

    def sync(self, records: Records) -> None:
        """Writes everything that is not written yet; called again after it raised anything."""
        ...

    def end(self, status: str) -> None:
        """Writes how the search ended: FINISHED, FAILED or KILLED (interrupted)."""
        ...

    def confirmed(self, found: Sequence[Confirmed]) -> None:
        """Writes what --confirm has found, the chosen trial first. Called after `end`."""
        ...

    def reason(self, error: Exception) -> str:
        """One line that says why it failed, without passwords."""
        ...


def commands(
    settings: SearchSettings,
    storage: RunStorage,
    journal: str,
    dashboard: str | None,
    trackers: Sequence[Tracker],
) -> list[str]:
    """Every way to watch a search, one line each, ready to be pasted into a shell.

    Args:
        settings: The search's settings.
        storage: The run's directory.
        journal: The study's own file, shown if `settings.study` names no other place.
        dashboard: The address of Ray's dashboard; None if there is none.
        trackers: They have begun.
    """
    shown = []
    if settings.study != "memory":
        place = with_driver(masked(settings.study)) if settings.study else journal
        shown.append(f"optuna-dashboard {quoted(place)}")
    if settings.tensorboard:
        shown.append(f"tensorboard --logdir {quoted(storage.join(layout.TENSORBOARD))}")
    shown += [tracker.viewer for tracker in trackers]
    lines = [f"watch it: {viewer}" for viewer in shown]
    return [*lines, f"Ray dashboard: {dashboard}"] if dashboard else lines


def mlflow_ui(database: str) -> str:
    """The command that shows an MLflow database.

    The extra `mlflow` installs mlflow-skinny, which has no web pages. Then `uvx` runs the full
    package of the same version, which reads the database without a migration.
    """
    arguments = f"ui --backend-store-uri {quoted(database)}"
    if _version("mlflow"):
        return f"mlflow {arguments}"
    version = _version("mlflow-skinny")
    drivers = {"postgresql": "psycopg2-binary", "mysql": "PyMySQL"}
    driver = drivers.get(re.split(r"[+:]", database)[0])
    extra = f"--with {driver} " if driver else ""
    install = "" if shutil.which("uvx") else "pip install uv && "
    return f"{install}uvx {extra}mlflow{f'@{version}' if version else ''} {arguments}"


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def with_driver(url: str) -> str:
    """The URL for SQLAlchemy, with the drivers that this package installs."""
    url = re.sub(r"^postgres(ql)?://", "postgresql+psycopg2://", url)
    return re.sub(r"^(mysql|mariadb)://", "mysql+pymysql://", url)


def quoted(text: str) -> str:
    """The text as one word of a shell, in which ${VAR} is still replaced."""
    return f'"{text}"' if "${" in text else shlex.quote(text)
