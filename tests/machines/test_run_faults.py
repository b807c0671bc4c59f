"""A run under faults that take shorter waits than the command's: a silent machine, a refused user,
a dead helper."""

from __future__ import annotations

import asyncio
import getpass
import signal
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from bridge.machines.identity import SshIdentity
from bridge.machines.policy import SshPolicy
from bridge.machines.run.remote_run import RemoteRun
from bridge.machines.run.report import ScriptOutcome
from bridge.machines.run.results import ResultsFolder
from bridge.machines.run.work import Work, environment_of
from bridge.machines.ssh import Address, ConnectionLost, LoginDenied
from deploy.local.paths import free_port
from tests.machines.test_run import MARK, NAME, PATIENCE, SECRET, Machine, end, pytestmark
from tests.support.harness import Proxy, eventually

__all__ = ["pytestmark"]


POLICY = SshPolicy(keepalive=0.5)


class Memory:
    """Output that is kept."""

    def __init__(self) -> None:
        self.content = b""

    async def write(self, data: bytes) -> None:
        self.content += data

    async def flush(self) -> None:
        pass


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    machine = Machine(tmp_path, free_port())
    try:
        machine.start()
        yield machine
    finally:
        machine.end()


def remote(
    machine: Machine,
    script: str,
    out: Memory,
    *,
    port: int | None = None,
    reconnect: float = PATIENCE,
    policy: SshPolicy = POLICY,
    **fields: Any,
) -> RemoteRun:
    identity = SshIdentity.derive(SECRET, NAME)
    address = Address(
        name=NAME,
        host="127.0.0.1",
        port=port or machine.port,
        user=getpass.getuser(),
        identity=identity,
    )
    work = Work(run_id=NAME, script=script.encode(), environment=environment_of([], {}), **fields)
    return RemoteRun(
        address,
        work,
        out=out,
        err=Memory(),
        boot_timeout=PATIENCE,
        reconnect=reconnect,
        policy=policy,
        results_folder=ResultsFolder(machine.directory / "results"),
    )


def sessions(machine: Machine) -> list[psutil.Process]:
    assert machine.server
    return psutil.Process(machine.server.pid).children()


def freeze(processes: list[psutil.Process]) -> None:
    for process in processes:
        # One that served a connection may have ended with it just now.
        with suppress(psutil.NoSuchProcess):
            process.suspend()


class Late(Proxy):
    """A machine so busy that what it says first comes some time after it has accepted a
    connection."""

    async def _open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        await asyncio.sleep(0.3)
        return await super()._open()


async def test_a_machine_whose_every_banner_comes_later_than_several_connections_is_waited_for(
    machine: Machine,
) -> None:
    policy = replace(POLICY, banner_pause=0.005)
    async with Late("127.0.0.1", machine.port) as late:
        run = remote(machine, "exit 3", Memory(), port=late.port, policy=policy)
        report = await run.run_to_end()
    assert report.code == 3


class Counted(Proxy):
    """Counts the connections to a machine."""

    count = 0

    async def _open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        self.count += 1
        return await super()._open()


async def test_a_run_costs_a_machine_one_connection(machine: Machine) -> None:
    async with Counted("127.0.0.1", machine.port) as counted:
        await remote(machine, "true", Memory(), port=counted.port).run_to_end()
    assert counted.count == 1


async def test_a_user_that_is_refused_for_longer_than_a_boot_may_explain_is_denied(
    machine: Machine,
) -> None:
    policy = replace(POLICY, denied_grace=0.1)
    (machine.directory / "authorized_keys").write_text("")
    with pytest.raises(LoginDenied, match="refuses user"):
        await remote(machine, "true", Memory(), policy=policy).run_to_end()


async def test_a_machine_that_freezes_is_lost_after_some_silence(machine: Machine) -> None:
    out = Memory()
    assert machine.server
    running = asyncio.create_task(
        remote(machine, f"echo started; exec sleep {MARK}", out, reconnect=2).run_to_end()
    )
    await eventually(lambda: out.content, "the script's start", timeout=PATIENCE)
    machine.server.signal(signal.SIGSTOP)
    freeze(sessions(machine))

    with pytest.raises(ConnectionLost, match="not regained in 2 s"):
        await asyncio.wait_for(running, PATIENCE)


