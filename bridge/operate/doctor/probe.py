"""Probes: small executions that prove what no request to Kestra can.

The round trip does nothing, and the notifier must report its end: that proves the notifier, its
secrets, its way to RabbitMQ and the reply exchange. The other probe sleeps, and must end when it is
killed. Each has a flow of its own, which is created for it and deleted afterwards. The executions
of a probe that succeeded are deleted too; those of a failed one stay so that somebody can look at
them. No replica waits for a probe's job label, so to the replicas its reply looks like that of
another replica's job.
"""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass

import structlog

from bridge.errors import KestraError, KestraRejected, KestraUnavailable
from bridge.job.execution import Execution, State
from bridge.job.flow_name import FlowName
from bridge.job.job import Job
from bridge.kestra import Kestra
from bridge.operate.doctor.facts import ProbeResult
from bridge.operate.flows import NOTIFIER

QUEUE = "kestra-bridge doctor"
"""Stands in a probe's label instead of a queue, so that the probe belongs to no lane."""

TIDY_WITHIN = 10.0
POLL_EVERY = 0.2
KILL_EVERY = 2.0
"""Seconds between two kills: Kestra 1.3 may ignore one that comes before the first task."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Probe:
    """A flow that is deployed for the duration of the probe. `does` describes it."""

    flow: FlowName
    does: str
    task: str

    @property
    def source(self) -> str:
        """The flow's YAML."""
        return (
            "# Made by `kestra-bridge doctor` for a moment. It can be deleted.\n"
            f"id: {self.flow.id}\n"
            f"namespace: {self.flow.namespace}\n"
            f"description: {self.does}\n"
            f"tasks:\n  - {self.task}\n"
        )


ROUND_TRIP = Probe(
    FlowName("bridge.system", "doctor-probe"),
    "Does nothing, so that kestra-bridge doctor sees its end reported.",
    "{id: nothing, type: io.kestra.plugin.core.log.Log, message: A probe of the doctor}",
)
KILL = Probe(
    FlowName("bridge.system", "doctor-kill-probe"),
    "Sleeps, so that kestra-bridge doctor can kill it.",
    "{id: sleep, type: io.kestra.plugin.core.flow.Sleep, duration: PT120S}",
)
ROUTING_KEY = f"*.{ROUND_TRIP.flow}".replace("/", ".")

Watcher = Callable[[Execution, Job], Awaitable[None]]


class Failed(Exception):
    """A probe did not end as it should; the text says how it ended."""


async def round_trip(
    kestra: Kestra, replies: asyncio.Queue[bytes], *, patience: float
) -> ProbeResult:
    """The result of a probe whose reply must arrive within `patience` seconds."""

    async def watch(execution: Execution, job: Job) -> None:
        try:
            async with asyncio.timeout(patience):
                await _reply_for(execution, replies)
        except TimeoutError:
            raise Failed(await _explain(kestra, job, execution, patience)) from None

    return await _run(kestra, ROUND_TRIP, watch)


async def kill(kestra: Kestra, *, patience: float) -> ProbeResult:
    """The result of a probe that is killed and must end within `patience` seconds."""

    async def watch(execution: Execution, _: Job) -> None:
        try:
            async with asyncio.timeout(patience):
                state = await _killed(kestra, execution)
        except TimeoutError:
            raise Failed(f"its execution did not end within {patience:g} s") from None
        if state is not State.KILLED:
            raise Failed(f"its execution ended {state}")

    return await _run(kestra, KILL, watch)


async def _run(kestra: Kestra, probe: Probe, watch: Watcher) -> ProbeResult:
    job = Job(id=f"doctor-{uuid.uuid4().hex}", flow=probe.flow, queue=QUEUE)
    result = ProbeResult(problem="interrupted")
    try:
        result = await _watched(kestra, probe, job, watch)
    finally:
        await _tidy(kestra, job, executions=result.seconds is not None)
    return result


