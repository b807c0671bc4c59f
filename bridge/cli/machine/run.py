"""`kestra-bridge machine run`: a script on a machine, as if it ran here."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from bridge.cli import streams
from bridge.cli.common import Json, load, seconds
from bridge.cli.machine.exit_codes import OUTCOMES, exit_code_lines
from bridge.cli.machine.output import LineWriter, OutputClosed
from bridge.cli.signals import Signalled, until_signalled
from bridge.errors import BridgeError, SettingsError
from bridge.machines.locate import Locator
from bridge.machines.run.remote_run import RemoteRun
from bridge.machines.run.report import Report, ScriptOutcome
from bridge.machines.run.repository import GitCredentials, parse_credentials
from bridge.machines.run.results import ResultsFolder
from bridge.machines.run.work import Work, environment_from, environment_of, file_of
from bridge.machines.settings import MachineSettings
from bridge.machines.ssh import Address
from bridge.text import visible

EPILOG = f"""\
Exits with the script's own exit code, with 128 + n if signal n killed it, with 143, 130 or 129
after SIGTERM, Ctrl-C or SIGHUP, which stop the script as well, with 1 if nothing reads the output
any more, which does not, and otherwise with:

{exit_code_lines()}
A script may itself exit with any of these: the last line on standard error and --json's outcome
tell them apart.

The script belongs to the machine, not to this process. If it is run a second time under the same
--run-id, it is not started again: its output is read from the beginning, and its exit code is that
of the first run.

The machine needs sshd with SFTP, python3, bash, and for a checkout git."""


app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command(epilog=EPILOG, short_help="Run a script on a machine.")
def run(
    *,
    execution: Annotated[
        str | None, typer.Option(help="Run on the machine of that execution.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Run on the machine of that name.")] = None,
    host: Annotated[
        str | None, typer.Option(help="Its address. Without it, the provider is asked.")
    ] = None,
    port: Annotated[int, typer.Option(help="Its SSH port.", min=1, max=65_535)] = 22,
    user: Annotated[
        str | None,
        typer.Option(help="The user that runs the script. Without it, BRIDGE_MACHINE_USER."),
    ] = None,
    run_id: Annotated[
        str | None,
        typer.Option(
            help="The run's id: the script runs only once under it. Without it, the execution's "
            "id, else the machine's name."
        ),
    ] = None,
    script: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|-", help="The script. bash runs it, unless its #! names another program."
        ),
    ] = None,
    repository_script: Annotated[
        str | None,
        typer.Option(metavar="PATH", help="The script, as a file of the checkout instead."),
    ] = None,
    env: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[=VALUE]",
            help="A variable for the script. NAME passes on the variable of this process. "
            "Repeatable.",
        ),
    ] = None,
    env_file: Annotated[
        str | None,
        typer.Option(metavar="FILE|-", help="Variables for the script: a JSON object of strings."),
    ] = None,
    file: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LOCAL[:REMOTE]", help="A file to put where the script runs. Repeatable."
        ),
    ] = None,
    git_repository: Annotated[
        str | None,
        typer.Option(metavar="URL", help="A repository to check out where the script runs."),
    ] = None,
    git_repository_file: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|-",
            help="A file with that URL instead. Use it for a URL with a password, which other "
            "users of this host would see among the arguments.",
        ),
    ] = None,
    git_branch: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Its branch, or else its tag, or else the commit whose id begins so (7 digits at "
            "least); or a ref such as refs/heads/main or refs/pull/1/head. "
            "Without it, the repository's default branch.",
        ),
    ] = None,
    git_credentials: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|-",
            help="What git may log in with, in any order: lines https://user:token@host, a "
            "private key for ssh, and lines of known_hosts, which a key needs.",
        ),
    ] = None,
    git_submodules: Annotated[
        bool, typer.Option("--git-submodules", help="Check out the submodules too.")
    ] = False,
    git_lfs: Annotated[
        bool, typer.Option("--git-lfs", help="Fetch the files that are in Git LFS.")
    ] = False,
    time_limit: Annotated[
        float | None,
        seconds(
            help="Stop checkout and script after this time.",
            min=0.1,
            max=31_536_000,
        ),
    ] = None,
    grace: Annotated[
        float,
        seconds(
            help="The time between TERM and KILL when a script is stopped.",
            min=0,
            max=3600,
        ),
    ] = 5.0,
    reconnect: Annotated[
        float,
        seconds(
            help="How long to try to regain a lost connection.",
            min=0,
            max=86_400,
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
            "--outputs",
            help="End standard output with the result as Kestra's ::{…}:: line. A result whose "
            "name Kestra can't keep counts as missing then.",
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Run a script on a machine. Its output, its exit code and its result files are the command's.

    Waits for the machine to boot. Variables and files reach the script unchanged, whatever they
    hold.
    """
    if [script, env_file, git_repository_file, git_credentials].count("-") > 1:
        raise SettingsError("standard input can be only one of the files")
    if bool(result) != bool(results_directory):
        raise SettingsError("--result and --results-directory go together")
    settings = load(MachineSettings, json_logs=as_json)
    locator = Locator(
        settings=settings, execution=execution, name=name, host=host, port=port, user=user
    )
    work = Work(
        run_id=run_id or execution or name or "",
        script=_content(script, "--script"),
        repository_script=_unset(repository_script),
        environment=_environment(env, env_file),
        files=tuple(file_of(text) for text in file or ()),
        git_repository=_repository(git_repository, git_repository_file),
        git_branch=_unset(git_branch),
        git_submodules=git_submodules,
        git_lfs=git_lfs,
        git_credentials=_git_credentials(git_credentials),
        results=tuple(result or ()),
        time_limit=time_limit,
        grace=grace,
    )
    remote_run = partial(
        RemoteRun,
        work=work,
        boot_timeout=settings.machine_boot_timeout,
        reconnect=reconnect,
        results_folder=_results_folder(results_directory, for_kestra=outputs),
    )
    code = asyncio.run(_run_and_report(locator, remote_run, as_json=as_json, outputs=outputs))
    raise typer.Exit(code)


