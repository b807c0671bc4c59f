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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from bridge.execution import Execution
from bridge.kestra import parse_execution
from deploy.local.kestra_engine import AmqpAddress, Engine
from deploy.local.paths import REPOSITORY, free_port
from deploy.local.rabbitmq import RabbitMQ
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
def world(image: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    directory, git_port, engine_port = tmp_path_factory.mktemp("world"), free_port(), free_port()
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
    with RabbitMQ(directory / "rabbitmq", series="4.3") as rabbit, serve_git(directory, git_port):
        _commit(directory / "git/source", "work", JOB)
        engine = Engine(
            directory / "kestra",
            amqp=AmqpAddress.from_url(rabbit.amqp_url),
            database="file",
            secrets={"BRIDGE_WEBHOOK_KEY": KEY},
            port=engine_port,
            password="Aa0secret",
            environment=_of_the_workers(host, engine_port),
        )
        try:
            with engine:
                _deploy(engine)
                yield World(rabbit, engine, host, f"git://host.internal:{git_port}/source")
        finally:
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
        env={"PATH": "", "PYTHONPATH": str(REPOSITORY), **_kestra_settings(engine)},
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stderr


def _kestra_settings(engine: Engine) -> dict[str, str]:
    return {
        "BRIDGE_KESTRA_URL": engine.url,
        "BRIDGE_KESTRA_USERNAME": engine.username,
        "BRIDGE_KESTRA_PASSWORD": engine.password,
    }


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
            **_kestra_settings(self.world.engine),
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
        return (await self.get(f"/outputs/executions/{execution}")).json()

    async def result(self, execution: str, path: str) -> str:
        """What a result file holds, in Kestra's storage."""
        uri = (await self.outputs(execution))["results"][f"results/{path}"]
        return (await self.get(f"/executions/{execution}/file", path=uri)).text

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
    auth = httpx.BasicAuth(world.engine.username, world.engine.password)
    async with (
        httpx.AsyncClient(base_url=f"{world.engine.url}/api/v1/main", auth=auth, timeout=30) as api,
        Client.connect(world.rabbit.amqp_url) as client,
    ):
        stage = Stage(tmp_path, world, client, api)
        try:
            yield stage
        finally:
            for bridge in stage.bridges:
                bridge.end()


async def test_a_message_s_script_runs_on_a_machine_and_its_results_are_kept(stage: Stage) -> None:
    async with stage.bridge() as bridge:
        await stage.submit(
            "one",
            git_repository=stage.world.repository,
            git_branch="work",
            variables={"GREETING": HOSTILE},
            results="*.txt",
        )
        (line,) = await bridge.settled(job="one", timeout=PATIENCE)
    execution = line["execution"]
    assert line["settlement"] == "ack", await stage.said(execution)
    assert "the script speaks" in await stage.said(execution)
    assert await stage.result(execution, "greeting.txt") == f"{HOSTILE} of job"
    assert await stage.nothing_is_left()


async def test_a_script_that_fails_is_a_dead_letter_with_its_exit_code(stage: Stage) -> None:
    async with stage.bridge(max_attempts=1) as bridge:
        await stage.submit("one", git_repository=stage.world.repository, git_branch="feature/x")
        await bridge.settled(job="one", settlement="dead_letter", timeout=PATIENCE)
        (letter,) = await stage.client.take(f"{stage.queue}.dead")
    assert "the script exited with 5" in str(letter.headers["x-bridge-error"])
    assert await stage.nothing_is_left()


async def test_of_an_execution_that_is_killed_in_mid_run_no_machine_is_left(stage: Stage) -> None:
    async with stage.bridge() as bridge:
        await stage.submit("one", script="echo started; sleep 1000")
        execution = await stage.speaking()
        answer = await stage.api.delete(f"/executions/{execution.id}/actions/kill")
        assert answer.status_code == 200, answer.text
        (line,) = await bridge.settled(job="one")
    assert (line["settlement"], line["reason"]) == ("dead_letter", "killed")
    assert await stage.nothing_is_left()


async def test_a_job_whose_bridge_dies_in_mid_run_is_adopted_by_the_next(stage: Stage) -> None:
    first = await stage.bridge().start()
    await stage.submit("one", script="echo started; sleep 2")
    execution = await stage.speaking()
    first.kill()
    async with stage.bridge() as second:
        (line,) = await second.settled(job="one", timeout=PATIENCE)
    assert (line["how"], line["settlement"], line["execution"]) == ("adopted", "ack", execution.id)
    assert [one.id for one in await stage.executions()] == [execution.id]
    assert (await stage.said(execution.id)).count("started") == 1
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
    assert await stage.result(execution.id, "n") == "1\n"
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
