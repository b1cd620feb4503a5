"""Changes of Ray's private parts that the cluster needs; tune/patches.py has those of Tune."""

import contextlib
import functools
import signal
import threading
from collections.abc import Iterator
from typing import Any

import ray
from ray import _raylet
from ray._private import parameter, ray_constants, utils
from ray._private.node import Node


@contextlib.contextmanager
def any_agent_port() -> Iterator[None]:
    """Lets ray.init give the agent that starts jobs any free port.

    Reason: with the default port (52365) the agent ends if another Ray of this machine has it,
    and jobs are then refused with "No available agent"; ray.init has no argument for it.
    Upstream: no issue known; `ray start` has `--dashboard-agent-listen-port`.
    Seen on: Ray 2.60.0.
    No longer needed when: test_ray_init_has_no_argument_for_the_agents_port fails.
    """
    plain = parameter.RayParams
    parameter.RayParams = functools.partial(plain, dashboard_agent_listen_port=0)
    try:
        yield
    finally:
        parameter.RayParams = plain


def read_token_again() -> None:
    """Has Ray read RAY_AUTH_MODE and RAY_AUTH_TOKEN_PATH again.

    Reason: it reads them once, when it is imported; a notebook has imported it long before.
    Upstream: the same two calls, in this order, are in Ray's authentication_test_utils.
    Seen on: Ray 2.60.0.
    No longer needed when: ray.init takes a token, or reads the environment.
    """
    raylet: Any = _raylet  # compiled, and without types
    raylet.Config.initialize("")
    raylet.AuthenticationTokenLoader.instance().reset_cache()


@contextlib.contextmanager
def same_sigterm() -> Iterator[None]:
    """Keeps the handler of SIGTERM, which ray.init replaces by its own.

    Reason: a caller's handlers are not ours to change; Ray's would end this process without a word
    and with exit code 15 for as long as Ray starts.
    Upstream: no issue known; ray.init has no argument for it.
    Seen on: Ray 2.60.0.
    No longer needed when: ray.init leaves the handler alone.
    """
    handler, plain = signal.getsignal(signal.SIGTERM), utils.set_sigterm_handler
    utils.set_sigterm_handler = lambda handler: None
    try:
        yield
    finally:
        utils.set_sigterm_handler = plain
        if threading.current_thread() is threading.main_thread() and handler is not None:
            signal.signal(signal.SIGTERM, handler)


def shutdown() -> None:
    """ray.shutdown, in which SIGTERM still reaches its handler, and which is a second quicker.

    Reason: it takes Ray's own handlers away in C++, and with them Python's: a SIGTERM in the
    seconds in which the processes are ended, or later, kills this process without a word. And it
    waits a second for the autoscaler's process, which does not heed SIGTERM, before it kills it; a
    Ray that was started here has nothing to scale.
    Upstream: no issue known.
    Seen on: Ray 2.60.0.
    No longer needed when: SIGTERM is in SigCgt of /proc/self/status after ray.shutdown, and that
        takes less than a second.
    """
    plain = Node.kill_all_processes

    def kill_all_processes(self: Node, *args: Any, **options: Any) -> None:
        _catch_again()
        for each in self.all_processes.get(ray_constants.PROCESS_TYPE_MONITOR, ()):
            each.process.kill()
        plain(self, *args, **options)

    Node.kill_all_processes = kill_all_processes
    try:
        ray.shutdown()
    except KeyboardInterrupt:
        # Else Ray goes on with it when Python exits, and makes its session's folder again.
        ray.shutdown()
        raise
    finally:
        Node.kill_all_processes = plain
        _catch_again()


def _catch_again() -> None:
    handler = signal.getsignal(signal.SIGTERM)
    if threading.current_thread() is threading.main_thread() and handler is not None:
        signal.signal(signal.SIGTERM, handler)
