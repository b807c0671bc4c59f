"""`kestra-bridge submit`: put jobs on the queue, and wait for their results where that is
wanted.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console, JustifyMethod
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from bridge.cli import streams
from bridge.cli.app import FAILED, Json, app, load
from bridge.cli.screen import BAR_FROM, named
from bridge.cli.signals import Signalled, carry_out
from bridge.errors import BridgeError, BrokerError, BrokerUnavailable, SettingsError
from bridge.job.execution import State
from bridge.job.message import Message
from bridge.operate import submission
from bridge.operate.submission import MADE_ID, Draft, Format, IdsByContent, Submission
from bridge.rabbitmq.broker import Broker, Publisher, ReplyQueue
from bridge.settings import BrokerSettings, lane_named

UNCONFIRMED_AT_ONCE = 256
WIDE = 100
"""Columns of a terminal from which on the executions' ids fit beside the rest."""

EXAMPLES = """\b
Examples:
  kestra-bridge submit --flow bridge.jobs/example --input message=hello --priority 9
  kestra-bridge submit --file jobs.csv --wait --wait-timeout 600
  jq -c '.[]' jobs.json | kestra-bridge submit --file - --json

\b
A line of JSON, of which every field may be missing:
  {"id": "a-1", "flow": "bridge.jobs/example", "priority": 5, "timeout": 600,
   "inputs": {"seconds": 3}, "labels": {"team": "blue"}}

\b
The same as CSV, whose values are all texts; an empty cell says nothing:
  id,flow,priority,timeout,input.seconds,label.team
  a-1,bridge.jobs/example,5,600,3,blue

Settings: BRIDGE_AMQP_URL, and where they differ from the defaults BRIDGE_QUEUE or BRIDGE_LANES,
BRIDGE_AMQP_CA and BRIDGE_MAX_PRIORITY. A queue that isn't there yet is declared as the bridge
would, by the same settings.

A job of a file that has no id gets one by its content, and equal ones by their order too. So a file
can be submitted again after an interruption, and what was submitted before is not run again;
--new-ids runs all of it anew.

Exit status: 0 all submitted (with --wait: all succeeded), 1 not so, 2 wrong usage, settings or
jobs, 130 or 143 interrupted by Ctrl-C or SIGTERM.
"""


@dataclass(slots=True, kw_only=True)
class Ledger:
    """What has become of the jobs so far."""

    jobs: Sequence[Submission]
    submitted: set[str] = field(default_factory=set)
    in_doubt: set[str] = field(default_factory=set)
    told: int = 0
    results: dict[str, Result] = field(default_factory=dict)

    @property
    def open(self) -> list[str]:
        """The jobs that were submitted and have no result yet."""
        return [
            job.id for job in self.jobs if job.id in self.submitted and job.id not in self.results
        ]

    def untold(self, *, gaps: bool = False) -> Iterator[str]:
        """The submitted jobs that were not told of yet, in order; up to the first that isn't, or
        with gaps.
        """
        while self.told < len(self.jobs):
            job = self.jobs[self.told].id
            if job not in self.submitted and not gaps:
                return
            self.told += 1
            if job in self.submitted:
                yield job

    @property
    def count(self) -> str:
        """How many were submitted, in words."""
        doubt = f", {len(self.in_doubt)} more may have been" if self.in_doubt else ""
        if len(self.jobs) == 1:
            return (
                "the job was submitted"
                if self.submitted
                else f"the job {'may have been' if doubt else 'was not'} submitted"
            )
        return f"{len(self.submitted)} of {len(self.jobs)} jobs were submitted{doubt}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """A job's final result as the bridge sent it."""

    job: str
    data: dict[str, Any]

    @property
    def succeeded(self) -> bool:
        """Whether the bridge acked the job for its success: a result of any other ending has a
        reason.
        """
        return State(self.state).ended_well and "reason" not in self.data

    @property
    def state(self) -> str:
        """The execution's last state, a dash where there was no execution."""
        return str(self.data.get("state") or "-")

    @property
    def told(self) -> str:
        """What a person wants to know beyond the state: the outputs, or why there was no
        success.
        """
        if self.succeeded:
            outputs = self.data.get("outputs")
            return json.dumps(outputs, ensure_ascii=False) if outputs else ""
        parts = (self.data.get("reason"), self.data.get("error"))
        return " ".join(": ".join(str(part) for part in parts if part).split())


