"""The screen of `kestra-bridge status`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime

from rich.console import Group, JustifyMethod, RenderableType
from rich.table import Table
from rich.text import Text

from bridge.durations import in_words
from bridge.operate.status.report import JobStatus, LaneStatus, ReplicaStatus, ServerStatus, Status
from bridge.rabbitmq.management import LedgerMetrics, ReplicaMetrics

WIDE = 110
"""Columns of a terminal from which on a job's flow fits beside the rest."""

WITH_LINKS = 150
"""Columns from which on the executions' addresses fit."""


def render(status: Status, width: int, *, jobs: int | None = None) -> Group:
    """The screen, `width` columns wide. It shows at most that many jobs, or all for None."""
    blocks = [_head(status), _lanes(status.lanes), _set_aside(status.lanes)]
    if status.jobs is not None:
        blocks += _jobs(status.jobs, status.jobs_elsewhere, width, jobs)
    if status.replicas is not None:
        blocks.append(_replicas(status.replicas))
    if status.metrics:
        blocks.append(_metrics(status.metrics))
    if status.unknown:
        lines = [Text(f"  {line}", "yellow", overflow="fold") for line in status.unknown]
        blocks.append(Group(Text("Unknown", "bold"), *lines))
    parts: list[RenderableType] = []
    for block in blocks:
        parts += [Text(), block]
    return Group(*parts[1:])


def _head(status: Status) -> RenderableType:
    if status.alarms is None:
        alarms = Text("")
    elif status.alarms:
        alarms = Text(f", takes no messages: {', '.join(status.alarms)}", "bold red")
    else:
        alarms = Text(", no alarms")
    last = _moment(status.at)
    if status.oldest:
        taken = in_words(status.oldest.seconds)
        last += f"; the oldest {status.oldest.what} has taken {taken}"
    return Group(
        _server("RabbitMQ", status.rabbitmq, alarms),
        _server("Kestra", status.kestra),
        Text(last),
    )


def _server(name: str, server: ServerStatus, *more: Text) -> Text:
    version = Text("no answer", "bold red")
    if server.version:
        version = Text(server.version, "bold green")
    where = ""
    if server.address:
        where = f" at {_printable(server.address)}"
    return Text.assemble((name, "bold"), " ", version, where, *more, overflow="fold")


def _lanes(lanes: Sequence[LaneStatus]) -> RenderableType:
    table = _table(
        "Lanes", "Queue", "Type", ">Ready", ">In flight", ">Consumers", "Ready by priority"
    )
    for lane in lanes:
        name: str | Text = lane.queue
        if lane.exists is False:
            name = Text(f"{lane.queue} (not there)", "yellow")
        consumers = Text(_number(lane.consumers))
        if lane.ready and lane.consumers == 0:
            consumers.stylize("bold red")
        _add_row(
            table,
            name,
            lane.kind or "?",
            _number(lane.ready),
            _number(lane.in_flight),
            consumers,
            _priorities(lane),
        )
    return table


def _priorities(lane: LaneStatus) -> str:
    counts = lane.by_priority or {}
    # A quorum queue of 4.3 keeps what was given back apart, and says no priority of it.
    others = (lane.ready or 0) - sum(counts.values())
    if not counts or others <= 0:
        return _counts(counts)
    return f"{_counts(counts)}, of others: {others}"


def _set_aside(lanes: Sequence[LaneStatus]) -> RenderableType:
    """The retry queues and dead-letter queues."""
    table = _table("Set aside", "Queue", ">Messages", "")
    for lane in lanes:
        for retry in lane.retries:
            notes = []
            if retry.messages:
                notes.append(f"the next is due within {in_words(retry.delay)}")
            if retry.handing_on:
                notes.append(f"{retry.handing_on} due and not back in the lane")
            note = Text(", ".join(notes))
            if retry.handing_on:
                note.stylize("bold")
            _add_row(table, retry.queue, _number(retry.messages), note)
        _add_dead_letters(table, lane)
    return table


def _add_dead_letters(table: Table, lane: LaneStatus) -> None:
    dead = lane.dead_letters
    number = Text(_number(dead.messages))
    if dead.messages:
        number.stylize("bold")
    note = _counts(dead.reasons)
    if dead.reasons and dead.read != dead.messages:
        note += f" (of {dead.read} that were looked at)"
    if lane.handing_on:
        note += f"; {lane.handing_on} on the way here"
    _add_row(table, dead.queue, number, note)


