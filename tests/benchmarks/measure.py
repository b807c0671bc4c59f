"""What is measured: when each job was delivered and acked, what the processes used meanwhile, and
what Kestra was asked.
"""

from __future__ import annotations

import os
import statistics
import threading
import time
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from types import MappingProxyType, TracebackType
from typing import Any, Literal, Self

import psutil

from bridge.settings import Settings

TICK = 1 / os.sysconf("SC_CLK_TCK")
SAMPLE_EVERY = 0.05
DEDUPLICATES: tuple[str, ...] = tuple(
    dict.fromkeys([Settings.model_fields["deduplicate"].default, "always"])
)
"""What is measured: the bridge as it is by default, and with a look-up before each create."""

WARM_UP_SHARE = 10
"""The first tenth of the jobs warms up connections and caches, and doesn't count."""


class BenchmarkError(RuntimeError):
    """The measurement can't go on, or what it measured is wrong; the message says why."""


@dataclass(frozen=True, slots=True)
class Span:
    """So many jobs between two moments, in seconds since the epoch."""

    jobs: int
    begin: float
    end: float


@dataclass(frozen=True, slots=True)
class Timeline:
    """When the jobs of one run were delivered and when they were acked, in seconds since the
    epoch."""

    delivered: Sequence[float]
    acked: Sequence[float]

    @classmethod
    def of(cls, jobs: Iterable[tuple[float, float]]) -> Timeline:
        delivered, acked = zip(*jobs, strict=True)
        return cls(sorted(delivered), sorted(acked))

    def whole(self) -> Span:
        """From the first delivery to the last ack."""
        return Span(len(self.acked), self.delivered[0], self.acked[-1])

    def without_warm_up(self) -> Span:
        """From the end of the warm-up to the last ack."""
        first = max(1, len(self.acked) // WARM_UP_SHARE)
        return Span(len(self.acked) - first, self.acked[first - 1], self.acked[-1])


@dataclass(frozen=True, slots=True)
class Asked:
    """Requests to Kestra of one operation: how many for each job, and their milliseconds in all."""

    requests: float
    ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One run: its rate, the CPU milliseconds that each process used per job, and the consumer's
    peak memory.

    `executions_before` says how many Kestra had at its beginning, which a look-up by label may have
    to read through. `asked` says by operation what the bridge asked of Kestra.
    """

    who: str
    round: int
    jobs: int
    seconds: float
    jobs_per_second: float
    cpu_ms_per_job: Mapping[str, float]
    peak_mb: float
    load: float
    executions_before: int
    asked: Mapping[str, Asked] = field(default_factory=dict)

    @property
    def cpu_of_first(self) -> float:
        """Of the bridge, or of what is compared with it."""
        return next(iter(self.cpu_ms_per_job.values()))

    def as_data(self) -> dict[str, Any]:
        return {key: _rounded(value) for key, value in asdict(self).items()}


@dataclass(frozen=True, slots=True)
class Spread:
    """Median, least and greatest of the rounds."""

    median: float
    min: float
    max: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(statistics.median(values), min(values), max(values))

    def as_data(self) -> dict[str, float]:
        return {key: round(value, 4) for key, value in asdict(self).items()}


@dataclass(frozen=True, slots=True)
class Case:
    """The bridge's settings that make the difference."""

    prefetch: int
    deduplicate: str

    @property
    def settings(self) -> dict[str, str]:
        return {"BRIDGE_PREFETCH": str(self.prefetch), "BRIDGE_DEDUPLICATE": self.deduplicate}

    def __str__(self) -> str:
        return f"prefetch {self.prefetch}, {self.deduplicate}"


@dataclass(slots=True)
class Comparison:
    """Runs of two taken in turn under the same conditions: `who` is measured against `against`.
    Without an `aim` the ratio is only told.
    """

    benchmark: Literal["own", "engine"]
    case: Case
    who: str
    against: str
    aim: float | None
    runs: list[Run] = field(default_factory=list)

    def of(self, who: str) -> list[Run]:
        return [run for run in self.runs if run.who == who]

    @property
    def ratio(self) -> Spread:
        """The rates' ratio round by round."""
        pairs = zip(self.of(self.who), self.of(self.against), strict=True)
        return Spread.of([one.jobs_per_second / other.jobs_per_second for one, other in pairs])

    @property
    def cpu_ratio(self) -> Spread:
        """The same of the CPU time per job of the first process of each."""
        pairs = zip(self.of(self.who), self.of(self.against), strict=True)
        return Spread.of([one.cpu_of_first / other.cpu_of_first for one, other in pairs])

    @property
    def met(self) -> bool:
        return self.aim is None or self.ratio.median >= self.aim

    def as_data(self) -> dict[str, Any]:
        return {
            "benchmark": self.benchmark,
            "case": asdict(self.case),
            "measured": self.who,
            "against": self.against,
            "ratio": self.ratio.as_data(),
            "cpu_ratio": self.cpu_ratio.as_data(),
            "aim": self.aim,
            "met": self.met,
            "rates": {who: _rates(self.of(who)).as_data() for who in (self.who, self.against)},
            "runs": [run.as_data() for run in self.runs],
        }


def _rates(runs: Sequence[Run]) -> Spread:
    return Spread.of([run.jobs_per_second for run in runs])


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One measured figure, and what it is to be at most."""

    benchmark: Literal["engine", "flight", "replicas", "ends", "failover", "peers"]
    what: str
    value: float
    unit: str
    at_most: float | None = None

    @property
    def met(self) -> bool:
        return self.at_most is None or self.value <= self.at_most

    def as_data(self) -> dict[str, Any]:
        return {key: _rounded(value) for key, value in asdict(self).items()} | {"met": self.met}


class Sampler:
    """Notes the CPU time and memory of processes all the while. A name may stand for several."""

    def __init__(self, processes: Mapping[str, Sequence[int]]) -> None:
        self.names = tuple(processes)
        self._pids = processes
        self._samples: dict[str, list[tuple[float, float]]] = {name: [] for name in processes}
        self._peaks = dict.fromkeys(processes, 0)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def cpu_seconds(self, name: str, begin: float, end: float) -> float:
        """The CPU time that it used between two moments. It is at least the kernel's tick, which is
        the least that can be told.
        """
        return max(self._at(name, end) - self._at(name, begin), TICK)

    def peak_mb(self, name: str) -> float:
        return self._peaks[name] / 2**20

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stopping.set()
        self._thread.join()

    def _at(self, name: str, moment: float) -> float:
        samples = self._samples[name]
        if not samples:
            raise BenchmarkError(f"{name} ended before it could be measured; use more --jobs")
        index = bisect_left(samples, (moment, 0.0))
        if index in (0, len(samples)):
            return samples[min(index, len(samples) - 1)][1]
        (before, low), (after, high) = samples[index - 1], samples[index]
        return low + (high - low) * (moment - before) / (after - before)

    def _run(self) -> None:
        found = {
            name: [process for pid in pids for process in _process(pid)]
            for name, pids in self._pids.items()
        }
        while True:
            for name, processes in found.items():
                self._sample(name, processes)
            if self._stopping.wait(SAMPLE_EVERY):
                return

    def _sample(self, name: str, processes: Sequence[psutil.Process]) -> None:
        used, memory = 0.0, 0
        with suppress(psutil.Error):
            for process in processes:
                times = process.cpu_times()
                used += times.user + times.system
                memory += process.memory_info().rss
            self._samples[name].append((time.time(), used))
            self._peaks[name] = max(self._peaks[name], memory)


def tree(pid: int) -> list[int]:
    """A process and all that it started."""
    return [
        pid,
        *(child.pid for process in _process(pid) for child in process.children(recursive=True)),
    ]


def _process(pid: int) -> list[psutil.Process]:
    """The process, if it is still there."""
    try:
        return [psutil.Process(pid)]
    except psutil.NoSuchProcess:
        return []


def figures(
    span: Span,
    sampler: Sampler,
    *,
    who: str,
    round_: int,
    before: int,
    asked: Mapping[str, Asked] = MappingProxyType({}),
) -> Run:
    """The figures of a span. The first of the processes is the one whose memory counts."""
    seconds = span.end - span.begin
    return Run(
        who=who,
        round=round_,
        jobs=span.jobs,
        seconds=seconds,
        jobs_per_second=span.jobs / seconds,
        cpu_ms_per_job={
            name: 1000 * sampler.cpu_seconds(name, span.begin, span.end) / span.jobs
            for name in sampler.names
        },
        peak_mb=sampler.peak_mb(sampler.names[0]),
        load=os.getloadavg()[0],
        executions_before=before,
        asked=dict(asked),
    )


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return round(value, 4) if isinstance(value, float) else value
