"""The benchmarks' command line."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
from aio_pika.exceptions import AMQPError
from rich.console import Console

from bridge.errors import BridgeError
from deploy.local.kestra_engine import BuildError, Engine
from deploy.local.processes import ProcessError
from tests.benchmarks import engine, flight, own, peers, replies, reply_path, report
from tests.benchmarks.measure import BenchmarkError, Comparison, Figure
from tests.benchmarks.stage import BenchmarkStage, open_stage

FORMAT = 2
RESULTS = Path(__file__).parent / "results"
OWN_JOBS, ENGINE_JOBS = 1000, 400
OWN_ROUNDS, ENGINE_ROUNDS = 5, 3
IN_FLIGHT = (1_000, 10_000)
REPLIES_JOBS = 300
PEERS_JOBS = 400
ALL = ("own", "engine", "flight", "replies", "reply path", "peers")
INTERRUPTED = 130
DESCRIPTION = """
Measure what the bridge costs, all in one run on this machine, so that its ratios count and not its
rates.

own: jobs per second with a stand-in for Kestra that answers at once, against a bare loop that does
the same input and output for each job. engine: jobs per second on Kestra's own engine, against the
same jobs created by its API. What is compared is taken in turn, round by round.
flight: what 1,000 and 10,000 jobs in flight cost one process, and how soon another adopts them
after a kill -9.
replies: how soon a job is settled after its execution's end.
reply path: the engine's rate with the notifier, with afterExecution, with a sweep alone and with
none of them.
peers: the same jobs by Celery and by a plain aio-pika consumer, and what each loses or runs twice
in a crash.

The engine's H2 database has no index on labels, so a look-up before each create costs the more the
more executions there are.
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
        with open_stage(options.rabbitmq, say) as stage:
            result, comparisons, figures = _measure(stage, options)
        _write(options.output, result)
    except KeyboardInterrupt:
        say("interrupted")
        return INTERRUPTED
    except _FAILURES as error:
        progress.print(f"error: {error}", style="red", markup=False)
        return 1
    # Not narrower where nobody watches, so that nothing is cut off in a file.
    report.show(
        Console(width=None if sys.stdout.isatty() else 160, highlight=False),
        result,
        comparisons,
        figures,
    )
    say(f"written to {options.output}")
    return (
        1
        if options.check
        and not all([one.met for one in comparisons] + [one.met for one in figures])
        else 0
    )


def _measure(
    stage: BenchmarkStage, options: argparse.Namespace
) -> tuple[dict[str, Any], list[Comparison], list[Figure]]:
    at = datetime.now(UTC).isoformat(timespec="seconds")
    machine = report.machine(
        {"rabbitmq": stage.rabbit.version, "kestra": Engine(stage.directory).series}
    )
    comparisons: list[Comparison] = []
    figures: list[Figure] = []
    if options.only in (None, "own"):
        comparisons += own.compare(
            stage, jobs=options.jobs or OWN_JOBS, rounds=options.rounds or OWN_ROUNDS
        )
    if options.only in (None, "engine"):
        jobs, rounds = options.jobs or ENGINE_JOBS, options.rounds or ENGINE_ROUNDS
        comparisons += engine.compare(stage, jobs=jobs, rounds=rounds, clients=options.clients)
    if options.only in (None, "flight"):
        for jobs in (options.jobs,) if options.jobs else IN_FLIGHT:
            figures += flight.measure(stage, jobs=jobs, sweeps=options.sweeps)
    if options.only in (None, "replies"):
        figures += replies.measure(stage, jobs=options.jobs or REPLIES_JOBS)
    if options.only in (None, "reply path"):
        jobs, rounds = options.jobs or ENGINE_JOBS, options.rounds or ENGINE_ROUNDS
        figures += reply_path.measure(stage, jobs=jobs, rounds=rounds, clients=options.clients)
    if options.only in (None, "peers"):
        figures += peers.measure(stage, jobs=options.jobs or PEERS_JOBS)
    result = {
        "format": FORMAT,
        "at": at,
        "machine": machine,
        "load_after": [round(load, 2) for load in os.getloadavg()],
        "comparisons": [one.as_data() for one in comparisons],
        "figures": [one.as_data() for one in figures],
    }
    return result, comparisons, figures


def _write(output: Path, result: dict[str, Any]) -> None:
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(result, indent=2) + "\n")


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
        f"flight both of {IN_FLIGHT}, replies {REPLIES_JOBS}, peers {PEERS_JOBS})",
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
        help="over how many sweeps jobs are held (default: %(default)s)",
    )
    parser.add_argument(
        "--clients",
        type=_positive,
        default=16,
        help="how many create by the API at once (default: 16)",
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
    options = parser.parse_args(arguments)
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    options.output = (options.output or RESULTS / f"{stamp}.json").resolve()
    return options


def _positive(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number above 0")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
