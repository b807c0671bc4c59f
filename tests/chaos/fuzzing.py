"""Generated messages into the bridge, then generated answers of Kestra's: each job ends as it must,
and all goes on."""

from __future__ import annotations

import argparse
import asyncio
import copy
import json
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import psutil
from aiohttp import web
from aiormq.abc import AbstractChannel, DeliveredMessage
from pamqp.commands import Basic
from pydantic_core import from_json

from bridge.job.attempt import ATTEMPT_LABEL, JOB_LABEL
from bridge.job.settlement import Reason
from deploy.local.processes import ProcessError
from deploy.local.rabbitmq import RabbitMQ
from tests.chaos.history import Memory
from tests.chaos.report import MEGABYTE, first_of, slope
from tests.support.harness import Bridge, Client, eventually
from tests.support.odd_messages import any_bytes_in_strings, drawn
from tests.support.standin import EMPTY, HTML, TRUNCATED, Answer, Call, Run, Standin

QUEUE = "fuzz.jobs"
NUMBER = "fuzz-number"
POOL = 2000
AT_ONCE = 64
BACKLOG = 500
LOOK_EVERY = 100
PREFETCH = 64
JUNK_SHARE = 0.3
GROWTH_ALLOWED = 16.0
"""Megabytes between the second quarter of a run and its last."""
NEVER_RUN = frozenset({Reason.INVALID_MESSAGE, Reason.FLOW_NOT_ALLOWED, Reason.REJECTED_BY_KESTRA})
STATUSES = (
    200,
    200,
    200,
    201,
    202,
    204,
    301,
    302,
    400,
    401,
    403,
    404,
    405,
    409,
    410,
    422,
    429,
    500,
    501,
    502,
    503,
    504,
)
ODD: Sequence[Any] = (
    None,
    5,
    -1.5,
    True,
    "",
    "?",
    "\x00",
    [],
    {},
    [[]],
    {"a": None},
    [None],
    10**400,
    "é" * 5000,
)
ODD_HEADERS: Sequence[Mapping[str, str]] = (
    {},
    {},
    {"Date": "yesterday"},
    {"Date": "Thu, 99 Foo 2026 25:61:61 GMT"},
    {"Content-Encoding": "gzip"},
    {"Content-Type": "application/json; charset=utf-77"},
    {"Set-Cookie": "a=1; Domain=.; Path=\\"},
)

Odd = tuple[bytes, dict[str, Any]]
Say = Callable[[str], None]


@dataclass
class Outcome:
    """What a run showed: counts, and whatever is wrong."""

    counts: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    memory: list[Memory] = field(default_factory=list)

    def expect(self, holds: bool, fault: str) -> None:
        """Note a fault where something doesn't hold."""
        if not holds:
            self.faults.append(fault)

    def growth(self) -> float:
        """How much more memory, in megabytes, the last quarter used on average than the second."""
        quarter = len(self.memory) // 4
        if not quarter:
            return 0.0
        before, after = self.memory[quarter : 2 * quarter], self.memory[-quarter:]
        return (
            (sum(one.resident for one in after) - sum(one.resident for one in before))
            / quarter
            / MEGABYTE
        )


def messages(count: int, seed: int, pool: Sequence[Odd]) -> Iterator[Odd]:
    """So many messages: generated bodies and properties in ever new pairs, with some bytes of the
    bodies changed."""
    chance = random.Random(f"messages {seed}")  # noqa: S311
    for _ in range(count):
        body, (_, properties) = bytearray(chance.choice(pool)[0]), chance.choice(pool)
        for _ in range(chance.choice((0, 0, 0, 1, 3))):
            if body:
                body[chance.randrange(len(body))] = chance.randrange(256)
        yield bytes(body), copy.deepcopy(properties)


class Babble(Answer):
    """An answer that is made up."""


