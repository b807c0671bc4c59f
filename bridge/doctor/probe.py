"""A round trip: an execution that does nothing, whose end the notifier must tell.

It proves at once the notifier, its secrets, its way to RabbitMQ and the reply exchange. On a production system it is
one small execution. Its flow is made for it and deleted afterwards; once its reply has come, the executions that came
of it are deleted too, and else left for a look at them. No replica waits for its job's label, so that its reply is to
them like that of another replica's job.
"""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from contextlib import suppress

import structlog

from bridge.doctor.facts import RoundTrip
from bridge.doctor.kestra_checks import NOTIFIER
from bridge.errors import KestraError, KestraRejected
from bridge.execution import Execution
from bridge.job import FlowName, Job
from bridge.kestra import Kestra

PROBE = FlowName("bridge.system", "doctor-probe")
QUEUE = "kestra-bridge doctor"
"""What the probe's label says in place of a queue, so that it counts as no lane's job."""

ROUTING_KEY = f"*.{PROBE}".replace("/", ".")
TIDYING = 10.0

SOURCE = f"""\
# Made by `kestra-bridge doctor` for a moment, to see its end told by the notifier. It can be deleted.
id: {PROBE.id}
namespace: {PROBE.namespace}
description: Does nothing, so that kestra-bridge doctor sees its end told.
tasks:
  - id: nothing
    type: io.kestra.plugin.core.log.Log
    message: A probe of kestra-bridge doctor
"""

log = structlog.get_logger(__name__)


async def round_trip(kestra: Kestra, replies: asyncio.Queue[bytes], *, patience: float) -> RoundTrip:
    """Run a probe and wait for its reply, for so many seconds."""
    job = Job(id=f"doctor-{uuid.uuid4().hex}", flow=PROBE, queue=QUEUE)
    trip = RoundTrip(problem="interrupted")
    try:
        trip = await _travel(kestra, job, replies, patience)
    finally:
        await _tidy(kestra, job, wholly=trip.seconds is not None)
    return trip


async def _travel(kestra: Kestra, job: Job, replies: asyncio.Queue[bytes], patience: float) -> RoundTrip:
    try:
        execution = await _start(kestra, job)
    except KestraError as error:
        return RoundTrip(problem=str(error), tried=False)
    began = time.monotonic()
    try:
        async with asyncio.timeout(patience):
            await _reply_for(execution, replies)
    except TimeoutError:
        return RoundTrip(problem=await _explain(kestra, job, execution, patience))
    return RoundTrip(seconds=time.monotonic() - began)


async def _start(kestra: Kestra, job: Job) -> Execution:
    """The probe's execution; a doctor elsewhere may delete its flow between two calls, so that is tried once more."""
    await _deploy(kestra)
    try:
        return await kestra.create(job)
    except KestraRejected:
        await _deploy(kestra)
        return await kestra.create(job)


async def _deploy(kestra: Kestra) -> None:
    if await kestra.flow(PROBE) is None:
        with suppress(KestraRejected):  # another doctor was faster
            await kestra.save_flow(PROBE, SOURCE, exists=False)


async def _reply_for(execution: Execution, replies: asyncio.Queue[bytes]) -> None:
    while True:
        body = await replies.get()
        with suppress(ValueError):
            reply = json.loads(body)
            if isinstance(reply, dict) and reply.get("executionId") == execution.id:
                return


async def _explain(kestra: Kestra, job: Job, execution: Execution, patience: float) -> str:
    """Why no reply came, as far as Kestra tells."""
    late = f"no reply within {patience:g} s"
    try:
        ended = await kestra.get(execution.id)
        if ended and not ended.state.terminal:
            return f"{late}: its execution is still {ended.state}; does a worker of Kestra's run?"
        notices = [found for found in await kestra.correlated(job.id) if _is_notice(found)]
        if not notices:
            return f"{late}: its execution ended {ended.state if ended else ''}, and the notifier was not started"
        return f"{late}: the notifier's {await kestra.explain(notices[-1])}"
    except KestraError as error:
        return f"{late}, and then {error}"


async def _tidy(kestra: Kestra, job: Job, *, wholly: bool) -> None:
    """Delete the flow, and `wholly` the executions too; what can't be deleted is said and stays."""
    try:
        async with asyncio.timeout(TIDYING):
            await kestra.delete_flow(PROBE)
            while True:
                if not await _executions_left(kestra, job, wholly=wholly):
                    return
                await asyncio.sleep(0.2)
    except (KestraError, TimeoutError) as error:
        why = str(error) or "it took too long"
        log.warning("something of the probe may be left in Kestra", flow=str(PROBE), job=job.id, error=why)


async def _executions_left(kestra: Kestra, job: Job, *, wholly: bool) -> bool:
    """Delete the executions that have ended, if wholly, and kill a probe that has not; says whether to come back."""
    found = await kestra.correlated(job.id)
    for execution in found:
        if execution.state.terminal and wholly:
            await kestra.delete_execution(execution.id)
        elif not execution.state.terminal and not _is_notice(execution):
            await kestra.kill(execution.id)
    return wholly and bool(found)


def _is_notice(execution: Execution) -> bool:
    return FlowName(execution.namespace, execution.flow) == NOTIFIER
