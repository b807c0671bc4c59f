"""The wait for a machine's SSH banner, by real sockets: long enough also where the host is busy,
and no longer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import pytest

from bridge.errors import MachineUnavailable
from bridge.machines import ssh_banner
from bridge.machines.lifecycle import Machine, Machines
from bridge.machines.providers import Tags
from bridge.machines.settings import MachineSettings
from bridge.machines.ssh_banner import BannerWait, NoBannerError, patience
from deploy.local.paths import free_port

SECRET = "a secret of sixteen or more"
BANNER = b"SSH-2.0-x\r\n"


Answer = Callable[[asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def serving(answer: Answer) -> AsyncIterator[int]:
    """The port of a server that does so with each connection, and closes it."""
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


def machine_at(
    monkeypatch: pytest.MonkeyPatch, port: int, *, boot_timeout: float
) -> tuple[Machines, Machine]:
    """A provider's one machine, which is reached at that port."""
    tags = Tags(owner="0" * 16, execution="3xAbC", job="", call="1" * 12, created=0, deadline=0)
    machine = Machine(
        id="1",
        name="m-1",
        state="running",
        host="127.0.0.1",
        port=port,
        user="job",
        host_key="",
        tags=tags,
        dead=False,
    )

    async def listed(_: Machines) -> list[Machine]:
        return [machine]

    monkeypatch.setattr(Machines, "all", listed)
    return Machines(
        MachineSettings(machine_secret=SECRET, machine_boot_timeout=boot_timeout)
    ), machine


@pytest.mark.parametrize(
    ("waited", "left", "seconds"),
    [
        (0.0, 300.0, 1.0),
        (4.0, 296.0, 1.0),
        (40.0, 260.0, 10.0),
        (200.0, 100.0, 50.0),
        (290.0, 10.0, 10.0),
        (0.0, 0.3, 0.3),
    ],
)
def test_an_answer_is_waited_for_the_longer_the_longer_the_wait_was_and_never_beyond_its_end(
    waited: float, left: float, seconds: float
) -> None:
    assert patience(1.0, waited, left) == seconds


async def test_a_machine_whose_every_banner_comes_later_than_the_first_wait_is_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ssh_banner, "FIRST_WAIT", 0.02)
    async with serving(late) as port:
        machines, machine = machine_at(monkeypatch, port, boot_timeout=60)
        assert await machines.wait(machine) == machine


async def test_a_machine_that_accepts_and_says_nothing_is_given_up_at_the_boot_time_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with serving(silent) as port:
        machines, machine = machine_at(monkeypatch, port, boot_timeout=0.1)
        with pytest.raises(MachineUnavailable, match=r"did not answer by SSH within 0\.1 s"):
            await machines.wait(machine)


@pytest.mark.parametrize("said", [b"", b"SS", b"HTTP/1.1 400 Bad Request\r\n"])
async def test_what_says_anything_else_speaks_no_ssh(said: bytes) -> None:
    async with serving(saying(said)) as port:
        with pytest.raises(NoBannerError, match="nothing speaks SSH there"):
            await BannerWait(60).once("127.0.0.1", port)


async def test_where_nothing_listens_the_reason_is_the_system_s() -> None:
    with pytest.raises(NoBannerError, match=r"Connect call failed|refused"):
        await BannerWait(60).once("127.0.0.1", free_port())
