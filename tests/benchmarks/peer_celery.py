"""What one would write with Celery: a task that creates the execution and asks every so often
whether it has ended.

`acks_late`, so that a worker's death costs no job, and one message at a time for each thread.
"""

from __future__ import annotations

import os
import sys
import time
from typing import Any

import httpx
from celery import Celery

from tests.benchmarks.peer_plain import ASK_EVERY, FLOW, creation, ended

CONCURRENCY = os.environ.get("BRIDGE_PREFETCH", "8")

app = Celery("benchmark", broker=os.environ.get("BRIDGE_AMQP_URL"))
app.conf.update(
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    task_ignore_result=True,
    task_default_queue="celery.jobs",
    worker_prefetch_multiplier=1,
    worker_enable_remote_control=False,
    worker_send_task_events=False,
    broker_connection_retry_on_startup=True,
)


@app.task(name="job")  # type: ignore[untyped-decorator]
def job(name: str) -> None:
    """Run one job's execution to its end."""
    auth = (os.environ["BRIDGE_KESTRA_USERNAME"], os.environ["BRIDGE_KESTRA_PASSWORD"])
    with httpx.Client(
        base_url=f"{os.environ['BRIDGE_KESTRA_URL']}/api/v1/main", auth=auth, timeout=60
    ) as http:
        request: dict[str, Any] = creation(name)
        execution = http.post(f"/executions/{FLOW}", **request).raise_for_status().json()["id"]
        while not ended(http.get(f"/executions/{execution}").raise_for_status().json()):
            time.sleep(ASK_EVERY)


if __name__ == "__main__":
    for one in sys.argv[1:]:
        job.delay(one)
