"""What the tests of the flows for machines stand on: a broker, Kestra's engine whose workers make
machines, bridges."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from bridge.job.execution import Execution
from bridge.kestra import parse_execution
from deploy.local.kestra_engine import AmqpAddress, Engine, Series
from deploy.local.paths import REPOSITORY, free_port
from deploy.local.rabbitmq import RabbitMQ
from tests.machines.host import TIMEOUT, Host, said_on
from tests.machines.test_run import serve_git
from tests.support.engine_stage import deploy_flows, kestra_settings
from tests.support.harness import Bridge, Client, another_bridge, eventually

pytestmark = [
    pytest.mark.skipif(
        not all(map(shutil.which, ("qemu-system-x86_64", "qemu-img", "mmdebstrap"))),
        reason="QEMU or mmdebstrap isn't installed",
    ),
    # The engine, the broker and the image are built on first use.
    pytest.mark.timeout(1800),
]

KEY = "a-key-that-nobody-guesses"
PASSWORD = "Aa0secret"
GIT_SECRET, GIT_LOGIN = "TESTS", "https://user:{{1+1}}@git.example.org"
NAMESPACE = "bridge.jobs"
PATIENCE = TIMEOUT
"""How long a job may take, or a step of one."""
EVERY_FIVE_MINUTES, HARDLY_EVER = 'cron: "*/5 * * * *"', 'cron: "0 0 1 1 *"'
HOSTILE = "$(id) `id` {{ secret('BRIDGE_WEBHOOK_KEY') }} {% if true %} \\n '\" ; exit 9 ☃"
"""On one line, and no name of a file. A variable may hold more than that."""
BRANCH, SCRIPT = "feature/$(id)`id`{{1+1}}{%if%}'\"☃", 'it\'s $(id) {{ 1 + 1 }} {% if %} "☃".sh'
REPOSITORY_NAME, RESULT = 'it\'s $(id) {{ 1 + 1 }} "☃"', "-out $(id) {{ 1 + 1 }} {% if %} '\"☃"
JOB = """\
printf '%s of %s' "$GREETING" "$(id -un)" >"$NAME"
echo the script speaks
"""
LEAVE = """
id: leave
namespace: tests.files
tasks:
  - id: leave
    type: io.kestra.plugin.scripts.shell.Commands
    taskRunner: {type: io.kestra.plugin.core.runner.Process}
    outputFiles: [left]
    commands: ["printf 'left here' >left"]
outputs:
  - {id: left, type: STRING, value: "{{ outputs.leave.outputFiles['left'] }}"}
