"""The page's parts as text: tables, figures, pictures, and the whole with its style and script. Everything shown is escaped here."""

import base64
import gzip
import html
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import plotly.graph_objects as go

# Nothing may be loaded from anywhere: the page is this one file. (plotly.js compiles WebGL code with Function, hence unsafe-eval.)
POLICY = "default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'; script-src 'unsafe-inline' 'unsafe-eval'; base-uri 'none'"


class Markup(str):
    """Text that is HTML already."""


class Number(str):
    """Text that is aligned as a number."""


def esc(value: Any) -> str:
    """As HTML: Markup as it is, everything else escaped, numbers shortened, None and NaN as a dash."""
    if isinstance(value, Markup):
        return value
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.4g}"
    return html.escape(str(value))


def percent(share: float | None, digits: int = 2) -> Number:
    """0.9972 -> "99.72 %", with a space that no line breaks at."""
    return Number("–" if share is None or math.isnan(share) else f"{100 * share:.{digits}f}\u00a0%")


def count(n: int) -> Number:
    """12345 -> "12,345"."""
    return Number(f"{n:,}")


def span(seconds: float) -> Number:
    """A duration in words: "12.3 s", "4 min 05 s", "2 h 03 min"."""
    if seconds < 60:
        return Number(f"{seconds:.1f}\u00a0s")
    minutes = round(seconds) // 60
    words = (
        f"{minutes} min {round(seconds) % 60:02d} s"
        if minutes < 60
        else f"{minutes // 60} h {minutes % 60:02d} min"
    )
    return Number(words.replace(" ", "\u00a0"))


def table(
    header: Sequence[Any], rows: Iterable[Sequence[Any]], label: str, kind: str = ""
) -> Markup:
    """A table that scrolls within itself; `label` is its name for those who hear the page."""

    def cell(value: Any) -> str:
        number = isinstance(value, int | float | Number) and not isinstance(value, bool)
        return (
            f"<td class=n>{esc(value)}</td>"
            if number or value is None
            else f"<td>{esc(value)}</td>"
        )

    lines = list(rows)
    first: Sequence[Any] = lines[0] if lines else [""] * len(header)
    numeric = [isinstance(v, int | float | Number) or v is None for v in first]
    head = "".join(
        f"<th scope=col{' class=n' if n else ''}>{esc(h)}</th>"
        for h, n in zip(header, numeric, strict=True)
    )
    body = "\n".join(f"<tr>{''.join(map(cell, line))}</tr>" for line in lines)
    return Markup(
        f'<div class="scroll {kind}" tabindex=0 role=region aria-label="{esc(label)}"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>\n{body}\n</tbody></table></div>"
    )


def facts(pairs: Iterable[tuple[str, Any]]) -> Markup:
    """Names and values side by side."""
    return Markup(
        "<dl>"
        + "".join(f"<dt>{esc(name)}</dt><dd>{esc(value)}</dd>" for name, value in pairs)
        + "</dl>"
    )


def numbers(summary: str, content: str) -> Markup:
    """A table behind a line to open it; open where no script runs."""
    return Markup(
        f"<details class=numbers open><summary>{esc(summary)}</summary>{content}</details>"
    )


@dataclass
class Figure:
    """One figure of the page. `numbers` is the table (or the sentence) that says the same without JavaScript."""

    key: str
    title: str
    figure: "go.Figure"
    caption: str
    numbers: str
    height: int = 380
    min_width: int = 0

    def html(self, prefix: str) -> Markup:
        key = esc(f"{prefix}figure-{self.key}")
        style = f"height:{self.height}px" + (
            f";min-width:{self.min_width}px" if self.min_width else ""
        )
        return Markup(
            f'<figure class=chart id="{key}"><h3>{esc(self.title)}</h3>'
            f'<div class=wide><div class=plot role=img aria-label="{esc(self.title)}" style="{style}"></div></div>'
            f"<script type=application/json>{_json(self.figure)}</script>"
            f"<figcaption>{esc(self.caption)}</figcaption>{self.numbers}</figure>"
        )


def _json(figure: "go.Figure") -> str:
    """The figure's data and layout as JSON that may stand inside a script element; colours of text and grid come with the page."""
    from plotly.io.json import to_json_plotly

    described = figure.to_plotly_json()
    described["layout"].pop("template", None)
    return (
        to_json_plotly(described)
        .replace("<", "\\u003c")
        .replace("\u2028", "\\u2028")
        .replace("\u2029", "\\u2029")
    )


def picture(pixels: np.ndarray, alt: str, width: int, height: int) -> Markup:
    """uint8 [H, W] or [H, W, 3] as an inline PNG, shown at that many CSS pixels."""
    from PIL import Image

    sink = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(sink, "PNG", optimize=True)
    data = base64.b64encode(sink.getvalue()).decode()
    return Markup(
        f'<img alt="{esc(alt)}" width={width} height={height} src="data:image/png;base64,{data}">'
    )


@cache
def _plotly() -> tuple[str, str]:
    """plotly.js, gzipped and as base64 (1.9 MB in place of 4.8), and its version."""
    from plotly.offline import get_plotlyjs, get_plotlyjs_version

    return base64.b64encode(
        gzip.compress(get_plotlyjs().encode(), 9, mtime=0)
    ).decode(), get_plotlyjs_version()


def page(title: str, body: str) -> str:
    """The whole file."""
    here = Path(__file__).parent
    script, version = _plotly()
    style, draw = ((here / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    return f"""<!doctype html>
<html lang=en>
<head>
<meta charset=utf-8>
<meta http-equiv=Content-Security-Policy content="{POLICY}">
<meta name=viewport content="width=device-width, initial-scale=1">
<title>{esc(title)}</title>
<style>
{style}</style>
<noscript><style>.wide, .failure {{ display: none }}</style></noscript>
</head>
<body>
{body}
<footer>Made by mnist_ray. The figures are drawn by plotly.js {esc(version)} (MIT licence), which is inside this file: nothing is loaded
from anywhere.</footer>
<script type=application/gzip id=plotly>{script}</script>
<script>
{draw}</script>
</body>
</html>
"""
