"""The page's parts: tables, figures and pictures as values, and the templates that show them.

The templates escape everything that is not Markup, so text of a run's files is never HTML.
"""

import base64
import gzip
import hashlib
import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import jinja2
import numpy as np
import plotly.graph_objects as go
from jinja2.utils import htmlsafe_json_dumps
from markupsafe import Markup
from PIL import Image
from plotly.io.json import to_json_plotly
from plotly.offline import get_plotlyjs, get_plotlyjs_version

from mnist_ray.export.session import confidence_interval

# Nothing is loaded from anywhere, and only the two scripts of this file run.
POLICY = (
    "default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'; "
    "script-src {scripts}; base-uri 'none'; form-action 'none'"
)
# Traces that plotly.js draws with WebGL, whose code it compiles with Function.
COMPILED = re.compile(r'"type": ?"(parcoords|splom|\w+gl)"')
BLUE, ORANGE, GREY = "#2f6fd0", "#eb8a3a", "#8f9bb0"


class Number(str):
    """Text that a table aligns like a number."""


@dataclass
class Table:
    """A table. `label` is its name in a screen reader; `whole`: shown without scrolling."""

    label: str
    header: Sequence[Any]
    rows: Sequence[Sequence[Any]]
    whole: bool = False

    @property
    def columns(self) -> list[tuple[Any, bool]]:
        """Each title, and whether its first cell is a number."""
        first: Sequence[Any] = self.rows[0] if self.rows else [""] * len(self.header)
        return [(title, aligned(cell)) for title, cell in zip(self.header, first, strict=True)]


@dataclass
class Figure:
    """One figure of the page, and the table that has its numbers for readers without JavaScript."""

    key: str
    title: str
    figure: go.Figure
    caption: str
    table: Table | None = None  # None: the table of all trials has its numbers
    summary: str = ""  # the line that opens the table
    height: int = 380  # CSS pixels
    min_width: int = 0

    @property
    def json(self) -> Markup:
        """Data and layout for a script element; colours of text and grid come with the page."""
        described = self.figure.to_plotly_json()
        described["layout"].pop("template", None)
        return htmlsafe_json_dumps(described, dumps=to_json_plotly)


@dataclass
class Picture:
    """An inline PNG, shown at that many CSS pixels."""

    source: str
    alt: str
    width: int
    height: int


def picture(pixels: np.ndarray, alt: str, width: int, height: int) -> Picture:
    """Uint8 [H, W] or [H, W, 3] as a Picture."""
    sink = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(sink, "PNG", optimize=True)
    data = base64.b64encode(sink.getvalue()).decode()
    return Picture(f"data:image/png;base64,{data}", alt, width, height)


# ---- values as text


def aligned(value: Any) -> bool:
    """Whether a table aligns the value like a number."""
    return value is None or (
        isinstance(value, int | float | Number) and not isinstance(value, bool)
    )


def shown(value: Any) -> Any:
    """Floats shortened, None and NaN as a dash, all else as it is."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.4g}" if isinstance(value, float) else value


def percent(share: float | None, digits: int = 2) -> Number:
    """0.9972 -> "99.72 %", with a space at which no line breaks."""
    return Number("–" if share is None or math.isnan(share) else f"{100 * share:.{digits}f}\u00a0%")


def count(n: int) -> Number:
    """12345 -> "12,345"."""
    return Number(f"{n:,}")


def span(seconds: float) -> Number:
    """A duration in words: "12.3 s", "4 min 05 s", "2 h 03 min"."""
    if seconds < 60:
        return Number(f"{seconds:.1f}\u00a0s")
    minutes, rest = divmod(round(seconds), 60)
    hours = f"{minutes // 60} h {minutes % 60:02d} min"
    words = f"{minutes} min {rest:02d} s" if minutes < 60 else hours
    return Number(words.replace(" ", "\u00a0"))


def interval(right: int, n: int) -> str:
    """Wilson's 95 % interval: "98.95 % to 99.31 %"."""
    return " to ".join(map(percent, confidence_interval(right, n)))


# ---- templates


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("mnist_ray.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for function in (shown, percent, count, span):
        environment.filters[function.__name__] = function
    environment.tests["aligned"] = aligned
    environment.globals["interval"] = interval
    return environment


def render(template: str, **values: Any) -> Markup:
    """A file of templates/ with these values."""
    return Markup(_environment().get_template(template).render(values))


@cache
def _plotly() -> tuple[str, str, str]:
    """plotly.js gzipped in base64 (1.9 MB instead of 4.8), its hash for the policy, its version."""
    source = get_plotlyjs().encode()
    packed = base64.b64encode(gzip.compress(source, 9, mtime=0)).decode()
    return packed, _hash(source), get_plotlyjs_version()


def _hash(script: bytes) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script).digest()).decode()}'"


def page(title: str, body: Markup) -> str:
    """The whole file."""

    def source(name: str) -> str:
        loader = _environment().loader
        assert loader is not None
        return loader.get_source(_environment(), name)[0]

    packed, plotly_hash, version = _plotly()
    script = source("page.js")
    allowed = [_hash(script.encode()), plotly_hash]
    if COMPILED.search(body):
        allowed.append("'unsafe-eval'")
    return render(
        "page.html",
        title=title,
        body=body,
        policy=Markup(POLICY.format(scripts=" ".join(allowed))),
        style=Markup(source("page.css")),
        script=Markup(script),
        packed=packed,
        version=version,
    )
