"""`kestra-bridge dead-letters` as an operator runs it, against the oldest and the newest supported
RabbitMQ."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import signal
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import aio_pika
import pytest
from aio_pika.abc import AbstractIncomingMessage
from pydantic import SecretStr

from bridge.errors import SettingsError
from bridge.job.message import Message
from bridge.operate.status.collect import Collector, ReadingLimits
from bridge.operate.status.report import DeadStatus
from bridge.operate.status.summarize import summarize
from bridge.rabbitmq.broker import Broker
from bridge.rabbitmq.reader import ReaderLimits, opened
from bridge.settings import BrokerSettings
from deploy.local.rabbitmq import RabbitMQ, Series
from tests.support.broker_stage import Node, memory_alarm
from tests.support.harness import (
    Client,
    Ended,
    Proxy,
    commanding,
    ended,
    eventually,
    on_a_terminal,
)
from tests.support.in_process import command
from tests.support.standin import Run, Standin

MANY, SOME = 1000, 400
ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")

pytestmark = pytest.mark.timeout(300)


@dataclass
class Place:
    """One test's own lane, with its dead letters, and the words to work with them."""

    rabbit: RabbitMQ
    client: Client
    queue: str = field(default_factory=lambda: f"d{uuid.uuid4().hex[:8]}")
    settings: dict[str, str] = field(default_factory=dict)

    @property
    def dead(self) -> str:
        return f"{self.queue}.dead"

    @property
    def environment(self) -> dict[str, str]:
        return {
            "BRIDGE_AMQP_URL": self.rabbit.amqp_url,
            "BRIDGE_QUEUE": self.queue,
            **self.settings,
        }

    async def declare(self, *queues: str, replay: bool = True) -> None:
        """Declare the lanes, and their replay queues: who makes one waits until it is on RabbitMQ's
        disk."""
        queues = queues or (self.queue,)
        lanes = [{"queue": queue} for queue in queues]
        broker = Broker(
            BrokerSettings(amqp_url=SecretStr(self.rabbit.amqp_url), lanes=json.dumps(lanes))
        )
        async with broker.commands() as session:
            await session.declare()
            for queue in queues if replay else ():
                await session.declare_replay(queue)

    async def put(self, job: str | None, *, queue: str = "", body: Any = None, **more: Any) -> None:
        """A dead letter as the bridge leaves it; `x_…` are headers, other arguments properties."""
        headers = {
            "x-bridge-reason": "failed",
            "x-bridge-error": "task work ended FAILED: disk full",
            "x-bridge-attempt": 3,
            "x-bridge-queue": queue or self.queue,
            "x-bridge-at": datetime.now(UTC).isoformat(timespec="milliseconds"),
        }
        given = {
            f"x-bridge-{name[2:]}": more.pop(name) for name in list(more) if name.startswith("x_")
        }
        kept = {name: value for name, value in (headers | given).items() if value is not None}
        body = {"flow": "team/report", "inputs": {"day": job}} if body is None else body
        await self.client.submit(f"{queue or self.queue}.dead", body, job=job, headers=kept, **more)

    async def put_many(self, count: int, **more: Any) -> None:
        for start in range(0, count, 100):
            await asyncio.gather(
                *(self.put(f"job-{n}", **more) for n in range(start, min(start + 100, count)))
            )

    async def run(self, *words: str, **settings: str) -> Ended:
        return await command("dead-letters", *words, **(self.environment | settings))

    def running(
        self, *words: str, **settings: str
    ) -> AbstractAsyncContextManager[asyncio.subprocess.Process]:
        return commanding("dead-letters", *words, **(self.environment | settings))

    async def names(self, *words: str, **settings: str) -> list[str]:
        """The jobs of the dead letters that `list` tells of."""
        return [row["job"] for row in (await self.run("list", "--json", *words, **settings)).rows]

    async def jobs(self, count: int = 1) -> list[AbstractIncomingMessage]:
        """That many messages of the lane, taken; RabbitMQ moves them there by itself."""
        return await self.client.take(self.queue, count)

    async def back(self, count: int) -> Counter[tuple[str, int]]:
        """How often each (job, attempt) is in the lane, once so many are; the messages are
        taken."""
        await eventually(lambda: self.has_back(count), f"{count} jobs are back")
        jobs = await self.jobs(await self.client.depth(self.queue))
        return Counter(
            (str(job.message_id), int(str(job.headers["x-bridge-attempt"]))) for job in jobs
        )

    async def has_back(self, count: int) -> bool:
        return await self.client.depth(self.queue) >= count


@pytest.fixture(params=["3.10", "4.3"])
async def place(request: pytest.FixtureRequest, node: Node) -> AsyncIterator[Place]:
    rabbit = node(request.param)
    async with Client.connect(rabbit.amqp_url) as client:
        made = Place(rabbit, client)
        await made.declare()
        yield made


