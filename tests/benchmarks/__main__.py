"""The benchmarks' command line."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
from aio_pika.exceptions import AMQPError
from rich.console import Console

from bridge.errors import BridgeError
from deploy.local.kestra_engine import BuildError, Engine
from deploy.local.processes import ProcessError
from tests.benchmarks import ends, engine, failover, flight, own, peers, replicas, report
from tests.benchmarks.kestra import Kestra
from tests.benchmarks.measure import BenchmarkError, Comparison, Figure
from tests.benchmarks.stage import BenchmarkStage, Say, given_stage, open_stage

FORMAT = 3
RESULTS = Path(__file__).parent / "results"
OWN_JOBS, ENGINE_JOBS = 1000, 800
OWN_ROUNDS, ENGINE_ROUNDS = 5, 3
IN_FLIGHT = (1_000, 10_000)
ENDS_JOBS = 300
PEERS_JOBS = 400
ALL = ("own", "engine", "flight", "replicas", "ends", "failover", "peers")
INTERRUPTED = 130
DESCRIPTION = """
Measure what the bridge costs. Everything is measured in one run on this machine. Only ratios carry
over to other machines. What is compared runs in turn, round by round.

own: jobs per second with a stand-in for Kestra that answers at once, against a bare loop that makes
the same requests for each job.
engine: jobs per second on Kestra's own engine, against the same executions created by its API, the
same with the notifier, and a consumer that acks as soon as Kestra has accepted the execution; and
what each job asks of Kestra.
flight: what 1,000 and 10,000 jobs in flight cost one process, and how soon another adopts them
after a kill -9.
replicas: what 1 to 8 replicas ask of Kestra with 2,000 jobs in flight in all.
ends: how soon a job is settled after its execution's end.
failover: how late ends are told when the reporter is killed.
peers: the same jobs by Celery and by a plain aio-pika consumer, and what each loses or runs twice
in a crash.

