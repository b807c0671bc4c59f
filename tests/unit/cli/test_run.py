"""The command `run`: what a signal does, and what is warned of at the start."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Self

import pytest

from bridge.cli import run
from bridge.cli.run import _preflight, _serve
from bridge.errors import KestraUnavailable
from bridge.kestra import Kestra
from bridge.telemetry import health
from bridge.telemetry.tracing import Tracer
from tests.support.harness import settings_of
from tests.support.memory_kestra import MemoryKestra
from tests.support.replica import World, settings_for_a_test
from tests.support.standin import Standin

HTTP_PORT = 12345


class OpenKestra(MemoryKestra):
    """A Kestra in memory that is opened and closed as the client is."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()


@contextmanager
def no_http(*_: object, **__: object) -> Iterator[int]:
    yield HTTP_PORT


@pytest.fixture
async def world(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    """What the command finds in place of RabbitMQ, Kestra and a port for HTTP."""

    async def nothing(*_: object) -> None:
        """Check nothing at the start."""

    async with World(kestra=OpenKestra()) as world:
        monkeypatch.setattr(run, "Broker", lambda _: world.broker)
        monkeypatch.setattr(run, "Kestra", lambda *_, **__: world.kestra)
        monkeypatch.setattr(health, "serve", no_http)
        monkeypatch.setattr(run, "_preflight", nothing)
        yield world


@asynccontextmanager
async def serving(world: World, **settings: Any) -> AsyncIterator[asyncio.Task[None]]:
    """The command under way, once it consumes."""
    task = asyncio.create_task(_serve(settings_for_a_test(**settings), Tracer()))
    try:
        await world.until(lambda: world.events("consuming"), "it consumes")
        yield task
    finally:
        task.cancel()
        await asyncio.wait([task])


async def test_the_start_is_logged_with_its_http_address(world: World) -> None:
    async with serving(world, http_host="::1"):
        (line,) = world.events("starting")
    assert (line["http"], line["pid"]) == (f"http://[::1]:{HTTP_PORT}", os.getpid())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_stops_it(world: World, number: signal.Signals) -> None:
    async with serving(world) as task:
        os.kill(os.getpid(), number)
        await asyncio.wait_for(task, 10)
    (line,) = world.events("stopping")
    assert (line["signal"], world.lines[-1]["event"]) == (number.name, "stopped")


async def test_a_second_signal_ends_the_process_at_once(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    codes: list[int] = []
    monkeypatch.setattr(os, "_exit", codes.append)
    world.run_until_ended()
    async with serving(world, drain_timeout=600.0):
        await world.submit("one")
        await world.running()
        os.kill(os.getpid(), signal.SIGTERM)
        await world.until(lambda: world.events("draining"), "it drains")
        os.kill(os.getpid(), signal.SIGTERM)
        await world.until(lambda: codes, "the process ends")
    assert (codes, world.events("stopping at once")[0]["in_flight"]) == ([143], 1)


async def test_what_the_doctor_would_find_is_warned_of() -> None:
    async with World() as world, Standin() as kestra, Kestra(settings_of(kestra)) as client:
        settings = settings_for_a_test(flow="test/nowhere")
        async with world.broker.session(lambda *_: None, lambda _: None, hold=1) as session:
            await _preflight(settings, client, session)
    assert "flows" in {line["check"] for line in world.events("the doctor finds")}


async def test_a_kestra_that_does_not_answer_is_no_obstacle_to_the_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def away(*_: object) -> None:
        raise KestraUnavailable("away")

    monkeypatch.setattr(run, "kestra_facts", away)
    async with (
        World() as world,
        Standin() as kestra,
        Kestra(settings_of(kestra)) as client,
        world.broker.session(lambda *_: None, lambda _: None, hold=1) as session,
    ):
        await _preflight(settings_for_a_test(), client, session)
    assert world.events("what the doctor checks was not checked")[0]["error"] == "away"
