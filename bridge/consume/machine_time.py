"""Ask how long the executions that ended used machines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import structlog

from bridge.consume.ports import KestraPort
from bridge.errors import KestraError
from bridge.job.execution import Execution
from bridge.job.flow_name import allowed
from bridge.job.job import Job
from bridge.job.machine_use import MachineUse, seconds_in_outputs
from bridge.telemetry.metrics import Metrics

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineTimePolicy:
    """Which flows tell of machines, and what an hour of each size costs.

    Only executions of these flows are asked about, and once: no settlement depends on the answer.
    """

    flows: Sequence[str] = ()
    prices: Mapping[str, float] = field(default_factory=dict)


class MachineTime:
    """Tells and counts the machine seconds of attempts."""

    def __init__(self, *, kestra: KestraPort, metrics: Metrics, policy: MachineTimePolicy) -> None:
        self._kestra = kestra
        self._metrics = metrics
        self._policy = policy

    async def of(self, job: Job, execution: Execution) -> MachineUse:
        """What the job used with this attempt and those before it."""
        seconds = await self._seconds(execution)
        for size, value in seconds.items():
            self._metrics.machine_seconds.labels(job.queue, size).inc(value)
        return job.machine_use.plus(seconds, prices=self._policy.prices)

    async def _seconds(self, execution: Execution) -> dict[str, float]:
        if not execution.state.terminal or not allowed(execution.flow, self._policy.flows):
            return {}
        try:
            return seconds_in_outputs(await self._kestra.outputs(execution))
        except KestraError as error:
            log.warning("no machine seconds to be had", execution=execution.id, error=str(error))
            return {}
