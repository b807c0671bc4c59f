"""Messages that no well-meaning publisher sends: each is a reasoned dead letter or runs, and none
stops the service."""

from __future__ import annotations

import asyncio
import json
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aio_pika
from pamqp.commands import Basic

from tests.support.broker_stage import BrokerStage, Node, open_stage
from tests.support.harness import eventually
from tests.support.odd_messages import any_bytes_in_strings, drawn, nested

MESSAGES = 500


async def publish(stage: BrokerStage, body: bytes = b"{}", **properties: Any) -> None:
    raw = await stage.client.channel.get_underlay_channel()
    sent = Basic.Properties(message_id=uuid.uuid4().hex)
    for (
        name,
        value,
    ) in properties.items():  # one by one, since the constructor refuses what RabbitMQ lets pass
        setattr(sent, name, value)
    with any_bytes_in_strings():
        await raw.basic_publish(body, routing_key=stage.queue, properties=sent, mandatory=True)


def outcomes(settled: list[dict[str, Any]]) -> dict[str, str]:
    """The settlements of deliveries by the id of their jobs."""
    return {line["job"]: line["settlement"] for line in settled}


HARMLESS: dict[str, dict[str, Any]] = {
    "cluster-id": {"cluster_id": "reserved"},
    "type-not-utf8": {"message_type": "\udcff\udcfe"},
    "time-stamp-far-away": {"timestamp": datetime(9999, 12, 31, tzinfo=UTC)},
    "deep-headers": {"headers": nested(200)},
    "odd-headers": {
        "headers": {
            "a": [1, "x", {"b": None}],
            "c": bytearray(b"\xff"),
            "d": 2**62,
            "e": 1.5,
            "f": True,
        }
    },
    "copies-to-nowhere": {"headers": {"CC": ["nowhere"]}},
    "correlation-not-utf8": {"correlation_id": "\udcff"},
    "content-type-of-another": {"content_type": "text/plain"},
    "reply-to-not-utf8": {"reply_to": "\udcff\udcfe"},
}


async def test_odd_properties_keep_no_job_from_running(stage: BrokerStage) -> None:
    async with stage.bridge() as bridge:
        for name, properties in HARMLESS.items():
            await publish(stage, message_id=name, **properties)
        settled = await bridge.settled(len(HARMLESS))
    assert outcomes(settled) == dict.fromkeys(HARMLESS, "ack")


INVALID: dict[str, dict[str, Any]] = {
    "id-not-utf8": {"message_id": "\udcff\udcfe"},
    "id-with-a-line-break": {"message_id": "a\nb"},
    "id-too-long": {"message_id": "x" * 201},
    "id-with-a-space-at-its-end": {"message_id": "a "},
    "priority-out-of-range": {"priority": 200},
    "attempt-no-number": {"headers": {"x-bridge-attempt": "first"}},
    "attempt-below-one": {"headers": {"x-bridge-attempt": 0}},
    "attempt-beyond-reason": {"headers": {"x-bridge-attempt": 2**62}},
    "attempt-a-table": {"headers": {"x-bridge-attempt": {"a": 1}}},
}


async def test_properties_that_make_no_job_are_a_dead_letter(stage: BrokerStage) -> None:
    async with stage.bridge() as bridge:
        for name, properties in INVALID.items():
            await publish(stage, json.dumps({"inputs": {"case": name}}).encode(), **properties)
        await bridge.settled(len(INVALID), settlement="dead_letter")
        letters = await stage.client.take(f"{stage.queue}.dead", len(INVALID))
    reasons = {
        json.loads(letter.body)["inputs"]["case"]: (
            letter.headers["x-bridge-reason"],
            letter.headers["x-bridge-error"] != "",
        )
        for letter in letters
    }
    assert reasons == dict.fromkeys(INVALID, ("invalid_message", True))