@dataclass(slots=True, kw_only=True)
class Output:
    """How to tell of it: JSON for programs, a table at the end on a terminal, else a line for each
    job as it comes.
    """

    as_json: bool
    queue: str
    failure: OSError | None = None

    @property
    def at_end(self) -> bool:
        """Whether results are shown together, once there are no more to come."""
        return sys.stdout.isatty() and not self.as_json

    def submitted(self, ids: Iterable[str]) -> None:
        """Say which jobs stand in the queue. That it can't be said stops nothing; `failure` tells
        it.
        """
        try:
            for job in ids:
                self._line({"job": job, "queue": self.queue}, job)
        except OSError as error:
            self.failure = error

    def result(self, result: Result) -> None:
        """Tell of one job's end, unless the table will."""
        if not self.at_end:
            data = result.data
            columns = (
                result.job,
                result.state,
                data.get("attempts"),
                data.get("execution"),
                result.told,
            )
            text = "\t".join("-" if value in (None, "") else str(value) for value in columns)
            self._line({**data, "job": result.job}, text)

    def table(self, ledger: Ledger) -> None:
        """Tell of all jobs, where a person looks at them."""
        if self.at_end:
            console = Console()
            console.print(_table(ledger, wide=console.width >= WIDE))

    def _line(self, data: dict[str, Any], text: str) -> None:
        # Flushed line by line: who reads it may be waiting, or be gone.
        print(
            json.dumps(data, ensure_ascii=False) if self.as_json else _printable(text), flush=True
        )


@app.command(epilog=EXAMPLES, short_help="Put jobs on the queue.")
def submit(
    *,
    flow: Annotated[
        str | None,
        typer.Option(
            metavar="NAMESPACE/ID", help="The flow to run. Without it: that of the queue's lane."
        ),
    ] = None,
    inputs: Annotated[
        list[str] | None,
        typer.Option(
            "--input", metavar="NAME=VALUE", help="An input; the value is a text. Repeatable."
        ),
    ] = None,
    inputs_json: Annotated[
        str | None,
        typer.Option(
            metavar="OBJECT", help="Inputs as a JSON object, for numbers, lists and the like."
        ),
    ] = None,
    labels: Annotated[
        list[str] | None,
        typer.Option(
            "--label", metavar="NAME=VALUE", help="A label for the execution. Repeatable."
        ),
    ] = None,
    priority: Annotated[
        int | None, typer.Option(help="The higher, the sooner.", min=0, max=255)
    ] = None,
    job_id: Annotated[
        str | None,
        typer.Option(
            "--id", help="The job's id, by which it is run once only. Without it: a random one."
        ),
    ] = None,
    timeout: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS",
            help="Kill the execution after so long. Without it: the bridge's limit.",
        ),
    ] = None,
    queue: Annotated[str | None, typer.Option(help="The queue. Without it: BRIDGE_QUEUE.")] = None,
    file: Annotated[
        str | None,
        typer.Option(
            metavar="PATH|-",
            help="Many jobs, from a file or standard input; --flow, --priority, --timeout fill in "
            "what a line lacks.",
        ),
    ] = None,
    style: Annotated[
        Format,
        typer.Option("--format", help="The file's format; 'auto' looks at name and content."),
    ] = "auto",
    new_ids: Annotated[
        bool,
        typer.Option(
            "--new-ids",
            help="With --file: run its jobs anew, also where the same file was submitted before.",
        ),
    ] = False,
    wait: Annotated[
        bool, typer.Option("--wait", help="Wait for the results; fail unless every job succeeded.")
    ] = False,
    wait_timeout: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", help="With --wait: give up waiting after so long.", min=0),
    ] = None,
    as_json: Json = False,
) -> None:
    """Put one job on the queue, or the jobs of a file, and print their ids.

    All is checked before anything is published. A job is printed once RabbitMQ has confirmed that
    it keeps it.
    """
    if wait_timeout is not None and not wait:
        raise SettingsError("--wait-timeout needs --wait")
    if new_ids and file is None:
        raise SettingsError(
            "--new-ids needs --file: a single job has a new id unless --id gives it one"
        )
    one = {"--input": inputs, "--inputs-json": inputs_json, "--label": labels, "--id": job_id}
    drafts = _drafts_of(file, style, one) if file is not None else [_draft(flow, one)]
    drafts = [draft.filled(flow=flow, priority=priority, timeout=timeout) for draft in drafts]
    settings = _for_queue(load(BrokerSettings, json_logs=as_json), queue)
    ids = submission.random_id if file is None or new_ids else IdsByContent()
    jobs = submission.judge(drafts, max_priority=settings.max_priority, ids=ids)
    output = Output(as_json=as_json, queue=settings.all_lanes[0].queue)
    if not _run(settings, Ledger(jobs=jobs), output, wait=wait, limit=wait_timeout):
        raise typer.Exit(FAILED)


