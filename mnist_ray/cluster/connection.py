"""The Ray that a job runs on: joined, or started and stopped again."""

import contextlib
import os
import secrets
import socket
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mnist_ray.cluster.resources import Cluster, environment
from mnist_ray.errors import SettingsError, WorkError, printable
from mnist_ray.processes import clock, temporary_folder
from mnist_ray.settings import masked

ANSWER_SECONDS = 5.0  # in which a Ray that is joined must answer
SOCKET_ROOM = 43  # characters of a folder in which Ray's sockets stay below 107


def quiet_ray() -> None:
    """Sets Ray's environment, before it is imported: no noise, nothing sent, no needless files."""
    for name, value in {
        "RAY_AIR_NEW_OUTPUT": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "RAY_CHDIR_TO_TRIAL_DIR": "0",
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
        # Everything is on storage at every moment: an interrupt can end at once.
        "TUNE_DISABLE_SIGINT_HANDLER": "1",
        "TUNE_GLOBAL_CHECKPOINT_S": "3600",  # --resume does not read Tune's own snapshots
        "TUNE_WARN_THRESHOLD_S": "10",
    }.items():
        os.environ.setdefault(name, value)


def running() -> bool:
    """Whether there is a cluster to join: at RAY_ADDRESS, or one of this machine that answers."""
    address = os.environ.get("RAY_ADDRESS")
    if address:
        return address != "local"
    try:
        _reach(_noted()[0])
    except (OSError, ValueError):
        return False
    return True


def _noted() -> tuple[str, int]:
    """The address of this machine's Ray by Ray's note, and the user who wrote the note.

    All users share the place. Raises OSError if there is no note, ValueError if it is no text.
    """
    folder = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
    with Path(folder, "ray", "ray_current_cluster").open() as note:
        return note.read().strip(), os.fstat(note.fileno()).st_uid


def _reach(address: str) -> None:
    """Raises OSError if nothing listens, ValueError if it is not HOST:PORT."""
    host, _, port = address.rpartition(":")
    socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_SECONDS).close()


def _to_join() -> tuple[str, bool]:
    """HOST:PORT of the Ray to join, and whether this machine's note named it: RAY_ADDRESS did not.

    Ray itself may find another one than that of the note.

    Raises:
        SettingsError: RAY_ADDRESS is of another kind; or the note's Ray is another user's, and
            would run our code.
        WorkError: nothing answers: ray.init would try for 14 minutes.
    """
    address = os.environ.get("RAY_ADDRESS") or "auto"
    given = f"RAY_ADDRESS={masked(address)}"
    if noted := address == "auto":
        try:
            address, owner = _noted()
        except (OSError, ValueError) as error:
            raise WorkError(
                f"Ray cannot be joined: {given}, and no Ray runs on this machine; "
                "unset it, or RAY_ADDRESS=local starts one"
            ) from error
        shown = printable(address)
        if owner != os.getuid():
            raise SettingsError(
                f"RAY_ADDRESS: the Ray at {shown} is of user {owner}, not yours; "
                f"RAY_ADDRESS=local starts one of your own, RAY_ADDRESS={shown} joins that one"
            )
        given += f", {shown}"
    if "://" in address:
        raise SettingsError(
            f"{given}: expected HOST:PORT of a Ray head; "
            "a job server's address belongs in RAY_API_SERVER_ADDRESS"
        )
    try:
        _reach(address)
    except ValueError as error:
        raise SettingsError(f"{given}: expected HOST:PORT of a Ray head") from error
    except OSError as error:
        raise WorkError(
            f"Ray cannot be joined: nothing answers at {given} "
            f"({error.strerror or error}); unset it, or RAY_ADDRESS=local starts a Ray here"
        ) from error
    return address, noted


@contextlib.contextmanager
def connected(verbose: bool) -> Iterator[Cluster]:
    """Joins the cluster at RAY_ADDRESS or on this machine; if there is none, starts one.

    One that is started has its job server on loopback; at the end it is stopped and its session
    folder removed.

    Raises:
        SettingsError, WorkError: no Ray can be joined or started.
    """
    options: dict[str, Any] = {"log_to_driver": verbose}
    if not verbose:
        options["logging_level"] = "ERROR"
    with contextlib.ExitStack() as stack:
        folder = None
        to_join: tuple[str | None, bool] = (None, False)
        if _is_connected():
            pass  # a notebook's: it is used, and left as it is
        elif running():
            to_join = _to_join()
        else:  # a folder of its own, so that all of it can be removed
            print("starting Ray on this machine", flush=True)
            folder = stack.enter_context(temporary_folder("mray-", longest=SOCKET_ROOM))
            stack.enter_context(_token(folder / "auth_token"))
        with clock("starting Ray") if folder else contextlib.nullcontext():
            from mnist_ray.cluster import joined  # noqa: PLC0415 (Ray's environment)

            connection = joined.start(options, folder) if folder else joined.join(options, *to_join)
            found = stack.enter_context(connection)
        yield found


def _is_connected() -> bool:
    ray = sys.modules.get("ray")
    return ray is not None and ray.is_initialized()


@contextlib.contextmanager
def _token(file: Path) -> Iterator[None]:
    """Has Ray ask for a token, unless this person's environment sets its mode."""
    if "RAY_AUTH_MODE" in os.environ:
        yield
        return
    file.write_text(secrets.token_hex(32))
    file.chmod(0o600)
    try:
        with environment(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN_PATH=str(file)):
            _read_token_again()
            yield
    finally:
        _read_token_again()


def _read_token_again() -> None:
    from mnist_ray.cluster import patches  # noqa: PLC0415 (Ray's environment)

    patches.read_token_again()
