"""What a trial showed, for a person."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

from tests.chaos.checker import Kind, Verdict, settle_seconds
from tests.chaos.history import Event, Memory
from tests.chaos.trial import Options

SHOWN = 30
MEGABYTE = 2**20
LONG_ENOUGH = 300.0
"""Seconds that a process must have lived for its memory to have a trend."""
WARM_UP = 60.0
"""Seconds in which a replica's memory may still grow to its working size."""


def full(options: Options, events: Sequence[Event], verdict: Verdict, seconds: float) -> str:
    """The report, whose last line is the verdict."""
    stage = f"broker {options.broker}, Kestra {options.kestra}, {options.replicas} replicas"
    lines = [
        f"{stage}, seed {options.seed}, {seconds:.0f} s",
        *(f"  {name:<41} {count}" for name, count in sorted(verdict.counts.items())),
        *_settling(events),
        *_memory(events),
        *(str(violation) for violation in verdict.violations[:SHOWN]),
    ]
    if len(verdict.violations) > SHOWN:
        lines.append(f"… and {len(verdict.violations) - SHOWN} more")
    return "\n".join([*lines, last_line(verdict, seconds)]) + "\n"


def last_line(verdict: Verdict, seconds: float) -> str:
    """PASS or FAIL and what counts most."""
    broken, counts = verdict.broken, verdict.counts
    word = "FAIL" if verdict.violations else "PASS"
    kinds = (Kind.LOST, Kind.EARLY_ACK, Kind.SECOND_EXECUTION, Kind.STUCK)
    shown = [f"{broken[kind]} {kind}" for kind in kinds]
    shown += [f"{count} {kind}" for kind, count in broken.items() if kind not in kinds]
    return f"{word} {counts['jobs']} jobs in {seconds:.0f} s: {', '.join(shown)}"


def _settling(events: Sequence[Event]) -> Iterator[str]:
    taken = settle_seconds(events)
    if taken:
        yield (
            f"  settled after the end: median {taken[len(taken) // 2]:.2f} s, "
            f"99 % within {taken[int(len(taken) * 0.99)]:.2f} s, longest {taken[-1]:.2f} s"
        )


def _memory(events: Sequence[Event]) -> Iterator[str]:
    """Of each replica, the process that lived longest: a process that was started anew begins from
    nothing."""
    samples: defaultdict[tuple[str, int], list[Memory]] = defaultdict(list)
    for event in events:
        if isinstance(event, Memory):
            samples[event.replica, event.pid].append(event)
    longest: dict[str, list[Memory]] = {}
    for (replica, _), found in samples.items():
        if found[-1].at - found[0].at > (
            longest[replica][-1].at - longest[replica][0].at if replica in longest else 0
        ):
            longest[replica] = found
    for replica, found in sorted(longest.items()):
        settled = [one for one in found if one.at - found[0].at > WARM_UP]
        trend = (
            f", {slope(settled):+.1f} MB an hour"
            if found[-1].at - found[0].at > LONG_ENOUGH
            else ""
        )
        peak = max(one.resident for one in found) / MEGABYTE
        yield f"  {replica}: {peak:.0f} MB at most over {found[-1].at - found[0].at:.0f} s{trend}"


def slope(samples: Sequence[Memory]) -> float:
    """Megabytes an hour, by least squares."""
    middle = sum(one.at for one in samples) / len(samples)
    spread = sum((one.at - middle) ** 2 for one in samples)
    return sum((one.at - middle) * one.resident for one in samples) / spread * 3600 / MEGABYTE


def first_of(error: Exception) -> Exception:
    """What went wrong first, where several things did."""
    return first_of(error.exceptions[0]) if isinstance(error, ExceptionGroup) else error