class Babbler(Standin):
    """A stand-in that answers a share of the requests with something else, be their work done or
    not, while it babbles.

    With a redirection or a refusal it is never done: who is refused may rely on that.
    """

    def __init__(self, seed: int, bodies: Sequence[bytes]) -> None:
        super().__init__()
        self.babbling = False
        self.babbled = 0
        self._chance = random.Random(f"answers {seed}")  # noqa: S311
        self._bodies = bodies

    def _route(self, call: Call) -> tuple[str, Callable[[], Answer]]:
        operation, handle = super()._route(call)
        if not self.babbling or self._chance.random() >= JUNK_SHARE:
            return operation, handle
        self.babbled += 1
        return operation, partial(self._babble, handle)

    def _babble(self, handle: Callable[[], Answer]) -> Answer:
        chance = self._chance
        if chance.random() < 0.4:
            answer = handle()
            if isinstance(answer.body, dict) and answer.status == 200:
                return Babble(200, _spoilt(copy.deepcopy(answer.body), chance))
        status, body = (
            chance.choice(STATUSES),
            chance.choice((EMPTY, TRUNCATED, HTML, chance.choice(self._bodies))),
        )
        if not 300 <= status < 500 and chance.random() < 0.5:
            handle()
        return Babble(status, body)

    async def _respond(self, answer: Answer, operation: str) -> web.Response:
        response = await super()._respond(answer, operation)
        if isinstance(answer, Babble):
            response.headers.update(self._chance.choice(ODD_HEADERS))
        return response


def _spoilt(answer: dict[str, Any], chance: random.Random) -> Any:
    """An answer of the right kind in which one thing that is relied on is missing, or of another
    type.

    Not one that is merely untrue: who is told in good form that there is no execution has to
    believe it.
    """
    rows = answer.get("results")
    if isinstance(rows, list) and rows and chance.random() < 0.7:
        index = chance.randrange(len(rows))
        rows[index] = _spoilt_execution(rows[index], chance)
    elif isinstance(rows, list):
        name = chance.choice(("results", "total"))
        wrong = [odd for odd in ODD if not isinstance(odd, list if name == "results" else int)]
        answer[name] = chance.choice(wrong)
    elif "state" in answer:
        return _spoilt_execution(answer, chance)
    elif answer:
        answer[chance.choice(sorted(answer))] = chance.choice(
            [odd for odd in ODD if not isinstance(odd, str)]
        )
    return answer


def _spoilt_execution(row: dict[str, Any], chance: random.Random) -> Any:
    name = chance.choice(("id", "namespace", "flowId", "state", "current", "labels", "row"))
    if name == "row":
        return chance.choice([odd for odd in ODD if not isinstance(odd, dict)])
    place = row["state"] if name == "current" else row
    kinds: tuple[type, ...] = (list, dict, type(None)) if name == "labels" else (str,)
    place[name] = chance.choice([odd for odd in ODD if not isinstance(odd, kinds)])
    if name != "labels" and chance.random() < 0.3:
        del place[name]
    return row