async def _watched(kestra: Kestra, probe: Probe, job: Job, watch: Watcher) -> ProbeResult:
    try:
        execution = await _start(kestra, probe, job)
    except KestraError as error:
        return ProbeResult(problem=str(error), tried=False)
    began = time.monotonic()
    try:
        await watch(execution, job)
    except (Failed, KestraError) as error:
        return ProbeResult(problem=str(error))
    return ProbeResult(seconds=time.monotonic() - began)


async def _start(kestra: Kestra, probe: Probe, job: Job) -> Execution:
    """Start the probe's execution."""
    await _deploy(kestra, probe)
    try:
        return await kestra.create(job)
    except KestraRejected:
        # Another doctor may have deleted the flow between the two calls.
        await _deploy(kestra, probe)
        return await kestra.create(job)


async def _deploy(kestra: Kestra, probe: Probe) -> None:
    if await kestra.flows.get(probe.flow) is None:
        with suppress(KestraRejected):  # another doctor deployed it first
            await kestra.flows.save(probe.flow, probe.source, exists=False)


async def _killed(kestra: Kestra, execution: Execution) -> State:
    """Kill an execution until it ends, and return its last state."""
    next_kill = 0.0
    while True:
        current = await kestra.get(execution.id)
        if current is not None and current.state.terminal:
            return current.state
        if time.monotonic() >= next_kill:
            with suppress(KestraUnavailable):
                await kestra.kill(execution.id)
            next_kill = time.monotonic() + KILL_EVERY
        await asyncio.sleep(POLL_EVERY)


async def _reply_for(execution: Execution, replies: asyncio.Queue[bytes]) -> None:
    while True:
        body = await replies.get()
        with suppress(ValueError):
            if is_from_notifier(json.loads(body), execution):
                return


def is_from_notifier(reply: object, execution: Execution) -> bool:
    """Whether a reply is the notifier's word of an execution. A replica's reporter tells of every
    end too, and names itself in `by`.
    """
    if not isinstance(reply, dict):
        return False
    return reply.get("executionId") == execution.id and reply.get("by") != "reporter"


async def _explain(kestra: Kestra, job: Job, execution: Execution, patience: float) -> str:
    """Why no reply came, as far as Kestra knows."""
    late = f"no reply within {patience:g} s"
    try:
        ended = await kestra.get(execution.id)
        if ended and not ended.state.terminal:
            return f"{late}: its execution is still {ended.state}; does a worker of Kestra's run?"
        notices = [
            found for found in await kestra.executions.correlated(job.id) if _is_notice(found)
        ]
        if not notices:
            return (
                f"{late}: its execution ended {ended.state if ended else ''}, and the notifier "
                "was not started"
            )
        return f"{late}: the notifier's {await kestra.explain(notices[-1])}"
    except KestraError as error:
        return f"{late}, and then {error}"


async def _tidy(kestra: Kestra, job: Job, *, executions: bool) -> None:
    """Delete the flow, and the executions too if asked to. What can't be deleted stays, and is
    logged.
    """
    try:
        async with asyncio.timeout(TIDY_WITHIN):
            await kestra.flows.delete(job.flow)
            while True:
                if not await _executions_left(kestra, job, delete=executions):
                    return
                await asyncio.sleep(POLL_EVERY)
    except (KestraError, TimeoutError) as error:
        why = str(error) or "it took too long"
        log.warning(
            "something of the probe may be left in Kestra",
            flow=str(job.flow),
            job=job.id,
            error=why,
        )


async def _executions_left(kestra: Kestra, job: Job, *, delete: bool) -> bool:
    """Kill a probe that has not ended, and delete the executions that have, if asked to. Returns
    whether there may be more to delete.
    """
    found = await kestra.executions.correlated(job.id)
    for execution in found:
        if execution.state.terminal:
            if delete:
                await kestra.executions.delete(execution.id)
        elif not _is_notice(execution):
            await kestra.kill(execution.id)
    return delete and bool(found)


def _is_notice(execution: Execution) -> bool:
    return execution.flow == NOTIFIER
