"""The bridge at work on one machine: a real RabbitMQ, Kestra's engine behind our façade, and jobs of every fate.

What became of each job is compared with what was expected, by what RabbitMQ, Kestra and the bridge say independently.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import aio_pika
import aio_pika.exceptions
import httpx
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from bridge.execution import Execution, State
from bridge.job import ATTEMPT_LABEL, JOB_LABEL, MARK, MARK_LABEL
from bridge.kestra import parse_execution
from deploy.local.kestra_engine import AmqpAddress, BuildError, Engine
from deploy.local.paths import REPOSITORY
from deploy.local.processes import Child, ProcessError
from deploy.local.rabbitmq import RabbitMQ, Series

QUEUE = "kestra.jobs"
FLOW = "bridge.jobs/example"
RETRY_DELAY = 2
# Few at once, so that the order shows.
SETTINGS = {
    "BRIDGE_QUEUE": QUEUE,
    "BRIDGE_FLOW": FLOW,
    "BRIDGE_PREFETCH": "3",
    "BRIDGE_MAX_ATTEMPTS": "2",
    "BRIDGE_RETRY_DELAYS": f"[{RETRY_DELAY}]",
    "BRIDGE_RECONCILE_INTERVAL": "2",
    "BRIDGE_DRAIN_TIMEOUT": "5",
    "BRIDGE_HTTP_PORT": "0",
    "BRIDGE_LOG_FORMAT": "json",
}
ALL_SETTLED_WITHIN = 120.0
CHECKED_WITHIN = 15.0
LOOK_EVERY = 0.25
KILL_AFTER = 1.0
SAME_MOMENT = 0.5
NEVER_RUN = ("invalid_message", "flow_not_allowed")
WIDE = 140
OTHER_COLUMNS = 113
"""What the columns beside the error take."""


class DemoError(RuntimeError):
    """The demo can't go on; the message says why."""