class FuzzStage:
    """A broker, a Kestra and a bridge between them."""

    def __init__(self, client: Client, kestra: Standin, bridge: Bridge, say: Say) -> None:
        self.client = client
        self.kestra = kestra
        self.bridge = bridge
        self.say = say
        self.outcome = Outcome()
        self.sent = 0
        self.dead: dict[int, tuple[str, str]] = {}

    async def publish(
        self, odd: Iterator[tuple[bytes, Basic.Properties]], *, more: Callable[[], bool]
    ) -> None:
        """Publish by confirm while there is something and more is wanted, never far ahead of the
        bridge."""
        raw = await self.client.channel.get_underlay_channel()
        turns = asyncio.Semaphore(AT_ONCE)
        async with asyncio.TaskGroup() as group:
            for body, properties in odd:
                if not more():
                    return
                await turns.acquire()
                self.sent += 1
                task = group.create_task(_publish(raw, body, properties))
                task.add_done_callback(lambda _: turns.release())
                if self.sent % LOOK_EVERY == 0:
                    await eventually(self._is_close, "the bridge keeps up", timeout=120, every=0.2)
                if self.sent % 2000 == 0:
                    self.say(f"{self.sent} messages published")

    async def _is_close(self) -> bool:
        return self.sent - await self.settled() < BACKLOG

    async def settled(self) -> int:
        """How many messages the bridge is done with."""
        counts = [
            await self.bridge.metric("bridge_settlements_total", settlement=how)
            for how in ("ack", "dead_letter")
        ]
        return int(sum(counts))

    async def all_settled(self, timeout: float) -> None:
        async def done() -> bool:
            return await self.settled() >= self.sent

        await eventually(done, f"{self.sent} messages settled", timeout=timeout, every=0.5)

    async def collect_dead_letters(self) -> None:
        """Note every dead letter as it comes."""
        channel = await self.client.connection.channel()
        raw = await channel.get_underlay_channel()

        async def take(message: DeliveredMessage) -> None:
            headers: Mapping[str, Any] = message.header.properties.headers or {}
            told = str(headers.get("x-bridge-reason", "")), str(headers.get("x-bridge-error", ""))
            self.dead[headers[NUMBER]] = told

        await raw.basic_consume(f"{QUEUE}.dead", take, no_ack=True)

    async def mind(self) -> None:
        """Note the bridge's memory, once a second."""
        while True:
            await asyncio.sleep(1)
            pid = self.bridge.child.pid
            with suppress(psutil.Error):
                resident = psutil.Process(pid).memory_info().rss
                self.outcome.memory.append(
                    Memory(at=time.time(), replica="bridge", pid=pid, resident=resident)
                )

    async def judge_the_service(self) -> None:
        """It never stopped, lost no session, met no fault of its own, and did not grow."""
        outcome, bridge = self.outcome, self.bridge
        outcome.expect(
            bridge.child.alive,
            f"the bridge ended with {bridge.child.returncode}{bridge.child.tail()}",
        )
        outcome.expect(bridge.count("starting") == 1, "the bridge started again")
        restarts = await bridge.metric("bridge_consumer_restarts_total")
        outcome.expect(restarts == 0, f"{restarts:g} sessions with the broker ended")
        ours = bridge.count("a delivery could not be handled, trying again")
        outcome.expect(ours == 0, f"{ours} deliveries met a fault of the bridge's own")
        outcome.expect(
            outcome.growth() < GROWTH_ALLOWED, f"memory grew by {outcome.growth():.1f} MB"
        )


async def _publish(raw: AbstractChannel, body: bytes, properties: Basic.Properties) -> None:
    await raw.basic_publish(body, routing_key=QUEUE, properties=properties)


async def fuzz_messages(stage: FuzzStage, odd: Iterator[Odd]) -> None:
    """Each message ends as a dead letter that says why, or as an execution that is what it asked
    for."""
    sent: dict[int, Odd] = {}

    def numbered() -> Iterator[tuple[bytes, Basic.Properties]]:
        for number, (body, some) in enumerate(odd):
            some["headers"] = {**some.get("headers", {}), NUMBER: number}
            sent[number] = body, some
            properties = Basic.Properties()
            for (
                name,
                value,
            ) in some.items():  # one by one, since the constructor refuses what RabbitMQ lets pass
                setattr(properties, name, value)
            yield body, properties

    await stage.publish(numbered(), more=lambda: True)
    await stage.all_settled(120)
    await stage.judge_the_service()
    dead = await stage.bridge.metric("bridge_settlements_total", settlement="dead_letter")
    await eventually(lambda: len(stage.dead) >= dead, f"{dead:g} dead letters")
    _judge_messages(stage, sent)