async def test_a_connection_that_freezes_is_replaced(machine: Machine) -> None:
    out = Memory()
    running = asyncio.create_task(
        remote(
            machine, "echo started; until [ -e go ]; do sleep 0.05; done; exit 6", out
        ).run_to_end()
    )
    await eventually(lambda: out.content, "the script's start", timeout=PATIENCE)
    freeze(sessions(machine))
    (machine.work() / "go").touch()

    assert (await asyncio.wait_for(running, PATIENCE)).code == 6
    assert out.content == b"started\n"


async def test_a_follower_that_is_killed_on_the_machine_is_replaced(machine: Machine) -> None:
    out = Memory()
    script = f"echo started; until [ -e go ]; do sleep 0.05; done; sleep {MARK} & kill $!; exit 6"
    running = asyncio.create_task(remote(machine, script, out).run_to_end())
    await eventually(lambda: out.content, "the script's start", timeout=PATIENCE)
    followers = [process for session in sessions(machine) for process in session.children()]
    end(followers)
    (machine.work() / "go").touch()

    assert followers
    assert (await asyncio.wait_for(running, PATIENCE)).code == 6
    assert out.content == b"started\n"


async def test_cancelling_between_two_connections_stops_the_script_as_well(
    machine: Machine,
) -> None:
    out = Memory()
    run = remote(machine, f"echo started; exec sleep {MARK}", out)
    running = asyncio.create_task(run.run_to_end())
    await eventually(lambda: out.content, "the script's start", timeout=PATIENCE)
    machine.drop()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(running, PATIENCE)

    assert (run.stopped, machine.processes(MARK)) == (True, [])


@pytest.mark.parametrize(("exit_code", "code"), [(0, 73), (5, 5)])
async def test_results_that_can_not_be_written_hide_no_exit_code(
    machine: Machine, exit_code: int, code: int
) -> None:
    (machine.directory / "results").write_text("a file where the folder should be")
    script = f"echo x >r; exit {exit_code}"
    report = await remote(machine, script, Memory(), results=("r",)).run_to_end()
    assert (report.code, report.missing) == (code, ("'r': it can't be written here (File exists)",))


@pytest.mark.parametrize(
    ("exit_code", "code", "outcome"), [(0, 74, ScriptOutcome.LOST), (5, 5, ScriptOutcome.EXITED)]
)
async def test_a_machine_that_is_lost_with_its_results_hides_no_failure_of_the_script(
    machine: Machine, exit_code: int, code: int, outcome: ScriptOutcome
) -> None:
    script = f"head -c 300M /dev/zero >big; exit {exit_code}"
    run = remote(machine, script, Memory(), reconnect=1, results=("big",))
    running = asyncio.create_task(run.run_to_end())
    partial = (machine.directory / "results").glob
    await eventually(
        lambda: list(partial(".partial-*")), "the results are being fetched", timeout=PATIENCE
    )
    machine.vanish()
    report = await asyncio.wait_for(running, PATIENCE)
    assert (report.code, report.outcome) == (code, outcome)
    assert "was lost and not regained in 1 s" in report.message


async def test_a_host_key_of_the_image_s_own_is_waited_out(tmp_path: Path) -> None:
    port = free_port()
    image, machine = (Machine(tmp_path / name, port, name=name) for name in ("image", NAME))
    try:
        image.directory.mkdir()
        machine.directory.mkdir()
        image.start()
        running = asyncio.create_task(remote(machine, "exit 3", Memory()).run_to_end())
        log = image.directory / "sshd.log"
        await eventually(
            lambda: "Connection closed" in log.read_text(), "the other key", timeout=PATIENCE
        )
        image.vanish()
        machine.start()
        assert (await asyncio.wait_for(running, PATIENCE)).code == 3
    finally:
        image.end()
        machine.end()
