"""The course of the demo: start everything, submit the jobs, follow them to their end, stop
everything.
"""

from __future__ import annotations

import secrets
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.text import Text

from bridge.job.execution import Execution, State
from deploy.local.demo import screen, verdict
from deploy.local.demo.host import Host, check_this_host
from deploy.local.demo.jobs import CASES, MACHINE_QUEUE, QUEUE, Case, machine_cases
from deploy.local.demo.stack import LANE, MACHINE_LANE, RETRY_DELAY, Executions, Stack
from deploy.local.demo.verdict import Check, Look, Returned, Verdict
from deploy.local.kestra_engine import AmqpAddress, Engine
from deploy.local.paths import free_port
from deploy.local.processes import Child
from deploy.local.rabbitmq import RabbitMQ, Series

SETTLED_WITHIN = 120.0
MACHINES_SETTLED_WITHIN = 300.0
"""Enough for four machines that boot in emulation on a busy host."""
CHECKED_WITHIN = 15.0
CLEANED_WITHIN = 90.0
LOOK_EVERY = 0.5
SAY_AGAIN = 15.0
KILL_AFTER = 1.0

Show = Callable[[Mapping[str, Look], Sequence[str]], None]


class DemoError(RuntimeError):
    """The demo can't go on; the message says why."""


