"""Every link and every file name in a README or in the runbook leads to something that exists."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy.local.paths import REPOSITORY
from tests.support.documents import (
    FOLDERS,
    anchors,
    broken,
    documents,
    modules,
    name_of,
    relative_links,
)

MOST_BYTES = 8 * 1024
READMES = (
    "README.md",
    "CHANGELOG.md",
    "bridge/README.md",
    "bridge/operate/README.md",
    "bridge/settings/README.md",
    "deploy/README.md",
    "deploy/SIZING.md",
    "deploy/kubernetes/README.md",
    "deploy/prometheus/RUNBOOK.md",
    "flows/README.md",
    "tests/README.md",
)


@pytest.mark.parametrize("name", READMES)
def test_a_reader_finds_a_document_where_the_reader_is(name: str) -> None:
    assert REPOSITORY / name in documents()


def test_the_first_page_is_short() -> None:
    assert len((REPOSITORY / "README.md").read_bytes()) <= MOST_BYTES


@pytest.mark.parametrize("document", documents(), ids=name_of)
def test_every_relative_link_leads_to_a_file_and_a_heading(document: Path) -> None:
    links = relative_links(document.read_text())
    assert [why for link in links if (why := broken(link, document=document))] == []


@pytest.mark.parametrize("name", [name for name in READMES if name != "README.md"])
def test_the_first_page_leads_to_every_other(name: str) -> None:
    """In at most two steps."""
    seen = {REPOSITORY / "README.md"}
    for _ in range(2):
        for document in list(seen):
            targets = [link.partition("#")[0] for link in relative_links(document.read_text())]
            found = {(document.parent / target).resolve() for target in targets if target}
            seen |= {path for path in found if path.suffix == ".md"}
    assert REPOSITORY / name in seen


@pytest.mark.parametrize("document", documents(), ids=name_of)
def test_every_python_file_that_is_named_exists(document: Path) -> None:
    ours = [
        f"/{name_of(path)}" for folder in FOLDERS for path in (REPOSITORY / folder).rglob("*.py")
    ]
    named = modules(document.read_text())
    assert [name for name in named if not any(path.endswith(f"/{name}") for path in ours)] == []


@pytest.mark.parametrize(
    ("link", "why"),
    [
        ("README.md#run-it", "README.md#run-it: there is no such heading"),
        ("OTHER.md", "OTHER.md: there is no such file"),
        ("#run-it", "#run-it: there is no such heading"),
        ("README.md#what-it-costs-", None),
        ("#what-it-costs-", None),
        (".", None),
    ],
)
def test_a_link_that_leads_nowhere_would_be_found(
    tmp_path: Path, link: str, why: str | None
) -> None:
    document = tmp_path / "README.md"
    document.write_text("# `Top`\n## What it costs …\n```sh\n# run it\n```\n")
    assert broken(link, document=document) == why


def test_an_anchor_is_made_as_github_makes_it() -> None:
    text = "# Use `it`, with your *own* [server](x.md)\n## What must stay true\n"
    assert anchors(text) == {"use-it-with-your-own-server", "what-must-stay-true"}


def test_only_links_within_the_repository_are_checked() -> None:
    text = "[a](b.md#c) [d](https://example.org) [`e`](../f)\n```\n[g](h.md)\n```\n"
    assert relative_links(text) == ["b.md#c", "../f"]
