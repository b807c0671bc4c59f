"""`kestra-bridge submit` as a user runs it, against the oldest and the newest RabbitMQ that are
supported."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import sys
import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aio_pika
import pytest
from aio_pika.abc import AbstractIncomingMessage

from deploy.local.paths import REPOSITORY
from deploy.local.rabbitmq import RabbitMQ
from tests.support.broker_stage import Node, memory_alarm
from tests.support.harness import Client, Ended, Proxy, commanding, ended, eventually, on_a_terminal
from tests.support.in_process import command

MANY = 30_000

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(params=["3.10", "4.3"])
def broker(request: pytest.FixtureRequest, node: Node) -> RabbitMQ:
    """The oldest and the newest broker that are supported, one after the other.

    Under the name `node` its parameter would be that of the shared fixture too, which would then
    start a broker for each test.
    """
    return node(request.param)


# What no broker decides is tried with one.
ON_4_3 = pytest.mark.parametrize("broker", ["4.3"], indirect=True)


@pytest.fixture
async def client(broker: RabbitMQ) -> AsyncIterator[Client]:
    async with Client.connect(broker.amqp_url) as client:
        yield client


@pytest.fixture
def queue() -> str:
    return f"q{uuid.uuid4().hex[:8]}"


def submitting(
    *arguments: str, url: str, **settings: str
) -> AbstractAsyncContextManager[asyncio.subprocess.Process]:
    return commanding("submit", *arguments, BRIDGE_AMQP_URL=url, **settings)


async def submit(*arguments: str, url: str, stdin: str = "", **settings: str) -> Ended:
    return await command("submit", *arguments, stdin=stdin, BRIDGE_AMQP_URL=url, **settings)


async def first_line(process: asyncio.subprocess.Process, stdin: str) -> bytes:
    """What it prints first, while it goes on."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(stdin.encode())
    process.stdin.write_eof()
    async with asyncio.timeout(30):
        return await process.stdout.readline()


async def first_complaint(process: asyncio.subprocess.Process) -> str:
    """What it says first on standard error, while it goes on."""
    assert process.stderr is not None
    async with asyncio.timeout(30):
        return (await process.stderr.readline()).decode()


@asynccontextmanager
async def answering(
    client: Client, queue: str, answers: Mapping[str, dict[str, Any]]
) -> AsyncIterator[None]:
    """Stand in for the bridge: answer the jobs of a queue with these results, and leave the others
    without one."""
    await declare_lane(client, queue)
    async with client.connection.channel() as channel:

        async def answer(message: AbstractIncomingMessage) -> None:
            result = answers.get(str(message.message_id))
            if result is not None and message.reply_to:
                body = json.dumps({"job": message.message_id, **result}).encode()
                reply = aio_pika.Message(body, correlation_id=message.correlation_id)
                await channel.default_exchange.publish(reply, message.reply_to)
            await message.ack()

        await (await channel.get_queue(queue)).consume(answer)
        yield


async def declare_lane(client: Client, queue: str, **arguments: Any) -> None:
    """A queue and an exchange of one name, bound by it, as somebody else may have made them."""
    declared = await client.channel.declare_queue(queue, durable=True, arguments=arguments)
    exchange = await client.channel.declare_exchange(queue, durable=True)
    await declared.bind(exchange, queue)


def success(**more: Any) -> dict[str, Any]:
    return {
        "state": "SUCCESS",
        "execution": "abc123",
        "url": "http://k/abc123",
        "outputs": {},
        "attempts": 1,
        **more,
    }


def failure(**more: Any) -> dict[str, Any]:
    return success(
        state="FAILED",
        attempts=3,
        reason="failed",
        error="task fail ended FAILED: on purpose",
        **more,
    )


# -- on the wire --


async def test_a_job_from_options_arrives_with_its_body(
    broker: RabbitMQ, client: Client, queue: str
) -> None:
    options = (
        "--flow",
        "n.s/f",
        "--input",
        "a=1",
        "--inputs-json",
        '{"b": [2]}',
        "--label",
        "team=blue",
        "--timeout",
        "9",
    )
    await submit("--queue", queue, *options, url=broker.amqp_url)
    (message,) = await client.take(queue)
    assert json.loads(message.body) == {
        "flow": "n.s/f",
        "inputs": {"a": "1", "b": [2]},
        "labels": {"team": "blue"},
        "timeout": 9.0,
    }


