"""The flows for machines, from a message to an ack: RabbitMQ, the bridge, Kestra's engine and QEMU, all real."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from bridge.execution import Execution
from bridge.kestra import parse_execution
from deploy.local.kestra_engine import AmqpAddress, Engine, Series
from deploy.local.paths import REPOSITORY, free_port
from deploy.local.rabbitmq import RabbitMQ
from tests.acceptance.conftest import kestra_settings
from tests.harness import Bridge, Client, eventually
from tests.machines.conftest import NOTHING, Host
from tests.machines.test_run import serve_git

TOOLS = ("qemu-system-x86_64", "qemu-img", "mmdebstrap")

pytestmark = [
    pytest.mark.skipif(not all(map(shutil.which, TOOLS)), reason="QEMU or mmdebstrap isn't installed"),
    # The engine, the broker and the image are built on first use.
    pytest.mark.timeout(600),
]

KEY = "a-key-that-nobody-guesses"
NAMESPACE = "bridge.jobs"
PATIENCE = 120.0
"""How long a job may take on a busy machine without KVM."""
HOSTILE = "$(id) `id` {{ 1 + 1 }} {% if true %} \\n '\" ; exit 9"
JOB = """\
printf '%s of %s' "$GREETING" "$(id -un)" >greeting.txt
echo the script speaks
"""


@dataclass(frozen=True)
class World:
    """What the tests share: a broker, an engine whose workers may make machines, a repository to check out."""

    rabbit: RabbitMQ
    engine: Engine
    host: Host
    repository: str


@pytest.fixture(scope="module")
def rabbit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitMQ]:
    with RabbitMQ(tmp_path_factory.mktemp("rabbitmq"), series="4.3") as node:
        yield node


@pytest.fixture(scope="module")
def world(rabbit: RabbitMQ, image: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with _world(rabbit, image, tmp_path_factory.mktemp("world"), "2.0") as made:
        yield made


@contextmanager
def _world(rabbit: RabbitMQ, image: Path, directory: Path, series: Series) -> Iterator[World]:
    git_port, engine_port = free_port(), free_port()
    host = Host(
        directory,
        {
            "machine_directory": str(directory / "machines"),
            "machine_image_directory": str(image.parent),
            "machine_accelerator": "tcg",
            "machine_boot_timeout": str(PATIENCE),
            "machine_reach": json.dumps([f"127.0.0.1:{git_port}"]),
        },
    )
    engine = Engine(
        directory / "kestra",
        series=series,
        amqp=AmqpAddress.from_url(rabbit.amqp_url),
        # A file outlives the engine. On 1.3, a kill that interrupts the worker as it writes would close it for good.
        database="memory" if series == "1.3" else "file",
        secrets={"BRIDGE_WEBHOOK_KEY": KEY},
        port=engine_port,
        password="Aa0secret",
        environment=_of_the_workers(host, engine_port),
    )
    with serve_git(directory, git_port):
        _commit(directory / "git/source", "work", JOB)
        try:
            engine.start()
            _deploy(engine)
            yield World(rabbit, engine, host, f"git://host.internal:{git_port}/source")
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
        "BRIDGE_KESTRA_PASSWORD": "Aa0secret",
        "PATH": os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"])),
        "PYTHONPATH": str(REPOSITORY),
    }


def _commit(source: Path, branch: str, script: str) -> None:
    who = ["-c", "user.email=a@example.org", "-c", "user.name=a"]
    subprocess.run(["git", "checkout", "-q", "-b", branch], cwd=source, check=True)
    (source / "job.sh").write_text(script)
    subprocess.run(["git", *who, "commit", "-q", "-am", branch], cwd=source, check=True)


def _deploy(engine: Engine) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bridge", "flows", "deploy"],
        env={"PATH": "", "PYTHONPATH": str(REPOSITORY), **kestra_settings(engine)},
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stderr


@dataclass
class Stage:
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
            **{f"BRIDGE_{name.upper()}": str(value) for name, value in settings.items()},
        }
        bridge = Bridge(self.directory, environment, name=f"bridge-{len(self.bridges) + 1}")
        self.bridges.append(bridge)
        return bridge

    async def submit(self, job: str, **inputs: object) -> None:
        await self.client.submit(self.queue, {"inputs": inputs}, job=job)

    async def get(self, address: str, **params: str) -> httpx.Response:
        answer = await self.api.get(address, params=params)
        assert answer.status_code == 200, answer.text
        return answer

    async def said(self, execution: str) -> list[str]:
        """The messages in an execution's log."""
        rows = (await self.get(f"/logs/{execution}")).json()
        return [row["message"] for row in (rows["results"] if isinstance(rows, dict) else rows)]

    async def executions(self) -> list[Execution]:
        """The executions of this test's jobs."""
        params = {"filters[labels][EQUALS][bridgeQueue]": self.queue, "size": "100", "sort": "state.startDate:asc"}
        answer = await self.get("/executions/search", **params)
        return [parse_execution(row) for row in answer.json()["results"]]

    async def speaking(self, word: str = "started") -> Execution:
        """The one execution, once its script has said that word."""

        async def say() -> list[Execution]:
            return [one for one in await self.executions() if word in await self.said(one.id)]

        (execution,) = await eventually(say, f"a script that says {word}", timeout=PATIENCE, every=0.2)
        return execution

    async def outputs(self, execution: str) -> Any:
        if self.world.engine.series == "1.3":
            return (await self.get(f"/executions/{execution}")).json()["outputs"]
        return (await self.get(f"/outputs/executions/{execution}")).json()

    async def kill(self, execution: str) -> None:
        actions = "" if self.world.engine.series == "1.3" else "actions/"
        answer = await self.api.delete(f"/executions/{execution}/{actions}kill")
        assert answer.is_success, answer.text

    async def result(self, execution: str, path: str) -> bytes:
        """What a result file holds, in Kestra's storage."""
        uri = (await self.outputs(execution))["results"][f"results/{path}"]
        return (await self.get(f"/executions/{execution}/file", path=uri)).content

    async def end(self, execution: str) -> str:
        """The state that an execution ends in."""

        async def state() -> str:
            found = parse_execution((await self.get(f"/executions/{execution}")).json()).state
            return found.value if found.terminal else ""

        return await eventually(state, f"the end of {execution}", timeout=PATIENCE, every=0.2)

    async def limit_batches(self, limit: int) -> None:
        """Let a batch have fewer jobs at once than the flow that ships says."""
        address = f"/flows/{NAMESPACE}/vm-batch"
        source = (await self.get(address, source="true")).json()["source"]
        changed = re.sub(r"concurrencyLimit: \d+", f"concurrencyLimit: {limit}", source)
        answer = await self.api.put(address, content=changed, headers={"Content-Type": "application/x-yaml"})
        assert answer.status_code == 200, answer.text

    async def most_machines(self, until: Callable[[], bool]) -> int:
        """How many machines there are at most at once, until then."""
        seen = [0]

        def done() -> bool:
            seen.append(len(self.world.host.folders))
            return until()

        await eventually(done, "the end of it", timeout=PATIENCE)
        return max(seen)

    async def nothing_is_left(self) -> bool:
        """Whether no machine is left, neither process nor folder, in good time."""
        await eventually(lambda: self.world.host.left == NOTHING, "no machine is left", timeout=PATIENCE)
        return True


