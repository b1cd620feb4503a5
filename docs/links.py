"""A hook of mkdocs: a link to a file of the repository, outside docs/, becomes that file's name."""

import re
from typing import Any


def on_page_markdown(markdown: str, **_: Any) -> str:
    return re.sub(r"\[([^\]]+)\]\((?:\.\./)+([^)]+)\)", _named, markdown)


def _named(link: re.Match[str]) -> str:
    text, path = link[1], link[2]
    if path.endswith(".md") and not path.startswith(("benchmarks/", "README", "CHANGELOG")):
        return link[0]  # from one folder of docs to another
    return f"`{path}`" if text == path else f"{text} (`{path}`)"