class Demo:
    """One demo, from an empty folder to its verdict."""

    def __init__(self, *, series: Series, console: Console, live: bool, machines: bool) -> None:
        self._series = series
        self._console = console
        self._live = live
        self._machines = machines
        self._began = time.monotonic()
        self._most = 0
        self._cases: tuple[Case, ...] = CASES

    def say(self, text: str) -> None:
        """One line of progress."""
        self._console.print(
            Text(f"{time.monotonic() - self._began:5.1f} s  {text}"), soft_wrap=True
        )

    @contextmanager
    def step(self, text: str) -> Iterator[None]:
        """Say that something takes a while, on a terminal with a running clock below the line."""
        self.say(text)
        columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
        with Progress(
            *columns, console=self._console, transient=True, disable=not self._live
        ) as progress:
            progress.add_task(text, total=None)
            yield

    @contextmanager
    def stack(self) -> Iterator[Stack]:
        """Start everything that the bridge needs, and stop and delete it at the end of the block.

        Raises:
            NoMachinesError: machines are wanted, and this host can't run them.
        """
        if self._machines:
            check_this_host()
        # Everything is deleted with its folder afterwards, so it is killed instead of stopped.
        with ExitStack() as stack:
            directory = Path(
                stack.enter_context(tempfile.TemporaryDirectory(prefix="kestra-bridge-demo-"))
            )
            host = Host(directory) if self._machines else None
            if host:
                stack.callback(host.end)
                host.start()
                self._cases = (*CASES, *machine_cases(host.repository))
            settings = {"collect_statistics_interval": "1000"}
            rabbit = RabbitMQ(
                directory / "rabbitmq", series=self._series, settings=settings, say=self.say
            )
            stack.callback(rabbit.kill)
            with self.step(f"starting RabbitMQ {self._series}"):
                rabbit.start()
            engine = self._engine(directory, rabbit, host)
            stack.callback(engine.kill)
            with self.step("starting Kestra's engine behind our façade"):
                engine.start()
            running = Stack(rabbit, engine, directory, host)
            stack.callback(running.close)
            yield running

    def run(self, stack: Stack, children: ExitStack) -> list[Verdict]:
        """Submit the jobs, start the bridge, and follow it until everything is settled."""
        with (
            self.step("deploying the flows (kestra-bridge flows deploy)"),
            stack.start("flows", "deploy") as deploying,
        ):
            if deploying.wait(60) != 0:
                raise DemoError(f"the flows could not be deployed{deploying.tail()}")
        self.say(f"submitting {len(CASES)} messages (kestra-bridge submit), the least urgent first")
        submitted = [self._submit_first(stack, children)]
        stack.listener.open()
        self.say(f"starting the bridge (kestra-bridge run), {LANE['prefetch']} jobs at once")
        bridge = stack.bridge = stack.start("run")
        children.callback(bridge.kill)
        self._follow(
            stack, bridge, lambda: submitted.append(self._submit_machine_jobs(stack, children))
        )
        with self.step("reading their outcomes"):
            for each in submitted:
                each.wait(CHECKED_WITHIN)
            return self._judge(stack)

    def checks(self, stack: Stack) -> list[Check]:
        """Checks on the whole, from what RabbitMQ, Kestra and this host themselves report."""
        executions = stack.executions(self._cases)
        first = [case for case in self._cases if case.queue == QUEUE]
        waiting = tuple(f"{queue}.retry.{RETRY_DELAY}" for queue in stack.queues)
        with self.step(f"looking at what is left{', until no machine is' if stack.host else ''}"):
            return [
                verdict.queue_check("Nothing is left to do", _emptied(stack, stack.queues)),
                verdict.queue_check("No job waits for another attempt", _emptied(stack, waiting)),
                verdict.dead_letter_check(self._cases, stack.dead_letters()),
                verdict.order_check(first, executions, LANE["prefetch"]),
                verdict.single_check(executions),
                *(self._machine_checks(stack.host) if stack.host else ()),
                self._reporter_check(stack, executions),
                self._notifier_check(stack),
            ]

    def _engine(self, directory: Path, rabbit: RabbitMQ, host: Host | None) -> Engine:
        # Its workers must know its address before it starts.
        port, password = free_port(), f"Aa0{secrets.token_hex(8)}"
        kestra = {
            "BRIDGE_KESTRA_URL": f"http://127.0.0.1:{port}",
            "BRIDGE_KESTRA_USERNAME": Engine.username,
            "BRIDGE_KESTRA_PASSWORD": password,
        }
        return Engine(
            directory / "engine",
            # For the notifier, which comes last: Kestra takes secrets only when it starts.
            amqp=AmqpAddress.from_url(rabbit.amqp_url),
            environment=host.environment(kestra) if host else None,
            port=port,
            password=password,
            say=self.say,
        )

    def _submit_first(self, stack: Stack, children: ExitStack) -> Child:
        submitting = _submit(
            stack, children, QUEUE, self._cases, SETTLED_WITHIN + MACHINES_SETTLED_WITHIN
        )
        # From here on the command waits for results, so only the queue shows how far it has come.
        raw = [case for case in CASES if case.raw is not None]
        waiting = len(CASES) - len(raw)
        submitting.wait_until(
            lambda: stack.ready() == waiting, timeout=30, what="done with submitting"
        )
        for case in raw:
            stack.publish(case)
        return submitting

    def _submit_machine_jobs(self, stack: Stack, children: ExitStack) -> Child:
        jobs = sum(case.on_machine for case in self._cases)
        self.say(f"submitting {jobs} messages for machines, all of them at once")
        return _submit(stack, children, MACHINE_QUEUE, self._cases, MACHINES_SETTLED_WITHIN)

    def _follow(self, stack: Stack, bridge: Child, submit_machine_jobs: Callable[[], None]) -> None:
        """Show what goes on until every job is settled.

        Raises:
            DemoError: the bridge ended, or it took too long.
        """
        looks = {case.id: Look("in the queue") for case in self._cases}
        deadline = time.monotonic() + SETTLED_WITHIN
        host, to_come = stack.host, stack.host is not None
        with self._screen(stack) as show:
            while True:
                if host and to_come and host.image_is_ready():
                    submit_machine_jobs()
                    to_come, deadline = False, time.monotonic() + MACHINES_SETTLED_WITHIN
                settled, executions = stack.settled(self._cases), stack.executions(self._cases)
                before, looks = (
                    looks,
                    {each: verdict.look(settled[each], executions[each]) for each in looks},
                )
                self._count_machines(host)
                show(looks, [job for job, look in looks.items() if before[job] != look])
                if all(map(verdict.is_settled, settled.values())):
                    return
                if not bridge.alive:
                    raise DemoError(
                        f"the bridge ended with status {bridge.returncode}{bridge.tail()}"
                    )
                # While the image is made, the jobs are not what takes long.
                if time.monotonic() > deadline and not to_come:
                    open_ = [job for job, lines in settled.items() if not verdict.is_settled(lines)]
                    raise DemoError(
                        f"not in time: {', '.join(f'{job} ({looks[job].state})' for job in open_)}"
                    )
                self._kill_some(stack, executions)
                time.sleep(LOOK_EVERY)

    def _count_machines(self, host: Host | None) -> None:
        running = host.running() if host else 0
        if running > self._most:
            self._most = running
            if running > 1:
                self.say(f"{running} machines at once")

    def _kill_some(self, stack: Stack, executions: Executions) -> None:
        for case in self._cases:
            for execution in executions[case.id] if case.killed else ():
                if execution.state is State.RUNNING and _is_to_be_killed(stack, case, execution):
                    stack.kill(execution)

    @contextmanager
    def _screen(self, stack: Stack) -> Iterator[Show]:
        """Where the jobs are shown: a table that changes, or a line for each change where that
        can't be.
        """
        if not self._live:
            yield self._lines(stack.host)
            return
        with Live(console=self._console, refresh_per_second=8, transient=True) as live:

            def show(looks: Mapping[str, Look], _: Sequence[str]) -> None:
                machines = _on_machines(stack.host)
                live.update(screen.live_view(self._cases, looks, machines, self._console.width))

            yield show

    def _lines(self, host: Host | None) -> Show:
        said_at = time.monotonic()

        def show(looks: Mapping[str, Look], changed: Sequence[str]) -> None:
            nonlocal said_at
            for job in changed:
                look = looks[job]
                attempt = f"attempt {look.attempt}" if look.attempt else ""
                self.say(
                    f"{job:<12} {attempt:<10} {look.state:<32} {look.execution or ''}".rstrip()
                )
            if changed:
                said_at = time.monotonic()
            elif host and time.monotonic() - said_at > SAY_AGAIN:
                said_at = time.monotonic()
                self.say(_on_machines(host))

        return show

    def _judge(self, stack: Stack) -> list[Verdict]:
        executions = stack.executions(self._cases)
        dead = {letter.get("message_id"): letter["headers"] for letter in stack.dead_letters()}
        logs = [f"submit-{queue}" for queue in stack.queues]
        results = {line["job"]: line for log in logs for line in stack.lines(log) if "job" in line}
        verdicts = []
        for case in self._cases:
            runs, result = executions[case.id], results.get(case.id)
            returned = (
                _brought_back(stack, case, runs[-1].id, result)
                if case.on_machine and runs
                else Returned()
            )
            verdicts.append(verdict.judge(case, runs, dead.get(case.id), result, returned))
        return verdicts

    def _reporter_check(self, stack: Stack, executions: Executions) -> Check:
        ended = [run.id for runs in executions.values() for run in runs if run.state.terminal]
        return _held(lambda: verdict.reporter_check(ended, stack.listener.told()))

    def _notifier_check(self, stack: Stack) -> Check:
        """Deploy the notifier, and run one more job."""
        self.say("deploying the notifier (kestra-bridge flows deploy --notifier), for one more job")
        job = ("--queue", QUEUE, "--input", "seconds=1", "--wait", "--wait-timeout", "60", "--json")
        commands = [("flows", ("deploy", "--notifier")), ("submit", job)]
        for name, arguments in commands:
            with stack.start(name, *arguments, log="notifier") as command:
                if command.wait(90) != 0:
                    raise DemoError(f"kestra-bridge {name} failed{command.tail()}")
        (result,) = [line for line in stack.lines("notifier") if "execution" in line]
        return _held(lambda: verdict.notifier_check(result["execution"], stack.listener.told()))

    def _machine_checks(self, host: Host) -> list[Check]:
        deadline = time.monotonic() + CLEANED_WITHIN
        while (host.processes() or host.folders()) and time.monotonic() < deadline:
            time.sleep(LOOK_EVERY)
        return verdict.machine_checks(self._most, len(host.processes()), len(host.folders()))


