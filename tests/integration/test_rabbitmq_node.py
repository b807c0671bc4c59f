"""The private RabbitMQ node that the other tests build on keeps its promises, on the oldest and the
newest series."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import aio_pika
import psutil
import pytest
from aio_pika.abc import AbstractChannel

from deploy.local.paths import REPOSITORY
from deploy.local.processes import ProcessError
from deploy.local.rabbitmq import RabbitMQ, Series

DEPLOYED = REPOSITORY / "deploy" / "rabbitmq"

# A tree is made on first use.
pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module", params=["3.10", "4.3"])
def series(request: pytest.FixtureRequest) -> Series:
    chosen: Series = request.param
    return chosen


@pytest.fixture(scope="module")
def node(series: Series, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitMQ]:
    broker = RabbitMQ(tmp_path_factory.mktemp("node"), series=series)
    broker.start()
    yield broker
    broker.kill()


@asynccontextmanager
async def channel_to(node: RabbitMQ) -> AsyncIterator[AbstractChannel]:
    connection = await aio_pika.connect(node.amqp_url)
    async with connection, connection.channel() as channel:
        yield channel


async def publish_durably(node: RabbitMQ, queue: str, body: bytes) -> None:
    async with channel_to(node) as channel:
        await channel.declare_queue(queue, durable=True, arguments={"x-queue-type": "quorum"})
        message = aio_pika.Message(body, delivery_mode=aio_pika.DeliveryMode.PERSISTENT)
        await channel.default_exchange.publish(message, routing_key=queue)


async def take_body(node: RabbitMQ, queue: str) -> bytes:
    async with channel_to(node) as channel:
        message = await (await channel.get_queue(queue)).get(timeout=20)
        assert message is not None
        await message.ack()
        return message.body


def processes_of(directory: Path) -> list[psutil.Process]:
    """All live processes that name the folder in their command line, with everything below them."""
    found: list[psutil.Process] = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and str(directory) in " ".join(process.cmdline()):
                found += [process, *process.children(recursive=True)]
        except psutil.Error:
            continue
    return found


def running(processes: list[psutil.Process]) -> list[psutil.Process]:
    return [
        each for each in processes if each.is_running() and each.status() != psutil.STATUS_ZOMBIE
    ]


def listening_addresses(processes: list[psutil.Process]) -> set[str]:
    return {
        connection.laddr.ip
        for process in processes
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }


def test_the_version_is_of_the_series(node: RabbitMQ, series: Series) -> None:
    assert node.version.startswith(series)


def test_it_listens_on_loopback_only(node: RabbitMQ) -> None:
    assert listening_addresses(processes_of(node.directory)) <= {"127.0.0.1", "::1"}


def test_its_password_is_in_no_command_line_and_no_environment(node: RabbitMQ) -> None:
    processes = processes_of(node.directory)
    assert not [each for each in processes if node.password in f"{each.cmdline()} {each.environ()}"]


def test_there_is_no_guest(node: RabbitMQ) -> None:
    assert [user["name"] for user in node.definitions["users"]] == [node.username]


def test_rabbitmqctl_reaches_it(node: RabbitMQ) -> None:
    assert node.username in node.ctl("list_users")


def test_rabbitmqctl_refusing_is_an_error_that_says_so(node: RabbitMQ) -> None:
    with pytest.raises(ProcessError, match="no_such_command"):
        node.ctl("no_such_command")


def test_the_management_interface_refusing_is_an_error_that_says_so(node: RabbitMQ) -> None:
    with pytest.raises(ProcessError, match="404"):
        node.api("queues/%2F/absent")


async def test_a_durable_message_survives_kill_and_start(node: RabbitMQ) -> None:
    await publish_durably(node, "survives.kill", b"a job")
    await asyncio.sleep(
        3
    )  # a quorum queue is noted on disk only about a second after its declaration
    node.kill()
    node.start()
    assert await take_body(node, "survives.kill") == b"a job"


async def test_a_durable_message_survives_a_restart(node: RabbitMQ) -> None:
    await publish_durably(node, "survives.restart", b"a job")
    node.restart()
    assert await take_body(node, "survives.restart") == b"a job"


async def test_a_paused_node_answers_nobody(node: RabbitMQ) -> None:
    node.pause()
    try:
        with pytest.raises(TimeoutError):
            await aio_pika.connect(node.amqp_url, timeout=1)
    finally:
        node.resume()


async def test_a_resumed_node_answers_again(node: RabbitMQ) -> None:
    node.pause()
    node.resume()
    async with channel_to(node) as channel:
        assert not channel.is_closed


def test_no_mount_of_it_is_seen_on_the_machine(node: RabbitMQ) -> None:
    assert str(node.directory) not in Path("/proc/self/mounts").read_text()


@pytest.mark.parametrize("ending", ["stop", "kill"])
def test_it_leaves_no_process_once_ended(node: RabbitMQ, ending: str) -> None:
    node.start()
    processes = processes_of(node.directory)
    getattr(node, ending)()
    left = running(processes)
    node.start()
    assert len(processes) > 2
    assert left == []


def test_it_dies_with_a_parent_that_is_killed(series: Series, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "deploy.local.rabbitmq",
        "--series",
        series,
        "--directory",
        str(tmp_path),
    ]
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        assert "amqp://" in parent.stdout.readline()
        processes = processes_of(tmp_path)
        parent.kill()
    assert psutil.wait_procs(processes, timeout=10)[1] == []


def test_the_command_stops_the_node_on_sigterm(series: Series, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "deploy.local.rabbitmq",
        "--series",
        series,
        "--directory",
        str(tmp_path),
    ]
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        parent.stdout.readline()
        processes = processes_of(tmp_path)
        parent.send_signal(signal.SIGTERM)
        assert parent.wait(40) == 0
    assert running(processes) == []


def test_a_node_that_cannot_start_says_why(series: Series, tmp_path: Path) -> None:
    broker = RabbitMQ(tmp_path, series=series, settings={"no.such.setting": "1"})
    with pytest.raises(ProcessError, match=r"no\.such\.setting"):
        broker.start()


def test_the_deployed_configuration_and_policies_are_accepted(tmp_path: Path) -> None:
    lines = (
        line
        for line in (DEPLOYED / "rabbitmq.conf").read_text().splitlines()
        if line and line[0] != "#"
    )
    settings = dict(line.split(" = ", 1) for line in lines)
    broker = RabbitMQ(tmp_path, series="4.3", settings=settings)
    try:
        broker.start()
        broker.load_definitions(DEPLOYED / "definitions.json")
        assert [policy["name"] for policy in broker.definitions["policies"]] == ["kestra-jobs"]
    finally:
        broker.kill()
