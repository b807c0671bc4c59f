"""The outcomes of the jobs, compared with what was expected. Pure: the caller passes what RabbitMQ,
Kestra and the bridge report.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bridge.job.attempt import JOB_LABEL
from bridge.job.execution import Execution
from deploy.local.demo.jobs import Case, Ending
from deploy.local.demo.stack import Executions, attempt
from deploy.local.demo.telling import Replies

SAME_MOMENT = 0.5


@dataclass(frozen=True, slots=True)
class Look:
    """What a job looks like at one moment."""

    state: str
    attempt: int | None = None
    execution: str | None = None


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that must hold at the end; `seen` is what did."""

    what: str
    ok: bool
    seen: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Returned:
    """What a job brought back from its machine: the lines of its output, and its files from
    Kestra's storage.
    """

    said: Sequence[str] = ()
    files: Mapping[str, str] = field(default_factory=dict)

    def faults(self, case: Case) -> Iterator[str]:
        """What isn't as expected."""
        if case.says not in (None, *self.said):
            yield f"its output lacks {case.says!r}"
        if self.files != case.files:
            yield f"its files are {dict(self.files)} instead of {dict(case.files)}"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of one job, against what was expected."""

    case: Case
    ended: Ending | None
    execution: str | None
    state: str | None
    error: str | None
    returned: Returned = Returned()

    @property
    def ok(self) -> bool:
        """Whether all of it is as expected."""
        return not self.faults

    @property
    def faults(self) -> list[str]:
        """What isn't as expected."""
        faults = []
        if self.ended != self.case.expected:
            faults.append(f"{self.ended or 'unsettled'} instead of {self.case.expected}")
        if self.case.error not in (self.error or ""):
            faults.append(f"its error lacks {self.case.error!r}")
        return [*faults, *self.returned.faults(self.case)]

    @property
    def as_data(self) -> dict[str, Any]:
        """For --json."""
        return {
            "job": self.case.id,
            "queue": self.case.queue,
            "priority": self.case.priority,
            "expected": str(self.case.expected),
            "became": str(self.ended) if self.ended else None,
            "ok": self.ok,
            "execution": self.execution,
            "state": self.state,
            "error": self.error,
            "faults": self.faults,
            "said": list(self.returned.said),
            "files": dict(self.returned.files),
        }


def is_settled(settled: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the bridge is done with a job, by its settlements."""
    return any(line["settlement"] in ("ack", "dead_letter") for line in settled)


def look(settled: Sequence[Mapping[str, Any]], runs: Sequence[Execution]) -> Look:
    """What a job looks like, by its settlements and its executions."""
    last = runs[-1] if runs else None
    number, execution = (attempt(last), last.id) if last else (None, None)
    if not settled:
        return Look(last.state.value if last else "in the queue", number, execution)
    line = settled[-1]
    if line["settlement"] == "ack":
        return Look(f"{line['state']}, done", number, execution)
    if line["settlement"] == "dead_letter":
        return Look(f"dead: {line['reason']}", number, execution)
    if last and number == line["next_attempt"]:
        return Look(last.state.value, number, execution)
    return Look(f"{line['state']}, again in {line['delay']} s", number, execution)


def judge(
    case: Case,
    runs: Sequence[Execution],
    dead: Mapping[str, Any] | None,
    result: Mapping[str, Any] | None,
    returned: Returned,
) -> Verdict:
    """The verdict on one job. A dead letter counts if RabbitMQ holds it; a job is done if its
    publisher got a result that says so.
    """
    last = runs[-1] if runs else None
    ended = None
    if dead is not None:
        ended = Ending(str(dead.get("x-bridge-reason")), len(runs))
    elif result is not None and "reason" not in result and result["attempts"] == len(runs):
        ended = Ending(None, len(runs))
    error = str(dead["x-bridge-error"]) if dead is not None and "x-bridge-error" in dead else None
    return Verdict(
        case, ended, last.id if last else None, last.state.value if last else None, error, returned
    )


def queue_check(what: str, depths: Mapping[str, int]) -> Check:
    """Nothing is left in these queues."""
    seen = ", ".join(f"{queue} holds {depth}" for queue, depth in depths.items())
    return Check(what, not any(depths.values()), seen)


def dead_letter_check(cases: Iterable[Case], letters: Iterable[Mapping[str, Any]]) -> Check:
    """Each job that should end as a dead letter is one, for its reason; no other job is."""
    held = sorted(
        f"{each.get('message_id')}: {each['headers'].get('x-bridge-reason')}" for each in letters
    )
    wanted = sorted(f"{case.id}: {case.expected.reason}" for case in cases if case.expected.reason)
    seen = f"{len(held)} in all" if held == wanted else ", ".join(held) or "none"
    return Check("Dead letters as expected, with their reasons", held == wanted, seen)


def order_check(cases: Iterable[Case], executions: Executions, at_once: int) -> Check:
    """First attempts began in order of priority, except for those that began at the same moment."""
    priority = {case.id: case.priority for case in cases}
    first = [
        runs[0]
        for job, runs in executions.items()
        if job in priority and runs and attempt(runs[0]) == 1
    ]
    started = [
        (each.started.timestamp(), priority[each.labels[JOB_LABEL]])
        for each in first
        if each.started
    ]
    late = [
        (low, high)
        for began, low in started
        for later, high in started
        if low < high and later - began > SAME_MOMENT
    ]
    order = ", ".join(str(number) for _, number in sorted(started))
    return Check("Higher priorities began first", not late, f"{at_once} at once: {order}")


def single_check(executions: Executions) -> Check:
    """No attempt had two executions."""
    runs = [(job, attempt(run)) for job, found in executions.items() for run in found]
    return Check(
        "Each attempt was one execution", len(set(runs)) == len(runs), f"{len(runs)} executions"
    )


def reporter_check(executions: Collection[str], replies: Replies) -> Check:
    """The reporter told of each of these ends, and nobody else did."""
    told = [each for each in executions if replies.get(each) == {"reporter"}]
    seen = f"{len(told)} of {len(executions)} ends"
    what = "The reporter told of every end, with no notifier in Kestra"
    return Check(what, len(told) == len(executions), seen)


def notifier_check(execution: str | None, replies: Replies) -> Check:
    """The notifier told of an end."""
    by = sorted(replies.get(execution or "", ()))
    what = "The notifier told of an end, once it was deployed"
    return Check(what, "notifier" in by, f"told by {', '.join(by) or 'nobody'}")


def machine_checks(most: int, processes: int, folders: int) -> list[Check]:
    """Machines ran side by side, and none is left."""
    return [
        Check("Several machines ran at once", most > 1, f"{most} at most"),
        Check(
            "No machine is left",
            processes == folders == 0,
            f"{processes} processes, {folders} folders",
        ),
    ]