@dataclass(frozen=True, slots=True)
class Ending:
    """How a job ends for RabbitMQ: done, or a dead letter with a reason; after so many executions."""

    reason: str | None
    attempts: int

    def __str__(self) -> str:
        end = f"dead: {self.reason}" if self.reason else "done"
        usual = 0 if self.reason in NEVER_RUN else 1
        return end if self.attempts == usual else f"{end} in {self.attempts} runs"


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One message of the demo and what is to become of it."""

    id: str
    priority: int
    what: str
    expected: Ending
    inputs: Mapping[str, Any] = field(default_factory=dict)
    flow: str | None = None
    timeout: float | None = None
    raw: str | None = None

    @property
    def line(self) -> str:
        """The job as `kestra-bridge submit` reads it."""
        optional = {"flow": self.flow, "timeout": self.timeout}
        given = {key: value for key, value in optional.items() if value is not None}
        return json.dumps({"id": self.id, "priority": self.priority, "inputs": dict(self.inputs), **given})


DONE = Ending(None, 1)
# The least urgent come first, so that what starts first is RabbitMQ's choice and not ours.
CASES = (
    Case(id="low", priority=1, what="waits for all others", expected=DONE),
    Case(id="low-sleeps", priority=1, what="sleeps 2 s", expected=DONE, inputs={"seconds": 2}),
    Case(id="warns", priority=3, what="ends in WARNING", expected=DONE, inputs={"warn": True}),
    Case(id="fails-first", priority=4, what="fails at first", expected=Ending(None, 2), inputs={"failFirst": True}),
    Case(id="fails", priority=4, what="fails each time", expected=Ending("failed", 2), inputs={"fail": True}),
    Case(id="middle", priority=5, what="sleeps 1 s", expected=DONE, inputs={"seconds": 1}),
    Case(
        id="not-json",
        priority=6,
        what="is no JSON",
        expected=Ending("invalid_message", 0),
        raw="Please run the usual thing, thanks!",
    ),
    Case(
        id="forbidden",
        priority=6,
        what="asks for a flow that isn't allowed",
        expected=Ending("flow_not_allowed", 0),
        flow="bridge.system/notifier",
    ),
    Case(
        id="too-slow",
        priority=7,
        what="sleeps 60 s, may take 2 s",
        expected=Ending("timed_out", 2),
        inputs={"seconds": 60},
        timeout=2,
    ),
    Case(
        id="killed",
        priority=8,
        what="sleeps 60 s and is killed in Kestra",
        expected=Ending("killed", 1),
        inputs={"seconds": 60},
    ),
    Case(id="high-sleeps", priority=9, what="sleeps 1 s", expected=DONE, inputs={"seconds": 1}),
    Case(id="high", priority=9, what="goes before the others", expected=DONE),
)


@dataclass(frozen=True, slots=True)
class Look:
    """What a job looks like at one moment."""

    state: str
    attempt: int | None = None
    execution: str | None = None


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that must hold at the end; `seen` is what did."""

    what: str
    ok: bool
    seen: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of one job, against what was expected."""

    case: Case
    ended: Ending | None
    execution: str | None
    state: str | None
    error: str | None

    @property
    def ok(self) -> bool:
        return self.ended == self.case.expected

    @property
    def as_data(self) -> dict[str, Any]:
        """For --json."""
        return {
            "job": self.case.id,
            "priority": self.case.priority,
            "expected": str(self.case.expected),
            "became": str(self.ended) if self.ended else None,
            "ok": self.ok,
            "execution": self.execution,
            "state": self.state,
            "error": self.error,
        }


class Stack:
    """Broker, engine and bridge, and what each says of the jobs."""

    def __init__(self, rabbit: RabbitMQ, engine: Engine, directory: Path) -> None:
        self.rabbit = rabbit
        self.engine = engine
        self.directory = directory
        self.bridge: Child | None = None
        self._http = httpx.Client(
            base_url=f"{engine.url}/api/v1/main", auth=httpx.BasicAuth(engine.username, engine.password), timeout=30
        )

    @property
    def settings(self) -> dict[str, str]:
        """What a bridge and its commands need to work with this stack."""
        return {
            "BRIDGE_AMQP_URL": self.rabbit.amqp_url,
            "BRIDGE_KESTRA_URL": self.engine.url,
            "BRIDGE_KESTRA_USERNAME": self.engine.username,
            "BRIDGE_KESTRA_PASSWORD": self.engine.password,
            **SETTINGS,
        }

    def start(self, name: str, *arguments: str) -> Child:
        """A `kestra-bridge` command as a child process. Nobody else's settings reach it, nor a `.env` file."""
        others = {key: value for key, value in os.environ.items() if not key.startswith("BRIDGE_")}
        return Child(
            f"kestra-bridge {name}",
            [sys.executable, "-m", "bridge", name, *arguments],
            log=self.directory / f"{name}.log",
            env={**others, "PYTHONPATH": str(REPOSITORY), **self.settings},
            cwd=self.directory,
        )

    def lines(self, name: str) -> list[dict[str, Any]]:
        """The JSON lines that a command has printed so far."""
        log = self.directory / f"{name}.log"
        text = log.read_text(errors="replace") if log.exists() else ""
        return [json.loads(line) for line in text.splitlines(keepends=True) if line[:1] == "{" and line[-2:] == "}\n"]

    def settled(self, job: str) -> list[dict[str, Any]]:
        """What the bridge logged of a job's settlements, oldest first."""
        return [line for line in self.lines("run") if line.get("event") == "settled" and line.get("job") == job]

    def executions(self) -> dict[str, list[Execution]]:
        """Kestra's executions of each job, by attempt."""
        params = {f"filters[labels][EQUALS][{MARK_LABEL}]": MARK, "size": "500", "sort": "state.startDate:asc"}
        answer = self._http.get("/executions/search", params=params)
        answer.raise_for_status()
        found: dict[str, list[Execution]] = {case.id: [] for case in CASES}
        for execution in map(parse_execution, answer.json()["results"]):
            found.setdefault(execution.labels[JOB_LABEL], []).append(execution)
        return {job: sorted(runs, key=_attempt) for job, runs in found.items()}

    def kill(self, execution: Execution) -> None:
        """Kill an execution in Kestra, as an operator would."""
        answer = self._http.delete(f"/executions/{execution.id}/actions/kill")
        if answer.status_code != httpx.codes.CONFLICT:  # it has ended, or is being killed
            answer.raise_for_status()

    def close(self) -> None:
        """End the conversation with Kestra."""
        self._http.close()

    def publish(self, case: Case) -> None:
        """Put a message on the queue that `submit` would refuse."""
        properties = {"message_id": case.id, "priority": case.priority, "delivery_mode": 2}
        message = {"routing_key": QUEUE, "payload": case.raw, "payload_encoding": "string", "properties": properties}
        if not self.rabbit.api(f"exchanges/%2F/{QUEUE}/publish", method="POST", body=message)["routed"]:
            raise DemoError(f"RabbitMQ routes {case.id} to no queue")

    def ready(self) -> int:
        """The jobs that wait in the queue at this moment; 0 if there's no queue."""
        return asyncio.run(_ready(self.rabbit.amqp_url, QUEUE))

    def depth(self, queue: str) -> int:
        """The messages of a queue, those that a consumer holds included; RabbitMQ counts them once a second."""
        queues = {each["name"]: each.get("messages", 0) for each in self.rabbit.api("queues/%2F")}
        return int(queues.get(queue, 0))

    def dead_letters(self) -> list[dict[str, Any]]:
        """The messages of the dead-letter queue, which stay there."""
        how = {"count": 1000, "ackmode": "ack_requeue_true", "encoding": "auto"}
        letters: list[dict[str, Any]] = self.rabbit.api(f"queues/%2F/{QUEUE}.dead/get", method="POST", body=how)
        return letters


