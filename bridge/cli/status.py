"""`kestra-bridge status`: how an installation is doing, on one screen."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Annotated

import typer
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from bridge.cli.app import Json, app, load
from bridge.cli.signals import Signalled, carry_out
from bridge.durations import in_words
from bridge.errors import SettingsError
from bridge.operate.sources import Unavailable
from bridge.operate.status.collect import Collector
from bridge.operate.status.report import (
    JobStatus,
    LaneStatus,
    ReplicaStatus,
    ServerStatus,
    Status,
)
from bridge.operate.status.summarize import summarize
from bridge.rabbitmq.management import ReplicaMetrics
from bridge.settings import BrokerSettings, KestraSettings, environment, settings

EVERY = 5.0
"""Seconds between two looks."""

WIDE = 110
"""Columns of a terminal from which on a job's flow fits beside the rest."""

WITH_LINKS = 150
"""Columns from which on the executions' addresses fit."""

UNLIMITED = 1000
"""Columns of a screen that is a file or a pipe."""

BESIDE_JOBS = 24
"""Lines of a terminal that the rest takes for a lane or two; at least five jobs are shown."""

_EPILOG = """\b
Settings: BRIDGE_AMQP_URL and the queues' (BRIDGE_QUEUE or BRIDGE_LANES, BRIDGE_RETRY_DELAYS). For
the management API, where they don't follow from it, BRIDGE_MANAGEMENT_URL,
BRIDGE_MANAGEMENT_USERNAME and BRIDGE_MANAGEMENT_PASSWORD. For the jobs BRIDGE_KESTRA_URL and what
it takes to log in there.
Exit status: 0 RabbitMQ answered, whatever else did not; 1 it can't be reached; 2 wrong usage or
settings.
"""

Show = Callable[[Status], None]


