"""README and docs as text: their blocks of code and their commands."""

import re
from pathlib import Path

from tests.support import ROOT

PAGES: dict[Path, str] = {
    path: path.read_text(encoding="utf-8")
    for path in (
        *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")),
        *sorted((ROOT / "docs").rglob("*.md")),
    )
    if path.is_file()
}


def blocks(language: str, text: str) -> list[str]:
    """The blocks of that language."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def example(words: str) -> str:
    """The only Python block of all pages with these words."""
    [found] = [code for text in PAGES.values() for code in blocks("python", text) if words in code]
    return found


def commands(text: str) -> list[str]:
    """Each command line of a page's shell blocks, without its comment."""
    found = "".join(blocks("bash", text)).replace("\\\n", " ").splitlines()
    return [re.sub(r"\s+#.*", "", line).strip() for line in found if line.strip()]