BODIES = {
    "empty": b"",
    "not-utf8": b'{"inputs": {"a": "\xff"}}',
    "number": b"1",
    "null": b"null",
    "not-a-number": b'{"inputs": {"a": NaN}}',
    "deep": b'{"inputs": {"a": ' + b"[" * 50_000 + b"]" * 50_000 + b"}}",
    "huge-number": b'{"timeout": 1' + b"0" * 5_000 + b"}",
    "lone-surrogate": b'{"inputs": {"a": "\\ud800"}}',
    "nul": b'{"inputs": {"a": "\\u0000"}}',
    "unknown-field": b'{"input": {}}',
    "input-name": b'{"inputs": {"a\\"b": 1}}',
    "label-reserved": b'{"labels": {"bridgeJob": "x"}}',
    "label-of-the-system": b'{"labels": {"system.from": "x"}}',
    "label-empty": b'{"labels": {"a": ""}}',
    "labels-too-long": json.dumps({"labels": {f"k{n}": "v" * 200 for n in range(20)}}).encode(),
    "timeout-negative": b'{"timeout": -1}',
    "flow-no-name": b'{"flow": "x"}',
    "flow-path": b'{"flow": "test/../../x"}',
}


async def test_bodies_that_make_no_job_are_dead_letters_as_they_came(
    one_stage: BrokerStage,
) -> None:
    async with one_stage.bridge() as bridge:
        for body in BODIES.values():
            await publish(one_stage, body)
        await bridge.settled(len(BODIES), settlement="dead_letter")
        letters = await one_stage.client.take(f"{one_stage.queue}.dead", len(BODIES))
    reasons = {letter.body: letter.headers["x-bridge-reason"] for letter in letters}
    assert reasons == dict.fromkeys(BODIES.values(), "invalid_message")


async def test_a_dead_letter_is_not_routed_to_the_copies_of_its_message(
    one_stage: BrokerStage,
) -> None:
    copies = await one_stage.client.channel.declare_queue(exclusive=True)
    async with one_stage.bridge() as bridge:
        await publish(one_stage, b"bad", headers={"CC": [copies.name]})
        await bridge.settled(settlement="dead_letter")
    declared = await one_stage.client.channel.declare_queue(copies.name, passive=True)
    assert declared.declaration_result.message_count == 1  # the publisher's own copy


async def test_a_dead_letter_of_another_user_keeps_that_users_name_as_a_header(
    one_stage: BrokerStage,
) -> None:
    rabbit = one_stage.rabbit
    await asyncio.to_thread(rabbit.ctl, "add_user", one_stage.name, "pw")
    await asyncio.to_thread(
        rabbit.ctl, "set_permissions", "-p", "/", one_stage.name, ".*", ".*", ".*"
    )
    async with one_stage.bridge() as bridge:
        connection = await aio_pika.connect(
            f"amqp://{one_stage.name}:pw@{rabbit.host}:{rabbit.port}/"
        )
        async with connection, connection.channel() as channel:
            message = aio_pika.Message(b"bad", user_id=one_stage.name, message_id="theirs")
            await channel.default_exchange.publish(message, one_stage.queue)
        await bridge.settled(job="theirs")
        letter = await one_stage.dead_letter()
    assert letter.headers["x-bridge-user-id"] == one_stage.name


async def test_a_dead_letter_does_not_expire(one_stage: BrokerStage) -> None:
    async with one_stage.bridge() as bridge:
        await publish(one_stage, b"bad", expiration="60000")
        await bridge.settled(settlement="dead_letter")
        letter = await one_stage.dead_letter()
    assert (letter.expiration, letter.headers["x-bridge-expiration"]) == (None, "60000")


async def test_any_bytes_and_headers_are_settled_one_by_one(node: Node, tmp_path: Path) -> None:
    """On a classic queue; `tests/chaos/fuzz` does it on a quorum queue, with more of them."""
    messages = drawn(MESSAGES)
    async with (
        open_stage(tmp_path, node("3.10"), "classic") as stage,
        stage.bridge(prefetch=50) as bridge,
    ):
        for body, some in messages:
            await publish(stage, body, **some)

        def all_settled() -> bool:
            final = [
                line
                for line in bridge.events("settled")
                if line["settlement"] in ("ack", "dead_letter")
            ]
            return len(final) >= len(messages)

        await eventually(all_settled, f"{len(messages)} messages settled", timeout=60, every=0.5)
        assert len({repr(message) for message in messages}) > MESSAGES / 2
        assert bridge.count("a delivery could not be handled, trying again") == 0
        assert await bridge.metric("bridge_consumer_restarts_total") == 0
