"""`kestra-bridge run`: the consumer."""

from __future__ import annotations

import asyncio
import os

import typer

from bridge.cli.app import Json, load
from bridge.consume.service import Service
from bridge.settings import Settings, check_for_run
from bridge.telemetry.tracing import tracer


def _settings_help() -> str:
    lines = []
    for name, field in Settings.model_fields.items():
        default = " (required)" if field.is_required() else f" (default {field.default!r})"
        lines.append(
            f"BRIDGE_{name.upper()}  {field.description}{'' if field.default is None else default}"
        )
    return "Settings:\n\n" + "\n\n".join(lines)


app = typer.Typer()


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
        asyncio.run(Service(settings, tracing).run())
    finally:
        tracing.close()
