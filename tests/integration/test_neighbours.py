"""One message must not stop the others: what RabbitMQ refuses, or closes a connection over, costs
nobody but itself."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import Any

import aio_pika
from aio_pika.abc import AbstractIncomingMessage
from pamqp import commands, frame

from bridge.job.message import LEFT_OUT
from deploy.local.rabbitmq import RabbitMQ
from tests.support.broker_stage import BrokerStage
from tests.support.harness import Proxy, eventually
from tests.support.standin import Ends, Run

NEAR_THE_FRAME = "x" * 130_900
BEYOND_THE_FRAME = "x" * 300_000
POISON = b"poison-that-ends-connections"
FORGED = "amq.rabbitmq.reply-to.g1h2AA5yZXBseUA.x"


async def by_api(
    stage: BrokerStage, body: str = "{}", queue: str | None = None, **properties: Any
) -> None:
    """Publish by the management API: without an id unless one is given, and whatever frames may
    have."""
    message = {
        "properties": properties,
        "routing_key": queue or stage.queue,
        "payload": body,
        "payload_encoding": "string",
    }
    await asyncio.to_thread(
        stage.rabbit.api, "exchanges/%2F/amq.default/publish", method="POST", body=message
    )


def fails_at_first(run: Run) -> Ends:
    return Ends("FAILED" if run.labels["bridgeAttempt"] == "1" else "SUCCESS")


class TestHeadersCloseToTheFrame:
    async def test_make_a_dead_letter_that_names_what_was_left_out(
        self, stage: BrokerStage
    ) -> None:
        async with stage.bridge() as bridge:
            await stage.submit("big", b"not json", headers={"big": NEAR_THE_FRAME, "small": 1})
            await bridge.settled(job="big", settlement="dead_letter")
            letter = await stage.dead_letter()
        kept = {"big", "small"} & letter.headers.keys()
        assert (letter.body, letter.headers[LEFT_OUT], kept) == (b"not json", ["big"], {"small"})

    async def test_end_no_session(self, stage: BrokerStage) -> None:
        async with stage.bridge() as bridge:
            await stage.submit("big", b"not json", headers={"big": NEAR_THE_FRAME})
            await bridge.settled(job="big", settlement="dead_letter")
            assert await bridge.metric("bridge_consumer_restarts_total") == 0

    async def test_are_no_obstacle_to_a_retry(self, stage: BrokerStage) -> None:
        stage.kestra.flow("test", "job", fails_at_first)
        async with stage.bridge() as bridge:
            await by_api(stage, message_id="big", headers={"big": BEYOND_THE_FRAME})
            await bridge.settled(job="big", settlement="ack")
            assert await bridge.metric("bridge_consumer_restarts_total") == 0

    async def test_are_no_obstacle_to_a_stamp(self, stage: BrokerStage) -> None:
        async with stage.bridge() as bridge:
            await by_api(stage, headers={"big": BEYOND_THE_FRAME})
            await bridge.settled(settlement="ack")
            assert await bridge.metric("bridge_consumer_restarts_total") == 0


class Touchy(Proxy):
    """Ends a connection as a broker does that can't cope with a message: whenever one with the
    poison comes along."""

    _client: ContextVar[asyncio.StreamWriter] = ContextVar("client")

    def __init__(self, host: str, port: int) -> None:
        super().__init__(host, port)
        self.ended = 0

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._client.set(writer)
        await super()._serve(reader, writer)

    def _watchers(self) -> tuple[Callable[[bytes], None], Callable[[bytes], None]]:
        _, ignore = super()._watchers()
        client = self._client.get()

        def see(data: bytes) -> None:
            if POISON in data:
                self.ended += 1
                client.write(
                    frame.marshal(commands.Connection.Close(541, "INTERNAL_ERROR", 0, 0), 0)
                )
                raise ConnectionResetError("the broker takes nothing more on this connection")

        return see, ignore


class TestAMessageThatEndsConnections:
    async def test_ends_one_session_and_becomes_a_dead_letter_without_what_others_gave_it(
        self, stage: BrokerStage
    ) -> None:
        async with Touchy(stage.rabbit.host, stage.rabbit.port) as broker:
            url = f"amqp://{stage.rabbit.username}:{stage.rabbit.password}@127.0.0.1:{broker.port}/"
            async with stage.bridge(amqp_url=url) as bridge:
                await stage.submit("poison", b"not json", headers={"of-others": POISON.decode()})
                await bridge.settled(job="poison", settlement="dead_letter")
                letter = await stage.dead_letter()
                restarts = await bridge.metric("bridge_consumer_restarts_total")
        assert (
            letter.body,
            "of-others" in letter.headers,
            letter.headers["x-bridge-reason"],
            restarts,
        ) == (
            b"not json",
            False,
            "invalid_message",
            1,
        )

    async def test_costs_nobody_else_anything(self, stage: BrokerStage) -> None:
        stage.kestra.flow("test", "job", fails_at_first)
        jobs = [f"job-{number}" for number in range(10)]
        async with Touchy(stage.rabbit.host, stage.rabbit.port) as broker:
            url = f"amqp://{stage.rabbit.username}:{stage.rabbit.password}@127.0.0.1:{broker.port}/"
            async with stage.bridge(amqp_url=url, prefetch=20) as bridge:
                for job in [*jobs, "poison"]:
                    headers = {"of-others": POISON.decode()} if job == "poison" else {}
                    await stage.submit(job, headers=headers)
                for job in jobs:
                    await bridge.settled(job=job, settlement="ack")
                await bridge.settled(job="poison", settlement="dead_letter")
        # A retry whose confirm the poison cut off may stand twice, and is acked twice then.
        assert {line["job"] for line in bridge.events("settled", settlement="ack")} == set(jobs)


@asynccontextmanager
async def smaller_messages(rabbit: RabbitMQ, most: int) -> AsyncIterator[None]:
    """Have a broker take no larger messages from now on, on 3.10 on new channels alone."""

    # RabbitMQ 4 keeps the limit apart from its settings.
    limit = (
        "application:set_env(rabbit, max_message_size, {0}), "
        "persistent_term:put(max_message_size, {0})."
    )

    async def evaluate(expression: str) -> str:
        return await asyncio.to_thread(rabbit.ctl, "eval", expression)

    before = await evaluate("{ok, Most} = application:get_env(rabbit, max_message_size), Most.")
    await evaluate(limit.format(most))
    try:
        yield
    finally:
        await evaluate(limit.format(before.strip()))


class TestABodyBeyondALimitThatWasLowered:
    async def test_becomes_a_dead_letter_by_rabbitmqs_own_doing(self, stage: BrokerStage) -> None:
        await stage.declare()
        await stage.submit("large", b"x" * 200_000)
        async with smaller_messages(stage.rabbit, 100_000), stage.bridge() as bridge:
            await bridge.settled(job="large", settlement="dead_letter")
            letter = await stage.dead_letter()
        assert (letter.message_id, letter.headers["x-first-death-reason"]) == ("large", "rejected")


class TestAFullLane:
    async def test_takes_messages_without_an_id_through(self, stage: BrokerStage) -> None:
        await stage.declare()
        await set_policy(stage, {"max-length": 3, "overflow": "reject-publish"})
        await overfill(stage)
        async with stage.bridge(prefetch=2) as bridge:
            await bridge.settled(6, settlement="ack")
            stamps = bridge.count("settled", settlement="stamp")
        assert (stamps, await stage.client.depth(stage.queue)) == (6, 0)


async def overfill(stage: BrokerStage) -> None:
    """Have three messages more in the lane than it takes, as consumers do that give theirs back;
    none has an id."""
    async with stage.client.connection.channel() as channel:
        queue = await channel.get_queue(stage.queue, ensure=False)
        for _ in range(3):
            await by_api(stage)
            await queue.get(timeout=10)
        for _ in range(3):
            await by_api(stage)

    async def full() -> bool:
        return await stage.client.depth(stage.queue) == 6

    await eventually(full, "six messages in a lane for three")


async def set_policy(stage: BrokerStage, definition: dict[str, Any]) -> None:
    """Have a policy hold for the lane's queue."""
    body = {
        "pattern": f"^{stage.queue}$".replace(".", r"\."),
        "definition": definition,
        "apply-to": "queues",
    }
    await asyncio.to_thread(stage.rabbit.api, f"policies/%2F/{stage.name}", method="PUT", body=body)

    async def holds() -> bool:
        found = await asyncio.to_thread(stage.rabbit.api, f"queues/%2F/{stage.queue}")
        return bool(found.get("policy") == stage.name and found.get("effective_policy_definition"))

    await eventually(holds, "the policy holds", every=0.2)


