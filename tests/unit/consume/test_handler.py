"""One delivery's way through the handler, where a real broker and Kestra can't show what is to be
seen."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Any, cast

import pytest

from bridge.consume.handler import Handler, HandlerRules
from bridge.consume.handling import Handling
from bridge.consume.machine_time import MachineTime, MachineTimePolicy
from bridge.consume.publishing import Publishing
from bridge.consume.record import Recorder
from bridge.consume.results import Results
from bridge.consume.settler import Settler
from bridge.consume.starter import Started, StartPolicy
from bridge.consume.suspects import Suspects
from bridge.consume.waiter import OutcomeWaiter
from bridge.errors import MessageRefused, PublishFailed
from bridge.job.execution import Outcome, State
from bridge.job.flow_name import FlowName
from bridge.job.job import Job
from bridge.job.message import Delivery, Message
from bridge.job.settlement import Policy
from bridge.retrying import BackOff
from bridge.telemetry.metrics import Metrics
from bridge.telemetry.tracing import Tracer
from tests.support.harness import starter_of
from tests.support.memory_kestra import MemoryKestra
from tests.support.standin import Ends

FLOW = FlowName("test", "job")

Publish = Callable[..., Awaitable[None]]


@dataclass
class Published:
    """A publisher, of which the test says what becomes of each message."""

    becomes: Publish
    tried: list[Message] = field(default_factory=list)

    async def publish(self, message: Message, *, exchange: str = "", routing_key: str = "") -> None:
        self.tried.append(message)
        await self.becomes(message, exchange=exchange, routing_key=routing_key)


@dataclass
class FailsOnce:
    """Waits for outcomes as the real one does, except that the first time it fails by a fault of
    its own."""

    executions: list[str] = field(default_factory=list)

    async def outcome(self, _: Job, started: Started) -> Outcome:
        self.executions.append(started.execution.id)
        if len(self.executions) == 1:
            raise ZeroDivisionError
        return Outcome(execution=started.execution)


async def kept(*_: object, **__: object) -> None:
    """Every message stands in its queue."""


@dataclass
class Rig:
    kestra: MemoryKestra = field(default_factory=MemoryKestra)
    metrics: Metrics = field(default_factory=Metrics)
    settled: list[str] = field(default_factory=list)

    def handler(
        self,
        *,
        publisher: Any = None,
        alone: Any = None,
        results: Any = None,
        waiter: Any = None,
        suspects: Suspects | None = None,
    ) -> Handler:
        publisher = publisher or Published(kept)
        rules = HandlerRules(
            policy=Policy(),
            flows=["test/*"],
            max_priority=10,
            after_a_fault=0.01,
            after_faults_at_most=0.01,
        )
        recorder = Recorder(self.metrics, now=self.kestra.now, max_priority=rules.max_priority)
        publishing = Publishing(
            publisher=publisher,
            isolated=alone or publisher,
            suspects=suspects or Suspects(),
            back_off=BackOff(first=0.01),
        )
        settler = Settler(
            publishing=publishing,
            results=Results(kestra=self.kestra, publisher=results or publisher, recorder=recorder),
            recorder=recorder,
            policy=rules.policy,
        )
        return Handler(
            rules=rules,
            starter=starter_of(self.kestra, self.metrics, policy=StartPolicy(always_look=False)),
            waiter=cast(OutcomeWaiter, waiter),
            machine_time=MachineTime(
                kestra=self.kestra, metrics=self.metrics, policy=MachineTimePolicy()
            ),
            settler=settler,
            recorder=recorder,
            tracer=Tracer(),
        )

    def delivery(self, message: Message) -> Delivery:
        async def ack() -> None:
            self.settled.append("ack")

        async def reject() -> None:
            self.settled.append("reject")

        return Delivery(message=message, lane="q", redelivered=False, ack=ack, reject=reject)

    async def handle(self, handler: Handler, message: Message) -> None:
        await asyncio.wait_for(handler.handle(Handling(self.delivery(message)), FLOW), 20)


@pytest.fixture
def rig() -> Rig:
    rig = Rig()
    rig.kestra.flow(FLOW.namespace, FLOW.id, Ends(after=None))
    return rig


async def test_a_delivery_that_is_handled_again_after_a_fault_of_ours_adopts_its_execution(
    rig: Rig,
) -> None:
    waiter = FailsOnce()
    await rig.handle(rig.handler(waiter=waiter), Message(body=b"{}", message_id="one"))
    assert rig.kestra.requests["create"] == 1


async def test_a_stamp_that_may_have_arrived_is_published_again_with_the_same_id(rig: Rig) -> None:
    doubts = iter([PublishFailed("the confirm never came")])

    async def becomes(*_: object, **__: object) -> None:
        if doubt := next(doubts, None):
            raise doubt

    publisher = Published(becomes)
    await rig.handle(rig.handler(publisher=publisher), Message(body=b"{}"))
    assert (len(publisher.tried), len({message.message_id for message in publisher.tried})) == (
        2,
        1,
    )


@pytest.mark.parametrize(
    ("body", "settled"), [(b"not JSON", ["ack"]), (b"{}", [])], ids=["dead letter", "success"]
)
async def test_a_stop_while_a_result_is_sent_leaves_no_dead_letter_to_be_made_twice(
    rig: Rig, body: bytes, settled: list[str]
) -> None:
    sending = asyncio.Event()

    async def never(*_: object, **__: object) -> None:
        sending.set()
        await asyncio.Event().wait()

    class Succeeds:
        async def outcome(self, _: Job, started: Started) -> Outcome:
            return Outcome(execution=replace(started.execution, state=State.SUCCESS))

    handler = rig.handler(results=Published(never), waiter=Succeeds())
    handling = Handling(rig.delivery(Message(body=body, message_id="one", reply_to="results")))
    task = asyncio.create_task(handler.handle(handling, FLOW))
    await asyncio.wait_for(sending.wait(), 10)
    task.cancel()
    await asyncio.wait([task], timeout=10)
    assert (task.cancelled(), rig.settled) == (True, settled)


class TestAMessageThatRabbitMQTakesInNoForm:
    @pytest.fixture
    def refused_twice(self) -> Published:
        """A broker that takes neither the message nor what is left of it at first, and then
        does."""
        refusals = iter([MessageRefused("too large")] * 2)

        async def becomes(*_: object, **__: object) -> None:
            if refusal := next(refusals, None):
                raise refusal

        return Published(becomes)

    async def test_is_left_to_rabbitmq_to_move(self, rig: Rig, refused_twice: Published) -> None:
        await rig.handle(
            rig.handler(publisher=refused_twice), Message(body=b"not json", message_id="one")
        )
        assert rig.settled == ["reject"]

    async def test_is_kept_where_rabbitmq_must_not_move_it(
        self, rig: Rig, refused_twice: Published
    ) -> None:
        odd = Message(body=b"not json", message_id="one", headers={"x-death": ["a", 1]})
        await rig.handle(rig.handler(publisher=refused_twice), odd)
        assert rig.settled == ["ack"]