@pytest.fixture
async def one_place(node: Node) -> AsyncIterator[Place]:
    """On 4.3 alone, for what doesn't depend on the version."""
    rabbit = node("4.3")
    async with Client.connect(rabbit.amqp_url) as client:
        made = Place(rabbit, client)
        await made.declare()
        yield made


@pytest.fixture
async def kestra(one_place: Place) -> AsyncIterator[Standin]:
    async with Standin() as server:
        one_place.settings |= {
            "BRIDGE_KESTRA_URL": server.url,
            "BRIDGE_KESTRA_USERNAME": server.username,
            "BRIDGE_KESTRA_PASSWORD": server.password,
        }
        yield server


def past(kestra: Standin, place: Place, job: str, *states: str, **labels: str) -> Run:
    """An execution of a dead letter's third attempt that has been through these states."""
    marks = {"bridge": "amqp", "bridgeJob": job, "bridgeAttempt": "3", "bridgeQueue": place.queue}
    return kestra.past(marks | labels, *states)


# -- list --


async def test_a_list_has_a_line_for_each_letter_whoever_put_it_there(place: Place) -> None:
    await place.put("by-bridge", x_execution="abc123")
    await place.client.submit(
        place.queue, {"flow": "team/report"}, job="by-rabbitmq", expiration=timedelta(0)
    )
    await eventually(lambda: _holds(place, 2), "RabbitMQ has given the message up")
    await place.client.submit(place.dead, b"\xff\x00", job="by\x1bhand")
    lines = [line.split("\t") for line in (await place.run("list")).out.splitlines()]
    assert sorted(line[:4] + line[5:7] for line in lines) == [
        ["by-bridge", "failed", "team/report", "3", place.queue, "abc123"],
        ["by-rabbitmq", "expired", "team/report", "1", place.queue, "-"],
        [r"by\x1bhand", "unexplained", "-", "1", place.queue, "-"],
    ]


async def _holds(place: Place, count: int) -> bool:
    return await place.client.depth(place.dead) == count


async def test_lists_short_or_long_change_neither_number_nor_order(place: Place) -> None:
    await place.put_many(600)
    first, few, again = await place.names(), await place.names("--limit", "3"), await place.names()
    assert (len(first), few, again, await place.client.depth(place.dead)) == (
        600,
        first[:3],
        first,
        600,
    )


async def test_what_is_held_in_many_pages_goes_back_in_its_order_and_as_no_failure(
    place: Place,
) -> None:
    await place.put_many(150)
    reads = [await _read_all(place, ReaderLimits(page_messages=4)) for _ in range(3)]
    assert [each.message_id for each in reads[0]] == [each.message_id for each in reads[2]]
    assert _returns(reads[2]) == ({None} if place.rabbit.series == "4.3" else {2})


async def _read_all(place: Place, limits: ReaderLimits | None = None) -> list[Message]:
    """The dead letters in their order, which go back."""
    async with (
        Client.connect(place.rabbit.amqp_url) as client,
        opened(client.connection, place.dead, limits) as reader,
    ):
        return [held.message async for page in reader.pages() for held in page]


def _returns(letters: Sequence[Message]) -> set[Any]:
    """How often RabbitMQ says that a delivery of a letter has failed."""
    return {each.headers.get("x-delivery-count") for each in letters}


def _without_counts(letters: Sequence[Message]) -> list[Message]:
    counts = {"x-delivery-count", "x-acquired-count"}
    kept = (
        {name: value for name, value in each.headers.items() if name not in counts}
        for each in letters
    )
    return [replace(each, headers=headers) for each, headers in zip(letters, kept, strict=True)]


@pytest.mark.parametrize(
    ("series", "kind", "returns"),
    [("3.10", "quorum", {3}), ("3.10", "classic", {None}), ("4.3", "quorum", {None})],
)
async def test_looking_changes_neither_order_nor_content(
    node: Node, series: Series, kind: str, returns: set[int | None]
) -> None:
    rabbit = node(series)
    async with Client.connect(rabbit.amqp_url) as client:
        place = Place(rabbit, client)
        await place.declare()
        if kind == "classic":  # which somebody made by hand
            await client.channel.queue_delete(place.dead)
            dead = await client.channel.declare_queue(place.dead, durable=True)
            await dead.bind(place.dead)
        await place.client.submit(
            place.queue, {"flow": "team/report"}, job="by-rabbitmq", expiration=timedelta(0)
        )
        await eventually(lambda: _holds(place, 1), "RabbitMQ has given the message up")
        await place.put_many(300, priority=7)
        before = await _read_all(place)
        for look in (["status"], ["dead-letters", "list"]):
            assert (await command(*look, **place.environment)).code == 0
        after = await _read_all(place)
    assert len(after) == 301
    assert _without_counts(after) == _without_counts(before)
    assert _returns(after) == returns