async def _ready(url: str, queue: str) -> int:
    connection = await aio_pika.connect(url, timeout=10)
    async with connection:
        channel = await connection.channel()
        try:
            declared = await channel.declare_queue(queue, passive=True)
        except aio_pika.exceptions.ChannelNotFoundEntity:
            return 0
        return declared.declaration_result.message_count or 0


def _attempt(execution: Execution) -> int:
    return int(execution.labels.get(ATTEMPT_LABEL, "0"))


# -- the course of it --


class Demo:
    """One demo from nothing to its verdict."""

    def __init__(self, *, series: Series, console: Console, live: bool) -> None:
        self._series = series
        self._console = console
        self._live = live
        self._began = time.monotonic()

    def say(self, text: str) -> None:
        """One line of progress."""
        self._console.print(Text(f"{time.monotonic() - self._began:5.1f} s  {text}"), soft_wrap=True)

    @contextmanager
    def stack(self) -> Iterator[Stack]:
        """Everything that the bridge needs, started; all of it is gone at the end of the block."""
        with ExitStack() as stack:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kestra-bridge-demo-")))
            # What ends now is thrown away with its folder: there's no reason to end it slowly.
            rabbit = RabbitMQ(
                directory / "rabbitmq",
                series=self._series,
                settings={"collect_statistics_interval": "1000"},
                say=self.say,
            )
            stack.callback(rabbit.kill)
            self.say(f"starting RabbitMQ {rabbit.version}")
            rabbit.start()
            engine = Engine(directory / "engine", amqp=AmqpAddress.from_url(rabbit.amqp_url), say=self.say)
            stack.callback(engine.kill)
            self.say("starting Kestra's engine behind our façade")
            engine.start()
            running = Stack(rabbit, engine, directory)
            stack.callback(running.close)
            yield running

    def run(self, stack: Stack, stack_children: ExitStack) -> list[Verdict]:
        """Submit the jobs, start the bridge, and follow it until everything is settled."""
        self.say("deploying the flows (kestra-bridge flows deploy)")
        with stack.start("flows", "deploy") as deploying:
            if deploying.wait(60) != 0:
                raise DemoError(f"the flows could not be deployed{deploying.tail()}")
        self.say(f"submitting {len(CASES)} messages (kestra-bridge submit), the least urgent first")
        submitting = self._submit(stack, stack_children)
        self.say("starting the bridge (kestra-bridge run), three jobs at once")
        bridge = stack.bridge = stack.start("run")
        stack_children.callback(bridge.kill)
        self._follow(stack, bridge)
        submitting.wait(CHECKED_WITHIN)
        return self._judge(stack)

    def _submit(self, stack: Stack, stack_children: ExitStack) -> Child:
        jobs = stack.directory / "jobs.jsonl"
        jobs.write_text("".join(f"{case.line}\n" for case in CASES if case.raw is None))
        command = ("--file", str(jobs), "--wait", "--wait-timeout", f"{ALL_SETTLED_WITHIN:g}", "--json")
        submitting = stack.start("submit", *command)
        stack_children.callback(submitting.kill)
        # It waits for the results from here on, so how far it is can be seen in the queue alone.
        raw = [case for case in CASES if case.raw is not None]
        waiting = len(CASES) - len(raw)
        submitting.wait_until(lambda: stack.ready() == waiting, timeout=30, what="done with submitting")
        for case in raw:
            stack.publish(case)
        return submitting

    def _follow(self, stack: Stack, bridge: Child) -> None:
        """Show what goes on until every job is settled.

        Raises:
            DemoError: the bridge ended, or it took too long.
        """
        seen = {case.id: Look("in the queue") for case in CASES}
        deadline = time.monotonic() + ALL_SETTLED_WITHIN
        with self._screen() as show:
            while not all(_is_settled(stack, case) for case in CASES):
                if not bridge.alive:
                    raise DemoError(f"the bridge ended with status {bridge.returncode}{bridge.tail()}")
                if time.monotonic() > deadline:
                    raise DemoError(f"not all jobs were settled within {ALL_SETTLED_WITHIN:g} s{bridge.tail()}")
                time.sleep(LOOK_EVERY)
                executions = stack.executions()
                self._kill_one(stack, executions)
                seen = self._changed(stack, executions, seen, show)

    def _kill_one(self, stack: Stack, executions: Mapping[str, list[Execution]]) -> None:
        for execution in executions["killed"]:
            began = execution.started.timestamp() if execution.started else time.time()
            if execution.state is State.RUNNING and time.time() - began > KILL_AFTER:
                stack.kill(execution)

    def _changed(
        self,
        stack: Stack,
        executions: Mapping[str, list[Execution]],
        seen: Mapping[str, Look],
        show: Callable[[Mapping[str, Look], Sequence[str]], None],
    ) -> dict[str, Look]:
        looks = {case.id: _look(stack.settled(case.id), executions[case.id]) for case in CASES}
        show(looks, [job for job, look in looks.items() if seen.get(job) != look])
        return looks

    @contextmanager
    def _screen(self) -> Iterator[Callable[[Mapping[str, Look], Sequence[str]], None]]:
        """Where the jobs are shown: a table that changes, or a line for each change where that can't be."""
        if not self._live:
            yield self._show_lines
            return
        with Live(console=self._console, refresh_per_second=8, transient=True) as live:
            yield lambda looks, _: live.update(_live_table(looks, self._console.width))

    def _show_lines(self, looks: Mapping[str, Look], changed: Sequence[str]) -> None:
        for job in changed:
            look = looks[job]
            attempt = f"attempt {look.attempt}" if look.attempt else ""
            self.say(f"{job:<12} {attempt:<10} {look.state:<32} {look.execution or ''}".rstrip())

    def _judge(self, stack: Stack) -> list[Verdict]:
        executions = stack.executions()
        dead = {
            letter["properties"].get("message_id"): letter["properties"]["headers"] for letter in stack.dead_letters()
        }
        results = {line["job"]: line for line in stack.lines("submit") if "job" in line}
        return [_verdict(case, executions[case.id], dead.get(case.id), results.get(case.id)) for case in CASES]

    def checks(self, stack: Stack) -> list[Check]:
        """What must hold for all of it together, from RabbitMQ and Kestra themselves."""
        return [*_queue_checks(stack), _dead_letter_check(stack), _order_check(stack), _single_check(stack)]


