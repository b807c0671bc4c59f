"""The same jobs through the bridge and through what one would write instead, and what one `kill -9`
does to each.

Executions last a second. Half-way through, the consumer is killed and started again. Afterwards
every job is to have run once: one that never ran is lost, and one that ran more than once did so
because its message came again.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, get_args

import httpx

from bridge.job.attempt import JOB_LABEL
from deploy.local.processes import Child
from tests.benchmarks.bridges import LOOK_EVERY
from tests.benchmarks.kestra import Kestra
from tests.benchmarks.measure import BenchmarkError, Figure
from tests.benchmarks.stage import (
    FLOW,
    QUEUE,
    SLOWEST_RATE,
    START_SECONDS,
    BenchmarkStage,
    standin,
)

Peer = Literal["bridge", "Celery", "plain aio-pika"]
PREFETCH = 16
SECONDS_EACH = 1.0
NAMESPACE = FLOW.split("/")[0]
CELERY_QUEUE = "celery.jobs"
PAGE = 500
QUIET_SECONDS = 2.0

COMMANDS: Mapping[Peer, list[str]] = {
    "bridge": ["bridge", "run"],
    "Celery": [
        *("celery", "--app", "tests.benchmarks.peer_celery", "worker", "--pool", "threads"),
        *(
            "--concurrency",
            str(PREFETCH),
            "--without-gossip",
            "--without-mingle",
            "--without-heartbeat",
        ),
    ],
    "plain aio-pika": ["tests.benchmarks.peer_plain"],
}


def measure(stage: BenchmarkStage, *, jobs: int) -> list[Figure]:
    """Jobs per second with one crash in the middle, and how many jobs ran not at all or more than
    once."""
    figures: list[Figure] = []
    with standin(stage) as (_, kestra):
        for peer in get_args(Peer):
            bench = _Bench(stage, kestra, peer, f"second-{time.time_ns()}")
            seconds, runs = bench.run(jobs)
            more = sum(count - 1 for count in runs.values())
            stage.say(
                f"peers: {peer}: {jobs / seconds:.1f} jobs/s, {jobs - len(runs)} lost, "
                f"{more} run again"
            )
            aim = 0.0 if peer == "bridge" else None
            figures += [
                Figure(
                    benchmark="peers",
                    what=f"{peer}, rate with one crash",
                    value=jobs / seconds,
                    unit="jobs/s",
                ),
                Figure(
                    benchmark="peers",
                    what=f"{peer}, lost",
                    value=jobs - len(runs),
                    unit="jobs",
                    at_most=aim,
                ),
                Figure(
                    benchmark="peers",
                    what=f"{peer}, run again",
                    value=more,
                    unit="times",
                    at_most=aim,
                ),
            ]
    return figures


@dataclass(frozen=True, slots=True)
class _Bench:
    stage: BenchmarkStage
    kestra: Kestra
    peer: Peer
    flow: str

    def run(self, jobs: int) -> tuple[float, Counter[str]]:
        """Seconds from the start to an empty queue, and how often each job ran."""
        queue = CELERY_QUEUE if self.peer == "Celery" else QUEUE
        self._publish([f"{self.flow}-{number}" for number in range(jobs)])
        began = time.monotonic()
        with self._consumer() as child:
            self._until(child, lambda: len(self._ran()) >= jobs / 2, jobs)
            child.kill()
        with self._consumer() as child:
            self._until(child, lambda: self._quiet(queue), jobs)
        return time.monotonic() - began, self._ran()

    @contextmanager
    def _consumer(self) -> Iterator[Child]:
        settings = {
            **self.kestra.settings,
            "BRIDGE_QUEUE": QUEUE,
            "BRIDGE_FLOW": f"{NAMESPACE}/{self.flow}",
            "BRIDGE_PREFETCH": str(PREFETCH),
            "BRIDGE_HTTP_PORT": "0",
            "BRIDGE_LOG_FORMAT": "json",
        }
        child = self.stage.child(self.peer, COMMANDS[self.peer], settings)
        try:
            yield child
        finally:
            child.kill()

    def _publish(self, jobs: list[str]) -> None:
        if self.peer == "Celery":
            with self.stage.child(
                "publisher", ["tests.benchmarks.peer_celery", *jobs], self.kestra.settings
            ) as child:
                if child.wait(START_SECONDS) != 0:
                    raise BenchmarkError(
                        f"the jobs could not be published for Celery{child.tail()}"
                    )
        else:
            self.stage.publish(jobs)

    def _until(self, child: Child, condition: Callable[[], bool], jobs: int) -> None:
        deadline = time.monotonic() + START_SECONDS + jobs / SLOWEST_RATE
        while not condition():
            if not child.alive:
                raise BenchmarkError(f"{self.peer} ended with {child.returncode}{child.tail()}")
            if time.monotonic() > deadline:
                raise BenchmarkError(f"{self.peer} did not end {jobs} jobs in time{child.tail()}")
            time.sleep(LOOK_EVERY)

    def _quiet(self, queue: str) -> bool:
        """Whether nothing is ready and nothing runs, for some seconds: a message may be on its way
        to an execution."""
        if self.stage.ready(queue) or self._unfinished():
            return False
        time.sleep(QUIET_SECONDS)
        return not self.stage.ready(queue) and not self._unfinished()

    def _unfinished(self) -> int:
        return self.kestra.count(flowId=self.flow) - self.kestra.count(
            flowId=self.flow, state="SUCCESS"
        )

    def _ran(self) -> Counter[str]:
        """How many executions each job had."""
        found: Counter[str] = Counter()
        with httpx.Client(**self.kestra.client) as http:
            for page in range(1, 2 + self.kestra.count(flowId=self.flow) // PAGE):
                params = {
                    "filters[flowId][EQUALS]": self.flow,
                    "size": str(PAGE),
                    "page": str(page),
                }
                rows = (
                    http.get("/executions/search", params=params)
                    .raise_for_status()
                    .json()["results"]
                )
                found.update(
                    label["value"]
                    for row in rows
                    for label in row["labels"]
                    if label["key"] == JOB_LABEL
                )
        return found