@pytest.mark.parametrize("look", [("dead-letters", "list"), ("status",)], ids=lambda look: look[-1])
async def test_a_look_that_is_interrupted_leaves_the_order_and_counts_nothing_as_failed(
    one_place: Place, look: Sequence[str]
) -> None:
    await one_place.put_many(600)
    before = await _read_all(one_place)
    async with Proxy(one_place.rabbit.host, one_place.rabbit.port) as proxy:
        proxy.delay = 0.05  # so that it is at work for a second or more
        slowly = one_place.environment | {"BRIDGE_AMQP_URL": _by(proxy, one_place)}
        async with commanding(*look, **slowly) as process:
            await eventually(lambda: _holds_less(one_place, 600), "letters are away", every=0.002)
            process.send_signal(signal.SIGINT)
            done = await ended(process)
    after = await _read_all(one_place)
    assert (done.code, [each.message_id for each in after]) == (
        130,
        [each.message_id for each in before],
    )
    assert _returns(after) == {None}


def _by(proxy: Proxy, place: Place) -> str:
    """RabbitMQ's address by way of a proxy."""
    return place.rabbit.amqp_url.replace(f":{place.rabbit.port}/", f":{proxy.port}/")


async def _holds_less(place: Place, count: int) -> bool:
    return await place.client.depth(place.dead) < count


# -- status --


async def reasons(place: Place, **settings: str) -> tuple[dict[str, int], list[str]]:
    """The reasons that `status` tells, and what it says to be unknown of the dead letters."""
    done = await command("status", "--json", **(place.environment | settings))
    assert done.code == 0, done.err
    found = json.loads(done.out)
    unknown = [line for line in found["unknown"] if line.startswith("reasons in ")]
    return found["lanes"][0]["dead_letters"]["reasons"], unknown


async def test_status_counts_every_reason_as_a_list_does(one_place: Place) -> None:
    await one_place.put_many(150)
    await one_place.put("killed", x_reason="killed")
    await one_place.client.submit(one_place.dead, b"\xff", job="by-hand")
    assert await reasons(one_place) == ({"failed": 150, "killed": 1, "unexplained": 1}, [])


async def test_status_waits_for_no_other_command_for_long_and_says_so(one_place: Place) -> None:
    await one_place.put("a")
    await one_place.client.channel.declare_queue(f"{one_place.dead}.lock", exclusive=True)
    told, (unknown,) = await reasons(one_place)
    assert (told, "another command is at work there" in unknown) == ({}, True)


async def test_status_reads_no_part_of_a_queue_that_is_too_long_and_says_so(
    one_place: Place,
) -> None:
    await one_place.put_many(3)
    settings = BrokerSettings(amqp_url=SecretStr(one_place.rabbit.amqp_url), queue=one_place.queue)
    limits = ReadingLimits(messages=2)
    async with Collector(settings, SettingsError("no Kestra"), (), limits=limits) as collector:
        found = summarize(await collector.snapshot())
    assert found.lanes[0].dead_letters == DeadStatus(queue=one_place.dead, messages=3)
    assert (
        f"reasons in {one_place.dead}: more than 2 letters are for "
        "`kestra-bridge dead-letters list` to read" in (found.unknown)
    )


async def test_a_list_in_json_has_a_line_for_each_letter(place: Place) -> None:
    await place.put("a", priority=7, x_execution="abc", body={"flow": "team/report"})
    (row,) = (await place.run("list", "--json")).rows
    at = row.pop("at")
    assert row == {
        "job": "a",
        "queue": place.queue,
        "reason": "failed",
        "error": "task work ended FAILED: disk full",
        "by": "bridge",
        "flow": "team/report",
        "attempt": 3,
        "execution": "abc",
        "priority": 7,
        "bytes": 23,
    }
    assert abs(datetime.now(UTC) - datetime.fromisoformat(at)) < timedelta(minutes=5)


async def test_filters_choose_and_all_of_them_must_hold(one_place: Place) -> None:
    old = (datetime.now(UTC) - timedelta(hours=5)).isoformat()
    await one_place.put("a-1", x_at=old)
    await one_place.put("a-2")
    await one_place.put("b-1", x_at=old, x_reason="killed", body={"flow": "other/flow"})
    by_job = await one_place.names(
        "--job", "a-*", "--flow", "team/*", "--error", "DISK", "--older-than", "2h"
    )
    by_reason = await one_place.names("--reason", "killed", "--reason", "timed_out")
    assert (by_job, by_reason) == (["a-1"], ["b-1"])


async def test_an_empty_list_is_no_failure(one_place: Place) -> None:
    done = await one_place.run("list")
    assert (done.code, done.out, done.err) == (0, f"no dead letters in {one_place.queue}\n", "")


