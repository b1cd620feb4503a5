"""Fixtures of many rooms: an S3 server and a Ray of the tests' own."""

import faulthandler
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from mnist_ray.run import publication
from tests.support.servers import head_of, moto

# Ctrl-C is among what is tested, and a shell starts what it puts into the background deaf to it.
signal.signal(signal.SIGINT, signal.default_int_handler)

# The same examples in every run: a change is refused for its own faults. New examples come with
# `pytest --hypothesis-profile random`.
hypothesis.settings.register_profile("fixed", derandomize=True)
hypothesis.settings.register_profile("random", derandomize=False)
hypothesis.settings.load_profile("fixed")

# Files of whole jobs. They begin first, so that at the end of `make test` neither of its two
# processes waits minutes for the other.
LONGEST = (
    "search_job/test_search_job.py",
    "test_wheel.py",
    "test_kept_runs.py",
    "finetune_job/test_finetune.py",
    "test_face.py",
    "trials/test_boosting.py",
    "finetune_job/test_chain.py",
    "cluster/test_connection.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the longest files first; the others keep their order."""
    places = {Path(__file__).parent / name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path, len(places)))


def pytest_runtest_setup(item: pytest.Item) -> None:
    """A slow test may take longer than pyproject.toml's `faulthandler_timeout`."""
    if item.get_closest_marker("slow"):
        faulthandler.cancel_dump_traceback_later()


@pytest.fixture(autouse=True)
def no_second_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that is not the one of its manifest is refused at once, not after three seconds.

    The tests of a model that is being replaced set the pauses themselves.
    """
    monkeypatch.setattr(publication, "READ_AGAIN", ())


@pytest.fixture(autouse=True)
def one_thread_and_seed() -> None:
    """Torch computes in one thread, and draws the same numbers whatever tests ran before.

    A module that needs torch has imported it by now; for the others that would take seconds. What
    a fixture of a wider scope trains comes earlier: it sets both itself.
    """
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(1)
        torch.manual_seed(0)


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """A moto server in a process of its own with the empty bucket `bucket`: the URI of that bucket.

    Keys reach pyarrow through the environment, as a user's do.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "test-key")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test-secret-of-s3-server")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        patch.delenv("AWS_ENDPOINT_URL", raising=False)
        patch.delenv("AWS_ENDPOINT_URL_S3", raising=False)
        with moto("127.0.0.1") as place:
            yield f"s3://bucket?endpoint_override={place}&scheme=http"


@pytest.fixture(scope="session")
def ray_head() -> Iterator[dict[str, str]]:
    """A Ray of the tests' own: the environment that reaches it."""
    with head_of(Path(sys.executable).parent) as env:
        yield env
