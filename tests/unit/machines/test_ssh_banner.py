"""The wait for a machine's SSH banner, on real sockets."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import pytest

from bridge.errors import MachineUnavailable
from bridge.machines.lifecycle import Machines
from bridge.machines.machine import Machine
from bridge.machines.policy import LIFECYCLE_POLICY, LifecyclePolicy
from bridge.machines.ssh_banner import BannerWait, NoBannerError, next_after
from deploy.local.paths import free_port
from tests.unit.machines.support import settings, use_memory

BANNER = b"SSH-2.0-x\r\n"


Answer = Callable[[asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def serving(answer: Answer) -> AsyncIterator[int]:
    """The port of a server that answers each connection so, and closes it."""
    tasks: set[asyncio.Task[None]] = set()

    async def serve(writer: asyncio.StreamWriter) -> None:
        try:
            await answer(writer)
        finally:
            writer.close()
            with suppress(OSError):  # of a client that has hung up
                await writer.wait_closed()

    def accept(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.create_task(serve(writer)))

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def late(writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(0.2)
    writer.write(BANNER)


async def silent(_: asyncio.StreamWriter) -> None:
    await asyncio.Event().wait()


def saying(text: bytes) -> Answer:
    async def say(writer: asyncio.StreamWriter) -> None:
        writer.write(text)

    return say


async def look_at(port: int) -> bytes:
    """Wait for a banner there on one connection; returns what can be read from that."""
    async with BannerWait(60, shortest=60, age=0) as wait:
        with await wait.once("127.0.0.1", port) as connection:
            return connection.recv(100)


async def machine_at(
    monkeypatch: pytest.MonkeyPatch,
    port: int,
    *,
    boot_timeout: float,
    policy: LifecyclePolicy = LIFECYCLE_POLICY,
) -> tuple[Machines, Machine]:
    """A provider's one machine, which is reached at that port."""
    use_memory(monkeypatch).port = port
    machines = Machines(
        settings(machine_provider="memory", machine_boot_timeout=boot_timeout), policy
    )
    return machines, await machines.create("3xAbC", "job", 600)


@pytest.mark.parametrize(
    ("waited", "age", "seconds"),
    [
        (0.0, 0.0, 0.25),
        (1.0, 1.5, 0.25),
        (3.0, 4.0, 0.5),
        (0.0, 4.0, 0.5),
        (0.0, 1e6, 2.0),
        (0.0, math.inf, 2.0),
        (80.0, 81.0, 10.0),
    ],
)
def test_connections_follow_each_other_as_slowly_as_the_machine_boots(
    waited: float, age: float, seconds: float
) -> None:
    assert next_after(0.25, waited=waited, age=age) == seconds


async def test_a_machine_whose_every_banner_comes_later_than_several_connections_is_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    policy = LifecyclePolicy(banner_pause=0.005)
    async with serving(late) as port:
        machines, machine = await machine_at(monkeypatch, port, boot_timeout=60, policy=policy)
        assert await machines.wait(machine) == machine


async def test_a_booted_machine_that_answers_late_gets_few_connections() -> None:
    begun = 0

    async def late_and_counted(writer: asyncio.StreamWriter) -> None:
        nonlocal begun
        begun += 1
        await asyncio.sleep(1)
        writer.write(BANNER)

    async with serving(late_and_counted) as port, BannerWait(60, shortest=0.25, age=600) as wait:
        (await wait.once("127.0.0.1", port)).close()
    assert begun == 1


@pytest.mark.parametrize("which", [1, 2])
async def test_one_answer_suffices_while_the_other_connection_still_waits(
    monkeypatch: pytest.MonkeyPatch, which: int
) -> None:
    both, waiting = asyncio.Event(), 0

    async def answer_one(writer: asyncio.StreamWriter) -> None:
        nonlocal waiting
        waiting += 1
        number = waiting
        if number == 2:
            both.set()
        await both.wait()
        if number == which:
            writer.write(BANNER)
        else:
            await silent(writer)

    # So many at once that none is over before the second one is begun.
    policy = LifecyclePolicy(banner_pause=0.5)
    async with serving(answer_one) as port:
        machines, machine = await machine_at(monkeypatch, port, boot_timeout=2.0, policy=policy)
        assert await machines.wait(machine) == machine


async def test_a_machine_that_accepts_and_says_nothing_is_given_up_at_the_boot_time_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with serving(silent) as port:
        machines, machine = await machine_at(monkeypatch, port, boot_timeout=0.1)
        with pytest.raises(MachineUnavailable, match=r"did not answer by SSH within 0\.1 s"):
            await machines.wait(machine)


async def test_the_banner_is_left_to_whoever_takes_the_connection() -> None:
    async with serving(saying(BANNER)) as port:
        assert await look_at(port) == BANNER


@pytest.mark.parametrize("said", [b"", b"SS", b"HTTP/1.1 400 Bad Request\r\n"])
async def test_anything_but_a_banner_is_not_ssh(said: bytes) -> None:
    async with serving(saying(said)) as port:
        with pytest.raises(NoBannerError, match="nothing speaks SSH there"):
            await look_at(port)


async def test_if_nothing_listens_the_reason_is_the_systems() -> None:
    with pytest.raises(NoBannerError, match=r"Connect call failed|refused"):
        await look_at(free_port())