def _held(check: Callable[[], Check]) -> Check:
    """A check, once it holds or it took too long."""
    deadline = time.monotonic() + CHECKED_WITHIN
    while not (found := check()).ok and time.monotonic() < deadline:
        time.sleep(LOOK_EVERY)
    return found


def _submit(
    stack: Stack, children: ExitStack, queue: str, cases: Sequence[Case], limit: float
) -> Child:
    jobs = stack.directory / f"{queue}.jsonl"
    jobs.write_text(
        "".join(f"{case.line}\n" for case in cases if case.queue == queue and case.raw is None)
    )
    command = (
        "--queue",
        queue,
        "--file",
        str(jobs),
        "--wait",
        "--wait-timeout",
        f"{limit:g}",
        "--json",
    )
    submitting = stack.start("submit", *command, log=f"submit-{queue}")
    children.callback(submitting.kill)
    return submitting


def _is_to_be_killed(stack: Stack, case: Case, execution: Execution) -> bool:
    if case.says is not None:
        return case.says in stack.said(execution.id)
    return (
        execution.started is not None and time.time() - execution.started.timestamp() > KILL_AFTER
    )


def _brought_back(
    stack: Stack, case: Case, execution: str, result: Mapping[str, object] | None
) -> Returned:
    """What a job on a machine brought back. The last lines of Kestra's log may be on their way
    yet.
    """
    outputs = result.get("outputs") if result else None
    stored = outputs.get("results") if isinstance(outputs, dict) else None
    files = {name: stack.file(execution, uri) for name, uri in (stored or {}).items()}
    deadline = time.monotonic() + CHECKED_WITHIN
    while True:
        returned = Returned(said=stack.said(execution), files=files)
        if case.says in (None, *returned.said) or time.monotonic() > deadline:
            return returned
        time.sleep(LOOK_EVERY)


def _emptied(stack: Stack, queues: Sequence[str]) -> dict[str, int]:
    """What these queues hold once RabbitMQ's figures, which lag behind by a second or two, have
    come to rest.
    """
    deadline = time.monotonic() + CHECKED_WITHIN
    while any((depths := stack.depths(queues)).values()) and time.monotonic() < deadline:
        time.sleep(LOOK_EVERY)
    return depths


def _on_machines(host: Host | None) -> str:
    """One line about machines, for people who wait for them."""
    if host is None:
        return ""
    if not host.image_is_ready():
        return f"Machine jobs wait for the image: {host.image_progress}"
    running = host.running()
    return (
        f"{running} machine{'' if running == 1 else 's'} at this moment, of "
        f"{MACHINE_LANE['prefetch']} at once"
    )
