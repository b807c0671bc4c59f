"""What the package imports is declared, and the lowest versions that are tried are those that are
declared."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import NormalizedName, canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[3]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
OPTIONAL = [text for extra in PROJECT["optional-dependencies"].values() for text in extra]
DECLARED = {
    canonicalize_name(each.name): each
    for each in map(Requirement, [*PROJECT["dependencies"], *OPTIONAL])
}


def imported(file: Path) -> set[str]:
    """The packages of others that a module imports, wherever in it."""
    nodes = list(ast.walk(ast.parse(file.read_text())))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {
        node.module
        for node in nodes
        if isinstance(node, ast.ImportFrom) and node.module and not node.level
    }
    return (
        {name.split(".")[0] for name in names}
        - set(sys.stdlib_module_names)
        - {"bridge", "opentelemetry"}
    )


def pinned(lock: str) -> dict[str, Version]:
    return {
        name: Version(version)
        for name, version in re.findall(r"(?m)^([\w.-]+)==(\S+)", (ROOT / lock).read_text())
    }


def test_what_is_imported_is_declared() -> None:
    names = set().union(*map(imported, (ROOT / "bridge").rglob("*.py")))
    distributions = {
        canonicalize_name(each) for name in names for each in packages_distributions()[name]
    }
    assert distributions - set(DECLARED) == set()


@pytest.mark.parametrize("name", DECLARED)
def test_a_dependency_has_a_lower_bound_and_is_tried_with_it(name: NormalizedName) -> None:
    (lowest,) = [each.version for each in DECLARED[name].specifier if each.operator == ">="]
    assert pinned("requirements-lowest.lock")[name] == Version(lowest)


@pytest.mark.parametrize("name", ["aiormq", "pamqp"])
def test_no_later_series_than_was_tried_is_allowed_of_what_is_patched(name: str) -> None:
    tried = pinned("requirements.lock")[name]
    assert not DECLARED[canonicalize_name(name)].specifier.contains(f"{tried.major + 1}.0")