def _jobs(
    jobs: Sequence[JobStatus], elsewhere: int, width: int, most: int | None
) -> list[RenderableType]:
    title = f"Executions under way: {len(jobs)}"
    if elsewhere:
        title += f", and {elsewhere} of other queues"
    if not jobs:
        return [Text(title, "bold")]
    shown = jobs[:most]
    blocks: list[RenderableType] = [_job_table(title, shown, width)]
    hidden = len(jobs) - len(shown)
    if hidden:
        blocks.append(Text(f"{hidden} younger ones are not shown; --json has all."))
    if width < WITH_LINKS:
        first = jobs[0]
        pages = first.url.removesuffix(f"{first.flow}/{first.execution}")
        page = f"An execution's page: {pages}NAMESPACE/FLOW/EXECUTION"
        blocks.append(Text(page, overflow="fold"))
    return blocks


def _job_table(title: str, jobs: Sequence[JobStatus], width: int) -> Table:
    """The jobs, with as many columns as there is room for. On a terminal the execution's id is a
    link.
    """
    with_link = width >= WITH_LINKS
    with_flow = width >= WIDE and not with_link
    columns = ["Job", ">Try", "State", ">Age"]
    if with_flow:
        columns.append("Flow")
    columns.append("Link" if with_link else "Execution")
    table = _table(title, *columns)
    for job in jobs:
        state = job.state
        if job.never_started:
            state = "never started"
        age = "?"
        if job.age is not None:
            age = in_words(job.age)
        cells: list[str | Text] = [job.job, _number(job.attempt), state, age]
        if with_flow:
            cells.append(job.flow)
        if with_link:
            cells.append(Text(job.url))
        elif job.url:
            cells.append(Text(job.execution, f"link {job.url}"))
        else:
            cells.append(Text(job.execution))
        _add_row(table, *cells)
    return table


def _replicas(replicas: Sequence[ReplicaStatus]) -> RenderableType:
    if not replicas:
        return Text("Replicas: none", "bold red")
    table = _table(f"Replicas: {len(replicas)}", "Host", "Since", "Holds at most", "")
    for replica in replicas:
        since = "?"
        if replica.since:
            since = _moment(replica.since)
        role = "reporter" if replica.reporter else ""
        _add_row(table, replica.host, since, _counts(replica.prefetch), role)
    return table


def _metrics(metrics: Mapping[str, ReplicaMetrics]) -> RenderableType:
    table = _table("Replicas' metrics", "At", "In flight", ">Oldest", "Sessions lost", "Ledgers")
    for url, replica in metrics.items():
        lost = _counts(replica.restarts) or "none"
        ledgers = ", ".join(f"{lane} {_ledger(ledger)}" for lane, ledger in replica.ledgers.items())
        row = url, _counts(replica.in_flight), in_words(replica.oldest), lost, ledgers or "none"
        _add_row(table, *row)
    return table


def _ledger(ledger: LedgerMetrics) -> str:
    """How far back a ledger reaches, and how long its claims take."""
    text = f"reaches back {in_words(ledger.reach)}"
    if ledger.p50 is None or ledger.p99 is None:
        return text
    return f"{text}; claims take {ledger.p50 * 1000:g} ms (p99 {ledger.p99 * 1000:g} ms)"


def _table(title: str, *columns: str) -> Table:
    """A plain table. A column of numbers has a name that begins with >."""
    table = Table(
        title=Text(title, "bold"),
        title_justify="left",
        box=None,
        pad_edge=False,
        padding=(0, 2, 0, 0),
        header_style="dim",
    )
    for column in columns:
        justify: JustifyMethod = "left"
        if column.startswith(">"):
            justify = "right"
        table.add_column(column.lstrip(">"), justify=justify, overflow="fold")
    return table


def _add_row(table: Table, *cells: str | Text) -> None:
    table.add_row(*(cell if isinstance(cell, Text) else Text(_printable(cell)) for cell in cells))


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name}: {count}" for name, count in counts.items())


def _number(number: int | None) -> str:
    return "?" if number is None else str(number)


def _moment(moment: datetime) -> str:
    return moment.astimezone().isoformat(sep=" ", timespec="seconds")


def _printable(text: str) -> str:
    """The text without characters that could move the cursor."""
    return "".join(character if character.isprintable() else "?" for character in text)
