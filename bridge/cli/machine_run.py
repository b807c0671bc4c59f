"""`kestra-bridge machine run`: a script on a machine, as if it ran here."""

from __future__ import annotations

import asyncio
import json
import os
import select
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from bridge.cli.app import Json, load
from bridge.cli.signals import Signalled, until_signalled
from bridge.errors import BridgeError, MachineDenied, MachineUnavailable, SettingsError
from bridge.machines.identity import SshIdentity
from bridge.machines.lifecycle import Machine, Machines
from bridge.machines.remote import (
    EXIT_CODES,
    Report,
    ScriptOutcome,
    Work,
    environment_from,
    environment_of,
    file_of,
)
from bridge.machines.remote_run import RemoteRun, ResultsFailed, RunRefused, RunVanished
from bridge.machines.settings import MachineSettings
from bridge.machines.ssh import (
    Address,
    ConnectionLost,
    LoginDenied,
    MachineUnreachable,
    WrongHostKey,
)

ATOMIC = 4096
"""A pipe that can be written to takes so much at once."""
LONGEST_HELD = 65_536
OUTCOMES: Mapping[type[BridgeError], ScriptOutcome] = {
    RunRefused: ScriptOutcome.REFUSED,
    RunVanished: ScriptOutcome.LOST,
    ConnectionLost: ScriptOutcome.LOST,
    MachineUnreachable: ScriptOutcome.UNREACHABLE,
    MachineUnavailable: ScriptOutcome.UNREACHABLE,
    MachineDenied: ScriptOutcome.DENIED,
    WrongHostKey: ScriptOutcome.WRONG_HOST_KEY,
    LoginDenied: ScriptOutcome.DENIED,
    ResultsFailed: ScriptOutcome.RESULTS_MISSING,
}
_MEANINGS = {
    ScriptOutcome.REFUSED: "the machine already has a run of that id, for other work",
    ScriptOutcome.PREPARE_FAILED: "the checkout or the script's start failed",
    ScriptOutcome.UNREACHABLE: "the machine did not let us in in time",
    ScriptOutcome.FAILED: "the machine can't do what it must (no python3, no SFTP, a full disk)",
    ScriptOutcome.RESULTS_MISSING: "the script succeeded, but results are missing or can't "
    "be written here",
    ScriptOutcome.LOST: "the machine was lost: how the script ended isn't known",
    ScriptOutcome.WRONG_HOST_KEY: "another host key than the machine's own",
    ScriptOutcome.DENIED: "the machine refuses the user or the key, or its provider our account",
    ScriptOutcome.TIMED_OUT: "stopped at --time-limit",
}
_CODES = sorted(EXIT_CODES.items(), key=lambda item: item[1])
_CODE_LINES = "\n".join(f"{code}  {_MEANINGS[outcome]}\n" for outcome, code in _CODES)
EPILOG = f"""\
Exits with the script's own exit code, with 128 + n where signal n killed it, with 143 or 130 after
SIGTERM or Ctrl-C, which stop the script as well, and else with:

{_CODE_LINES}
A script may exit with any of these itself: the last line on standard error and --json's outcome
tell.

The script belongs to the machine, not to this process. Run a second time under the same --run-id,
it is not started again: its output is read from the beginning, and its exit code is that of the
first run.

The machine needs sshd with SFTP, python3, bash, and for a checkout git."""


Remote = Callable[[Address, "Lines", "Lines"], RemoteRun]


class OutputClosed(Exception):
    """Whoever read our output has gone."""