def _judge_messages(stage: FuzzStage, sent: Mapping[int, Odd]) -> None:
    outcome, runs = stage.outcome, stage.kestra.created
    for number, (reason, error) in stage.dead.items():
        outcome.counts[f"dead letters: {reason}"] += 1
        outcome.expect(
            reason in set(NEVER_RUN) and error != "", f"message {number}: {reason!r} {error!r}"
        )
    by_id: dict[str, list[Run]] = {}
    for run in runs:
        by_id.setdefault(run.labels[JOB_LABEL], []).append(run)
    ids = Counter(some.get("message_id") for _, some in sent.values())
    nameless = 0
    for number in sent.keys() - stage.dead.keys():
        body, some = sent[number]
        if not (job := some.get("message_id")):
            nameless += 1
            continue
        found = by_id.get(job, [])
        outcome.expect(
            bool(found), f"message {number}, job {job!r}: neither a dead letter nor an execution"
        )
        if ids[job] == 1 and found:
            outcome.expect(len(found) == 1, f"job {job!r}: {len(found)} executions")
            outcome.expect(
                found[0].inputs == _as_form(body), f"job {job!r}: {found[0].inputs} from {body!r}"
            )
    stamped = sum(len(found) for job, found in by_id.items() if job not in ids)
    outcome.expect(
        stamped == nameless, f"{stamped} executions of {nameless} messages without an id"
    )
    bad = [run for run in runs if run.state != "SUCCESS" or not run.labels[ATTEMPT_LABEL].isdigit()]
    outcome.expect(not bad, f"{len(bad)} executions are not as they should be, such as {bad[:1]}")
    outcome.counts |= {"messages": len(sent), "executions": len(runs)}


def _as_form(body: bytes) -> dict[str, str]:
    """A body's inputs as the text that Kestra has to get."""
    inputs = from_json(body).get("inputs", {})
    return {
        name: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        for name, value in inputs.items()
        if value is not None
    }


async def fuzz_answers(stage: FuzzStage, count: int) -> None:
    """Whatever Kestra answers, each job runs once and is acked."""
    kestra = stage.kestra
    assert isinstance(kestra, Babbler)

    def jobs() -> Iterator[tuple[bytes, Basic.Properties]]:
        number = 0
        while True:
            number += 1
            yield (
                b'{"inputs": {"a": 1}}',
                Basic.Properties(message_id=f"job-{number}", headers={NUMBER: number}),
            )

    # Not before the bridge consumes: at its start a refusal is what an operator must mend, and
    # rightly ends it.
    kestra.babbling = True
    await stage.publish(jobs(), more=lambda: kestra.babbled < count)
    kestra.babbling = False
    await stage.all_settled(180)
    await stage.judge_the_service()
    outcome = stage.outcome
    outcome.expect(
        not stage.dead, f"{len(stage.dead)} dead letters, such as {list(stage.dead.items())[:2]}"
    )
    twice = {job: times for (job, _), times in kestra.per_attempt().items() if times > 1}
    outcome.expect(not twice, f"{len(twice)} jobs ran twice, such as {list(twice)[:3]}")
    outcome.expect(
        len(kestra.per_attempt()) == stage.sent,
        f"{len(kestra.per_attempt())} of {stage.sent} jobs ran",
    )
    outcome.counts |= {"answers": kestra.babbled, "jobs": stage.sent}


@asynccontextmanager
async def open_stage(
    directory: Path, rabbit: RabbitMQ, kestra: Standin, say: Say
) -> AsyncIterator[FuzzStage]:
    """A bridge at work between the broker and that Kestra; it is gone at the end of the block."""
    environment = {
        "BRIDGE_AMQP_URL": rabbit.amqp_url,
        "BRIDGE_QUEUE": QUEUE,
        "BRIDGE_FLOW": "test/job",
        "BRIDGE_ALLOWED_FLOWS": '["test/*"]',
        "BRIDGE_PREFETCH": str(PREFETCH),
        "BRIDGE_ADOPT_GRACE": "1",
        "BRIDGE_AMBIGUOUS_WAIT": "1",
    }
    async with kestra, Client.connect(rabbit.amqp_url) as client:
        kestra.any_flow = None
        for flow in ("job", "other"):
            kestra.flow("test", flow)
        settings = {
            "BRIDGE_KESTRA_URL": kestra.url,
            "BRIDGE_KESTRA_USERNAME": kestra.username,
            "BRIDGE_KESTRA_PASSWORD": kestra.password,
        }
        bridge = await Bridge(directory, environment | settings).start(timeout=60)
        stage = FuzzStage(client, kestra, bridge, say)
        minding = asyncio.create_task(stage.mind())
        try:
            await stage.collect_dead_letters()
            with any_bytes_in_strings():
                yield stage
        finally:
            minding.cancel()
            bridge.end()