async def test_a_job_arrives_with_its_properties(
    broker: RabbitMQ, client: Client, queue: str
) -> None:
    await submit(
        "--queue", queue, "--flow", "n.s/f", "--id", "j-1", "--priority", "9", url=broker.amqp_url
    )
    (message,) = await client.take(queue)
    properties = (
        message.message_id,
        message.priority,
        message.delivery_mode,
        message.content_type,
        message.exchange,
    )
    assert properties == ("j-1", 9, 2, "application/json", queue)


async def test_a_job_says_when_it_was_published(
    broker: RabbitMQ, client: Client, queue: str
) -> None:
    # A time stamp of AMQP has whole seconds.
    before = datetime.now(UTC).replace(microsecond=0)
    await submit("--queue", queue, "--flow", "n.s/f", url=broker.amqp_url)
    (message,) = await client.take(queue)
    assert message.timestamp is not None
    assert before <= message.timestamp <= datetime.now(UTC)


async def test_the_id_that_was_made_is_printed(
    broker: RabbitMQ, client: Client, queue: str
) -> None:
    done = await submit("--queue", queue, "--flow", "n.s/f", url=broker.amqp_url)
    (message,) = await client.take(queue)
    assert (done.code, done.out.strip()) == (0, message.message_id)


@ON_4_3
async def test_json_output_has_a_line_for_each_job(broker: RabbitMQ, queue: str) -> None:
    done = await submit(
        "--queue",
        queue,
        "--file",
        "-",
        "--json",
        url=broker.amqp_url,
        stdin='{"id": "a"}\n{"id": "b"}\n',
    )
    assert done.rows == [{"job": "a", "queue": queue}, {"job": "b", "queue": queue}]


async def test_higher_priorities_come_first(broker: RabbitMQ, client: Client, queue: str) -> None:
    lines = "".join(f'{{"id": "p{priority}", "priority": {priority}}}\n' for priority in (1, 9, 5))
    await submit("--queue", queue, "--file", "-", url=broker.amqp_url, stdin=lines)
    assert [message.message_id for message in await client.take(queue, 3)] == ["p9", "p5", "p1"]


@ON_4_3
async def test_jobs_of_one_priority_keep_their_order(
    broker: RabbitMQ, client: Client, queue: str
) -> None:
    lines = "".join(f'{{"id": "j{number}"}}\n' for number in range(1000))
    await submit("--queue", queue, "--file", "-", url=broker.amqp_url, stdin=lines)
    assert [message.message_id for message in await client.take(queue, 1000)] == [
        f"j{n}" for n in range(1000)
    ]


@ON_4_3
async def test_csv_from_a_file_is_submitted(
    broker: RabbitMQ, client: Client, queue: str, tmp_path: Path
) -> None:
    path = tmp_path / "jobs.csv"
    path.write_text("id,flow,priority,input.x\na,n.s/f,3,one\n")
    await submit("--queue", queue, "--file", str(path), url=broker.amqp_url)
    (message,) = await client.take(queue)
    assert (message.message_id, message.priority, json.loads(message.body)) == (
        "a",
        3,
        {"flow": "n.s/f", "inputs": {"x": "one"}},
    )


@ON_4_3
async def test_options_fill_in_what_a_file_lacks(
    broker: RabbitMQ, client: Client, queue: str
) -> None:
    arguments = ("--queue", queue, "--file", "-", "--flow", "n.s/f", "--priority", "4")
    await submit(*arguments, url=broker.amqp_url, stdin="input.x\none\n")
    (message,) = await client.take(queue)
    assert (message.priority, json.loads(message.body)["flow"]) == (4, "n.s/f")


async def test_a_missing_queue_is_declared_with_priorities(broker: RabbitMQ, queue: str) -> None:
    await submit("--queue", queue, "--flow", "n.s/f", url=broker.amqp_url)
    arguments = broker.api(f"queues/%2F/{queue}")["arguments"]
    assert arguments.get("x-max-priority") == 10 or arguments.get("x-queue-type") == "quorum"