def _drafts_of(file: str, style: Format, one: dict[str, Any]) -> list[Draft]:
    if misplaced := [option for option, value in one.items() if value]:
        raise SettingsError(f"{misplaced[0]} is for a single job and can't be used with --file")
    try:
        data = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    except OSError as error:
        raise SettingsError(f"can't read {_printable(file)}: {error.strerror}") from error
    return submission.read(data, name="standard input" if file == "-" else file, style=style)


def _draft(flow: str | None, one: dict[str, Any]) -> Draft:
    inputs_json = one["--inputs-json"]
    if flow is None and inputs_json is None and not one["--input"]:
        raise SettingsError(
            "nothing to submit: give --flow, --input, --inputs-json or --file; --help has examples"
        )
    inputs: dict[str, Any] = submission.fields(one["--input"] or (), option="--input")
    more = (
        submission.json_object(inputs_json, option="--inputs-json")
        if inputs_json is not None
        else {}
    )
    if both := sorted(inputs.keys() & more.keys()):
        raise SettingsError(f"input {both[0]} is given by --input and by --inputs-json")
    labels = submission.fields(one["--label"] or (), option="--label")
    return Draft(id=one["--id"], body={"inputs": inputs | more, "labels": labels})


def _for_queue(settings: BrokerSettings, queue: str | None) -> BrokerSettings:
    """The settings with the one lane that is meant."""
    lanes = settings.all_lanes
    if queue is None and len(lanes) > 1:
        raise SettingsError(
            f"--queue is needed: BRIDGE_LANES has {', '.join(lane.queue for lane in lanes)}"
        )
    if queue is None:
        return settings
    return settings.model_copy(update={"lanes": (lane_named(settings, queue, option="--queue"),)})


def _run(
    settings: BrokerSettings, ledger: Ledger, output: Output, *, wait: bool, limit: float | None
) -> bool:
    """Submit, and wait if wanted; says whether all went well."""
    try:
        with _bars(ledger) as bars:
            carry_out(_submit(settings, ledger, output, bars, wait=wait, limit=limit))
    except Signalled as ended:
        _interrupted(ledger, output, ended.code, wait=wait)
    if output.failure:
        raise output.failure
    output.table(ledger)
    if wait and ledger.open:
        _say(f"no result within {limit:g} s from {named(ledger.open)}")
    return not wait or all(
        job.id in ledger.results and ledger.results[job.id].succeeded for job in ledger.jobs
    )


def _interrupted(ledger: Ledger, output: Output, code: int, *, wait: bool) -> NoReturn:
    if not wait:
        output.submitted(ledger.untold(gaps=True))
    goes_on = (
        "; what was submitted and has not ended goes on"
        if ledger.submitted or ledger.in_doubt
        else ""
    )
    _say(f"interrupted: {ledger.count}{goes_on}")
    raise typer.Exit(code)


async def _submit(
    settings: BrokerSettings,
    ledger: Ledger,
    output: Output,
    bars: Bars,
    *,
    wait: bool,
    limit: float | None,
) -> None:
    broker = Broker(settings, name="kestra-bridge submit")
    async with broker.commands() as session, AsyncExitStack() as stack:
        stack.enter_context(session.alarms_heard(_say))
        await session.ensure()
        reply_queue = await stack.enter_async_context(session.reply_queue()) if wait else None
        reply_to = reply_queue.name if reply_queue else None
        messages = ((job.id, job.sent(datetime.now(UTC), reply_to=reply_to)) for job in ledger.jobs)

        def confirmed() -> None:
            bars.submitted()
            if not wait:
                output.submitted(ledger.untold())

        error = await _publish_all(session.publisher, output.queue, messages, ledger, confirmed)
        if error or not wait:
            output.submitted(ledger.untold(gaps=True))
        if error:
            raise type(error)(f"{error}; {ledger.count}")
        if reply_queue:
            bars.waiting()
            await _collect(reply_queue, ledger, output, bars.ended, limit)


