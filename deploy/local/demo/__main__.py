"""The demo's command."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import MutableMapping, Sequence
from contextlib import ExitStack
from types import FrameType
from typing import Any, NoReturn

import httpx
from rich.console import Console
from rich.text import Text

from deploy.local.demo import screen
from deploy.local.demo.course import LOOK_EVERY, Demo, DemoError
from deploy.local.demo.host import NoMachinesError
from deploy.local.demo.jobs import CASES, FLOW, MACHINE_QUEUE, QUEUE, machine_cases
from deploy.local.demo.stack import RefusedError, Stack
from deploy.local.demo.verdict import Check, Verdict
from deploy.local.kestra_engine import BuildError
from deploy.local.paths import REPOSITORY
from deploy.local.processes import ProcessError

TROUBLES = (
    *(DemoError, RefusedError, NoMachinesError, ProcessError, BuildError),
    *(httpx.HTTPError, OSError, subprocess.SubprocessError),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo and return its exit status: 0 if every outcome is as expected, 1 if not, 2 for
    wrong usage, 130 or 143 when interrupted.
    """
    options = _parse(arguments)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    forget_settings(os.environ)
    console = Console(stderr=options.json, soft_wrap=False)
    live = console.is_terminal and not options.json
    demo = Demo(series=options.rabbitmq, console=console, live=live, machines=options.machines)
    try:
        return _run(demo, console, options)
    except TROUBLES as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    except _Interrupted as interruption:
        print("demo: interrupted; everything that it started has ended", file=sys.stderr)
        return 128 + interruption.number


def forget_settings(environment: MutableMapping[str, str]) -> None:
    """Remove the user's own settings from the environment, above all the account of a cloud."""
    for name in [name for name in environment if name.startswith("BRIDGE_")]:
        del environment[name]


class _Interrupted(BaseException):
    """A signal asked the demo to end."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def _interrupt(number: int, _: FrameType | None) -> NoReturn:
    # From here on only the clean-up is left, and nothing may interrupt that.
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)
    raise _Interrupted(number)


def _run(demo: Demo, console: Console, options: argparse.Namespace) -> int:
    with demo.stack() as stack, ExitStack() as children:
        verdicts = demo.run(stack, children)
        checks = demo.checks(stack)
        if not options.keep:
            checks.append(_stop_check(stack))
        ok = all(verdict.ok for verdict in verdicts) and all(check.ok for check in checks)
        demo.say("every outcome is as expected" if ok else "NOT every outcome is as expected")
        if options.json:
            print(
                json.dumps(_as_data(stack, verdicts, checks, ok=ok), ensure_ascii=False), flush=True
            )
        else:
            console.print()
            screen.report(console, verdicts, checks)
        if options.keep:
            _keep(stack, console)
    return 0 if ok else 1


def _stop_check(stack: Stack) -> Check:
    assert stack.bridge is not None
    stack.bridge.signal(signal.SIGTERM)
    status = stack.bridge.wait(30)
    return Check("The bridge stopped in order on SIGTERM", status == 0, f"status {status}")


def _as_data(
    stack: Stack, verdicts: Sequence[Verdict], checks: Sequence[Check], *, ok: bool
) -> dict[str, Any]:
    return {
        "ok": ok,
        "rabbitmq": stack.rabbit.version,
        "jobs": [each.as_data for each in verdicts],
        "checks": [{"what": each.what, "ok": each.ok, "seen": each.seen} for each in checks],
    }


def _keep(stack: Stack, console: Console) -> None:
    """Wait until interrupted, which is no failure here.

    Raises:
        DemoError: a part of the stack ended by itself.
    """
    console.print(Text(_how_to_reach(stack)), soft_wrap=True)
    try:
        while stack.bridge and stack.bridge.alive and stack.rabbit.alive and stack.engine.alive:
            time.sleep(LOOK_EVERY)
    except _Interrupted:
        return
    raise DemoError(
        f"a part of the stack ended by itself{stack.bridge.tail() if stack.bridge else ''}"
    )


def _how_to_reach(stack: Stack) -> str:
    http = next(
        (str(line["http"]) for line in stack.lines("run") if line.get("event") == "starting"), ""
    )
    exports = "\n".join(
        f"export {key}={shlex.quote(value)}" for key, value in stack.settings.items()
    )
    rabbit, engine = stack.rabbit, stack.engine
    on_machine = (
        f"\n{_OURS} submit --queue {MACHINE_QUEUE} --input script='uname -a' --wait"
        if stack.host
        else ""
    )
    return f"""
Everything keeps running until Ctrl-C. User and password are in brackets.
RabbitMQ {rabbit.version}: {rabbit.management_url} ({rabbit.username}, {rabbit.password})
Kestra's engine (API only): {engine.url} ({engine.username}, {engine.password})
The bridge's metrics: {http}/metrics
Its log: {stack.directory / "run.log"}

In another shell, in {REPOSITORY}:
{exports}
{_OURS} submit --queue {QUEUE} --flow {FLOW} --input message=hello --wait{on_machine}
{_OURS} status
{_OURS} dead-letters list
{_OURS} dead-letters show --reason failed --limit 1
{_OURS} dead-letters replay --reason killed --dry-run
{_OURS} doctor
"""


_OURS = ".venv/bin/kestra-bridge"


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="deploy/demo",
        allow_abbrev=False,  # deploy/demo itself looks for an option
        description=(
            "Show the bridge at work on this machine, with RabbitMQ from Debian and Kestra's "
            f"engine behind our façade. {len(CASES)} messages succeed, fail, hang or are killed, "
            f"and {len(machine_cases(''))} more run scripts on virtual machines of their own "
            "(QEMU, with emulation where there is no KVM; about 2 GB of memory). Nothing but the "
            "jobs' flows is deployed into Kestra; at the end, the notifier is, for one more job. "
            "The demo builds "
            "what is missing, needs no container engine, and leaves nothing running, even after "
            "Ctrl-C. Exit status: 0 if every outcome is as expected and no machine is left, 1 if "
            "not, 2 for wrong usage."
        ),
    )
    parser.add_argument(
        "--rabbitmq",
        choices=("3.10", "4.0", "4.3"),
        default="3.10",
        help="the RabbitMQ to run (default: 3.10)",
    )
    parser.add_argument(
        "--no-machines",
        action="store_false",
        dest="machines",
        help="leave out the jobs on virtual machines, and everything that they need",
    )
    parser.add_argument(
        "--keep",
        action="store_true",
        help="keep everything running afterwards, until Ctrl-C, and say how to reach it",
    )
    parser.add_argument(
        "--json",
        action="store_true",
        help="print the result as JSON; progress goes to standard error",
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