def _is_settled(stack: Stack, case: Case) -> bool:
    return any(line["settlement"] in ("ack", "dead_letter") for line in stack.settled(case.id))


def _look(settled: Sequence[Mapping[str, Any]], runs: Sequence[Execution]) -> Look:
    last = runs[-1] if runs else None
    attempt, execution = (_attempt(last), last.id) if last else (None, None)
    if not settled:
        return Look(last.state.value if last else "in the queue", attempt, execution)
    line = settled[-1]
    if line["settlement"] == "ack":
        return Look(f"{line['state']}, done", attempt, execution)
    if line["settlement"] == "dead_letter":
        return Look(f"dead: {line['reason']}", attempt, execution)
    if last and attempt == line["next_attempt"]:
        return Look(last.state.value, attempt, execution)
    return Look(f"{line['state']}, again in {line['delay']} s", attempt, execution)


def _verdict(
    case: Case, runs: Sequence[Execution], dead: Mapping[str, Any] | None, result: Mapping[str, Any] | None
) -> Verdict:
    """A dead letter is one that RabbitMQ holds; a job is done when the bridge told its publisher so."""
    last = runs[-1] if runs else None
    ended = None
    if dead is not None:
        ended = Ending(str(dead.get("x-bridge-reason")), len(runs))
    elif result is not None and "reason" not in result and result["attempts"] == len(runs):
        ended = Ending(None, len(runs))
    error = str(dead["x-bridge-error"]) if dead is not None and "x-bridge-error" in dead else None
    return Verdict(case, ended, last.id if last else None, last.state.value if last else None, error)