OWN_DEATH = "expired once, and was moved back"
DEATHS: dict[str, Any] = {
    OWN_DEATH: None,
    "no list of tables": ["a", 1],
    "a text": "x",
    "odd table": [{"queue": 1}],
}


class TestAnEarlierDeath:
    async def test_keeps_no_job_from_its_retry(self, stage: BrokerStage) -> None:
        stage.kestra.flow("test", "job", fails_at_first)
        own = [
            {
                "count": 1,
                "reason": "expired",
                "queue": stage.queue,
                "exchange": "",
                "routing-keys": [stage.queue],
            }
        ]
        async with stage.bridge() as bridge:
            for job, deaths in DEATHS.items():
                await stage.submit(job, headers={"x-death": deaths or own})
            await bridge.settled(len(DEATHS), settlement="ack")
            await stage.submit("another")
            await bridge.settled(job="another", settlement="ack")
        assert {line["job"] for line in bridge.events("settled", attempt=2)} == {*DEATHS, "another"}


class TestAForgedReplyTo:
    async def test_costs_no_other_result_and_no_session(self, stage: BrokerStage) -> None:
        jobs = [f"job-{number}" for number in range(9)]
        async with stage.bridge(prefetch=20) as bridge:
            reply_queue, results = await stage.client.reply_queue()
            for job in jobs:
                await stage.submit(job, reply_to=FORGED if job == jobs[4] else reply_queue)
            told: set[str] = set()
            while len(told) < len(jobs) - 1:
                # A result can come twice: the forged address ends the connection under way.
                told.add((await asyncio.wait_for(results.get(), 30))["job"])
            await bridge.settled(len(jobs), settlement="ack")
            counted = [
                await bridge.metric("bridge_results_total", result=each)
                for each in ("sent", "undeliverable")
            ]
            restarts = await bridge.metric("bridge_consumer_restarts_total")
        assert (told, counted, restarts) == (set(jobs) - {jobs[4]}, [8, 1], 0)


class TestDirectReplyTo:
    async def test_gets_the_result_which_counts_as_sent(self, stage: BrokerStage) -> None:
        arrived: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

        async def receive(message: AbstractIncomingMessage) -> None:
            arrived.put_nowait(json.loads(message.body))

        async with stage.bridge() as bridge:
            async with stage.client.connection.channel() as channel:
                replies = await channel.get_queue("amq.rabbitmq.reply-to", ensure=False)
                await replies.consume(receive, no_ack=True)
                message = aio_pika.Message(
                    b"{}", message_id="one", reply_to="amq.rabbitmq.reply-to"
                )
                await channel.default_exchange.publish(message, stage.queue)
                result = await asyncio.wait_for(arrived.get(), 30)
            await bridge.settled(job="one")
            sent = await bridge.metric("bridge_results_total", result="sent")
        assert (result["job"], sent) == ("one", 1)
