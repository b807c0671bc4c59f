"""What the doctor looks for at Kestra, and between Kestra and RabbitMQ."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from bridge.job.flow_name import FlowName
from bridge.kestra import Dialect, StoredFlow
from bridge.operate import flows
from bridge.operate.doctor.facts import Facts, KestraFacts
from bridge.operate.doctor.finding import Finding, fault, warning
from bridge.operate.flows import Fate, FlowFile
from bridge.operate.sources import Unavailable
from bridge.settings import Settings

TRIED = frozenset({(1, 3), (2, 0)})
"""The series of Kestra that the bridge was tried with."""

NOTIFIER = FlowName("bridge.system", "notifier")

_PROBE_RIGHTS = (
    "let the user of BRIDGE_KESTRA_… create, run and delete a flow in bridge.system, "
    "or pass --no-probe"
)
_LATE = (
    "every end is found out by the sweep, up to BRIDGE_RECONCILE_INTERVAL late, and its place in "
    "flight is taken until "
    "then"
)


def reachable(_: Settings, facts: Facts) -> Iterator[Finding]:
    """A Kestra that answers and lets us in."""
    if isinstance(facts.kestra, Unavailable):
        yield fault(
            facts.kestra.why,
            why="no job runs, and what concerns Kestra is unchecked",
            fix="see that Kestra runs, and that BRIDGE_KESTRA_URL, BRIDGE_KESTRA_TENANT, and "
            "BRIDGE_KESTRA_USERNAME "
            "and BRIDGE_KESTRA_PASSWORD or BRIDGE_KESTRA_TOKEN are right",
        )


def version(_: Settings, facts: Facts) -> Iterator[Finding]:
    """A Kestra that the bridge speaks to rightly."""
    kestra = _kestra(facts)
    if Dialect(kestra.version).series not in TRIED:
        yield warning(
            f"Kestra {kestra.version} is neither 1.3 nor 2.0, which the bridge was tried with",
            why="it may ask for things in words that this server reads otherwise",
            fix="use Kestra 1.3 or 2.0, or try this one with jobs that may be lost first",
        )


def notifier(_: Settings, facts: Facts) -> Iterator[Finding]:
    """The notifier: deployed, enabled, and the one for this Kestra."""
    kestra = _kestra(facts)
    found = kestra.notifier
    fix = f"kestra-bridge flows deploy --only {NOTIFIER.id}, with --tls where RabbitMQ demands TLS"
    if found is None:
        yield fault(
            f"the flow {NOTIFIER} is not deployed",
            why=f"nobody tells the bridge of ends: {_LATE}",
            fix=fix,
        )
    elif _ships_for_another(kestra.version, found):
        yield fault(
            f"the flow {NOTIFIER} is the one for another version than Kestra {kestra.version}",
            why=f"its trigger doesn't work here: {_LATE}",
            fix=fix,
        )
    elif found.disabled:
        yield fault(
            f"the flow {NOTIFIER} is disabled",
            why=f"nobody tells the bridge of ends: {_LATE}",
            fix=f"enable it in Kestra, or {fix}",
        )
    elif not _ships_for(kestra.version, found):
        yield warning(
            f"the flow {NOTIFIER} is not the one that ships with this kestra-bridge",
            why="it may be older, or somebody has changed it",
            fix=fix,
        )


def round_trip(_: Settings, facts: Facts) -> Iterator[Finding]:
    """A probe's end that was told by the notifier."""
    trip = facts.round_trip
    if trip is None or trip.seconds is not None:
        return
    if not trip.tried:
        yield warning(
            f"the probe could not be started: {trip.problem}",
            why="whether the notifier's secrets are right was not tried",
            fix=_PROBE_RIGHTS,
        )
        return
    yield fault(
        f"the end of a probe was not told: {trip.problem}",
        why=_LATE,
        fix="see the last executions of bridge.system/notifier in Kestra, and the secrets that "
        "flows/README.md lists",
    )


def kill(_: Settings, facts: Facts) -> Iterator[Finding]:
    """A probe that was killed and ended by that."""
    result = facts.kill
    if result is None or result.seconds is not None:
        return
    if not result.tried:
        yield warning(
            f"the probe that was to be killed could not be started: {result.problem}",
            why="whether Kestra takes kills was not tried",
            fix=_PROBE_RIGHTS,
        )
        return
    yield fault(
        f"an execution can't be killed: {result.problem}",
        why="a job beyond its time-out keeps its place in flight until it ends by itself; a "
        "second execution goes on",
        fix="let the user of BRIDGE_KESTRA_… kill executions, and see that Kestra's executor and "
        "workers run and that "
        "nothing between refuses DELETE",
    )


def flows_there(_: Settings, facts: Facts) -> Iterator[Finding]:
    """Flows that are there and enabled."""
    for name, found in _kestra(facts).flows.items():
        why = "Kestra refuses to run it: its jobs become dead letters at once"
        if found is None:
            yield fault(
                f"there is no flow {name} in Kestra",
                why=why,
                fix="deploy it, or correct BRIDGE_FLOW or BRIDGE_LANES",
            )
        elif found.disabled:
            yield fault(
                f"the flow {name} is disabled",
                why=why,
                fix="enable it in Kestra (disabled: false)",
            )


def concurrency(_: Settings, facts: Facts) -> Iterator[Finding]:
    """Flows that may run as often at once as the bridge will have them run."""
    wanted = _wanted(facts)
    for name, found in _kestra(facts).flows.items():
        if found is None or found.limit is None or found.limit >= wanted[name]:
            continue
        queues = found.beyond == "QUEUE"
        yield warning(
            f"the flow {name} may run {found.limit} times at once, and the bridge will "
            "have it run up to "
            f"{wanted[name]} times (prefetch x replicas)",
            why="executions queue in Kestra, first come first served, out of reach of priority"
            if queues
            else f"Kestra ends those beyond at once ({found.beyond}): each costs the "
            "job an attempt",
            fix=f"set the flow's concurrency limit to {wanted[name]} or more, "
            "or BRIDGE_PREFETCH to less",
        )


def _wanted(facts: Facts) -> Counter[FlowName]:
    """How many executions of each flow the replicas may have at once: those that consume now, and
    at least one.
    """
    wanted: Counter[FlowName] = Counter()
    for lane in facts.broker.lanes:
        if lane.lane.flow_name is None:
            continue
        held = (
            sum(consumer.prefetch for consumer in lane.jobs.state.consumers)
            if lane.jobs.state
            else 0
        )
        replicas = max(1, lane.jobs.depth.consumers if lane.jobs.depth else 1)
        wanted[lane.lane.flow_name] += held or lane.lane.prefetch * replicas
    return wanted


def _ships_for(version: str, found: StoredFlow) -> bool:
    return any(flows.fate(flow, found.source) is Fate.UNCHANGED for flow in _notifiers(version))


def _ships_for_another(version: str, found: StoredFlow) -> bool:
    other = "1" if Dialect(version).major >= 2 else "2"
    return _ships_for(other, found) and not _ships_for(version, found)


def _notifiers(version: str) -> list[FlowFile]:
    """Both that ship for a version: the plain one, and the one for a RabbitMQ that demands TLS."""
    found = [flow for tls in (False, True) for flow in flows.shipped(version, tls=tls)]
    return [flow for flow in found if flow.name == NOTIFIER]


def _kestra(facts: Facts) -> KestraFacts:
    assert isinstance(facts.kestra, KestraFacts), "checks that need Kestra are left out without it"
    return facts.kestra
