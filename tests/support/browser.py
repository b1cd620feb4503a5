"""Chromium without a network, for the tests of pages."""

import contextlib
import shutil
import time
from collections.abc import Iterator
from typing import Any

import pytest

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-sync",
    "--disable-background-networking",
    "--disable-component-update",
    # All names but this machine's fail to resolve: no network, whatever the machine has.
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
]


@contextlib.contextmanager
def chromium() -> Iterator[Any]:
    """A playwright Browser; the test is skipped where there is none."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        pytest.skip("chromium is not installed")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, args=FLAGS)
        yield browser
        browser.close()


def wait_for(page: Any, condition: str, timeout: float = 60, arg: Any = None) -> None:
    """Until the JavaScript expression is true.

    Playwright's own wait_for_function needs eval in the page, which the pages' policies forbid.
    """
    deadline = time.monotonic() + timeout
    while not page.evaluate(condition, arg):
        assert time.monotonic() < deadline, f"never true: {condition}"
        time.sleep(0.05)