async def _publish_all(
    publisher: Publisher,
    queue: str,
    messages: Iterator[tuple[str, Message]],
    ledger: Ledger,
    confirmed: Callable[[], None],
) -> BridgeError | None:
    """Publish in order, many at once; after the first failure nothing more, but what is under way
    is seen through.
    """
    errors: list[BridgeError] = []

    async def work() -> None:
        for job, message in messages:
            ledger.in_doubt.add(job)
            try:
                await publisher.publish(message, exchange=queue, routing_key=queue)
            except BrokerError as error:
                errors.append(error)
                if not isinstance(error, BrokerUnavailable):
                    ledger.in_doubt.discard(job)
            else:
                ledger.in_doubt.discard(job)
                ledger.submitted.add(job)
                confirmed()
            if errors:
                return

    await asyncio.gather(*(work() for _ in range(UNCONFIRMED_AT_ONCE)))
    return errors[0] if errors else None


async def _collect(
    reply_queue: ReplyQueue,
    ledger: Ledger,
    output: Output,
    advance: Callable[[], None],
    limit: float | None,
) -> None:
    """Take results until every job has one or the time is up."""
    try:
        async with asyncio.timeout(limit):
            while ledger.open:
                result = _to_result(await reply_queue.take())
                if (
                    result is None
                    or result.job not in ledger.submitted
                    or result.job in ledger.results
                ):
                    continue
                ledger.results[result.job] = result
                output.result(result)
                advance()
    except TimeoutError:
        return
    except BrokerUnavailable as error:
        output.table(ledger)
        raise BrokerUnavailable(
            f"{error}; {ledger.count}, and the result is not known of {named(ledger.open)}"
        ) from error


def _to_result(message: Message) -> Result | None:
    """The result that a message carries, or None for anything else that got into our queue."""
    try:
        data = json.loads(message.body)
    except (ValueError, RecursionError):
        return None
    if not isinstance(data, dict) or not message.correlation_id:
        return None
    return Result(job=message.correlation_id, data=data)


@dataclass(frozen=True, slots=True)
class Bars:
    """What to call when one more job is submitted, when the wait begins, and when one more job has
    ended.
    """

    submitted: Callable[[], None]
    waiting: Callable[[], None]
    ended: Callable[[], None]


@contextmanager
def _bars(ledger: Ledger) -> Iterator[Bars]:
    """Progress bars, on a terminal alone, and not where nothing takes long."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    total = len(ledger.jobs)
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as progress:
        submitted = progress.add_task("submitted", total=total, visible=total >= BAR_FROM)
        ended = progress.add_task("ended", total=total, visible=False)
        yield Bars(
            submitted=lambda: progress.advance(submitted),
            waiting=lambda: progress.update(ended, visible=True),
            ended=lambda: progress.advance(ended),
        )


def _table(ledger: Ledger, *, wide: bool) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("Job", "State", "Attempts", *(("Execution",) if wide else ()), "Result"):
        # An id that we made stays in one piece, so that it can be copied.
        least = (
            MADE_ID
            if heading == "Job" and any(len(job.id) == MADE_ID for job in ledger.jobs)
            else None
        )
        justify: JustifyMethod = "right" if heading == "Attempts" else "left"
        table.add_column(heading, overflow="fold", justify=justify, min_width=least)
    for job in ledger.jobs:
        result = ledger.results.get(job.id)
        style = "dim" if result is None else "" if result.succeeded else "red"
        cells = _cells(result, wide=wide) if result else ("no result yet",)
        table.add_row(*(Text(_printable(cell), style) for cell in (job.id, *cells)))
    return table


def _cells(result: Result, *, wide: bool) -> tuple[str, ...]:
    execution = (str(result.data.get("execution") or ""),) if wide else ()
    return result.state, str(result.data.get("attempts", "")), *execution, result.told


def _say(line: str) -> None:
    streams.tell(f"kestra-bridge: {line}")


def _printable(text: str) -> str:
    """Text that any terminal takes."""
    return text.encode("utf-8", "backslashreplace").decode()
