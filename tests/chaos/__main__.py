"""The command line of the trials."""

from __future__ import annotations

import argparse
import asyncio
import random
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from deploy.local.kestra_engine import BuildError
from deploy.local.processes import ProcessError
from tests.chaos import report
from tests.chaos.checker import check
from tests.chaos.history import write
from tests.chaos.trial import Options, Trial

JOBS = 1000
INTERRUPTED = 130
DESCRIPTION = """
Publish jobs while replicas of the bridge are killed, the broker is restarted, killed and frozen,
connections are cut, stalled and slowed, Kestra answers wrongly or not at all, and replies get lost,
doubled and shuffled. The lane takes nothing for a while, and messages have headers and a reply_to
that once stopped others. Kestra takes everything and runs nothing, a gateway's clock is an hour
off, operators bring back executions whose retry waits, and one flow is denied. Then read what the
publisher, the wire, Kestra and the broker's queues say, and find every job that was lost, acked
early, run twice, killed too soon, stuck, or a dead letter or parked without cause.
"""
EPILOG = """
The last line is PASS or FAIL with the counts. The same seed gives the same jobs and the same faults
at the same times.
Exit status: 0 passed, 1 failed, 2 wrong usage, 130 interrupted.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parse(arguments)
    for number in (signal.SIGTERM, signal.SIGINT):  # the latter is ignored in a shell's background
        signal.signal(number, signal.default_int_handler)
    began = time.monotonic()

    def say(text: str) -> None:
        print(f"{time.monotonic() - began:7.1f} s  {text}", file=sys.stderr, flush=True)

    say(f"seed {options.seed}; logs, history and report are written to {options.directory}")
    try:
        events = asyncio.run(Trial(options, say).run())
    except KeyboardInterrupt:
        say("interrupted")
        return INTERRUPTED
    except (ProcessError, BuildError, OSError, AssertionError, ExceptionGroup) as error:
        print(f"FAIL the trial broke off: {report.first_of(error)}", flush=True)
        return 1
    seconds = time.monotonic() - began
    write(events, options.directory / "history.jsonl")
    verdict = check(events)
    text = report.full(options, events, verdict, seconds)
    (options.directory / "report.txt").write_text(text)
    print(text, end="", flush=True)
    return 1 if verdict.violations else 0


def _parse(arguments: Sequence[str] | None) -> Options:
    parser = argparse.ArgumentParser(
        prog="tests/chaos/run",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--jobs",
        type=_positive,
        help=f"how many jobs (default: {JOBS}, or all that --minutes bring)",
    )
    parser.add_argument(
        "--minutes", type=float, help="publish for so long; the rate of --rate makes the jobs"
    )
    parser.add_argument(
        "--rate", type=float, default=20.0, help="jobs published a second (default: 20)"
    )
    parser.add_argument(
        "--replicas", type=_positive, default=3, help="replicas of the bridge (default: 3)"
    )
    parser.add_argument(
        "--seed", type=int, help="what jobs and faults are drawn from (default: a new one)"
    )
    parser.add_argument(
        "--broker",
        choices=("3.10", "4.3", "cluster"),
        default="4.3",
        help="3.10 with a classic queue, 4.3 with a quorum queue (default), or three nodes of 4.3",
    )
    parser.add_argument(
        "--kestra",
        choices=("standin", "engine"),
        default="standin",
        help="the stand-in (default), or Kestra's real engine, which is killed too",
    )
    parser.add_argument(
        "--faults",
        default="",
        metavar="NAMES",
        help="only these, by name or by group, separated by commas; `none` for none (default: all)",
    )
    parser.add_argument(
        "--directory", type=Path, help="where logs, history and report go (default: a new folder)"
    )
    given = parser.parse_args(arguments)
    faults = tuple(name for name in given.faults.split(",") if name)
    options = Options(
        directory=(
            given.directory or Path(tempfile.mkdtemp(prefix="kestra-bridge-chaos-"))
        ).resolve(),
        seed=random.randrange(1_000_000) if given.seed is None else given.seed,  # noqa: S311
        broker=given.broker,
        kestra=given.kestra,
        replicas=given.replicas,
        jobs=given.jobs or (JOBS if given.minutes is None else None),
        minutes=given.minutes,
        rate=given.rate,
        faults=() if faults == ("none",) else faults,
        calm=faults == ("none",),
    )
    try:
        _ = options.streams
    except ValueError as error:
        parser.error(str(error))
    options.directory.mkdir(parents=True, exist_ok=True)
    return options


def _positive(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number above 0")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
