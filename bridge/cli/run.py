"""`kestra-bridge run`: the consumer."""

from __future__ import annotations

import asyncio
import os
import signal
from functools import partial

import structlog
import typer

from bridge import __version__
from bridge.cli.common import Json, load
from bridge.cli.signals import handled
from bridge.consume.ports import SessionPort
from bridge.consume.service import Service
from bridge.errors import BridgeError
from bridge.kestra import DEFAULT_LIMITS, Kestra, RequestLimits
from bridge.operate.doctor.checks import at_start
from bridge.operate.doctor.gather import kestra_facts, known_at_start
from bridge.rabbitmq.broker import Broker
from bridge.settings import Settings, authority, check_for_run
from bridge.telemetry import health
from bridge.telemetry.metrics import Metrics
from bridge.telemetry.tracing import Tracer, tracer

log = structlog.get_logger(__name__)


def _settings_help() -> str:
    lines = []
    for name, field in Settings.model_fields.items():
        default = " (required)" if field.is_required() else f" (default {field.default!r})"
        lines.append(
            f"BRIDGE_{name.upper()}  {field.description}{'' if field.default is None else default}"
        )
    return "Settings:\n\n" + "\n\n".join(lines)


app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command(epilog=_settings_help(), short_help="Run the bridge: take jobs until SIGTERM.")
def run(as_json: Json = False) -> None:
    """Take jobs from the queue and see each through, until SIGTERM or Ctrl-C.

    The first signal drains: nothing new is taken, what ends within BRIDGE_DRAIN_TIMEOUT is settled,
    and the rest is left to the next replica, which finds the executions that go on in Kestra. A
    second signal ends the process at once.
    """
    settings = load(Settings, json_logs=as_json)
    check_for_run(settings)
    tracing = tracer(os.environ, broker=settings.broker_address)
    try:
        asyncio.run(_serve(settings, tracing))
    finally:
        tracing.close()


async def _serve(settings: Settings, tracing: Tracer) -> None:
    """Run the service with its HTTP endpoints until a signal; a second one ends the process."""
    metrics = Metrics(
        {lane.queue: lane.prefetch for lane in settings.all_lanes},
        vhost=settings.virtual_host,
        max_priority=settings.max_priority,
    )
    # A create has to be over before another replica gives up looking for it.
    longest = DEFAULT_LIMITS.create_timeout
    grace = settings.adopt_grace or longest
    limits = RequestLimits(create_timeout=min(longest, 0.8 * grace))
    kestra = Kestra(settings, metrics, limits=limits)
    service = Service(
        settings,
        broker=Broker(settings),
        kestra=kestra,
        metrics=metrics,
        tracer=tracing,
        preflight=partial(_preflight, settings, kestra),
    )
    stop = asyncio.Event()

    def stop_on(number: signal.Signals) -> None:
        if stop.is_set():
            log.warning("stopping at once", signal=number.name, in_flight=service.in_flight)
            os._exit(128 + number)
        log.info("stopping", signal=number.name, in_flight=service.in_flight)
        stop.set()

    async with kestra:
        with (
            handled(stop_on),
            health.serve(
                metrics.registry,
                live=service.live,
                ready=service.ready,
                host=settings.http_host,
                port=settings.http_port,
            ) as port,
        ):
            http = f"http://{authority(settings.http_host, port)}"
            log.info("starting", version=__version__, http=http, pid=os.getpid())
            await service.run(stop)


async def _preflight(settings: Settings, kestra: Kestra, session: SessionPort) -> None:
    """Warn of what the doctor would find, too, as far as that costs next to nothing."""
    try:
        of_kestra = await kestra_facts(kestra, settings)
        facts = known_at_start(settings, of_kestra, session.version, session.kinds)
        findings = at_start(settings, facts)
    except BridgeError as error:
        log.info("what the doctor checks was not checked", error=str(error))
        return
    for finding in findings:
        log.warning(
            "the doctor finds",
            check=finding.check,
            what=finding.what,
            why=finding.why,
            mend=finding.fix,
        )
