"""Which attempt of which job an execution belongs to, as its labels say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from bridge.job.flow_name import FlowName

MARK_LABEL = "bridge"
MARK = "amqp"
JOB_LABEL = "bridgeJob"
ATTEMPT_LABEL = "bridgeAttempt"
QUEUE_LABEL = "bridgeQueue"
CORRELATION_LABEL = "system.correlationId"


@dataclass(frozen=True, slots=True)
class AttemptKey:
    """One attempt of one job. There is to be one execution for each.

    `queue` is the queue that the job's message came from, since a job id means something within its
    queue only. An execution that does not name its queue has its flow's name there instead, as
    `namespace/id`, which no queue can be called.
    """

    queue: str
    job: str
    attempt: int

    @property
    def labels(self) -> dict[str, str]:
        """The labels by which the attempt's execution is found again."""
        labels = {JOB_LABEL: self.job, ATTEMPT_LABEL: str(self.attempt)}
        if self.queue:
            labels[QUEUE_LABEL] = self.queue
        return labels


def attempt_key(labels: Mapping[str, str], flow: FlowName) -> AttemptKey | None:
    """The attempt that an execution's labels name; None where they name none."""
    job, attempt = labels.get(JOB_LABEL), labels.get(ATTEMPT_LABEL, "")
    if not job or not (attempt.isascii() and attempt.isdigit()) or attempt.startswith("0"):
        return None
    return AttemptKey(labels.get(QUEUE_LABEL) or str(flow), job, int(attempt))
