"""The documents of the repository: their headings, their links, and the files that they name."""

from __future__ import annotations

import re
from pathlib import Path

from deploy.local.paths import REPOSITORY

FOLDERS = ("bridge", "deploy", "flows", "tests")


def documents() -> list[Path]:
    """Every Markdown file, sorted."""
    below = (path for folder in FOLDERS for path in (REPOSITORY / folder).rglob("*.md"))
    return sorted([*REPOSITORY.glob("*.md"), *below])


def name_of(path: Path) -> str:
    """A document's path from the top of the repository."""
    return str(path.relative_to(REPOSITORY))


def without_blocks(text: str) -> str:
    """The text without its fenced blocks of code."""
    return re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)


def anchors(text: str) -> set[str]:
    """The fragments by which GitHub links to the headings of a document."""
    found: set[str] = set()
    for heading in re.findall(r"^#+ (.+)$", without_blocks(text), re.MULTILINE):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        found.add(re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-"))
    return found


def relative_links(text: str) -> list[str]:
    """The targets of the links in a document that lead to another file or heading."""
    links = re.findall(r"\]\(([^)\s]+)\)", without_blocks(text))
    return [link for link in links if not re.match(r"[a-z]+:", link)]


def broken(link: str, *, document: Path) -> str | None:
    """Why a relative link of a document leads nowhere; None if it leads somewhere."""
    path, _, anchor = link.partition("#")
    target = (document.parent / path).resolve() if path else document
    if not target.exists():
        return f"{link}: there is no such file"
    if anchor and anchor not in anchors(target.read_text()):
        return f"{link}: there is no such heading"
    return None


def modules(text: str) -> set[str]:
    """The names of Python files that a document mentions in backticks."""
    return set(re.findall(r"`([\w/.-]+\.py)`", text))