async def test_a_missing_queue_is_declared_with_its_dead_letter_queue(
    broker: RabbitMQ, queue: str
) -> None:
    await submit("--queue", queue, "--flow", "n.s/f", url=broker.amqp_url)
    assert broker.api(f"queues/%2F/{queue}.dead")["durable"]


async def test_a_queue_of_other_arguments_is_used_as_it_is(
    broker: RabbitMQ, client: Client, queue: str
) -> None:
    await declare_lane(client, queue, **{"x-max-priority": 3})
    await submit("--queue", queue, "--flow", "n.s/f", "--id", "a", url=broker.amqp_url)
    assert (await client.take(queue))[0].message_id == "a"


async def test_without_wait_no_answer_is_asked_for(
    broker: RabbitMQ, client: Client, queue: str
) -> None:
    await submit("--queue", queue, "--flow", "n.s/f", url=broker.amqp_url)
    (message,) = await client.take(queue)
    assert (message.reply_to, message.correlation_id) == (None, None)


# -- what changes nothing --


@ON_4_3
async def test_a_bad_last_line_submits_nothing(
    broker: RabbitMQ, client: Client, queue: str
) -> None:
    await declare_lane(client, queue)
    await submit(
        "--queue",
        queue,
        "--file",
        "-",
        url=broker.amqp_url,
        stdin='{"id": "a"}\n{"priority": 11}\n',
    )
    assert await client.depth(queue) == 0


@ON_4_3
async def test_a_bad_line_is_wrong_usage_and_one_line_says_which(
    broker: RabbitMQ, queue: str
) -> None:
    done = await submit(
        "--queue",
        queue,
        "--file",
        "-",
        url=broker.amqp_url,
        stdin='{"id": "a"}\n{"priority": 11}\n',
    )
    assert (done.code, done.err) == (
        2,
        "kestra-bridge: standard input:2: priority 11 is not a whole number from 0 to 10\n",
    )


# -- waiting --


async def test_all_succeeded_is_success(broker: RabbitMQ, client: Client, queue: str) -> None:
    async with answering(client, queue, {"a": success(), "b": success(state="WARNING")}):
        done = await submit(
            "--queue", queue, "--file", "-", "--wait", url=broker.amqp_url, stdin="id\na\nb\n"
        )
    assert done.code == 0, done


@ON_4_3
async def test_one_that_failed_is_failure(broker: RabbitMQ, client: Client, queue: str) -> None:
    async with answering(client, queue, {"a": success(), "b": failure()}):
        done = await submit(
            "--queue", queue, "--file", "-", "--wait", url=broker.amqp_url, stdin="id\na\nb\n"
        )
    assert done.code == 1, done


@ON_4_3
async def test_a_warning_that_was_dead_lettered_is_failure(
    broker: RabbitMQ, client: Client, queue: str
) -> None:
    async with answering(client, queue, {"a": failure() | {"state": "WARNING"}}):
        done = await submit(
            "--queue", queue, "--flow", "n/f", "--id", "a", "--wait", url=broker.amqp_url
        )
    assert done.code == 1, done


@ON_4_3
async def test_a_job_that_never_had_an_execution_is_failure(
    broker: RabbitMQ, client: Client, queue: str
) -> None:
    refused = {
        "state": None,
        "execution": None,
        "attempts": 0,
        "reason": "flow_not_allowed",
        "error": "not allowed",
    }
    async with answering(client, queue, {"a": refused}):
        done = await submit(
            "--queue", queue, "--flow", "n/f", "--id", "a", "--wait", url=broker.amqp_url
        )
    assert (done.code, done.out) == (1, "a\t-\t0\t-\tflow_not_allowed: not allowed\n")


@ON_4_3
async def test_a_result_is_a_line_with_its_outputs(
    broker: RabbitMQ, client: Client, queue: str
) -> None:
    async with answering(client, queue, {"a": success(outputs={"answer": 42})}):
        done = await submit(
            "--queue", queue, "--flow", "n/f", "--id", "a", "--wait", url=broker.amqp_url
        )
    assert done.out == 'a\tSUCCESS\t1\tabc123\t{"answer": 42}\n'