@pytest.mark.parametrize(
    ("columns", "told"), [(80, "disk"), (160, "disk full on /dev/sda1: no report")]
)
async def test_a_terminal_gets_a_table_that_fits(one_place: Place, columns: int, told: str) -> None:
    await one_place.put("day-2026-01-31", x_error="disk full on /dev/sda1: no report")
    await one_place.put(
        "b" * 32, x_reason="rejected_by_kestra", x_error="flow team/report: HTTP 404: no such flow"
    )
    screen = await asyncio.to_thread(
        on_a_terminal, "dead-letters", "list", columns=columns, **one_place.environment
    )
    lines = ANSI.sub("", screen).replace("\r", "").rstrip().split("\n")
    print("\n".join(lines))
    assert max(map(len, lines)) <= columns
    assert re.search(rf"day-2026-01-31 +failed .*{told}", "\n".join(lines))
    assert lines[-1].startswith("2 dead letters: 1 ")


async def test_letters_that_somebody_else_holds_are_told_of(place: Place) -> None:
    await place.put_many(3)
    async with place.client.connection.channel() as channel:
        held = await (await channel.get_queue(place.dead, ensure=False)).get()
        done = await place.run("list", "--json")
    assert held.message_id not in [row["job"] for row in done.rows]
    assert (len(done.rows), "1 other reader" in done.err) == (2, True)


# -- show --


async def test_a_letter_is_shown_with_its_message_and_without_kestra(place: Place) -> None:
    body = {"flow": "team/report", "inputs": {"day": "Monday"}}
    await place.put("a", body=body, priority=7, x_execution="abc", correlation_id="c-1")
    done = await place.run("show", "a")
    assert done.code == 0, done.err
    for told in (
        "failed: task work ended FAILED: disk full",
        "priority: 7",
        "correlation_id: c-1",
        '"day": "Monday"',
    ):
        assert told in done.out
    assert "abc (BRIDGE_KESTRA_URL is not set, so Kestra isn't asked)" in done.out


async def test_a_body_of_any_bytes_is_shown_safely_and_bounded(one_place: Place) -> None:
    await one_place.put("odd", body=b"\xff\x1b[2J\x00" + b"x" * 9000, x_reason="invalid_message")
    done = await one_place.run("show", "odd")
    assert (r"\xff\x1b[2J\x00xxx" in done.out, "\x1b" in done.out, len(done.out) < 9000) == (
        True,
        False,
        True,
    )


async def test_a_letter_in_json_has_all_of_its_message(one_place: Place) -> None:
    await one_place.put("a", body={"flow": "team/report"}, type="report")
    await one_place.put("b", body=b"\xff")
    rows = {row["job"]: row for row in (await one_place.run("show", "a", "b", "--json")).rows}
    assert (rows["a"]["body"], rows["a"]["properties"]["message_type"]) == (
        {"flow": "team/report"},
        "report",
    )
    assert base64.b64decode(rows["b"]["body_base64"]) == b"\xff"


async def test_kestra_tells_of_the_failed_task_its_log_and_the_link(
    one_place: Place, kestra: Standin
) -> None:
    run = past(kestra, one_place, "a", "FAILED")
    await one_place.put("a", x_execution=run.id)
    out = (await one_place.run("show", "a")).out
    link = f"{kestra.url}/ui/main/executions/test/job/{run.id}"
    shown = (
        "Execution" in out,
        f"{run.id} is FAILED now" in out,
        link in out,
        "Failed task work" in out,
    )
    assert shown == (True, True, True, True), out
    assert re.search(r"Log +\S+ INFO working\n +\S+ ERROR it went wrong\n", out), out


async def test_where_kestra_is_away_the_rest_is_shown(one_place: Place, kestra: Standin) -> None:
    await one_place.put("a", x_execution="abc")
    await kestra.down()
    done = await one_place.run("show", "a")
    assert (
        done.code,
        "abc (Kestra can't tell: can't reach Kestra" in done.out,
        "Body" in done.out,
    ) == (0, True, True)


async def test_an_execution_that_kestra_knows_no_more_is_called_so(
    one_place: Place, kestra: Standin
) -> None:
    await one_place.put("a", x_execution="abc")
    assert "abc (Kestra doesn't know it any more)" in (await one_place.run("show", "a")).out


# -- replay --


async def test_the_first_replay_of_all_makes_what_it_needs(one_place: Place) -> None:
    fresh = replace(one_place, queue=f"{one_place.queue}-fresh")
    await fresh.declare(replay=False)
    await fresh.put("a")
    await fresh.run("replay", "a", "--unchecked")
    assert await fresh.back(1) == {("a", 4): 1}


async def test_a_job_goes_back_into_its_queue_as_its_next_attempt(place: Place) -> None:
    await place.put(
        "a", priority=7, correlation_id="c", body=b'{"flow": "team/report"}', x_expiration="60000"
    )
    done = await place.run("replay", "a", "--unchecked")
    (job,) = await place.jobs()
    assert (done.code, done.out) == (0, f"1 job is back in {place.queue}\n")
    assert (job.message_id, job.body, job.priority, job.correlation_id) == (
        "a",
        b'{"flow": "team/report"}',
        7,
        "c",
    )
    ours = {name: value for name, value in job.headers.items() if name.startswith("x-bridge")}
    assert ours == {
        "x-bridge-attempt": 4,
        "x-bridge-first-attempt": 4,
        "x-bridge-expiration": "60000",
    }
    assert await place.client.depth(place.dead) == 0