@app.command(epilog=_EPILOG, short_help="Show how an installation is doing, on one screen.")
def status(
    every: Annotated[
        float | None,
        typer.Argument(
            metavar="SECONDS", min=0.5, help="With --watch: how often.", show_default="5"
        ),
    ] = None,
    *,
    watch: Annotated[
        bool, typer.Option("--watch", help="Show it again and again, until Ctrl-C.")
    ] = False,
    metrics: Annotated[
        list[str] | None,
        typer.Option(
            metavar="URL",
            help="A replica's metrics, such as http://host:9464/metrics: for the oldest delivery "
            "in flight and for "
            "sessions that were lost. Repeatable.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Show queues, jobs in flight, dead letters and replicas on one screen.

    It asks RabbitMQ, its management API, Kestra and, where they are named, the replicas' metrics.
    It changes nothing, and where one of them doesn't answer it says what is unknown for that. The
    management API's figures may be five seconds old. For their reasons dead letters are read as by
    'dead-letters list': they keep their order and are away from their queue meanwhile. Where there
    are very many it says so instead.
    """
    if every is not None and not watch:
        raise SettingsError(f"{every:g} is how often to look, which needs --watch")
    environment.check(os.environ)
    collector = Collector(
        load(BrokerSettings, json_logs=as_json), _kestra_settings(), metrics or ()
    )
    try:
        carry_out(
            _watch(collector, every or EVERY, as_json=as_json)
            if watch
            else _once(collector, as_json=as_json)
        )
    except Signalled as ended:
        if not watch or ended.number != signal.SIGINT:
            raise


def _kestra_settings() -> KestraSettings | SettingsError:
    try:
        return settings.load(KestraSettings)
    except SettingsError as error:
        return error


async def _once(collector: Collector, *, as_json: bool) -> None:
    """Show it once.

    Raises:
        BridgeError: RabbitMQ told nothing by AMQP. What the others told was shown all the same.
    """
    async with collector:
        snapshot = await collector.snapshot()
    found = summarize(snapshot)
    if as_json:
        print(json.dumps(found.as_data(), indent=2, ensure_ascii=False))
    else:
        _print(_console(), found)
    if isinstance(snapshot.broker, Unavailable):
        raise snapshot.broker.error


async def _watch(collector: Collector, every: float, *, as_json: bool) -> None:
    async with collector:
        with _lines() if as_json else _screen() as show:
            while True:
                show(summarize(await collector.snapshot()))
                await asyncio.sleep(every)


@contextmanager
def _lines() -> Iterator[Show]:
    """Each time a line of JSON."""
    yield lambda found: print(json.dumps(found.as_data(), ensure_ascii=False), flush=True)


@contextmanager
def _screen() -> Iterator[Show]:
    """Each time the whole screen, on a terminal in place of the last one."""
    console = _console()
    if not console.is_terminal:
        yield lambda found: _print(console, found)
        return
    with Live(console=console, screen=True, auto_refresh=False) as live:
        yield lambda found: live.update(
            render(found, console.width, jobs=_room(console)), refresh=True
        )


def _print(console: Console, found: Status) -> None:
    console.print(render(found, console.width, jobs=_room(console)))


def _room(console: Console) -> int | None:
    return max(5, console.height - BESIDE_JOBS) if console.is_terminal else None


def _console() -> Console:
    # A file has no right edge: there, nothing is to be cut or folded.
    return Console() if sys.stdout.isatty() else Console(width=UNLIMITED)


def render(found: Status, width: int, *, jobs: int | None = None) -> Group:
    """The screen, for so many columns, with at most so many jobs."""
    blocks = [
        _head(found),
        _lanes(found.lanes),
        _set_aside(found.lanes),
        *_jobs(found, width, jobs),
        _replicas(found.replicas),
        _metrics(found.metrics),
        _unknown(found.unknown),
    ]
    lines = [line for block in blocks if block is not None for line in (Text(), block)]
    return Group(*lines[1:])


def _head(found: Status) -> RenderableType:
    oldest = (
        f"; the oldest {found.oldest.what} has taken {in_words(found.oldest.seconds)}"
        if found.oldest
        else ""
    )
    return Group(
        _server("RabbitMQ", found.rabbitmq, _alarms(found.alarms)),
        _server("Kestra", found.kestra),
        Text(f"{_moment(found.at)}{oldest}"),
    )


def _server(name: str, server: ServerStatus, *more: Text) -> Text:
    version = (
        Text(server.version, "bold green") if server.version else Text("no answer", "bold red")
    )
    where = f" at {_printable(server.address)}" if server.address else ""
    return Text.assemble((name, "bold"), " ", version, where, *more, overflow="fold")


def _alarms(alarms: Sequence[str] | None) -> Text:
    if not alarms:
        return Text("" if alarms is None else ", no alarms")
    return Text(f", takes no messages: {', '.join(alarms)}", "bold red")


def _lanes(lanes: Sequence[LaneStatus]) -> RenderableType:
    table = _table(
        "Lanes", "Queue", "Type", ">Ready", ">In flight", ">Consumers", "Ready by priority"
    )
    for lane in lanes:
        name = Text(f"{lane.queue} (not there)", "yellow") if lane.exists is False else lane.queue
        consumers = Text(
            _number(lane.consumers), "bold red" if lane.consumers == 0 and lane.ready else ""
        )
        numbers = _number(lane.ready), _number(lane.in_flight), consumers
        _row(table, name, lane.kind or "?", *numbers, _counts(lane.by_priority or {}))
    return table


def _set_aside(lanes: Sequence[LaneStatus]) -> RenderableType:
    table = _table("Set aside", "Queue", ">Messages", "")
    for lane in lanes:
        for retry in lane.retries:
            due = [f"the next is due within {in_words(retry.delay)}"] if retry.messages else []
            stuck = [f"{retry.handing_on} due and not back in the lane"] if retry.handing_on else []
            _row(
                table,
                retry.queue,
                _number(retry.messages),
                Text(", ".join(due + stuck), "bold" if stuck else ""),
            )
        dead = lane.dead_letters
        on_the_way = f"; {lane.handing_on} on the way here" if lane.handing_on else ""
        part = (
            f" (of {dead.read} that were looked at)"
            if dead.reasons and dead.read != dead.messages
            else ""
        )
        _row(
            table,
            dead.queue,
            Text(_number(dead.messages), "bold" if dead.messages else ""),
            _counts(dead.reasons) + part + on_the_way,
        )
    return table


def _jobs(found: Status, width: int, most: int | None) -> Iterator[RenderableType]:
    if found.jobs is None:
        return
    elsewhere = f", and {found.jobs_elsewhere} of other queues" if found.jobs_elsewhere else ""
    title = f"Executions under way: {len(found.jobs)}{elsewhere}"
    if not found.jobs:
        yield Text(title, "bold")
        return
    yield _job_table(title, found.jobs[:most], width)
    if (more := len(found.jobs[most:]) if most else 0) > 0:
        yield Text(f"{more} younger ones are not shown; --json has all.")
    if width < WITH_LINKS:
        first = found.jobs[0]
        pages = first.url.removesuffix(f"{first.flow}/{first.execution}")
        yield Text(f"An execution's page: {pages}NAMESPACE/FLOW/EXECUTION", overflow="fold")


def _job_table(title: str, jobs: Sequence[JobStatus], width: int) -> Table:
    """The jobs, with as much of each as there is room for. On a terminal the execution's id is a
    link, too.
    """
    link = width >= WITH_LINKS
    flow = width >= WIDE and not link
    table = _table(
        title,
        "Job",
        ">Try",
        "State",
        ">Age",
        *(["Flow"] if flow else []),
        "Link" if link else "Execution",
    )
    for job in jobs:
        execution = (
            Text(job.url) if link else Text(job.execution, f"link {job.url}" if job.url else "")
        )
        state = "never started" if job.never_started else job.state
        cells = (
            job.job,
            _number(job.attempt),
            state,
            "?" if job.age is None else in_words(job.age),
        )
        _row(table, *cells, *([job.flow] if flow else []), execution)
    return table


def _replicas(replicas: Sequence[ReplicaStatus] | None) -> RenderableType | None:
    if replicas is None:
        return None
    if not replicas:
        return Text("Replicas: none", "bold red")
    table = _table(f"Replicas: {len(replicas)}", "Host", "Since", "Holds at most")
    for replica in replicas:
        _row(
            table,
            replica.host,
            _moment(replica.since) if replica.since else "?",
            _counts(replica.prefetch),
        )
    return table


def _metrics(metrics: Mapping[str, ReplicaMetrics]) -> RenderableType | None:
    if not metrics:
        return None
    table = _table("Replicas' metrics", "At", "In flight", ">Oldest", "Sessions lost")
    for url, told in metrics.items():
        _row(
            table,
            url,
            _counts(told.in_flight),
            in_words(told.oldest),
            _counts(told.restarts) or "none",
        )
    return table


def _unknown(unknown: Sequence[str]) -> RenderableType | None:
    lines = [Text(f"  {line}", "yellow", overflow="fold") for line in unknown]
    return Group(Text("Unknown", "bold"), *lines) if lines else None


def _table(title: str, *columns: str) -> Table:
    """A plain table; a column whose name begins with > is of numbers."""
    table = Table(
        title=Text(title, "bold"),
        title_justify="left",
        box=None,
        pad_edge=False,
        padding=(0, 2, 0, 0),
        header_style="dim",
    )
    for column in columns:
        table.add_column(
            column.lstrip(">"),
            justify="right" if column.startswith(">") else "left",
            overflow="fold",
        )
    return table


def _row(table: Table, *cells: str | Text) -> None:
    table.add_row(*(cell if isinstance(cell, Text) else Text(_printable(cell)) for cell in cells))


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name}: {count}" for name, count in counts.items())


def _number(number: int | None) -> str:
    return "?" if number is None else str(number)


def _moment(moment: datetime) -> str:
    return moment.astimezone().isoformat(sep=" ", timespec="seconds")


def _printable(text: str) -> str:
    """Text that can't move the cursor."""
    return "".join(character if character.isprintable() else "?" for character in text)