class Lines:
    """A file descriptor to which whole lines are written, none of them changed and none for long
    held back.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLOUT)
        self._held = bytearray()
        self._last = b"\n"

    async def write(self, data: bytes) -> None:
        """Pass on the lines that are complete; very long ones in pieces."""
        self._held += data
        end = self._held.rfind(b"\n", len(self._held) - len(data)) + 1
        if not end and len(self._held) > LONGEST_HELD:
            end = len(self._held)
        if end:
            await self._put(bytes(self._held[:end]))
            del self._held[:end]

    async def flush(self) -> None:
        """Pass on what is held back."""
        await self._put(bytes(self._held))
        self._held.clear()

    async def line(self, text: str) -> None:
        """Add a line of our own, which begins one whatever came before."""
        await self._put(b"" if self._last == b"\n" else b"\n")
        await self._put(text.encode("utf-8", "backslashreplace") + b"\n")

    async def _put(self, data: bytes) -> None:
        for start in range(0, len(data), ATOMIC):
            piece = memoryview(data)[start : start + ATOMIC]
            while piece:
                await self._room()
                try:
                    piece = piece[os.write(self._descriptor, piece) :]
                except BlockingIOError:
                    continue
                except BrokenPipeError as error:
                    raise OutputClosed from error
        self._last = data[-1:] or self._last

    async def _room(self) -> None:
        """Wait until there is room, with the loop free to answer the machine and to hear
        signals.
        """
        if self._poll.poll(0):
            return
        loop, ready = asyncio.get_running_loop(), asyncio.Event()
        loop.add_writer(self._descriptor, ready.set)
        try:
            await ready.wait()
        finally:
            loop.remove_writer(self._descriptor)


def run(
    *,
    execution: Annotated[
        str | None, typer.Option(help="Run on the machine of that execution.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Run on the machine of that name.")] = None,
    host: Annotated[
        str | None, typer.Option(help="Its address. Without it: looked up at the provider.")
    ] = None,
    port: Annotated[int, typer.Option(help="Its SSH port.", min=1, max=65_535)] = 22,
    user: Annotated[
        str | None, typer.Option(help="Who the script runs as. Without it: BRIDGE_MACHINE_USER.")
    ] = None,
    run_id: Annotated[
        str | None,
        typer.Option(
            help="By which the script is run once only. Without it: the execution, else the "
            "machine's name."
        ),
    ] = None,
    script: Annotated[
        str | None,
        typer.Option(metavar="FILE|-", help="The script; bash runs it if it names no other by #!."),
    ] = None,
    repository_script: Annotated[
        str | None,
        typer.Option(metavar="PATH", help="The script, as a file of the checkout instead."),
    ] = None,
    env: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[=VALUE]",
            help="A variable for the script; NAME alone passes on ours. Repeatable.",
        ),
    ] = None,
    env_file: Annotated[
        str | None,
        typer.Option(metavar="FILE|-", help="Variables for the script: a JSON object of texts."),
    ] = None,
    file: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LOCAL[:REMOTE]", help="A file to put where the script runs. Repeatable."
        ),
    ] = None,
    git_repository: Annotated[
        str | None, typer.Option(metavar="URL", help="What to check out where the script runs.")
    ] = None,
    git_branch: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Its branch. Without it: the repository's own default."),
    ] = None,
    time_limit: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS",
            help="Stop checkout and script after so long.",
            min=0.1,
            max=31_536_000,
        ),
    ] = None,
    grace: Annotated[
        float,
        typer.Option(
            metavar="SECONDS",
            help="How long a script to stop has between TERM and KILL.",
            min=0,
            max=3600,
        ),
    ] = 5.0,
    reconnect: Annotated[
        float,
        typer.Option(
            metavar="SECONDS", help="How long a lost connection is tried again.", min=0, max=86_400
        ),
    ] = 30.0,
    result: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN", help="Files to fetch, relative to where the script ran. Repeatable."
        ),
    ] = None,
    results_directory: Annotated[
        Path | None,
        typer.Option(metavar="DIRECTORY", help="Where to put them, under the same relative paths."),
    ] = None,
    outputs: Annotated[
        bool,
        typer.Option(
            "--outputs", help="End standard output with the result as Kestra's ::{…}:: line."
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Run a script on a machine, with its output, its exit code and its result files as if it ran
    here.

    Waits for the machine to boot. Variables and files reach the script as they are, whatever they
    hold.
    """
    if script == "-" == env_file:
        raise SettingsError("--script and --env-file can't both be standard input")
    if bool(result) != bool(results_directory):
        raise SettingsError("--result and --results-directory go together")
    settings = load(MachineSettings, json_logs=as_json)
    where = Where(
        settings=settings, execution=execution, name=name, host=host, port=port, user=user
    )
    # A flow's optional inputs come as empty texts.
    work = Work(
        run_id=run_id or execution or name or "",
        script=_content(script, "--script") if script else None,
        repository_script=repository_script or None,
        environment=_environment(env or [], env_file),
        files=tuple(file_of(text) for text in file or ()),
        git_repository=git_repository or None,
        git_branch=git_branch or None,
        results=tuple(result or ()),
        time_limit=time_limit,
        grace=grace,
    )

    def remote(address: Address, out: Lines, err: Lines) -> RemoteRun:
        return RemoteRun(
            address,
            work,
            out=out,
            err=err,
            boot_timeout=settings.machine_boot_timeout,
            reconnect=reconnect,
            results_directory=results_directory,
        )

    raise typer.Exit(asyncio.run(_see_through(where, remote, as_json=as_json, outputs=outputs)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Where:
    """What the command line says of the machine.

    Raises:
        SettingsError: too little.
    """

    settings: MachineSettings
    execution: str | None
    name: str | None
    host: str | None
    port: int
    user: str | None

    def __post_init__(self) -> None:
        if self.host and not self.name:
            raise SettingsError("--host needs --name, from which the machine's keys are derived")
        if not (self.execution or self.name):
            raise SettingsError("which machine? Give --execution, --name, or --name and --host")

    def __str__(self) -> str:
        return self.name or f"machine of execution {self.execution}"

    async def find(self) -> Address:
        """The machine's address and keys.

        Raises:
            MachineUnreachable: there is no such machine.
            MachineError: the provider can't be asked for it.
        """
        name, host, port = self.name, self.host, self.port
        if host is None:
            machine = await self._look_up()
            name, host, port = machine.name, machine.host, machine.port
        assert name is not None
        assert host is not None
        identity = SshIdentity.derive(self.settings.machine_secret.get_secret_value(), name)
        user = self.user or self.settings.machine_user
        return Address(name=name, host=host, port=port, user=user, identity=identity)

    async def _look_up(self) -> Machine:
        machines = Machines(self.settings)
        if self.execution:
            machine = await machines.find(self.execution)
        else:
            machine = next(
                (one for one in await machines.all() if one.name == self.name and not one.dead),
                None,
            )
        if machine is None:
            whose = f"of execution {self.execution}" if self.execution else self.name
            raise MachineUnreachable(f"there is no machine {whose}")
        return machine if machine.host else await machines.wait(machine)


def _content(path: str, option: str) -> bytes:
    try:
        return sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()
    except OSError as error:
        raise SettingsError(f"{option}: can't read {path!a}: {error.strerror}") from error


def _environment(pairs: list[str], env_file: str | None) -> dict[bytes, bytes]:
    from_file = (
        environment_from(_content(env_file, "--env-file"), option="--env-file") if env_file else {}
    )
    return from_file | environment_of(pairs, os.environb)


async def _see_through(where: Where, remote: Remote, *, as_json: bool, outputs: bool) -> int:
    """Run it, say how it ended, and return what to exit with."""
    out, err = Lines(sys.stdout.fileno()), Lines(sys.stderr.fileno())
    try:
        report = await _report(where, lambda address: remote(address, out, err))
        await out.flush()
        await err.flush()
        if outputs:
            await out.line("::" + json.dumps({"outputs": report.data}) + "::")
        if as_json:
            await out.line(json.dumps({"machine": where.name, **report.data}))
        await err.line(f"kestra-bridge: {where}: {report.message}")
    except OutputClosed:
        # The run goes on: whoever is to take over finds it by its id.
        raise BrokenPipeError from None
    return report.code


async def _report(where: Where, remote: Callable[[Address], RemoteRun]) -> Report:
    """How it ended, whether by itself, by a signal to us, or in trouble."""
    began = time.monotonic()
    runs: list[RemoteRun] = []
    signalled: int | None = None

    async def see_through() -> Report:
        runs.append(remote(await where.find()))
        return await runs[0].see_through()

    try:
        return await until_signalled(see_through())
    except Signalled as ended:
        signalled = ended.number
        outcome, message = ScriptOutcome.STOPPED, _stopped(runs, ended.name)
    except SettingsError:
        raise
    except BridgeError as error:
        outcome, message = OUTCOMES.get(type(error), ScriptOutcome.FAILED), str(error)
    seconds = time.monotonic() - began
    return Report(
        outcome=outcome,
        message=f"{message} after {seconds:.1f} s",
        seconds=seconds,
        signal=signalled,
    )


def _stopped(runs: list[RemoteRun], by: str) -> str:
    if not runs or runs[0].stopped is None:
        return f"ended by {by} before the script began"
    return (
        f"ended by {by}; the script "
        f"{'was stopped' if runs[0].stopped else 'could not be stopped for certain'}"
    )