@pytest.fixture
async def stage(tmp_path: Path, world: World) -> AsyncIterator[Stage]:
    async with _stage(tmp_path, world) as made:
        yield made


@pytest.fixture(scope="module")
def world_of_1(rabbit: RabbitMQ, image: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """The same with Kestra 1.3."""
    with _world(rabbit, image, tmp_path_factory.mktemp("world-of-1"), "1.3") as made:
        yield made


@pytest.fixture
async def stage_of_1(tmp_path: Path, world_of_1: World) -> AsyncIterator[Stage]:
    async with _stage(tmp_path, world_of_1) as made:
        yield made


@asynccontextmanager
async def _stage(directory: Path, world: World) -> AsyncIterator[Stage]:
    auth = httpx.BasicAuth(world.engine.username, world.engine.password)
    async with (
        httpx.AsyncClient(base_url=f"{world.engine.url}/api/v1/main", auth=auth, timeout=30) as api,
        Client.connect(world.rabbit.amqp_url) as client,
    ):
        stage = Stage(directory, world, client, api)
        try:
            yield stage
        finally:
            for bridge in stage.bridges:
                bridge.end()


async def test_a_message_s_script_runs_on_a_machine_and_its_results_are_kept(stage: Stage) -> None:
    async with stage.bridge() as bridge:
        await stage.submit(
            HOSTILE,
            git_repository=stage.world.repository,
            git_branch="work",
            variables={"GREETING": HOSTILE},
            results="*.txt",
        )
        (line,) = await bridge.settled(job=HOSTILE, timeout=PATIENCE)
    execution = line["execution"]
    assert line["settlement"] == "ack", await stage.said(execution)
    assert "the script speaks" in await stage.said(execution)
    assert await stage.result(execution, "greeting.txt") == f"{HOSTILE} of job".encode()
    assert await stage.nothing_is_left()


async def test_a_script_that_fails_is_a_dead_letter_with_its_exit_code(stage: Stage) -> None:
    async with stage.bridge(max_attempts=1) as bridge:
        await stage.submit("one", git_repository=stage.world.repository, git_branch="feature/x")
        await bridge.settled(job="one", settlement="dead_letter", timeout=PATIENCE)
        (letter,) = await stage.client.take(f"{stage.queue}.dead")
    assert "the script exited with 5" in str(letter.headers["x-bridge-error"])
    assert await stage.nothing_is_left()


async def test_a_job_whose_machine_dies_in_mid_run_is_a_dead_letter_that_says_so(stage: Stage) -> None:
    async with stage.bridge(max_attempts=1) as bridge:
        await stage.submit("one", script="echo started; sleep 1000")
        await stage.speaking()
        (machine,) = stage.world.host.processes
        machine.kill()
        await bridge.settled(job="one", settlement="dead_letter", timeout=PATIENCE)
        (letter,) = await stage.client.take(f"{stage.queue}.dead")
    assert "was lost" in str(letter.headers["x-bridge-error"])
    assert await stage.nothing_is_left()


async def test_of_an_execution_that_is_killed_in_mid_run_no_machine_is_left(stage: Stage) -> None:
    async with stage.bridge() as bridge:
        await stage.submit("one", script="echo started; sleep 1000")
        execution = await stage.speaking()
        await stage.kill(execution.id)
        (line,) = await bridge.settled(job="one")
    assert (line["settlement"], line["reason"]) == ("dead_letter", "killed")
    assert await stage.nothing_is_left()


async def test_a_job_whose_bridge_dies_in_mid_run_is_adopted_by_the_next(stage: Stage) -> None:
    first = await stage.bridge().start()
    await stage.submit("one", script="echo 'started {{ 1 + 1 }}'; sleep 2")
    execution = await stage.speaking("started {{ 1 + 1 }}")
    first.kill()
    async with stage.bridge() as second:
        (line,) = await second.settled(job="one", timeout=PATIENCE)
    assert (line["how"], line["settlement"], line["execution"]) == ("adopted", "ack", execution.id)
    assert [one.id for one in await stage.executions()] == [execution.id]
    assert (await stage.said(execution.id)).count("started {{ 1 + 1 }}") == 1
    assert await stage.nothing_is_left()


async def test_a_job_whose_worker_dies_in_mid_run_is_taken_up_without_running_it_again(stage: Stage) -> None:
    async with stage.bridge(job_timeout=PATIENCE) as bridge:
        await stage.submit(
            "one", script="echo x >>../../starts; echo started; sleep 8; wc -l <../../starts >n", results="n"
        )
        execution = await stage.speaking()
        stage.world.engine.kill()
        # Not in another thread: a child process ends with the thread that started it.
        stage.world.engine.start()
        (line,) = await bridge.settled(job="one", timeout=PATIENCE)
    assert (line["settlement"], line["execution"]) == ("ack", execution.id)
    assert await stage.result(execution.id, "n") == b"1\n"
    assert await stage.nothing_is_left()


async def test_a_file_that_is_given_to_a_job_lies_beside_its_script(stage: Stage) -> None:
    texts = [("script", (None, b"cat input_file >copy")), ("results", (None, b"copy"))]
    file = ("input_file", ("data.bin", b"\x00 given \xff"))
    answer = await stage.api.post(f"/executions/{NAMESPACE}/vm-job", files=[*texts, file])
    assert answer.status_code == 200, answer.text
    execution = answer.json()["id"]
    assert await stage.end(execution) == "SUCCESS", await stage.said(execution)
    assert await stage.result(execution, "copy") == b"\x00 given \xff"
    assert await stage.nothing_is_left()


async def test_a_webhook_call_runs_the_same_job(stage: Stage) -> None:
    answer = await stage.api.post(
        f"/executions/webhook/{NAMESPACE}/webhook-job/{KEY}",
        json={"script": JOB, "variables": {"GREETING": HOSTILE}, "results": "*.txt", "time_limit": 60},
    )
    assert answer.status_code == 200, answer.text
    execution = answer.json()["id"]
    assert await stage.end(execution) == "SUCCESS"
    assert list((await stage.outputs(execution))["results"]) == ["results/greeting.txt"]
    assert await stage.nothing_is_left()


async def test_a_batch_fails_with_the_job_that_failed_and_tells_of_each(stage: Stage) -> None:
    await stage.limit_batches(2)
    jobs = [{"script": f"echo job {number}; exit {number == 2:d}", "time_limit": 60} for number in range(4)]
    async with stage.bridge(flow=f"{NAMESPACE}/vm-batch", max_attempts=1, job_timeout=300) as bridge:
        await stage.submit("one", jobs=jobs)
        most = await stage.most_machines(lambda: bridge.count("settled") > 0)
        (line,) = bridge.events("settled")
        (letter,) = await stage.client.take(f"{stage.queue}.dead")
    told = (await stage.outputs(line["execution"]))["jobs"]
    assert "job 2 ended in FAILED" in str(letter.headers["x-bridge-error"])
    assert [(job["number"], job["state"]) for job in told] == [
        (0, "SUCCESS"),
        (1, "SUCCESS"),
        (2, "FAILED"),
        (3, "SUCCESS"),
    ]
    assert most == 2
    assert await stage.nothing_is_left()


async def test_of_a_batch_that_is_killed_while_its_machines_boot_none_is_left(stage: Stage) -> None:
    jobs = [{"script": "sleep 1000"}] * 2
    async with stage.bridge(flow=f"{NAMESPACE}/vm-batch") as bridge:
        await stage.submit("one", jobs=jobs)
        await eventually(lambda: len(stage.world.host.processes) == 2, "two machines", timeout=PATIENCE)
        (batch,) = await stage.executions()
        await stage.kill(batch.id)
        (line,) = await bridge.settled(job="one", timeout=PATIENCE)
    assert (line["settlement"], line["reason"]) == ("dead_letter", "killed")
    assert await stage.nothing_is_left()


async def test_on_1_3_a_message_s_script_runs_on_a_machine_and_its_results_are_kept(stage_of_1: Stage) -> None:
    async with stage_of_1.bridge() as bridge:
        await stage_of_1.submit("one", script=JOB, variables={"GREETING": HOSTILE}, results="*.txt")
        (line,) = await bridge.settled(job="one", timeout=PATIENCE)
    assert line["settlement"] == "ack", await stage_of_1.said(line["execution"])
    assert await stage_of_1.result(line["execution"], "greeting.txt") == f"{HOSTILE} of job".encode()
    assert await stage_of_1.nothing_is_left()


async def test_on_1_3_of_an_execution_that_is_killed_in_mid_run_no_machine_is_left(stage_of_1: Stage) -> None:
    async with stage_of_1.bridge() as bridge:
        await stage_of_1.submit("one", script="echo started; sleep 1000")
        await stage_of_1.kill((await stage_of_1.speaking()).id)
        (line,) = await bridge.settled(job="one", timeout=PATIENCE)
    assert (line["settlement"], line["reason"]) == ("dead_letter", "killed")
    assert await stage_of_1.nothing_is_left()