async def test_a_replay_without_execution_needs_no_kestra(one_place: Place) -> None:
    await one_place.put("a", x_reason="flow_not_allowed", x_attempt=1)
    assert (await one_place.run("replay", "a")).code == 0


async def test_a_dry_run_says_what_would_be_and_does_nothing(one_place: Place) -> None:
    await one_place.put_many(3, x_reason="flow_not_allowed")
    done = await one_place.run("replay", "--all", "--dry-run")
    assert (done.code, done.out) == (0, f"would put 3 jobs back into {one_place.queue}\n")
    assert (
        await one_place.client.depth(one_place.dead),
        await one_place.client.depth(one_place.queue),
    ) == (3, 0)


async def test_only_what_is_meant_goes_back(place: Place) -> None:
    await place.put("a")
    await place.put("b", x_reason="killed")
    await place.put("c", x_reason="killed")
    await place.run("replay", "--reason", "killed", "--limit", "1", "--unchecked")
    (job,) = await place.jobs()
    assert (job.message_id, await place.names()) == ("b", ["a", "c"])


async def test_a_letter_that_rabbitmq_gave_up_goes_back(place: Place) -> None:
    await place.client.submit(
        place.queue, {"flow": "team/report"}, job="late", expiration=timedelta(0)
    )
    await eventually(lambda: _holds(place, 1), "RabbitMQ has given it up")
    await place.run("replay", "late", "--unchecked")
    (job,) = await place.jobs()
    assert [death["queue"] for death in job.headers["x-death"]] == [f"{place.queue}.replay"]  # type: ignore[index,union-attr,call-overload]


async def misroute(place: Place, job: str, body: bytes = b'{"flow": "team/report"}') -> None:
    """Publish to the lane's exchange with a routing key that leads nowhere."""
    exchange = await place.client.channel.get_exchange(place.queue, ensure=False)
    await exchange.publish(aio_pika.Message(body, message_id=job, delivery_mode=2), "typo")
    await eventually(lambda: _holds(place, 1), "it is among the dead letters")


async def test_what_was_misrouted_is_a_letter_that_says_so(place: Place) -> None:
    await misroute(place, "lost")
    (row,) = (await place.run("list", "--json", "--reason", "unroutable")).rows
    assert (row["job"], row["by"], "routing key 'typo'" in row["error"]) == (
        "lost",
        "rabbitmq",
        True,
    )


async def test_what_was_misrouted_goes_back_to_where_it_belongs(place: Place) -> None:
    await misroute(place, "lost")
    await place.run("replay", "--reason", "unroutable", "--unchecked")
    (job,) = await place.jobs()
    assert (job.message_id, await place.names()) == ("lost", [])


async def test_headers_that_fill_a_frame_are_no_obstacle_to_a_replay(place: Place) -> None:
    """By the management API, which isn't bound to frames."""
    message = {
        "properties": {"message_id": "big", "headers": {"big": "x" * 200_000}},
        "routing_key": place.dead,
        "payload": '{"flow": "team/report"}',
        "payload_encoding": "string",
    }
    await asyncio.to_thread(
        place.rabbit.api, "exchanges/%2F/amq.default/publish", method="POST", body=message
    )
    done = await place.run("replay", "big", "--unchecked")
    (job,) = await place.jobs()
    assert (done.code, job.message_id, job.headers["x-bridge-left-out"]) == (0, "big", ["big"])


async def test_an_invalid_message_stays_and_that_is_a_failure(one_place: Place) -> None:
    await one_place.put("bad", body=b"{", x_reason="invalid_message")
    await one_place.put("good", x_reason="flow_not_allowed")
    done = await one_place.run("replay", "--all", "--json")
    results = {row["job"]: row["result"] for row in done.rows}
    assert (done.code, results, await one_place.names()) == (
        1,
        {"bad": "refused", "good": "replayed"},
        ["bad"],
    )


async def test_two_messages_without_an_id_that_are_alike_stay(one_place: Place) -> None:
    for _ in range(2):
        body = {
            "properties": {},
            "routing_key": one_place.dead,
            "payload": "{}",
            "payload_encoding": "string",
        }
        one_place.rabbit.api("exchanges/%2F/amq.default/publish", method="POST", body=body)
    done = await one_place.run("replay", "--all", "--unchecked", "--json")
    names = {row["job"] for row in done.rows}
    assert (
        [row["result"] for row in done.rows],
        len(names),
        await one_place.client.depth(one_place.dead),
    ) == (
        ["refused", "refused"],
        1,
        2,
    )


async def test_a_letter_that_is_there_twice_is_one_job(place: Place) -> None:
    await place.put("a")
    await place.put("a")
    await place.run("replay", "--all", "--unchecked")
    assert (await place.back(1), await place.client.depth(place.dead)) == ({("a", 4): 1}, 0)


