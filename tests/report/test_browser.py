"""The report in a browser with the network off."""

import dataclasses
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("plotly", reason="the extra `report` is not installed")
pytest.importorskip("matplotlib", reason="the extra `report` is not installed")

from mnist_ray import report
from tests.support.browser import chromium, wait_for
from tests.support.report_runs import Tables, write_run

# Of each figure: its name, the size of its drawing, and how many marks (lines, points, bars,
# areas) are in it.
MARKS = """() => [...document.querySelectorAll("figure.chart")].map((figure) => {
  const box = figure.querySelector(".plot svg.main-svg").getBoundingClientRect();
  const marks = figure.querySelectorAll(
    ".scatterlayer path, .barlayer path, .contourlayer path, .cartesianlayer .hm image");
  return [figure.id, box.width, box.height, marks.length];
})"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as browser:
        yield browser


@dataclasses.dataclass
class Seen:
    """A page in the browser, and what it said and asked for meanwhile."""

    page: Any
    messages: list[str]
    requests: list[str]


@pytest.fixture
def show(browser: Any, tmp_path: Path) -> Iterator[Callable[..., Seen]]:
    """Opens a report; `before` is a script that runs ahead of the page's own."""
    contexts = []

    def open_page(html: str, width: int = 1280, before: str = "", **options: Any) -> Seen:
        file = tmp_path / "report.html"
        file.write_text(html)
        context = browser.new_context(
            viewport={"width": width, "height": 900}, offline=True, **options
        )
        contexts.append(context)
        page = context.new_page()
        seen = Seen(page, [], [])
        # A graphics driver's remarks on its own speed are not the page's.
        page.on(
            "console",
            lambda m: (
                None
                if "GL Driver Message" in m.text
                else seen.messages.append(f"{m.type}: {m.text}")
            ),
        )
        page.on("pageerror", lambda error: seen.messages.append(f"error: {error}"))
        page.on("request", lambda request: seen.requests.append(request.url[:60]))
        if before:
            page.add_init_script(before)
        page.goto(file.as_uri())
        return seen

    yield open_page
    for context in contexts:
        context.close()


@pytest.mark.parametrize(
    ("width", "options"),
    [(1280, {}), (390, {"color_scheme": "dark", "has_touch": True, "is_mobile": True})],
)
def test_browser_draws_every_figure(
    page: str, show: Callable[..., Seen], width: int, options: dict[str, Any]
) -> None:
    seen = show(page, width, **options)
    seen.page.wait_for_selector("html[data-drawn]", timeout=60_000)
    figures = seen.page.evaluate(MARKS)
    assert len(figures) == len(re.findall("<figure class=chart", page))
    for name, shown_width, height, marks in figures:
        assert shown_width > 200, name
        assert height > 100, name
        assert marks > 0, name
    assert seen.messages == []
    assert [url for url in seen.requests if not url.startswith(("file:", "data:", "blob:"))] == []
    assert seen.page.evaluate("document.documentElement.scrollWidth") == width
    assert seen.page.locator("details[open]").count() == 0
    colour = "getComputedStyle(document.querySelector('.xtick text')).fill"
    first = seen.page.evaluate(colour)
    seen.page.emulate_media(color_scheme="light" if options else "dark")
    wait_for(seen.page, f"{colour} !== '{first}'", 20)
    assert seen.messages == []


def test_browser_without_javascript_has_the_tables(page: str, show: Callable[..., Seen]) -> None:
    seen = show(page, java_script_enabled=False)
    tables = seen.page.locator("table")
    assert tables.count() == len(Tables(page).tables)
    assert all(tables.nth(i).is_visible() for i in range(tables.count()))
    assert not seen.page.locator(".plot").first.is_visible()
    assert seen.page.locator("img").first.is_visible()


def test_browser_that_cannot_draw_has_the_tables(page: str, show: Callable[..., Seen]) -> None:
    seen = show(page, before="delete window.DecompressionStream")
    seen.page.wait_for_selector("html.failed")
    assert seen.page.locator("details:not([open])").count() == 0
    assert not seen.page.locator(".plot").first.is_visible()
    assert len(seen.messages) == 1
    assert "cannot be drawn" in seen.messages[0]


def test_browser_runs_no_other_script(tmp_path: Path, show: Callable[..., Seen]) -> None:
    """Should HTML ever slip through the templates, the page's policy stops its scripts."""
    page = report.build([write_run(tmp_path / "first")])
    evil = "<script>window.ran = 1</script><img src=x onerror='window.ran = 2'>"
    seen = show(page.replace("<body>", f"<body>{evil}<p onclick='window.ran = 3'>click</p>"))
    seen.page.wait_for_selector("html[data-drawn]", timeout=60_000)
    seen.page.get_by_text("click", exact=True).click()
    assert seen.page.evaluate("window.ran") is None
    assert sum("Content Security Policy" in message for message in seen.messages) >= 3


@pytest.mark.slow
def test_browser_draws_a_thousand_trials(tmp_path: Path, show: Callable[..., Seen]) -> None:
    seen = show(report.build([write_run(tmp_path / "thousand", n=1000)]))
    seen.page.wait_for_selector("html[data-drawn]", timeout=120_000)
    assert all(marks for *_, marks in seen.page.evaluate(MARKS))
    assert seen.messages == []
