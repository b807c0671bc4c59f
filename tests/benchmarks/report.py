"""The results as a table and as JSON."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

from tests.benchmarks.measure import Asked, Comparison, Figure, Run, Spread

PACKAGES = (
    "kestra-bridge",
    "aio-pika",
    "aiormq",
    "httpx",
    "httpcore",
    "aiohttp",
    "pydantic",
    "structlog",
    "tenacity",
)
TITLES = {
    "own": "The bridge's own cost, Kestra answering at once",
    "engine": "On Kestra, a flow of one Log task",
    "flight": "Very many jobs in flight in one process",
    "replicas": "What is asked of Kestra, by the number of replicas",
    "ends": "From the end of an execution to the ack of its message",
    "failover": "The reporter is killed",
    "peers": "Against what one would write instead, with one kill -9 in the middle",
}


def machine(versions: Mapping[str, str]) -> dict[str, Any]:
    """What it was measured on."""
    return {
        "cores": len(os.sched_getaffinity(0)),
        "cpu": _cpu(),
        "memory_mb": psutil.virtual_memory().total // 2**20,
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "load": [round(load, 2) for load in os.getloadavg()],
        "versions": {
            "python": platform.python_version(),
            **versions,
            **{package: importlib.metadata.version(package) for package in PACKAGES},
        },
    }


def show(
    console: Console,
    report: Mapping[str, Any],
    comparisons: Sequence[Comparison],
    figures: Sequence[Figure],
) -> None:
    """Print the machine and one table for each benchmark."""
    about = report["machine"]
    versions = about["versions"]
    loads = f"load {about['load'][0]} before, {report['load_after'][0]} after"
    console.print(
        f"{about['cores']} cores, {about['cpu']}, {about['memory_mb']} "
        f"MB, {about['system']}, {loads}"
    )
    console.print(
        ", ".join(f"{name} {version}" for name, version in versions.items()), soft_wrap=True
    )
    for benchmark in dict.fromkeys(comparison.benchmark for comparison in comparisons):
        these = [one for one in comparisons if one.benchmark == benchmark]
        console.print(_table(benchmark, these))
        console.print(_asked(benchmark, these))
    for title in dict.fromkeys(figure.benchmark for figure in figures):
        console.print(_figures(title, [one for one in figures if one.benchmark == title]))


def _figures(benchmark: str, figures: Sequence[Figure]) -> Table:
    table = Table("what", title=TITLES[benchmark])
    for heading in ("measured", "aim"):
        table.add_column(heading, justify="right")
    for one in figures:
        aim = (
            ""
            if one.at_most is None
            else f"at most {one.at_most:g} {'met' if one.met else 'missed'}"
        )
        table.add_row(one.what, f"{one.value:.1f} {one.unit}", aim)
    return table


def _table(benchmark: str, comparisons: Sequence[Comparison]) -> Table:
    table = Table(title=TITLES[benchmark], caption="medians of the rounds, with least and greatest")
    for heading in ("prefetch", "deduplicate", "against"):
        table.add_column(heading)
    for heading in (
        "bridge jobs/s",
        "other jobs/s",
        "ratio",
        "aim",
        "CPU ms/job bridge, other",
        "peak MB",
    ):
        table.add_column(heading, justify="right")
    for one in comparisons:
        bridge, other = one.of(one.who), one.of(one.against)
        table.add_row(
            str(one.case.prefetch),
            one.case.deduplicate,
            one.against,
            _spread(_rates(bridge), "{:.1f}"),
            _spread(_rates(other), "{:.1f}"),
            _spread(one.ratio, "{:.2f}"),
            _aim(one),
            f"{_cpu_per_job(bridge):.2f}, {_cpu_per_job(other):.2f}",
            f"{_peak(bridge):.0f}, {_peak(other):.0f}",
        )
    return table


def _aim(one: Comparison) -> str:
    if one.aim is None:
        return ""
    return f"{one.aim} {'met' if one.met else 'missed'}"


def _asked(benchmark: str, comparisons: Sequence[Comparison]) -> Table:
    """What the bridge asks of Kestra for each job, by operation."""
    table = Table(title=f"{TITLES[benchmark]}: what the bridge asks of it", caption="medians")
    for heading in ("prefetch", "deduplicate", "operation"):
        table.add_column(heading)
    for heading in ("requests a job", "ms each", "ms a job"):
        table.add_column(heading, justify="right")
    for case, runs in {one.case: one.of(one.who) for one in comparisons}.items():
        for operation, asked in _medians(runs).items():
            each = f"{asked.ms / asked.requests:.1f}"
            numbers = f"{asked.requests:.3f}", each, f"{asked.ms:.2f}"
            table.add_row(str(case.prefetch), case.deduplicate, operation, *numbers)
    return table


def _medians(runs: Sequence[Run]) -> dict[str, Asked]:
    """The medians of what was asked, of the operations that mostly were."""
    medians: dict[str, Asked] = {}
    for operation in sorted({name for run in runs for name in run.asked}):
        found = [run.asked.get(operation, Asked(0, 0)) for run in runs]
        requests = statistics.median(asked.requests for asked in found)
        if requests:
            medians[operation] = Asked(requests, statistics.median(asked.ms for asked in found))
    return medians


def _spread(spread: Spread, style: str) -> str:
    median, least, most = (style.format(value) for value in (spread.median, spread.min, spread.max))
    return f"{median} ({least}-{most})"


def _rates(runs: Sequence[Run]) -> Spread:
    return Spread.of([run.jobs_per_second for run in runs])


def _cpu_per_job(runs: Sequence[Run]) -> float:
    """Of the bridge or what it is compared with, which is the first process of a run."""
    return Spread.of([run.cpu_of_first for run in runs]).median


def _peak(runs: Sequence[Run]) -> float:
    return max(run.peak_mb for run in runs)


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")),
        "unknown CPU",
    )
