"""The jobs of one submission and what has become of them so far."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from bridge.job.execution import State
from bridge.job.message import Message
from bridge.operate.submission.jobs import Submission


@dataclass(frozen=True, slots=True, kw_only=True)
class JobResult:
    """A job's final result as the bridge sent it."""

    job: str
    data: dict[str, Any]

    @property
    def succeeded(self) -> bool:
        """Whether the bridge acked the job for its success. A result of any other outcome has a
        reason.
        """
        return State(self.state).ended_well and "reason" not in self.data

    @property
    def state(self) -> str:
        """The execution's last state; a dash if there was no execution."""
        return str(self.data.get("state") or "-")

    @property
    def summary(self) -> str:
        """What a person wants to know besides the state: the outputs, or why there was no
        success.
        """
        if self.succeeded:
            outputs = self.data.get("outputs")
            return json.dumps(outputs, ensure_ascii=False) if outputs else ""
        parts = (self.data.get("reason"), self.data.get("error"))
        text = ": ".join(str(part) for part in parts if part)
        return " ".join(text.split())


def job_result(message: Message) -> JobResult | None:
    """The result that a message carries; None if it is something else."""
    try:
        data = json.loads(message.body)
    except (ValueError, RecursionError):
        return None
    if not isinstance(data, dict) or not message.correlation_id:
        return None
    return JobResult(job=message.correlation_id, data=data)


@dataclass(slots=True, kw_only=True)
class Batch:
    """The jobs of one submission. RabbitMQ has confirmed those that are `submitted`; it may have
    got those that are `in_doubt` too.
    """

    jobs: Sequence[Submission]
    submitted: set[str] = field(default_factory=set)
    in_doubt: set[str] = field(default_factory=set)
    results: dict[str, JobResult] = field(default_factory=dict)
    _announced: int = 0

    @property
    def all_have_results(self) -> bool:
        """Whether every job that was submitted has a result."""
        return len(self.results) >= len(self.submitted)

    @property
    def all_succeeded(self) -> bool:
        """Whether every job of the batch has succeeded."""
        successes = [result.succeeded for result in self.results.values()]
        return all(successes) and len(successes) == len(self.jobs)

    @property
    def without_result(self) -> list[str]:
        """The jobs that were submitted and have no result yet."""
        missing = self.submitted - self.results.keys()
        return [job.id for job in self.jobs if job.id in missing]

    @property
    def count(self) -> str:
        """How many jobs were submitted, in words."""
        if len(self.jobs) > 1:
            text = f"{len(self.submitted)} of {len(self.jobs)} jobs were submitted"
            if self.in_doubt:
                text += f", {len(self.in_doubt)} more may have been"
            return text
        if self.submitted:
            return "the job was submitted"
        if self.in_doubt:
            return "the job may have been submitted"
        return "the job was not submitted"

    def add(self, result: JobResult) -> bool:
        """Keep a result. Returns whether it is the first one of a job of this batch."""
        if result.job not in self.submitted or result.job in self.results:
            return False
        self.results[result.job] = result
        return True

    def announce(self, *, skip_gaps: bool = False) -> Iterator[str]:
        """The submitted jobs that were not announced yet, in order. They end at the first job that
        isn't submitted, unless gaps are skipped.
        """
        while self._announced < len(self.jobs):
            job = self.jobs[self._announced].id
            if job not in self.submitted and not skip_gaps:
                return
            self._announced += 1
            if job in self.submitted:
                yield job
