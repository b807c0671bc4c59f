"""What the doctor checks at Kestra, and between Kestra and RabbitMQ."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from bridge.job.flow_name import FlowName
from bridge.kestra import Dialect, StoredFlow
from bridge.operate import flows
from bridge.operate.doctor.facts import Facts, KestraFacts, ProbeResult
from bridge.operate.doctor.finding import Finding, fault, warning
from bridge.operate.flows import NOTIFIER, Fate
from bridge.operate.sources import Unavailable
from bridge.settings import Settings

TRIED = frozenset({(1, 3), (2, 0)})
"""The series of Kestra that the bridge was tried with."""

_PROBE_RIGHTS = (
    "let the user of BRIDGE_KESTRA_… create, run and delete a flow in bridge.system, "
    "or pass --no-probe"
)
_FOR_NOTHING = (
    "each job costs Kestra an execution of it for nothing; the bridge learns of ends all the same, "
    "as without a notifier"
)


def reachable(_: Settings, facts: Facts) -> Iterator[Finding]:
    """Kestra answers and accepts the credentials."""
    if isinstance(facts.kestra, Unavailable):
        yield fault(
            facts.kestra.why,
            why="no job runs, and everything about Kestra is unchecked",
            fix="see that Kestra runs, and that BRIDGE_KESTRA_URL, BRIDGE_KESTRA_TENANT, and "
            "BRIDGE_KESTRA_USERNAME and BRIDGE_KESTRA_PASSWORD or BRIDGE_KESTRA_TOKEN are right",
        )


def version(_: Settings, facts: Facts) -> Iterator[Finding]:
    """Kestra's version is one that the bridge was tried with."""
    kestra = _kestra(facts)
    if Dialect(kestra.version).series not in TRIED:
        yield warning(
            f"Kestra {kestra.version} is neither 1.3 nor 2.0, which the bridge was tried with",
            why="this server may understand the bridge's requests differently",
            fix="use Kestra 1.3 or 2.0, or try this one with jobs that may be lost first",
        )


def notifier(settings: Settings, facts: Facts) -> Iterator[Finding]:
    """The notifier, if there is one, is enabled and the one for this Kestra."""
    kestra = _kestra(facts)
    found = kestra.notifier
    if found is None:
        if not settings.report_interval:
            yield warning(
                f"nobody tells of ends: there is no flow {NOTIFIER}, and BRIDGE_REPORT_INTERVAL=0 "
                "turns the reporter off",
                why="a job keeps its place in flight for up to three times "
                "BRIDGE_RECONCILE_INTERVAL after its end",
                fix="remove BRIDGE_REPORT_INTERVAL from the settings",
            )
        return
    deploy = (
        "kestra-bridge flows deploy --only notifier, with --tls where RabbitMQ demands TLS; or "
        "delete the flow, which is an option"
    )
    if _ships_for_another(kestra.version, found):
        yield fault(
            f"the flow {NOTIFIER} is the one for another version than Kestra {kestra.version}",
            why="its trigger doesn't work here, so it reports nothing",
            fix=deploy,
        )
    elif found.disabled:
        yield fault(
            f"the flow {NOTIFIER} is disabled",
            why="it reports nothing, which nobody who sees it there expects",
            fix=f"enable it in Kestra, or {deploy}",
        )
    elif not _ships_for(kestra.version, found):
        yield warning(
            f"the flow {NOTIFIER} is not the one that ships with this kestra-bridge",
            why="it may be older, or somebody has changed it",
            fix=deploy,
        )


def _ships_for(version: str, found: StoredFlow) -> bool:
    """Whether a flow is one of the notifiers for a version: the plain one, or the one for a
    RabbitMQ that demands TLS.
    """
    for tls in (False, True):
        for flow in flows.shipped(version, tls=tls):
            if flow.name == NOTIFIER and flows.fate(flow, found.source) is Fate.UNCHANGED:
                return True
    return False


def _ships_for_another(version: str, found: StoredFlow) -> bool:
    other = "1" if Dialect(version).major >= 2 else "2"
    return _ships_for(other, found) and not _ships_for(version, found)


def round_trip(_: Settings, facts: Facts) -> Iterator[Finding]:
    """The notifier reported the end of a probe."""
    yield from _of_probe(
        facts.round_trip,
        not_started="the probe could not be started",
        not_tried="whether the notifier's secrets are right was not tried",
        failed="the notifier did not report the end of a probe",
        why=_FOR_NOTHING,
        fix="see the last executions of bridge.system/notifier in Kestra, and the secrets that "
        "flows/README.md lists; or delete the flow, which is an option",
    )


def kill(_: Settings, facts: Facts) -> Iterator[Finding]:
    """A kill ended a probe."""
    yield from _of_probe(
        facts.kill,
        not_started="the probe to be killed could not be started",
        not_tried="whether Kestra takes kills was not tried",
        failed="an execution can't be killed",
        why="a job beyond its time-out keeps its place in flight until it ends by itself, and a "
        "duplicate execution goes on",
        fix="let the user of BRIDGE_KESTRA_… kill executions, and see that Kestra's executor and "
        "workers run and that nothing between refuses DELETE",
    )


def _of_probe(
    result: ProbeResult | None,
    *,
    not_started: str,
    not_tried: str,
    failed: str,
    why: str,
    fix: str,
) -> Iterator[Finding]:
    """A warning where a probe did not run, and a fault where it failed."""
    if result is None or result.seconds is not None:
        return
    if not result.tried:
        yield warning(f"{not_started}: {result.problem}", why=not_tried, fix=_PROBE_RIGHTS)
        return
    yield fault(f"{failed}: {result.problem}", why=why, fix=fix)


def flows_exist(_: Settings, facts: Facts) -> Iterator[Finding]:
    """The flows that the settings name exist and are enabled."""
    why = "Kestra refuses to run it: its jobs become dead letters at once"
    for name, found in _kestra(facts).flows.items():
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
    """No flow has a concurrency limit below the number of executions that the bridge starts."""
    wanted = _executions_at_once(facts)
    for name, found in _kestra(facts).flows.items():
        if found is None or found.limit is None or found.limit >= wanted[name]:
            continue
        why = f"Kestra ends those beyond at once ({found.beyond}): each costs the job an attempt"
        if found.beyond == "QUEUE":
            why = "executions queue in Kestra, first come first served, where priority is ignored"
        yield warning(
            f"the flow {name} may run {found.limit} times at once, and the bridge will "
            f"have it run up to {wanted[name]} times (prefetch x replicas)",
            why=why,
            fix=f"set the flow's concurrency limit to {wanted[name]} or more, "
            "or BRIDGE_PREFETCH to less",
        )


def _executions_at_once(facts: Facts) -> Counter[FlowName]:
    """How many executions of each flow the replicas that consume now may have at once. At least
    one replica counts.
    """
    wanted: Counter[FlowName] = Counter()
    for each in facts.broker.lanes:
        flow, state = each.lane.flow_name, each.jobs.state
        if flow is None:
            continue
        held = 0
        if state:
            held = sum(consumer.prefetch for consumer in state.consumers)
        wanted[flow] += held or each.lane.prefetch * max(1, each.jobs.consumers)
    return wanted


def _kestra(facts: Facts) -> KestraFacts:
    assert isinstance(facts.kestra, KestraFacts), "checks that need Kestra don't run without it"
    return facts.kestra