def _queue_checks(stack: Stack) -> list[Check]:
    retries = f"{QUEUE}.retry.{RETRY_DELAY}"
    checks = []
    for queue, what in ((QUEUE, "The queue is empty"), (retries, "No job waits for another attempt")):
        # RabbitMQ's figures lag behind by a second or two.
        deadline = time.monotonic() + CHECKED_WITHIN
        while (depth := stack.depth(queue)) and time.monotonic() < deadline:
            time.sleep(LOOK_EVERY)
        checks.append(Check(what, depth == 0, f"{queue} holds {depth}"))
    return checks


def _dead_letter_check(stack: Stack) -> Check:
    letters = [letter["properties"] for letter in stack.dead_letters()]
    held = sorted(f"{each.get('message_id')}: {each['headers'].get('x-bridge-reason')}" for each in letters)
    wanted = sorted(f"{case.id}: {case.expected.reason}" for case in CASES if case.expected.reason)
    seen = f"{QUEUE}.dead holds {', '.join(held)}" if held != wanted else f"{QUEUE}.dead holds {len(held)}"
    return Check("Dead letters as expected, with their reasons", held == wanted, seen)


def _order_check(stack: Stack) -> Check:
    """First attempts began in order of priority, but for those that began at the same moment."""
    first = [runs[0] for runs in stack.executions().values() if runs and _attempt(runs[0]) == 1]
    priority = {case.id: case.priority for case in CASES}
    started = [(each.started.timestamp(), priority[each.labels[JOB_LABEL]]) for each in first if each.started]
    late = [
        (low, high) for began, low in started for later, high in started if low < high and later - began > SAME_MOMENT
    ]
    order = ", ".join(str(number) for _, number in sorted(started))
    return Check("Higher priorities began first", not late, f"three at once: {order}")


def _single_check(stack: Stack) -> Check:
    runs = [(job, _attempt(run)) for job, found in stack.executions().items() for run in found]
    return Check("Each attempt was one execution", len(set(runs)) == len(runs), f"{len(runs)} executions")


# -- what is shown --


def _live_table(looks: Mapping[str, Look], width: int) -> Table:
    wide = width >= WIDE
    headings = ("Job", "Priority", *(("What it does",) if wide else ()), "Attempt", "State", "Execution")
    table = _table(headings)
    for case in CASES:
        look = looks[case.id]
        what = (case.what,) if wide else ()
        cells = (case.id, str(case.priority), *what, str(look.attempt or ""), look.state, look.execution or "")
        table.add_row(*(Text(cell, _colour(look.state)) for cell in cells))
    return table


def _verdict_table(verdicts: Sequence[Verdict], width: int) -> Table:
    wide = width >= WIDE
    table = _table(
        ("Job", "Prio", *(("What it does",) if wide else ()), "Expected", "Became", "", *(("Error",) if wide else ()))
    )
    for each in verdicts:
        case, became = each.case, str(each.ended or "unsettled")
        what, error = ((case.what,), (_clipped(each.error or "", width - OTHER_COLUMNS),)) if wide else ((), ())
        mark = "✓" if each.ok else "✗"
        cells = (case.id, str(case.priority), *what, str(case.expected), became, mark, *error)
        table.add_row(*(Text(cell, "" if each.ok else "bold red") for cell in cells))
    return table


def _clipped(text: str, width: int) -> str:
    """The beginning of an error, which says what happened."""
    return text if len(text) <= width else f"{text[: width - 1]}…"