async def test_each_lanes_letters_go_back_into_their_own_queue(one_place: Place) -> None:
    other = f"{one_place.queue}-slow"
    await one_place.declare(one_place.queue, other)
    await one_place.put("same-id")
    await one_place.put("same-id", queue=other)
    lanes = json.dumps([{"queue": one_place.queue}, {"queue": other}])
    done = await one_place.run("replay", "--all", "--unchecked", BRIDGE_LANES=lanes)
    assert done.out == f"2 jobs are back in {one_place.queue}, {other}\n"
    assert [
        job.message_id for job in (*await one_place.jobs(), *await one_place.client.take(other))
    ] == ["same-id"] * 2


async def test_jobs_that_have_succeeded_or_run_again_are_left_alone(
    one_place: Place, kestra: Standin
) -> None:
    runs = {
        "failed": past(kestra, one_place, "failed", "FAILED"),
        "restarted": past(kestra, one_place, "restarted", "FAILED", "RESTARTED", "SUCCESS"),
        "replayed": past(kestra, one_place, "replayed", "FAILED"),
        "running": past(kestra, one_place, "running", "FAILED", "RESTARTED", "RUNNING"),
    }
    past(kestra, one_place, "replayed", "SUCCESS", **{"system.replay": "true"})
    for job, run in runs.items():
        await one_place.put(job, x_execution=run.id)
    done = await one_place.run("replay", "--all", "--json")
    assert {row["job"]: row["result"] for row in done.rows} == {
        "failed": "replayed",
        "restarted": "succeeded",
        "replayed": "succeeded",
        "running": "running",
    }
    assert (done.code, await one_place.back(1), sorted(await one_place.names())) == (
        0,
        {("failed", 4): 1},
        ["replayed", "restarted", "running"],
    )
    done = await one_place.run("replay", "--all", "--discard-succeeded")
    assert (done.code, await one_place.names()) == (0, ["running"])


async def test_where_kestra_is_away_nothing_is_put_back(one_place: Place, kestra: Standin) -> None:
    await one_place.put("a", x_execution="abc")
    await kestra.down()
    done = await one_place.run("replay", "a")
    assert (done.code, done.err.count("\n"), "nothing was put back" in done.err) == (1, 1, True)
    assert await one_place.client.depth(one_place.dead) == 1


async def test_a_thousand_jobs_go_back_in_one_call(one_place: Place, kestra: Standin) -> None:
    executions = {
        f"job-{number}": past(kestra, one_place, f"job-{number}", "FAILED").id
        for number in range(MANY)
    }
    jobs = iter(executions.items())

    async def put() -> None:
        for job, execution in jobs:
            await one_place.put(job, x_execution=execution)

    await asyncio.gather(*(put() for _ in range(100)))
    kestra.requests.clear()
    began = asyncio.get_running_loop().time()
    done = await one_place.run("replay", "--all")
    print(f"{MANY} jobs back in {asyncio.get_running_loop().time() - began:.1f} s")
    assert (done.code, done.out) == (0, f"{MANY} jobs are back in {one_place.queue}\n")
    assert await one_place.back(MANY) == Counter({(job, 4): 1 for job in executions})
    assert kestra.requests["search"] <= 3


# -- stopped at any point --


async def half_way(place: Place, least: int = 1) -> None:
    """Wait until a replay has put some jobs back."""
    await eventually(lambda: place.has_back(least), "some jobs are back", every=0.002)


async def each_is_back_once(place: Place, count: int) -> None:
    assert await place.back(count) == Counter({(f"job-{number}", 4): 1 for number in range(count)})
    left = [await place.client.depth(queue) for queue in (place.dead, f"{place.queue}.replay")]
    assert left == [0, 0]


async def test_killed_in_the_middle_and_run_again_each_job_is_back_once(place: Place) -> None:
    await place.put_many(SOME)
    for least in (1, 200):
        async with place.running("replay", "--all", "--unchecked") as process:
            await half_way(place, least)
            process.kill()
            await process.wait()
    done = await place.run("replay", "--all", "--unchecked")
    print(done.out)
    assert done.code == 0, done.err
    await each_is_back_once(place, SOME)


async def test_a_connection_cut_in_the_middle_is_one_line_and_run_again_each_job_is_back_once(
    one_place: Place,
) -> None:
    await one_place.put_many(SOME)
    async with Proxy(one_place.rabbit.host, one_place.rabbit.port) as proxy:
        url = _by(proxy, one_place)
        async with one_place.running(
            "replay", "--all", "--unchecked", BRIDGE_AMQP_URL=url
        ) as process:
            await half_way(one_place)
            proxy.cut()
            done = await ended(process)
    assert (done.code, done.err.count("\n")) == (1, 1)
    assert re.search(rf"; \d+ of {SOME} jobs are back; run again, it goes on\n", done.err), done.err
    assert (await one_place.run("replay", "--all", "--unchecked")).code == 0
    await each_is_back_once(one_place, SOME)