@ON_4_3
async def test_results_in_json_are_the_bridges_own(
    broker: RabbitMQ, client: Client, queue: str
) -> None:
    async with answering(client, queue, {"a": failure()}):
        done = await submit(
            "--queue", queue, "--flow", "n/f", "--id", "a", "--wait", "--json", url=broker.amqp_url
        )
    assert done.rows == [{"job": "a", **failure()}]


@ON_4_3
async def test_results_in_json_come_as_they_come(
    broker: RabbitMQ, client: Client, queue: str
) -> None:
    arguments = ("--queue", queue, "--file", "-", "--wait", "--json")
    async with (
        answering(client, queue, {"a": success()}),
        submitting(*arguments, url=broker.amqp_url) as process,
    ):
        line = await first_line(process, "id\na\nb\n")
        assert (json.loads(line)["job"], process.returncode) == ("a", None)


@ON_4_3
async def test_an_end_of_the_wait_names_the_open_jobs(
    broker: RabbitMQ, client: Client, queue: str
) -> None:
    arguments = ("--queue", queue, "--file", "-", "--wait", "--wait-timeout", "1")
    async with answering(client, queue, {"a": success()}):
        done = await submit(*arguments, url=broker.amqp_url, stdin="id\na\nb\n")
    assert (done.code, done.err) == (1, "kestra-bridge: no result within 1 s from b\n")


@ON_4_3
async def test_strange_messages_in_the_mailbox_are_passed_over(
    broker: RabbitMQ, client: Client, queue: str
) -> None:
    async with submitting(
        "--queue", queue, "--flow", "n/f", "--id", "a", "--wait", url=broker.amqp_url
    ) as process:
        await eventually(lambda: _has_queue(broker, queue), "the queue is declared")
        (message,) = await client.take(queue)
        assert message.reply_to is not None
        for body, correlation in (
            (b"\xff", "a"),
            (b"[]", "a"),
            (b"{}", "other"),
            (b'{"state": "SUCCESS"}', "a"),
        ):
            reply = aio_pika.Message(body, correlation_id=correlation)
            await client.channel.default_exchange.publish(reply, message.reply_to)
        done = await ended(process)
    assert (done.code, done.out) == (0, "a\tSUCCESS\t-\t-\t-\n")


def _has_queue(broker: RabbitMQ, queue: str) -> bool:
    return queue in [each["name"] for each in broker.api("queues")]


@ON_4_3
async def test_ctrl_c_says_that_the_jobs_go_on(
    broker: RabbitMQ, client: Client, queue: str
) -> None:
    arguments = ("--queue", queue, "--file", "-", "--wait")
    async with (
        answering(client, queue, {"a": success()}),
        submitting(*arguments, url=broker.amqp_url) as process,
    ):
        await first_line(process, "id\na\nb\n")
        process.send_signal(signal.SIGINT)
        done = await ended(process)
    words = "interrupted: 2 of 2 jobs were submitted; what was submitted and has not ended goes on"
    assert (done.code, done.err) == (130, f"kestra-bridge: {words}\n")


@ON_4_3
async def test_ctrl_c_leaves_the_jobs_in_the_queue(
    broker: RabbitMQ, client: Client, queue: str
) -> None:
    await declare_lane(client, queue)
    async with submitting(
        "--queue", queue, "--flow", "n/f", "--wait", url=broker.amqp_url
    ) as process:
        await eventually(lambda: client.depth(queue), "the job is submitted")
        process.send_signal(signal.SIGINT)
        await ended(process)
    assert await client.depth(queue) == 1


@ON_4_3
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
async def test_an_interruption_leaves_the_id_of_each_job_that_is_in_the_queue(
    broker: RabbitMQ, client: Client, queue: str, number: signal.Signals, code: int
) -> None:
    await declare_lane(client, queue)
    lines = "".join(f'{{"id": "j{number}"}}\n' for number in range(MANY))
    async with submitting("--queue", queue, "--file", "-", url=broker.amqp_url) as process:
        first = await first_line(process, lines)
        process.send_signal(number)
        done = await ended(process)
    printed = (first.decode() + done.out).split()
    assert (done.code, done.err.count("\n"), len(printed) < MANY) == (code, 1, True), done.err
    assert f"interrupted: {len(printed)} of {MANY} jobs were submitted" in done.err
    assert await client.depth(queue) >= len(printed)


