"""Changes of Ray's private parts that the cluster needs; tune/patches.py has those of Tune."""

import contextlib
import functools
from collections.abc import Iterator

from ray._private import parameter


@contextlib.contextmanager
def any_agent_port() -> Iterator[None]:
    """Lets ray.init give the agent that starts jobs any free port.

    Reason: with the default port (52365) the agent ends where another Ray of this machine has it,
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
