"""`kestra-bridge machine run` on real machines of this host: booted, looked up, frozen, killed."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest
from pydantic import SecretStr

from bridge.machines.locate import Locator
from bridge.machines.policy import SshPolicy
from bridge.machines.run.remote_run import RemoteRun
from bridge.machines.run.work import Work
from bridge.machines.settings import MachineSettings
from bridge.machines.ssh import ConnectionLost
from deploy.local import machine_image
from deploy.local.paths import REPOSITORY, free_port
from tests.machines.host import TIMEOUT
from tests.machines.test_run import DUMP, HOSTILE, SECRET, Finished, end, finish, report, serve_git
from tests.machines.test_run_faults import Memory
from tests.support.harness import eventually

BRIDGE = [sys.executable, "-m", "bridge", "machine"]
TOOLS = ("qemu-system-x86_64", "qemu-img", "mmdebstrap")

pytestmark = [
    pytest.mark.skipif(
        not all(map(shutil.which, TOOLS)), reason="QEMU or mmdebstrap isn't installed"
    ),
    pytest.mark.timeout(1200),
]


@dataclass
class Local:
    """A folder of machines, and the commands of the bridge that use it."""

    directory: Path
    git_port: int
    running: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def environment(self) -> dict[str, str]:
        kept = {key: value for key, value in os.environ.items() if not key.startswith("BRIDGE_")}
        return {
            **kept,
            "BRIDGE_MACHINE_SECRET": SECRET,
            "BRIDGE_MACHINE_PROVIDER": "qemu",
            "BRIDGE_MACHINE_DIRECTORY": str(self.directory / "machines"),
            "BRIDGE_MACHINE_REACH": json.dumps([f"127.0.0.1:{self.git_port}"]),
            "BRIDGE_MACHINE_BOOT_TIMEOUT": str(TIMEOUT),
            "PYTHONPATH": str(REPOSITORY),
        }

    def create(self, execution: str) -> None:
        command = [*BRIDGE, "create", "--execution", execution, "--deadline", "600"]
        subprocess.run(
            command, env=self.environment, check=True, timeout=TIMEOUT, stdout=subprocess.DEVNULL
        )

    def popen(self, execution: str, *arguments: str, stdin: bytes) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [*BRIDGE, "run", "--execution", execution, "--script", "-", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=self.environment,
            cwd=self.directory,
            bufsize=0,
        )
        self.running.append(process)
        assert process.stdin
        process.stdin.write(stdin)
        process.stdin.close()
        process.stdin = None
        return process

    def run(self, execution: str, script: str, *arguments: str) -> Finished:
        return finish(self.popen(execution, *arguments, stdin=script.encode()), TIMEOUT)

    def qemu(self) -> list[psutil.Process]:
        mark = f"{self.directory}/machines/"
        processes = psutil.process_iter(["name", "cmdline"])
        return [one for one in processes if any(mark in word for word in one.info["cmdline"] or ())]

    def end(self) -> None:
        for process in self.running:
            if process.poll() is None:
                process.kill()
            process.communicate()
        end(self.qemu())


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Local]:
    machine_image.image()
    local = Local(tmp_path_factory.mktemp("machines"), free_port())
    try:
        yield local
    finally:
        local.end()


@pytest.fixture(scope="module")
def machine(local: Local) -> str:
    """The execution whose machine the tests share that leave it as it is."""
    local.create("shared")
    return "shared"


@pytest.fixture
def own(local: Local) -> Iterator[Callable[[], psutil.Process]]:
    """Makes a machine for the execution `own`, and returns its process."""

    def create() -> psutil.Process:
        before = {process.pid for process in local.qemu()}
        local.create("own")
        (process,) = (one for one in local.qemu() if one.pid not in before)
        return process

    yield create
    subprocess.run(
        [*BRIDGE, "destroy", "--execution", "own"],
        env=local.environment,
        timeout=TIMEOUT,
        stdout=subprocess.DEVNULL,
        check=True,
    )


def test_a_script_runs_as_an_ordinary_user_on_the_machine_of_its_execution(
    local: Local, machine: str
) -> None:
    finished = local.run(machine, "id -un; uname -n; exit 3", "--run-id", "first")

    assert (finished.code, finished.out.splitlines()[0]) == (3, b"job")
    assert re.fullmatch(
        r"kestra-bridge: machine of execution shared: the script exited with 3 .*", finished.last
    )


def test_hostile_variables_arrive_exactly(local: Local, machine: str) -> None:
    variables = {f"V{number}": value for number, value in enumerate(HOSTILE)}
    options = [word for name, value in variables.items() for word in ("--env", f"{name}={value}")]
    finished = local.run(machine, DUMP, "--run-id", "hostile", *options)

    assert {name: json.loads(finished.out)[name] for name in variables} == variables


def test_a_branch_is_checked_out_and_its_result_comes_back(local: Local, machine: str) -> None:
    with serve_git(local.directory, local.git_port):
        url = f"git://host.internal:{local.git_port}/source"
        finished = local.run(
            machine,
            "bash job.sh >out.txt; printf '%s' $? >code",
            *("--run-id", "checkout", "--git-repository", url, "--git-branch", "feature/x"),
            *("--result", "out.txt", "--result", "code", "--results-directory", "results"),
        )

    assert finished.code == 0, finished.err
    results = local.directory / "results"
    assert ((results / "out.txt").read_bytes(), (results / "code").read_bytes()) == (
        b"from the branch\n",
        b"5",
    )


def test_at_the_time_limit_nothing_of_the_script_is_left_on_the_machine(
    local: Local, machine: str
) -> None:
    script = "sleep 4321 & setsid sleep 4321 & (trap '' TERM; sleep 4321; sleep 4321) & wait"
    stopped = local.run(machine, script, "--run-id", "limit", "--time-limit", "2", "--grace", "1")
    left = local.run(machine, "pgrep -x sleep", "--run-id", "look")

    assert (stopped.code, left.code, left.out) == (124, 1, b"")


def test_a_script_that_the_machine_s_memory_does_not_suffice_for_is_told_as_that(
    local: Local, machine: str
) -> None:
    # The kernel is to kill it early: a machine that is busy with its want is taken for lost.
    script = (
        "cat /sys/kernel/mm/lru_gen/min_ttl_ms; "
        "python3 -c 'kept = [bytes([n]) * 10_000_000 for n in range(256)]'"
    )
    finished = local.run(machine, script, "--run-id", "memory")

    assert (finished.code, finished.out) == (137, b"1000\n")
    assert "ran out of memory" in finished.last


def test_a_task_that_is_run_twice_comes_to_one_run(local: Local, machine: str) -> None:
    script = b"echo x >>../../starts; echo started; sleep 3; wc -l <../../starts; exit 7"
    first = local.popen(machine, "--run-id", "twice", stdin=script)
    assert first.stdout
    first.stdout.readline()
    first.kill()
    finished = finish(local.popen(machine, "--run-id", "twice", "--json", stdin=script), TIMEOUT)

    assert (finished.code, finished.out.splitlines()[:2]) == (7, [b"started", b"1"])
    assert report(finished)["attached"] is True


def test_a_machine_that_dies_in_mid_run_is_lost(
    local: Local, own: Callable[[], psutil.Process]
) -> None:
    machine = own()
    # It is told at once, as the host knows it: long before the end of this wait.
    longer = str(10 * TIMEOUT)
    process = local.popen("own", "--reconnect", longer, stdin=b"echo started; sleep 1000")
    assert process.stdout
    process.stdout.readline()
    machine.kill()
    finished = finish(process)

    assert (finished.code, "has ended by itself" in finished.last) == (74, True)


async def test_a_machine_that_freezes_is_lost(
    local: Local, own: Callable[[], psutil.Process]
) -> None:
    machine = own()
    settings = MachineSettings(
        machine_secret=SecretStr(SECRET),
        machine_provider="qemu",
        machine_directory=local.directory / "machines",
    )
    locator = Locator(settings=settings, execution="own")
    work, out = Work(run_id="own", script=b"echo started; sleep 1000"), Memory()
    # A keepalive that is shorter than the command's.
    run = RemoteRun(
        await locator.locate(),
        work,
        out=out,
        err=Memory(),
        boot_timeout=TIMEOUT,
        reconnect=3,
        policy=SshPolicy(keepalive=1),
    )
    running = asyncio.create_task(run.run_to_end())
    await eventually(lambda: out.content, "the script's start", timeout=TIMEOUT)
    machine.suspend()

    with pytest.raises(ConnectionLost, match="was lost and not regained in 3 s"):
        await asyncio.wait_for(running, TIMEOUT)


def test_ending_the_command_while_the_machine_is_frozen_takes_no_longer_than_it_may(
    local: Local, own: Callable[[], psutil.Process]
) -> None:
    machine = own()
    process = local.popen("own", "--grace", "1", stdin=b"echo started; sleep 1000")
    assert process.stdout
    process.stdout.readline()
    machine.suspend()
    process.send_signal(signal.SIGTERM)
    finished = finish(process)

    assert (finished.code, "could not be stopped for certain" in finished.last) == (143, True)


def test_an_execution_without_a_machine_is_reported(local: Local) -> None:
    finished = local.run("nobody", "true")

    assert (finished.code, "there is no machine of execution nobody" in finished.last) == (69, True)