async def test_ctrl_c_says_how_far_it_came_and_run_again_each_job_is_back_once(
    one_place: Place,
) -> None:
    await one_place.put_many(SOME)
    async with one_place.running("replay", "--all", "--unchecked") as process:
        await half_way(one_place)
        process.send_signal(signal.SIGINT)
        done = await ended(process)
    assert (done.code, done.err.count("\n")) == (130, 1)
    assert re.search(
        rf"interrupted; \d+ of {SOME} jobs are back; run again, it goes on\n", done.err
    ), done.err
    assert (await one_place.run("replay", "--all", "--unchecked")).code == 0
    await each_is_back_once(one_place, SOME)


async def leave_half_way(place: Place, *, letter: bool) -> None:
    """The job `half`, whose replay was ended after its copy was published, or after its letter was
    acked as well."""
    headers = {"x-bridge-attempt": 4, "x-bridge-first-attempt": 4}
    body = {"flow": "team/report", "inputs": {"day": "half"}}
    await place.client.submit(f"{place.queue}.replay", body, job="half", headers=headers)
    if letter:
        await place.put("half")


async def test_a_replay_says_at_once_that_an_alarm_keeps_it_waiting(one_place: Place) -> None:
    await one_place.put("a")
    async with (
        memory_alarm(one_place.rabbit),
        one_place.running("replay", "a", "--unchecked") as process,
    ):
        assert process.stderr is not None
        async with asyncio.timeout(30):
            said = (await process.stderr.readline()).decode()
    assert said == "kestra-bridge: RabbitMQ takes no messages: low on memory; waiting\n"


async def test_a_list_tells_of_what_an_ended_replay_left(one_place: Place) -> None:
    await leave_half_way(one_place, letter=False)
    assert "1 job of" in (await one_place.run("list")).err


@pytest.mark.parametrize("letter", [True, False], ids=["letter-there", "letter-gone"])
async def test_a_named_job_that_an_ended_replay_left_is_back_once(
    one_place: Place, letter: bool
) -> None:
    await leave_half_way(one_place, letter=letter)
    done = await one_place.run("replay", "half", "--unchecked")
    assert (done.code, await one_place.back(1), await one_place.names()) == (
        0,
        {("half", 4): 1},
        [],
    )


async def test_what_an_ended_replay_left_is_not_released_while_its_letter_may_be_hidden(
    one_place: Place,
) -> None:
    await leave_half_way(one_place, letter=True)
    async with one_place.client.connection.channel() as channel:
        await (await channel.get_queue(one_place.dead, ensure=False)).get()
        done = await one_place.run("replay", "--all", "--unchecked")
    assert (done.code, "somebody else holds dead letters" in done.out) == (1, True)
    await one_place.run("replay", "--all", "--unchecked")
    assert await one_place.back(1) == {("half", 4): 1}


async def test_a_job_that_is_discarded_does_not_come_back_by_an_ended_replay(
    one_place: Place,
) -> None:
    await leave_half_way(one_place, letter=True)
    await one_place.run("discard", "half", "--yes")
    await one_place.run("replay", "--all", "--unchecked")
    assert (await one_place.back(0), await one_place.names()) == ({}, [])


async def test_two_replays_at_once_put_each_job_back_once(one_place: Place) -> None:
    await one_place.put_many(300)
    async with (
        one_place.running("replay", "--all", "--unchecked") as one,
        one_place.running("replay", "--all", "--unchecked") as other,
    ):
        await asyncio.gather(ended(one), ended(other))
    await each_is_back_once(one_place, 300)


# -- discard --


async def test_discarded_letters_are_gone_and_the_others_stay(place: Place) -> None:
    await place.put_many(200, x_reason="killed")
    await place.put("stays")
    done = await place.run("discard", "--reason", "killed", "--yes")
    assert (done.code, done.out) == (
        0,
        f"discarded 200 dead letters of {place.queue} (200 killed)\n",
    )
    assert (await place.names(), await place.client.depth(place.queue)) == (["stays"], 0)


async def test_a_dry_run_discards_nothing(one_place: Place) -> None:
    await one_place.put("a")
    done = await one_place.run("discard", "--all", "--dry-run")
    assert (done.out, await one_place.names()) == (
        f"would discard 1 dead letter of {one_place.queue} (1 failed)\n",
        ["a"],
    )


async def test_where_nobody_can_be_asked_discard_needs_yes(one_place: Place) -> None:
    await one_place.put("a")
    done = await one_place.run("discard", "a")
    assert (done.code, done.err, await one_place.names()) == (
        2,
        "kestra-bridge: --yes is needed where nobody can be asked\n",
        ["a"],
    )


@pytest.mark.parametrize(("answer", "left"), [("n\n", ["a"]), ("y\n", [])])
async def test_on_a_terminal_discard_asks(one_place: Place, answer: str, left: list[str]) -> None:
    await one_place.put("a")
    words = ("dead-letters", "discard", "a")
    screen = await asyncio.to_thread(
        on_a_terminal, *words, columns=100, answer=answer, **one_place.environment
    )
    assert f"Discard 1 dead letter of {one_place.queue} (1 failed)? [y/N]:" in screen
    assert await one_place.names() == left