@ON_4_3
async def test_a_file_submitted_again_has_the_same_jobs(
    broker: RabbitMQ, client: Client, queue: str, tmp_path: Path
) -> None:
    jobs = tmp_path / "jobs.csv"
    jobs.write_text("input.x\n1\n1\n2\n")
    words = ("--queue", queue, "--file", str(jobs))
    first, second, anew = [
        await submit(*words, *more, url=broker.amqp_url) for more in ((), (), ("--new-ids",))
    ]
    assert (first.out == second.out, len({*first.out.split(), *anew.out.split()})) == (True, 6)


@ON_4_3
async def test_a_reader_who_has_gone_keeps_no_job_from_the_queue(
    broker: RabbitMQ, client: Client, queue: str, tmp_path: Path
) -> None:
    jobs = tmp_path / "jobs.csv"
    jobs.write_text("input.x\n" + "1\n" * 1000)
    async with submitting("--queue", queue, "--file", str(jobs), url=broker.amqp_url) as process:
        assert process.stdout is not None
        process.stdout._transport.close()  # type: ignore[attr-defined]
        await asyncio.wait_for(process.wait(), 60)
    assert (process.returncode, await client.depth(queue)) == (1, 1000)


async def test_an_alarm_is_said_at_once_with_its_reason(
    broker: RabbitMQ, client: Client, queue: str
) -> None:
    await declare_lane(client, queue)
    async with (
        memory_alarm(broker),
        submitting("--queue", queue, "--flow", "n/f", url=broker.amqp_url) as process,
    ):
        said = await first_complaint(process)
    assert re.fullmatch(
        r"kestra-bridge: RabbitMQ takes no messages: low on \w+; waiting\n", said
    ), said


async def test_a_job_goes_on_when_the_alarm_is_over(
    broker: RabbitMQ, client: Client, queue: str
) -> None:
    await declare_lane(client, queue)
    async with AsyncExitStack() as stack:
        async with memory_alarm(broker):
            submission = submitting(
                "--queue", queue, "--flow", "n/f", "--id", "a", url=broker.amqp_url
            )
            process = await stack.enter_async_context(submission)
            await first_complaint(process)
        done = await ended(process)
    assert (done.code, done.out, done.err) == (
        0,
        "a\n",
        "kestra-bridge: RabbitMQ takes messages again\n",
    )


@ON_4_3
async def test_a_connection_lost_while_waiting_is_one_clear_line(
    broker: RabbitMQ, client: Client, queue: str
) -> None:
    await declare_lane(client, queue)
    async with Proxy(broker.host, broker.port) as proxy:
        url = broker.amqp_url.replace(f":{broker.port}/", f":{proxy.port}/")
        async with submitting(
            "--queue", queue, "--flow", "n/f", "--id", "a", "--wait", url=url
        ) as process:
            await eventually(lambda: client.depth(queue), "the job is submitted")
            proxy.cut()
            done = await ended(process)
    assert done.code == 1
    assert done.err.count("\n") == 1
    assert "connection to RabbitMQ was lost" in done.err
    assert done.err.endswith("; the job was submitted, and the result is not known of a\n")


@ON_4_3
async def test_a_terminal_gets_a_table_of_the_results(
    broker: RabbitMQ, client: Client, queue: str, tmp_path: Path
) -> None:
    jobs = tmp_path / "jobs.csv"
    jobs.write_text("id\na\nb\n")
    async with answering(client, queue, {"a": success(), "b": failure()}):
        words = ("submit", "--queue", queue, "--file", str(jobs), "--wait")
        screen = await asyncio.to_thread(
            on_a_terminal, *words, columns=100, BRIDGE_AMQP_URL=broker.amqp_url
        )
    assert "Execution" in screen
    assert "failed: task fail ended FAILED" in " ".join(screen.split())


# -- brokers that don't take it --


@ON_4_3
async def test_what_is_printed_of_a_broken_submission_is_in_the_queue(
    broker: RabbitMQ, client: Client, queue: str
) -> None:
    await declare_lane(client, queue)
    async with Proxy(broker.host, broker.port) as proxy:
        url = broker.amqp_url.replace(f":{broker.port}/", f":{proxy.port}/")
        async with submitting("--queue", queue, "--file", "-", url=url) as process:
            lines = "".join(f'{{"id": "j{number}"}}\n' for number in range(MANY))
            ending = asyncio.create_task(ended(process, lines))
            await eventually(lambda: client.depth(queue), "the first jobs are submitted")
            proxy.cut()
            done = await ending
    printed = done.out.split()
    assert (done.code, len(printed) < MANY) == (1, True)
    assert f"; {len(printed)} of {MANY} jobs were submitted, " in done.err
    assert await client.depth(queue) >= len(printed)


