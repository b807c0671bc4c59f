"""The jobs of a trial: what each one asks for, and how it must end whatever happens around it."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from tests.support.standin import Ends, Run

NAMESPACE = "chaos"
FLOW = f"{NAMESPACE}/job"
NO_SUCH_FLOW = f"{NAMESPACE}/missing"
FORBIDDEN_FLOW = "elsewhere/job"
DENIED_FLOW = f"{NAMESPACE}/denied"
"""Kestra answers 403 to its creates."""
MAX_ATTEMPTS = 3

KestraKind = Literal["standin", "engine"]
JOB_TIMEOUT = 3
"""Seconds, for the jobs that are to exceed it."""
TOO_LONG = 3600.0
"""Seconds that they would run: longer than their message can wait for a replica, as one that ends
well meanwhile is rightly acked, however late."""
LONGEST_RUN: Mapping[KestraKind, int] = {"standin": 10, "engine": 90}
"""Seconds, for all others. On the stand-in it passes while nothing is run; Kestra's engine itself
can lose an execution when it is killed, and never ends it."""
NO_TIMEOUT = 3600
"""Seconds, for jobs whose time may rightly be up when Kestra, after a while in which it ran
nothing, goes on."""
SHORTEST_RUN = 0.05

SUCCESS = "success"


@dataclass(frozen=True, slots=True)
class Plan:
    """A kind of job: how often it occurs, how it ends (`success` or a dead letter's reason) and
    after how many tries.

    Without `runs` it never gets as far as an execution. One that `parks` may be put off without an
    attempt of its own.
    """

    weight: int
    end: str = SUCCESS
    attempts: int = 1
    runs: bool = True
    parks: bool = False


PLANS: Mapping[str, Plan] = {
    "well": Plan(70),
    "warning": Plan(4),
    "retried-by-its-flow": Plan(4),
    "fails-once": Plan(6, attempts=2),
    "fails-twice": Plan(2, attempts=3),
    "fails": Plan(3, "failed", MAX_ATTEMPTS),
    "too-long": Plan(1, "timed_out", MAX_ATTEMPTS),
    "killed": Plan(2, "killed"),
    "cancelled": Plan(2, "cancelled", MAX_ATTEMPTS),
    "no-such-flow": Plan(2, "rejected_by_kestra", runs=False),
    "forbidden-flow": Plan(2, "flow_not_allowed", runs=False),
    "denied-flow": Plan(3, "rejected_by_kestra", runs=False, parks=True),
    "no-job-at-all": Plan(2, "invalid_message", runs=False),
}
NEED_STANDIN = frozenset({"warning", "retried-by-its-flow", "killed", "cancelled", "denied-flow"})
"""What the real engine's flow of this trial does not do."""
FLOWS = {"no-such-flow": NO_SUCH_FLOW, "forbidden-flow": FORBIDDEN_FLOW, "denied-flow": DENIED_FLOW}
WITHOUT_TIMEOUT = frozenset({"retried-by-its-flow", "killed"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Hazard:
    """What a publisher can give a message that has stopped other messages, or the broker itself."""

    weight: int
    headers: Mapping[str, Any] = field(default_factory=dict)
    reply_to: str | None = None


HAZARDS: Mapping[str, Hazard] = {
    "none": Hazard(weight=80),
    "forged-reply-to": Hazard(weight=5, reply_to="amq.rabbitmq.reply-to.g1h2AA5yZXBseUA.x"),
    "odd-death": Hazard(weight=5, headers={"x-death": ["a", 1]}),
    "earlier-death": Hazard(
        weight=5,
        headers={
            "x-death": [
                {
                    "count": 1,
                    "reason": "expired",
                    "queue": "chaos.jobs",
                    "exchange": "",
                    "routing-keys": ["chaos.jobs"],
                }
            ]
        },
    ),
    "huge-headers": Hazard(weight=5, headers={"huge": "x" * 130_900}),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One job. `again`: its publisher sends it once more where the first confirm stayed out.

    Its `hazard` changes nothing of how it has to end.
    """

    id: str
    name: str
    seconds: float
    priority: int
    again: bool
    timeout: int
    hazard: str = "none"
    companion: bool = False

    @property
    def plan(self) -> Plan:
        return PLANS[self.name]

    @property
    def body(self) -> bytes:
        """The message's body."""
        if self.name == "no-job-at-all":
            return b'{"flow": 1'
        flow = FLOWS.get(self.name, FLOW)
        inputs = {"plan": self.name, "seconds": self.seconds, "failures": self._failures}
        return json.dumps({"flow": flow, "inputs": inputs, "timeout": self.timeout}).encode()

    @property
    def _failures(self) -> int:
        """How many of its first attempts fail."""
        return {"fails-once": 1, "fails-twice": 2, "fails": MAX_ATTEMPTS}.get(self.name, 0)


def draw(seed: int, kestra: KestraKind, *, mean_seconds: float) -> Iterator[Job]:
    """Jobs without end; the same ones for the same seed."""
    chance = random.Random(f"jobs {seed}")  # noqa: S311
    danger = random.Random(f"hazards {seed}")  # noqa: S311
    names = [name for name in PLANS if kestra == "standin" or name not in NEED_STANDIN]
    weights = [PLANS[name].weight for name in names]
    number = 0
    while True:
        number += 1
        (name,) = chance.choices(names, weights)
        seconds = min(max(chance.expovariate(1 / mean_seconds), SHORTEST_RUN), 5 * mean_seconds)
        yield Job(
            id=f"job-{number:06d}",
            name=name,
            seconds=TOO_LONG if name == "too-long" else round(seconds, 2),
            priority=chance.randrange(11),
            again=chance.random() < 0.5,
            timeout=_timeout(name, kestra),
            hazard=danger.choices(list(HAZARDS), [hazard.weight for hazard in HAZARDS.values()])[0],
        )


def companion(number: int) -> Job:
    """A small job of another flow, by which a replica can tell that Kestra denies one flow and not
    all."""
    name = f"companion-{number:06d}"
    return Job(
        id=name,
        name="well",
        seconds=0.1,
        priority=10,
        again=True,
        timeout=NO_TIMEOUT,
        companion=True,
    )


def _timeout(name: str, kestra: KestraKind) -> int:
    if name == "too-long":
        return JOB_TIMEOUT
    return NO_TIMEOUT if name in WITHOUT_TIMEOUT else LONGEST_RUN[kestra]


def behave(run: Run) -> Ends:
    """How an execution ends on the stand-in, by what its job asks for."""
    name, seconds = run.inputs["plan"], float(run.inputs["seconds"])
    if int(run.labels.get("bridgeAttempt", "1")) <= int(run.inputs["failures"]):
        return Ends("FAILED", seconds)
    states = {"warning": "WARNING", "killed": "KILLED", "cancelled": "CANCELLED"}
    return Ends(states.get(name, "SUCCESS"), seconds, retries=int(name == "retried-by-its-flow"))


ENGINE_FLOW = f"""\
id: job
namespace: {NAMESPACE}
description: Sleeps, then fails for as many attempts as it is told to.
inputs:
  - {{id: plan, type: STRING}}
  - {{id: seconds, type: FLOAT}}
  - {{id: failures, type: INT}}
tasks:
  - {{id: sleep, type: io.kestra.plugin.core.flow.Sleep, duration: "PT{{{{ inputs.seconds }}}}S"}}
  - id: fail
    type: io.kestra.plugin.core.execution.Fail
    condition: "{{{{ inputs.failures >= (labels.bridgeAttempt ?? '1') | number }}}}"
    errorMessage: failed on purpose
"""