With --kestra-url and --amqp-url the engine part runs against servers of yours, and nothing else is
run. Both must be there for tests, with clocks that agree. It uses the queue benchmark.jobs and the
namespace benchmark. It deletes its queues and flows afterwards; its executions stay in Kestra.
"""
EPILOG = """
Exit status: 0 measured, 1 something failed (or with --check an aim was missed), 2 wrong usage, 130
interrupted.
"""

_FAILURES = (
    BenchmarkError,
    BridgeError,
    BuildError,
    ProcessError,
    AMQPError,
    httpx.HTTPError,
    OSError,
)


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parse(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    began = time.monotonic()
    progress = Console(stderr=True, highlight=False)

    def say(text: str) -> None:
        progress.print(f"{time.monotonic() - began:6.1f} s  {text}", soft_wrap=True)

    try:
        found = _run_on_given(options, say) if options.kestra_url else _run(options, say)
    except KeyboardInterrupt:
        say("interrupted")
        return INTERRUPTED
    except _FAILURES as error:
        progress.print(f"error: {error}", style="red", markup=False)
        return 1
    # Not narrower where nobody watches, so that nothing is cut off in a file.
    report.show(
        Console(width=None if sys.stdout.isatty() else 160, highlight=False),
        _as_data(found),
        found.comparisons,
        found.figures,
    )
    say(f"written to {options.output}")
    if options.check and not found.met:
        return 1
    return 0


@dataclass
class _Found:
    """What was measured, and of which versions."""

    versions: dict[str, str]
    at: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    comparisons: list[Comparison] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)

    def __post_init__(self) -> None:
        # The load before the run is a part of it.
        self.machine = report.machine(self.versions)

    @property
    def met(self) -> bool:
        """Whether every aim is met."""
        ratios = all(one.met for one in self.comparisons)
        return ratios and all(one.met for one in self.figures)


def _run(options: argparse.Namespace, say: Say) -> _Found:
    """Measure on servers that are started for it."""
    with open_stage(options.rabbitmq, say) as stage:
        versions = {"rabbitmq": stage.rabbit.version, "kestra": Engine(stage.directory).series}
        found = _Found(versions)
        parts: dict[str, Callable[[], None]] = {
            "own": lambda: _own(found, stage, options),
            "engine": lambda: _on_own_engine(found, stage, options),
            "flight": lambda: _flight(found, stage, options),
            "replicas": lambda: found.figures.extend(
                replicas.measure(stage, jobs=options.jobs or replicas.JOBS, seconds=options.seconds)
            ),
            "ends": lambda: found.figures.extend(
                ends.measure(stage, jobs=options.jobs or ENDS_JOBS)
            ),
            "failover": lambda: found.figures.extend(
                failover.measure(stage, seconds=failover.SECONDS)
            ),
            "peers": lambda: found.figures.extend(
                peers.measure(stage, jobs=options.jobs or PEERS_JOBS)
            ),
        }
        for name in [options.only] if options.only else ALL:
            parts[name]()
            # What has been measured outlasts a failure of what comes next.
            _write(options.output, found)
    return found


def _run_on_given(options: argparse.Namespace, say: Say) -> _Found:
    """Measure the engine part on the servers that are given."""
    kestra = Kestra(
        options.kestra_url.rstrip("/"),
        options.kestra_username,
        options.kestra_password,
        options.kestra_token,
    )
    version = kestra.version()
    with (
        given_stage(options.amqp_url, say) as stage,
        engine.given_server(kestra, notifier=options.notifier) as server,
    ):
        found = _Found({"rabbitmq": stage.rabbit.version, "kestra": version})
        _engine(found, stage, server, options)
    _write(options.output, found)
    return found


def _own(found: _Found, stage: BenchmarkStage, options: argparse.Namespace) -> None:
    jobs, rounds = options.jobs or OWN_JOBS, options.rounds or OWN_ROUNDS
    found.comparisons += own.compare(stage, jobs=jobs, rounds=rounds)


def _on_own_engine(found: _Found, stage: BenchmarkStage, options: argparse.Namespace) -> None:
    with engine.own_server(stage) as server:
        _engine(found, stage, server, options)


def _engine(
    found: _Found, stage: BenchmarkStage, server: engine.Server, options: argparse.Namespace
) -> None:
    jobs, rounds = options.jobs or ENGINE_JOBS, options.rounds or ENGINE_ROUNDS
    comparisons, figures = engine.compare(
        stage, server, jobs=jobs, rounds=rounds, clients=options.clients
    )
    found.comparisons += comparisons
    found.figures += figures


def _flight(found: _Found, stage: BenchmarkStage, options: argparse.Namespace) -> None:
    for jobs in [options.jobs] if options.jobs else IN_FLIGHT:
        found.figures += flight.measure(stage, jobs=jobs, sweeps=options.sweeps)


def _as_data(found: _Found) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "at": found.at,
        "machine": found.machine,
        "load_after": [round(load, 2) for load in os.getloadavg()],
        "comparisons": [one.as_data() for one in found.comparisons],
        "figures": [one.as_data() for one in found.figures],
    }


def _write(output: Path, found: _Found) -> None:
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(_as_data(found), indent=2) + "\n")


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="tests/benchmarks/run",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", choices=ALL, help="which one to measure (default: all)")
    parser.add_argument(
        "--jobs",
        type=_positive,
        help=f"jobs in each run (default: own {OWN_JOBS}, engine {ENGINE_JOBS}, "
        f"flight both of {IN_FLIGHT}, replicas {replicas.JOBS}, ends {ENDS_JOBS}, "
        f"peers {PEERS_JOBS})",
    )
    parser.add_argument(
        "--rounds",
        type=_positive,
        help=f"how often each is run (default: own {OWN_ROUNDS}, engine {ENGINE_ROUNDS})",
    )
    parser.add_argument(
        "--sweeps",
        type=int,
        default=flight.SWEEPS,
        help="for how many sweeps flight holds its jobs (default: %(default)s)",
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=replicas.SECONDS,
        help="for how long replicas counts requests (default: %(default)g)",
    )
    parser.add_argument(
        "--clients",
        type=_positive,
        default=16,
        help="how many API clients create at once (default: 16)",
    )
    parser.add_argument(
        "--rabbitmq",
        choices=("3.10", "4.3"),
        default="4.3",
        help="4.3 with a quorum queue (default), or 3.10 with a classic one",
    )
    parser.add_argument(
        "--output",
        type=Path,
        help="the JSON file to write (default: one under tests/benchmarks/results/)",
    )
    parser.add_argument("--check", action="store_true", help="fail if an aim is missed")
    _add_given(parser)
    options = parser.parse_args(arguments)
    if bool(options.kestra_url) != bool(options.amqp_url):
        parser.error("--kestra-url and --amqp-url go together")
    if options.kestra_url and options.only not in (None, "engine"):
        parser.error(f"--only {options.only} uses servers of its own, not those that are given")
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    options.output = (options.output or RESULTS / f"{stamp}.json").resolve()
    return options


def _add_given(parser: argparse.ArgumentParser) -> None:
    given = parser.add_argument_group("servers of yours")
    given.add_argument("--kestra-url", default="", help="such as http://localhost:8080")
    given.add_argument("--kestra-username", default="", help="a user of that Kestra")
    given.add_argument("--kestra-password", default="", help="the user's password")
    given.add_argument("--kestra-token", default="", help="a token instead of both")
    given.add_argument("--amqp-url", default="", help="such as amqp://guest:guest@localhost:5672")
    given.add_argument(
        "--notifier",
        action="store_true",
        help="measure the notifier too: that Kestra has its secrets, for this RabbitMQ",
    )


def _positive(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number above 0")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