async def test_a_virtual_host_may_have_any_name(broker: RabbitMQ, queue: str) -> None:
    await asyncio.to_thread(broker.ctl, "add_vhost", "a/b %2F")
    await asyncio.to_thread(
        broker.ctl, "set_permissions", "-p", "a/b %2F", broker.username, ".*", ".*", ".*"
    )
    url = f"{broker.amqp_url}a%2Fb%20%252F"
    assert (await submit("--queue", queue, "--flow", "n/f", "--id", "a", url=url)).out == "a\n"


async def test_a_wrong_password_is_wrong_settings(broker: RabbitMQ) -> None:
    done = await submit("--flow", "n/f", url=broker.amqp_url.replace(broker.password, "wrong"))
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert "refuses the user or the password" in done.err


@ON_4_3
async def test_no_password_is_ever_shown(broker: RabbitMQ, queue: str) -> None:
    url = broker.amqp_url.replace(f":{broker.port}/", ":1/")
    done = await submit("--queue", queue, "--flow", "n/f", url=url, BRIDGE_LOG_LEVEL="debug")
    assert broker.password not in done.out + done.err


@ON_4_3
async def test_an_unreachable_broker_is_a_failure(broker: RabbitMQ) -> None:
    done = await submit("--flow", "n/f", url=broker.amqp_url.replace(f":{broker.port}/", ":1/"))
    assert (done.code, done.err.count("\n")) == (1, 1)
    assert "can't reach RabbitMQ at 127.0.0.1:1" in done.err


async def test_an_exchange_without_a_binding_is_a_failure(
    broker: RabbitMQ, client: Client, queue: str
) -> None:
    await client.channel.declare_queue(queue, durable=True)
    await client.channel.declare_exchange(queue, durable=True)
    done = await submit("--queue", queue, "--flow", "n/f", url=broker.amqp_url)
    assert (done.code, done.err) == (
        1,
        (
            f"kestra-bridge: no queue takes '{queue}' of exchange '{queue}'; the job "
            "was not submitted\n"
        ),
    )


async def test_a_full_queue_is_a_failure_that_says_what_was_taken(
    broker: RabbitMQ, client: Client, queue: str
) -> None:
    await declare_lane(client, queue, **{"x-max-length": 3, "x-overflow": "reject-publish"})
    lines = "".join(f'{{"id": "j{number}"}}\n' for number in range(5))
    done = await submit("--queue", queue, "--file", "-", url=broker.amqp_url, stdin=lines)
    taken = len(done.out.split())
    assert (done.code, taken, await client.depth(queue)) == (1, 3, 3)
    assert done.err.endswith("queue full?; 3 of 5 jobs were submitted\n")


@ON_4_3
async def test_of_several_lanes_one_must_be_named(broker: RabbitMQ) -> None:
    lanes = '[{"queue": "slow"}, {"queue": "fast"}]'
    done = await submit("--flow", "n/f", url=broker.amqp_url, BRIDGE_LANES=lanes)
    assert (done.code, done.err) == (
        2,
        "kestra-bridge: --queue is needed: BRIDGE_LANES has slow, fast\n",
    )


@ON_4_3
async def test_a_reader_who_has_gone_is_no_noise(broker: RabbitMQ, queue: str) -> None:
    script = f"'{sys.executable}' -m bridge submit --queue {queue} --file - | head -n 1"
    environment = {
        "PATH": "/usr/bin:/bin",
        "PYTHONPATH": str(REPOSITORY),
        "BRIDGE_AMQP_URL": broker.amqp_url,
    }
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_shell(
        script, env=environment, stdin=pipe, stdout=pipe, stderr=pipe
    )
    lines = "".join(f'{{"id": "j{number}"}}\n' for number in range(3000))
    done = await ended(process, lines)
    assert (done.out, done.err) == ("j0\n", "")