def _unset(text: str | None) -> str | None:
    """The option's value. A flow passes an optional input that isn't set as an empty text."""
    return text or None


def _results_folder(directory: Path | None, *, for_kestra: bool) -> ResultsFolder | None:
    if directory is None:
        return None
    return ResultsFolder(directory, for_kestra=for_kestra)


def _repository(url: str | None, file: str | None) -> str | None:
    """The repository's address, from its option or from the option's file."""
    content = _text(file, "--git-repository-file")
    if url and content:
        raise SettingsError("only one of --git-repository and --git-repository-file is possible")
    return _unset(url) or _unset((content or "").strip())


def _git_credentials(file: str | None) -> GitCredentials:
    return parse_credentials(_text(file, "--git-credentials") or "")


def _text(path: str | None, option: str) -> str | None:
    """The content of an option's file as text."""
    content = _content(path, option)
    try:
        return None if content is None else content.decode()
    except UnicodeDecodeError as error:
        raise SettingsError(f"{option}: {path!a} is not in UTF-8") from error


def _content(path: str | None, option: str) -> bytes | None:
    """The content of an option's file, or of standard input for `-`. None without the option."""
    if not path:
        return None
    try:
        if path == "-":
            return sys.stdin.buffer.read()
        return Path(path).read_bytes()
    except OSError as error:
        raise SettingsError(f"{option}: can't read {path!a}: {error.strerror}") from error


def _environment(pairs: list[str] | None, env_file: str | None) -> dict[bytes, bytes]:
    """The variables of both options. Those of `--env` take precedence."""
    variables = {}
    content = _content(env_file, "--env-file")
    if content is not None:
        variables = environment_from(content, option="--env-file")
    return variables | environment_of(pairs or (), os.environb)


async def _run_and_report(
    locator: Locator,
    remote_run: Callable[..., RemoteRun],
    *,
    as_json: bool,
    outputs: bool,
) -> int:
    """Run it, print how it ended, and return the exit code."""
    out, err = LineWriter(sys.stdout.fileno()), LineWriter(sys.stderr.fileno())
    try:
        report = await _report(locator, partial(remote_run, out=out, err=err))
        await out.flush()
        await err.flush()
        if outputs:
            await out.line("::" + json.dumps({"outputs": report.data}) + "::")
        if as_json:
            await out.line(json.dumps({"machine": locator.machine_name, **report.data}))
        await err.line(f"kestra-bridge: {locator}: {visible(report.message)}")
    except OutputClosed:
        streams.say(
            f"{locator}: nothing reads the output any more, so the script is left to the machine; "
            "the same command follows it again"
        )
        raise BrokenPipeError from None
    return report.code


async def _report(locator: Locator, remote_run: Callable[[Address], RemoteRun]) -> Report:
    """Run it, and report its end: its own, one by a signal to us, or one by an error."""
    began = time.monotonic()
    runs: list[RemoteRun] = []
    signal_number: int | None = None

    async def locate_and_run() -> Report:
        runs.append(remote_run(await locator.locate()))
        return await runs[0].run_to_end()

    try:
        return await until_signalled(locate_and_run())
    except Signalled as ended:
        script = runs[0].ended if runs else None
        if script is not None:
            return script.without_results(f"ended by {ended.name}", lost=False)
        signal_number = ended.number
        outcome = ScriptOutcome.STOPPED
        message = f"ended by {ended.name}{_what_became_of(runs)}"
    except SettingsError:
        raise
    except BridgeError as error:
        outcome = OUTCOMES.get(type(error), ScriptOutcome.FAILED)
        message = str(error)
    seconds = time.monotonic() - began
    return Report(
        outcome=outcome,
        message=f"{message} (after {seconds:.1f} s)",
        seconds=seconds,
        signal=signal_number,
    )


def _what_became_of(runs: list[RemoteRun]) -> str:
    """What a signal to us did to the script, as the end of a message."""
    if not runs or runs[0].stopped is None:
        return " before the script began"
    if runs[0].stopped:
        return "; the script was stopped"
    return "; the script could not be stopped for certain"
