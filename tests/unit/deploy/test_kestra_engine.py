"""Java learns the engine's classes once, and every start makes use of it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from deploy.local import kestra_engine
from deploy.local.kestra_engine import Engine, build

# As Java does: it records what it loads, makes a cache of the record, or runs the engine.
JAVA = """#!{python}
import signal, sys
said = dict(word.split("=", 1) for word in sys.argv if "=" in word)
print(*sys.argv, flush=True)
if said.get("-XX:AOTMode") == "create":
    open(said["-XX:AOTCache"], "w").write("learned")
    sys.exit({create})
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
print("READY here", flush=True)
signal.sigwait([signal.SIGTERM])
if said.get("-XX:AOTMode") == "record":
    open(said["-XX:AOTConfiguration"], "w").close()
    open({records!r}, "a").write("once ")
"""


@pytest.fixture
def records(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """The file in which a stand-in for Java counts its records; the parameter is the status with
    which it makes a cache."""
    records, java = tmp_path / "records", tmp_path / "jdk/bin/java"
    status = getattr(request, "param", 0)
    java.parent.mkdir(parents=True)
    java.write_text(JAVA.format(python=sys.executable, create=status, records=str(records)))
    java.chmod(0o755)
    classes = tmp_path / "cache/classes-2.0-abc"
    classes.mkdir(parents=True)
    (classes / "application.yml").touch()
    monkeypatch.setenv("KESTRA_BRIDGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(kestra_engine, "find_java", lambda: java)
    monkeypatch.setattr(kestra_engine, "_jars", lambda *_: tmp_path / "jars")
    monkeypatch.setattr(kestra_engine, "_classes", lambda *_: classes)
    return records


def command_of_a_start(directory: Path) -> str:
    with Engine(directory):
        pass
    return (directory / "engine.log").read_text().splitlines()[0]


def test_java_learns_the_engine_once(records: Path) -> None:
    build()
    build()
    assert records.read_text() == "once "


@pytest.mark.usefixtures("records")
def test_a_start_uses_what_java_has_learned(tmp_path: Path) -> None:
    assert "-XX:AOTCache=" in command_of_a_start(tmp_path / "engine")


@pytest.mark.parametrize("records", [1], indirect=True)
def test_where_java_learns_nothing_the_engine_starts_all_the_same(
    records: Path, tmp_path: Path
) -> None:
    assert "-XX:AOTCache=" not in command_of_a_start(tmp_path / "engine")
    assert build().aot is not None
    assert records.read_text() == "once "
