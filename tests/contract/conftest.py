"""Whom the contract is tried with: Kestra's engine and the stand-in, of each series, or a server
that is given."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import get_args

import pytest

from deploy.local.kestra_engine import Engine
from tests.contract.flows import Series
from tests.support.given import Server, given
from tests.support.standin import Standin

ENGINES: dict[Series, str] = {"1.3": "1.3.31", "2.0": "2.0.0"}
"""The versions of the engines that are built here."""

StandinOf = Callable[[str], Server]


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "series(name): what only a server of that series does")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Each test that asks for a `server` runs once for each kind of server, unless it says itself
    for which."""
    if {"server", "exchange"} & set(metafunc.fixturenames) == {"server"}:
        mark = metafunc.definition.get_closest_marker("series")
        kinds = kinds_of_servers(metafunc.config, mark.args[0] if mark else None)
        metafunc.parametrize("server", kinds, indirect=True, scope="package")


def kinds_of_servers(config: pytest.Config, only: Series | None) -> list[object]:
    """The kinds of servers that a test of that series, or of any, is for."""
    server = given(config)
    if server is None:
        wanted = [one for one in get_args(Series) if only in (None, one)]
        return [kind for one in wanted for kind in (f"engine-{one}", f"standin-{ENGINES[one]}")]
    if only in (None, server.series):
        return ["given"]
    return [
        pytest.param(
            "given", marks=pytest.mark.skip(f"only {only} does so, and this is {server.version}")
        )
    ]


@pytest.fixture(scope="session")
def standin_of() -> Iterator[StandinOf]:
    """Stand-ins by their versions, each started when a test first needs it."""
    with ExitStack() as stack:
        started: dict[str, Server] = {}

        def shared(version: str) -> Server:
            if version not in started:
                started[version] = stack.enter_context(_standin(version))
            return started[version]

        yield shared


@contextmanager
def _standin(version: str) -> Iterator[Server]:
    """A stand-in on a thread and an event loop of its own, so that it outlives a single test."""
    ready: queue.SimpleQueue[tuple[Server, asyncio.AbstractEventLoop, asyncio.Event]] = (
        queue.SimpleQueue()
    )

    async def serve() -> None:
        stop = asyncio.Event()
        async with Standin(version=version) as kestra:
            server = Server(
                url=kestra.url, username=kestra.username, password=kestra.password, version=version
            )
            ready.put((server, asyncio.get_running_loop(), stop))
            await stop.wait()

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    server, loop, stop = ready.get(timeout=10)
    yield server
    loop.call_soon_threadsafe(stop.set)
    thread.join(timeout=10)


@pytest.fixture(scope="package")
def server(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    standin_of: StandinOf,
) -> Iterator[Server]:
    kind, _, version = request.param.partition("-")
    if kind == "given":
        server = given(request.config)
        assert server is not None
        yield server
    elif kind == "standin":
        yield standin_of(version)
    else:
        with Engine(tmp_path_factory.mktemp("kestra"), series=version) as running:
            own = {"url": running.url, "username": running.username, "password": running.password}
            yield Server(**own, version=ENGINES[version])