"""


@dataclass(frozen=True)
class World:
    """What the tests of a file share."""

    rabbit: RabbitMQ
    engine: Engine
    host: Host
    git: str

    @property
    def left(self) -> tuple[list[str], list[list[str]]]:
        """What is there of machines: folders, and the processes of them and of all commands that
        deal with them."""
        return self.host.folders, [process.info["cmdline"] for process in self._processes()]

    def _processes(self) -> Iterator[psutil.Process]:
        # Whatever the workers start has their surroundings, however far it goes off, but for QEMU.
        mark = ("BRIDGE_MACHINE_DIRECTORY", str(self.host.folder))
        yield from self.host.processes
        for process in psutil.process_iter(["cmdline", "environ", "pid"]):
            ours = mark in (process.info["environ"] or {}).items()
            if ours and not (self.engine.alive and process.info["pid"] == self.engine.pid):
                yield process


@contextmanager
def world_of(
    rabbit: RabbitMQ, images: Path, directory: Path, series: Series, core: str | None = None
) -> Iterator[World]:
    """A world with Kestra of that series, or with that core of it, which ends with all that was
    made in it."""
    git_port, engine_port = free_port(), free_port()
    host = Host(
        directory,
        {
            "machine_directory": str(directory / "machines"),
            "machine_image_directory": str(images),
            "machine_accelerator": "tcg",
            "machine_boot_timeout": str(PATIENCE),
            "machine_reach": json.dumps([f"127.0.0.1:{git_port}"]),
        },
    )
    engine = Engine(
        directory / "kestra",
        series=series,
        core=core,
        amqp=AmqpAddress.from_url(rabbit.amqp_url),
        # A file outlives the engine. On 1.3, a kill that interrupts the worker as it writes would
        # close it for good.
        database="memory" if series == "1.3" else "file",
        secrets={"BRIDGE_WEBHOOK_KEY": KEY, f"BRIDGE_GIT_{GIT_SECRET}": GIT_LOGIN},
        port=engine_port,
        password=PASSWORD,
        environment=_of_the_workers(host, engine_port),
    )
    with serve_git(directory, git_port):
        _add_hostile_names(directory / "git")
        try:
            engine.start()
            deploy_flows(engine, timeout=PATIENCE)
            _end_the_schedule(engine)
            yield World(rabbit, engine, host, f"git://host.internal:{git_port}")
        finally:
            # Its data die with it: nothing is worth the wait for an orderly end.
            engine.kill()
            host.end()


def _of_the_workers(host: Host, engine_port: int) -> dict[str, str]:
    settings = {f"BRIDGE_{name.upper()}": value for name, value in host.settings.items()}
    return {
        **settings,
        "BRIDGE_KESTRA_URL": f"http://127.0.0.1:{engine_port}",
        "BRIDGE_KESTRA_USERNAME": Engine.username,
        "BRIDGE_KESTRA_PASSWORD": PASSWORD,
        "PATH": os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"])),
        "PYTHONPATH": str(REPOSITORY),
    }


def _add_hostile_names(git: Path) -> None:
    source, who = git / "source", ["-c", "user.email=a@example.org", "-c", "user.name=a"]
    subprocess.run(["git", "checkout", "-q", "-b", BRANCH], cwd=source, check=True)
    (source / SCRIPT).write_text(JOB)
    subprocess.run(["git", "add", "."], cwd=source, check=True)
    subprocess.run(["git", *who, "commit", "-q", "-m", "hostile"], cwd=source, check=True)
    (git / REPOSITORY_NAME).symlink_to("source")


def _end_the_schedule(engine: Engine) -> None:
    """Sweep after bad ends alone: a sweep every five minutes would hide that nobody destroyed a
    machine."""
    auth, flow = (
        (engine.username, engine.password),
        f"{engine.url}/api/v1/main/flows/bridge.system/vm-cleanup",
    )
    with httpx.Client(auth=auth, timeout=PATIENCE) as api:
        source = api.get(flow, params={"source": "true"}).json()["source"]
        assert EVERY_FIVE_MINUTES in source
        headers = {"Content-Type": "application/x-yaml"}
        answer = api.put(
            flow, content=source.replace(EVERY_FIVE_MINUTES, HARDLY_EVER), headers=headers
        )
        assert answer.status_code == 200, answer.text


@dataclass
class MachineStage:
    """One test's own queue and bridges, and what Kestra says of its jobs."""

    directory: Path
    world: World
    client: Client
    api: httpx.AsyncClient
    queue: str = field(default_factory=lambda: f"t{uuid.uuid4().hex[:10]}.jobs")
    bridges: list[Bridge] = field(default_factory=list)

    def bridge(self, **settings: object) -> Bridge:
        """A replica that isn't started yet; `settings` are names of settings in lower case."""
        environment = {
            "BRIDGE_AMQP_URL": self.world.rabbit.amqp_url,
            **kestra_settings(self.world.engine),
            "BRIDGE_QUEUE": self.queue,
            "BRIDGE_FLOW": f"{NAMESPACE}/vm-job",
        }
        return another_bridge(self.bridges, self.directory, environment, settings)

    async def submit(
        self, job: str, *, labels: Mapping[str, str] | None = None, **inputs: object
    ) -> None:
        await self.client.submit(self.queue, {"inputs": inputs, "labels": labels or {}}, job=job)

    async def get(self, address: str, **params: str) -> httpx.Response:
        answer = await self.api.get(address, params=params)
        assert answer.status_code == 200, answer.text
        return answer

    async def said(self, execution: str) -> list[str]:
        """The messages in an execution's log."""
        rows = (await self.get(f"/logs/{execution}")).json()
        return [row["message"] for row in (rows["results"] if isinstance(rows, dict) else rows)]

    async def executions(self) -> list[Execution]:
        """The executions of this test's jobs, the oldest first."""
        return await self.search(**{"filters[labels][EQUALS][bridgeQueue]": self.queue})

    async def search(self, **filters: str) -> list[Execution]:
        """The executions that match, the oldest first."""
        answer = await self.get(
            "/executions/search", **filters, size="100", sort="state.startDate:asc"
        )
        return [parse_execution(row) for row in answer.json()["results"]]

    async def speaking(self, word: str = "started", *, after: int = 0) -> Execution:
        """The one execution after so many others, once its script has said that word."""

        async def say() -> list[Execution]:
            later = (await self.executions())[after:]
            return [one for one in later if word in await self.said(one.id)]

        (execution,) = await eventually(
            say, f"a script that says {word}", timeout=PATIENCE, every=0.2
        )
        return execution

    async def says(self, execution: str, word: str) -> bool:
        """Whether an execution's log has that line, in good time: it is written beside the
        execution, not before."""

        async def say() -> bool:
            return word in await self.said(execution)

        return await eventually(say, f"{execution} says {word}", timeout=PATIENCE, every=0.2)

    async def let_go(self, execution: str) -> None:
        """Make the file `go` in the home of the user on an execution's machine, which its script
        waits for."""
        machine = await self.world.host.machines().find(execution)
        assert machine
        await said_on(machine, "touch go")

    async def ran_once_an_attempt(self, attempts: int = 1, word: str = "started") -> bool:
        """Whether this test's one job had so many executions, one an attempt, and the script of
        each spoke once."""
        found = await self.executions()
        for execution in found:
            await self.says(execution.id, word)
        labels = [execution.labels["bridgeAttempt"] for execution in found]
        spoke = [(await self.said(execution.id)).count(word) for execution in found]
        return (labels, spoke) == ([str(number + 1) for number in range(attempts)], [1] * attempts)

    async def outputs(self, execution: str) -> Any:
        if self.world.engine.series == "1.3":
            return (await self.get(f"/executions/{execution}")).json()["outputs"]
        return (await self.get(f"/outputs/executions/{execution}")).json()

    async def lifetime(self, execution: str) -> tuple[datetime, datetime]:
        """From when until when an execution had a machine, at the most."""
        runs = (await self.get(f"/executions/{execution}")).json()["taskRunList"]
        states = {run["taskId"]: run["state"] for run in runs}
        moments = states["create"]["startDate"], states["destroy"]["endDate"]
        begin, end = map(datetime.fromisoformat, moments)
        return begin, end

    async def kill(self, execution: str) -> None:
        actions = "" if self.world.engine.series == "1.3" else "actions/"
        answer = await self.api.delete(f"/executions/{execution}/{actions}kill")
        assert answer.is_success, answer.text

    async def stored(self, address: str) -> bytes:
        """What a file in Kestra's storage holds."""
        (execution,) = re.findall("/executions/([^/]+)/", address)
        return (await self.get(f"/executions/{execution}/file", path=address)).content

    async def result(self, execution: str, path: str) -> bytes:
        """What a result file of a job holds."""
        return await self.stored((await self.outputs(execution))["results"][f"results/{path}"])

    async def end(self, execution: str) -> str:
        """The state that an execution ends in."""

        async def state() -> str:
            found = parse_execution((await self.get(f"/executions/{execution}")).json()).state
            return found.value if found.terminal else ""

        return await eventually(state, f"the end of {execution}", timeout=PATIENCE, every=0.2)

    async def run(self, flow: str, **inputs: tuple[str | None, bytes]) -> str:
        """The id of an execution that is begun by hand; a part with a file's name is a file."""
        answer = await self.api.post(f"/executions/{flow}", files=inputs or None)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["id"])

    async def call(self, **payload: object) -> str:
        """The id of the execution that a webhook call begins."""
        answer = await self.api.post(
            f"/executions/webhook/{NAMESPACE}/webhook-job/{KEY}", json=payload
        )
        assert answer.status_code == 200, answer.text
        return str(answer.json()["id"])

    async def left_file(self) -> str:
        """The address of a file that a task left in Kestra's storage, `left here`."""
        await self.deploy(LEAVE)
        execution = await self.run("tests.files/leave")
        assert await self.end(execution) == "SUCCESS"
        return str((await self.outputs(execution))["left"])

    async def deploy(self, source: str) -> None:
        answer = await self.api.post(
            "/flows", content=source, headers={"Content-Type": "application/x-yaml"}
        )
        assert answer.status_code in (200, 422), answer.text  # 422: it is there

    @asynccontextmanager
    async def variant(self, flow: str, changes: Mapping[str, str]) -> AsyncIterator[str]:
        """A copy of a flow that ships, with other settings; its name. For what would take minutes
        otherwise."""
        namespace, name = flow.split("/")
        source = (await self.get(f"/flows/{flow}", source="true")).json()["source"]
        copy = f"{name}-{uuid.uuid4().hex[:6]}"
        for old, new in {f"id: {name}\n": f"id: {copy}\n", **changes}.items():
            assert old in source, f"{flow} has no {old!r}"
            source = source.replace(old, new)
        await self.deploy(source)
        try:
            yield f"{namespace}/{copy}"
        finally:
            answer = await self.api.delete(f"/flows/{namespace}/{copy}")
            assert answer.is_success, answer.text

    async def most_machines(self, until: Callable[[], bool]) -> tuple[int, int]:
        """Of how many machines there are folders, and processes, at most at once, until then."""
        seen = [(0, 0)]

        def done() -> bool:
            # One that is on its way into the background has two processes for a moment.
            running = {tuple(process.info["cmdline"]) for process in self.world.host.processes}
            # And one that is just being renamed may be listed under both names.
            folders = {name.removeprefix(".") for name in self.world.host.folders}
            seen.append((len(folders), len(running)))
            return until()

        await eventually(done, "the end of it", timeout=4 * PATIENCE, every=0.5)
        folders, processes = zip(*seen, strict=True)
        return max(folders), max(processes)

    @asynccontextmanager
    async def frozen_machines(self) -> AsyncIterator[None]:
        """Machines, one after the other, are stopped as soon as they run, so that none answers."""
        frozen: set[int] = set()

        async def freeze() -> None:
            while True:
                processes = self.world.host.processes
                # One that is still on its way into the background is two, or the command's own
                # child.
                with suppress(psutil.NoSuchProcess):
                    if (
                        len(processes) == 1
                        and processes[0].pid not in frozen
                        and not _is_command(processes[0].parent())
                    ):
                        processes[0].suspend()
                        frozen.add(processes[0].pid)
                await asyncio.sleep(0.05)

        freezing = asyncio.create_task(freeze())
        try:
            yield
        finally:
            freezing.cancel()

    async def nothing_is_left(self) -> bool:
        """Whether nothing is left of any machine, neither folder nor process, in good time."""
        await eventually(
            lambda: self.world.left == ([], []), "nothing is left", timeout=PATIENCE, every=0.1
        )
        return True


def _is_command(process: psutil.Process | None) -> bool:
    return process is not None and any(word.endswith("kestra-bridge") for word in process.cmdline())


@asynccontextmanager
async def stage_in(world: World, directory: Path) -> AsyncIterator[MachineStage]:
    auth = httpx.BasicAuth(world.engine.username, world.engine.password)
    async with (
        httpx.AsyncClient(
            base_url=f"{world.engine.url}/api/v1/main", auth=auth, timeout=PATIENCE
        ) as api,
        Client.connect(world.rabbit.amqp_url) as client,
    ):
        stage = MachineStage(directory, world, client, api)
        try:
            yield stage
        finally:
            for bridge in stage.bridges:
                bridge.end()


def most_at_once(lifetimes: list[tuple[datetime, datetime]]) -> int:
    """How many of them overlap at most."""
    return max(sum(begin <= moment < end for begin, end in lifetimes) for moment, _ in lifetimes)