def _table(headings: Sequence[str]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in headings:
        numeric = heading in ("Priority", "Prio", "Attempt")
        table.add_column(heading, justify="right" if numeric else "left", overflow="fold", no_wrap=numeric)
    return table


def _colour(state: str) -> str:
    if state.startswith("dead"):
        return "red"
    if state.endswith("done"):
        return "green"
    return "dim" if state == "in the queue" else "yellow" if "again" in state else ""


def _report(console: Console, verdicts: Sequence[Verdict], checks: Sequence[Check]) -> None:
    console.print(_verdict_table(verdicts, console.width))
    console.print()
    for check in checks:
        console.print(Text(f"{'✓' if check.ok else '✗'} {check.what} ({check.seen})", "" if check.ok else "bold red"))


def _how_to_reach(stack: Stack) -> str:
    http = next((str(line["http"]) for line in stack.lines("run") if line.get("event") == "starting"), "")
    exports = "\n".join(f"export {key}={shlex.quote(value)}" for key, value in stack.settings.items())
    rabbit, engine = stack.rabbit, stack.engine
    return f"""
It all goes on until Ctrl-C.
RabbitMQ {rabbit.version}: {rabbit.management_url} (user {rabbit.username}, password {rabbit.password})
Kestra's engine behind our façade, its API alone: {engine.url} (user {engine.username}, password {engine.password})
The bridge's metrics: {http}/metrics
Its log: {stack.directory / "run.log"}

In another shell, in {REPOSITORY}:
{exports}
.venv/bin/kestra-bridge submit --flow {FLOW} --input message=hello --wait
"""


# -- the command --


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo: 0 if everything came out as it should, 1 if not, 2 for wrong usage, 130 or 143 when interrupted."""
    options = _parse(arguments)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    console = Console(stderr=options.json, soft_wrap=False)
    demo = Demo(series=options.rabbitmq, console=console, live=console.is_terminal and not options.json)
    try:
        return _run(demo, console, options)
    except (DemoError, ProcessError, BuildError, httpx.HTTPError, OSError, subprocess.SubprocessError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    except _Interrupted as interruption:
        print("demo: interrupted, everything it started is ended", file=sys.stderr)
        return 128 + interruption.number


class _Interrupted(BaseException):
    """A signal asks for the end."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def _interrupt(number: int, _: FrameType | None) -> NoReturn:
    # From here on all that is left is to clean up, and nothing shall interrupt that.
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)
    raise _Interrupted(number)


def _run(demo: Demo, console: Console, options: argparse.Namespace) -> int:
    with demo.stack() as stack, ExitStack() as children:
        verdicts = demo.run(stack, children)
        checks = demo.checks(stack)
        if not options.keep:
            checks.append(_stop_check(stack))
        ok = all(verdict.ok for verdict in verdicts) and all(check.ok for check in checks)
        demo.say("everything came out as it should" if ok else "NOT everything came out as it should")
        if options.json:
            print(json.dumps(_as_data(stack, verdicts, checks, ok=ok), ensure_ascii=False), flush=True)
        else:
            console.print()
            _report(console, verdicts, checks)
        if options.keep:
            _keep(stack, console)
    return 0 if ok else 1


def _stop_check(stack: Stack) -> Check:
    assert stack.bridge is not None
    stack.bridge.signal(signal.SIGTERM)
    status = stack.bridge.wait(30)
    return Check("The bridge stopped in order on SIGTERM", status == 0, f"status {status}")


def _as_data(stack: Stack, verdicts: Sequence[Verdict], checks: Sequence[Check], *, ok: bool) -> dict[str, Any]:
    return {
        "ok": ok,
        "rabbitmq": stack.rabbit.version,
        "jobs": [each.as_data for each in verdicts],
        "checks": [{"what": each.what, "ok": each.ok, "seen": each.seen} for each in checks],
    }


def _keep(stack: Stack, console: Console) -> None:
    """Stay until interrupted, which is no failure here.

    Raises:
        DemoError: a part of the stack ended by itself.
    """
    console.print(Text(_how_to_reach(stack)), soft_wrap=True)
    try:
        while stack.bridge and stack.bridge.alive and stack.rabbit.alive and stack.engine.alive:
            time.sleep(LOOK_EVERY)
    except _Interrupted:
        return
    raise DemoError(f"a part of it ended by itself{stack.bridge.tail() if stack.bridge else ''}")


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="deploy/demo",
        description=(
            "Shows the bridge at work on this machine: RabbitMQ from Debian, Kestra's engine behind our façade, and "
            f"{len(CASES)} messages of every fate. Builds what is missing, needs no container engine, and leaves "
            "nothing running. Exit status: 0 if each job came out as it should, 1 if not, 2 for wrong usage."
        ),
    )
    parser.add_argument(
        "--rabbitmq", choices=("3.10", "4.0", "4.3"), default="3.10", help="the RabbitMQ to run (default: 3.10)"
    )
    parser.add_argument(
        "--keep", action="store_true", help="leave everything running afterwards, until Ctrl-C, and say how to reach it"
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON; progress goes to standard error")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