async def run(options: argparse.Namespace, say: Say) -> list[Outcome]:
    """Both kinds, one after the other."""
    outcomes = []
    say("generating")  # before anything runs, since it takes its time and lets nothing else go on
    pool = drawn(min(options.messages + options.answers, POOL), options.seed)
    with RabbitMQ(options.directory / "rabbitmq", series=options.broker, say=say) as rabbit:
        if options.messages:
            async with open_stage(options.directory / "messages", rabbit, Standin(), say) as stage:
                await fuzz_messages(stage, messages(options.messages, options.seed, pool))
                outcomes.append(stage.outcome)
        if options.answers:
            babbler = Babbler(options.seed, [body for body, _ in pool])
            async with open_stage(options.directory / "answers", rabbit, babbler, say) as stage:
                await fuzz_answers(stage, options.answers)
                outcomes.append(stage.outcome)
    return outcomes


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="tests/chaos/fuzz",
        description="Feed the bridge with generated messages, then with generated answers of "
        "Kestra's. Each message "
        "must end as a dead letter that says why or as the execution that it asks for; each job "
        "must run once; the "
        "bridge must go on, and its memory stay as it is.",
        epilog="Exit status: 0 passed, 1 failed, 2 wrong usage, 130 interrupted.",
    )
    parser.add_argument(
        "--messages", type=int, default=100_000, help="how many messages (default: 100000)"
    )
    parser.add_argument(
        "--answers", type=int, default=20_000, help="how many wrong answers (default: 20000)"
    )
    parser.add_argument(
        "--seed", type=int, help="what they are generated from (default: a new one)"
    )
    parser.add_argument("--broker", choices=("3.10", "4.3"), default="4.3", help="default: 4.3")
    parser.add_argument("--directory", type=Path, help="where logs go (default: a new folder)")
    options = parser.parse_args(arguments)
    for number in (signal.SIGTERM, signal.SIGINT):  # the latter is ignored in a shell's background
        signal.signal(number, signal.default_int_handler)
    options.seed = random.randrange(1_000_000) if options.seed is None else options.seed  # noqa: S311
    options.directory = (
        options.directory or Path(tempfile.mkdtemp(prefix="kestra-bridge-fuzz-"))
    ).resolve()
    began = time.monotonic()

    def say(text: str) -> None:
        print(f"{time.monotonic() - began:7.1f} s  {text}", file=sys.stderr, flush=True)

    say(f"seed {options.seed}; logs are written to {options.directory}")
    try:
        outcomes = asyncio.run(run(options, say))
    except KeyboardInterrupt:
        say("interrupted")
        return 130
    except (ProcessError, AssertionError, ExceptionGroup) as error:
        print(f"FAIL the run broke off: {first_of(error)}")
        return 1
    faults = [fault for outcome in outcomes for fault in outcome.faults]
    for outcome in outcomes:
        trend = f", {slope(outcome.memory):+.1f} MB an hour" if len(outcome.memory) > 120 else ""
        peak = max((one.resident for one in outcome.memory), default=0) / MEGABYTE
        print("\n".join(f"  {name:<40} {count}" for name, count in sorted(outcome.counts.items())))
        print(
            f"  memory: {peak:.0f} MB at most, {outcome.growth():+.1f} MB in the second half{trend}"
        )
    print("\n".join(faults[:20]) + "\n" * bool(faults), end="")
    counts = sum((outcome.counts for outcome in outcomes), Counter[str]())
    word = "FAIL" if faults else "PASS"
    told = (
        f"{counts['messages']} messages and {counts['answers']} answers in "
        f"{time.monotonic() - began:.0f} s"
    )
    print(f"{word} {told}: {len(faults)} faults", flush=True)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
