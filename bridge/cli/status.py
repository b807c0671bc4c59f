"""`kestra-bridge status`: how an installation is doing, on one screen."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated

import typer
from rich.console import Console
from rich.live import Live

from bridge import settings
from bridge.cli.common import Json, finite, load
from bridge.cli.screen import output_console
from bridge.cli.signals import Signalled, carry_out
from bridge.cli.status_view import render
from bridge.errors import SettingsError
from bridge.operate.sources import Unavailable
from bridge.operate.status.collect import Collector
from bridge.operate.status.report import Status
from bridge.operate.status.summarize import summarize
from bridge.settings import BrokerSettings, KestraSettings, environment

EVERY = 5.0
"""Seconds between two looks."""

BESIDE_JOBS = 24
"""Lines of a terminal that everything but the jobs takes with a lane or two."""

FEWEST_JOBS = 5
"""Jobs that are shown on the smallest terminal."""

_EPILOG = """\b
Settings: BRIDGE_AMQP_URL and the queues' (BRIDGE_QUEUE or BRIDGE_LANES, BRIDGE_RETRY_DELAYS). For
the management API BRIDGE_MANAGEMENT_URL, BRIDGE_MANAGEMENT_USERNAME and
BRIDGE_MANAGEMENT_PASSWORD, unless they follow from BRIDGE_AMQP_URL. For the jobs BRIDGE_KESTRA_URL
and the credentials there.
Exit status: 0 RabbitMQ answered, even if others did not; 1 it can't be reached; 2 wrong usage or
settings.
"""

Show = Callable[[Status], None]


app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command(epilog=_EPILOG, short_help="Show how an installation is doing, on one screen.")
def status(
    every: Annotated[
        float | None,
        typer.Argument(
            metavar="SECONDS",
            callback=finite,
            min=0.5,
            max=86_400,
            help="With --watch: how often.",
            show_default="5",
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
            "in flight and for lost sessions. Repeatable.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Show queues, jobs in flight, dead letters and replicas on one screen.

    It asks RabbitMQ, its management API, Kestra and the replicas' metrics that are named, and
    changes nothing. If one of them doesn't answer, it lists what is therefore unknown. The
    management API's figures may be five seconds old. To learn their reasons it reads dead letters
    as 'dead-letters list' does: they keep their order, and are away from their queue meanwhile. If
    there are very many it says so instead.
    """
    if every is not None and not watch:
        raise SettingsError(f"{every:g} is how often to look, which needs --watch")
    environment.check(os.environ)
    broker = load(BrokerSettings, json_logs=as_json)
    collector = Collector(broker, _kestra_settings(), metrics or ())
    if not watch:
        carry_out(_once(collector, as_json=as_json))
        return
    try:
        carry_out(_watch(collector, every or EVERY, as_json=as_json))
    except Signalled as ended:
        if ended.number != signal.SIGINT:
            raise


def _kestra_settings() -> KestraSettings | SettingsError:
    try:
        return settings.load(KestraSettings)
    except SettingsError as error:
        return error


async def _once(collector: Collector, *, as_json: bool) -> None:
    """Show the status once.

    Raises:
        BridgeError: RabbitMQ gave no answer over AMQP. The other answers were shown all the same.
    """
    async with collector:
        snapshot = await collector.snapshot()
    found = summarize(snapshot)
    if as_json:
        print(json.dumps(found.as_data(), indent=2, ensure_ascii=False))
    else:
        _print(output_console(), found)
    if isinstance(snapshot.broker, Unavailable):
        raise snapshot.broker.error


async def _watch(collector: Collector, every: float, *, as_json: bool) -> None:
    """Show the status every so many seconds, until cancelled."""
    async with collector:
        with _lines() if as_json else _screen() as show:
            while True:
                show(summarize(await collector.snapshot()))
                await asyncio.sleep(every)


@contextmanager
def _lines() -> Iterator[Show]:
    """Shows each status as a line of JSON."""
    yield lambda found: print(json.dumps(found.as_data(), ensure_ascii=False), flush=True)


@contextmanager
def _screen() -> Iterator[Show]:
    """Shows each status as a whole screen, which replaces the last one on a terminal."""
    console = output_console()
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
    """How many jobs fit on a terminal; None for a file or a pipe."""
    if not console.is_terminal:
        return None
    return max(FEWEST_JOBS, console.height - BESIDE_JOBS)