# -- what changes nothing --


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["replay"], "which ones? give the jobs' ids, a filter, or --all"),
        (["discard", "--yes"], "which ones? give the jobs' ids, a filter, or --all"),
        (["show"], "which ones? give the jobs' ids, or a filter; 'dead-letters list' lists all"),
        (
            ["replay", "--all", "--reason", "failed"],
            "--all goes with neither jobs nor filters: which is meant?",
        ),
        (["list", "--reason", "fail"], "--reason 'fail' is no reason; did you mean failed?"),
        (
            ["list", "--flow", "report"],
            "--flow 'report' matches no flow: they are namespace/id, patterns such as 'team/*'",
        ),
        (
            ["list", "--older-than", "2"],
            "--older-than '2' is no span of time such as 90s, 30m, 2h, 3d or 1w",
        ),
        (
            ["list", "--older-than", "2h", "--newer-than", "1h"],
            "nothing is older than 2h and newer than 1h",
        ),
        (["replay", ""], "a job's id can't be empty"),
    ],
)
def test_a_filter_that_cannot_be_meant_is_wrong_usage(
    words: Sequence[str],
    told: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sys.argv", ["kestra-bridge", "dead-letters", *words])
    from bridge.cli.commands import main  # noqa: PLC0415

    with pytest.raises(SystemExit) as ending:
        main()
    assert (ending.value.code, capsys.readouterr().err) == (2, f"kestra-bridge: {told}\n")


@pytest.mark.parametrize(
    "verb", [("show",), ("replay",), ("discard", "--yes")], ids=lambda verb: verb[0]
)
async def test_an_unknown_job_changes_nothing(one_place: Place, verb: tuple[str, ...]) -> None:
    await one_place.put("a")
    done = await one_place.run(*verb, "a", "nope")
    told = f"kestra-bridge: no dead letter in {one_place.queue} is of job nope\n"
    assert (done.code, done.err, await one_place.names()) == (1, told, ["a"])


async def test_a_queue_that_is_not_there_is_wrong_settings(one_place: Place) -> None:
    done = await one_place.run("list", "--queue", "nowhere")
    assert (done.code, done.err) == (
        2,
        (
            "kestra-bridge: RabbitMQ has no queue nowhere.dead: is BRIDGE_QUEUE right, and "
            "has a bridge run?\n"
        ),
    )


async def test_a_broker_that_is_away_is_a_failure(one_place: Place) -> None:
    url = one_place.rabbit.amqp_url.replace(f":{one_place.rabbit.port}/", ":1/")
    done = await one_place.run("replay", "--all", BRIDGE_AMQP_URL=url)
    assert (done.code, done.err.count("\n"), "can't reach RabbitMQ at 127.0.0.1:1" in done.err) == (
        1,
        1,
        True,
    )


def url_of_user(rabbit: RabbitMQ, name: str, **rights: str) -> str:
    """RabbitMQ's address for a user who has these rights, and all others."""
    rabbit.api(f"users/{name}", method="PUT", body={"password": name, "tags": ""})
    everything = {"configure": ".*", "write": ".*", "read": ".*"}
    rabbit.api(f"permissions/%2F/{name}", method="PUT", body=everything | rights)
    return f"amqp://{name}:{name}@{rabbit.host}:{rabbit.port}/"


async def test_who_may_not_publish_is_refused_a_replay_and_loses_nothing(one_place: Place) -> None:
    await one_place.put_many(3)
    before = await one_place.names()
    url = url_of_user(one_place.rabbit, "mute", write="^$")
    done = await one_place.run("replay", "--all", "--unchecked", BRIDGE_AMQP_URL=url)
    assert (done.code, done.err.count("\n"), "refuses the user's rights" in done.err) == (
        2,
        1,
        True,
    ), done.err
    assert sorted(await one_place.names()) == before


async def test_status_shows_the_rest_to_who_may_not_read_dead_letters(place: Place) -> None:
    await place.put("a")
    url = url_of_user(place.rabbit, "half", read=f"^{place.queue}$")
    told, (unknown,) = await reasons(place, BRIDGE_AMQP_URL=url)
    assert (told, f"queue '{place.dead}'" in unknown) == ({}, True), unknown


async def test_who_may_only_read_can_list_and_is_refused_a_replay(place: Place) -> None:
    await place.put("a")
    url = url_of_user(place.rabbit, "reader", configure="^$", write="^$")
    assert await place.names(BRIDGE_AMQP_URL=url) == ["a"]
    done = await place.run("replay", "a", "--unchecked", BRIDGE_AMQP_URL=url)
    assert (done.code, done.err.count("\n"), "refuses the user's rights" in done.err) == (
        2,
        1,
        True,
    )
    assert await place.names() == ["a"]
