"""What is to run on a machine, checked, and how a run ended, with its exit code. Pure: nothing is
sent from here.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import TypeAdapter

from bridge.errors import SettingsError

LARGEST_VARIABLE = 131_071
"""Linux takes no longer `NAME=value`, whatever the limit for all of them."""
_TEXTS = TypeAdapter(dict[str, str])
_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
_VARIABLE = re.compile(rb"[A-Za-z_][A-Za-z0-9_]*")
_RUNS_CODE = re.compile(rb"BASH_ENV|BASHOPTS|SHELLOPTS|PS4|LD_.*")
"""Variables by which a value would be run: by bash before or beside the script, or by the
loader."""
_URL = re.compile(
    r"(https?|git|ssh)://[^/\s].*|[A-Za-z0-9_][A-Za-z0-9_.-]*@[A-Za-z0-9][A-Za-z0-9.-]*:[^:].*"
)
_BAD_IN_BRANCH = re.compile(r"[\x00-\x20\x7f~^:?*\[\\]|\.\.|@\{|//|/\.|\.lock(/|$)")


class ScriptOutcome(StrEnum):
    """Every way in which `machine run` can end."""

    EXITED = "exited"
    SIGNALLED = "signalled"
    TIMED_OUT = "timed_out"
    STOPPED = "stopped"
    PREPARE_FAILED = "prepare_failed"
    RESULTS_MISSING = "results_missing"
    REFUSED = "refused"
    LOST = "lost"
    UNREACHABLE = "unreachable"
    WRONG_HOST_KEY = "wrong_host_key"
    DENIED = "denied"
    FAILED = "failed"


EXIT_CODES: Mapping[ScriptOutcome, int] = {
    ScriptOutcome.REFUSED: 65,
    ScriptOutcome.PREPARE_FAILED: 66,
    ScriptOutcome.UNREACHABLE: 69,
    ScriptOutcome.FAILED: 70,
    ScriptOutcome.RESULTS_MISSING: 73,
    ScriptOutcome.LOST: 74,
    ScriptOutcome.WRONG_HOST_KEY: 76,
    ScriptOutcome.DENIED: 77,
    ScriptOutcome.TIMED_OUT: 124,
}
"""Where the script has no exit code of its own: the numbers of sysexits.h that come nearest, and
timeout's 124."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InputFile:
    """A local file and where it goes, relative to the folder in which the script runs."""

    local: Path
    remote: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What one run is asked to do.

    Raises:
        SettingsError: it can't be carried out as it is, whatever the machine.
    """

    run_id: str
    script: bytes | None = None
    repository_script: str | None = None
    environment: Mapping[bytes, bytes] = field(default_factory=dict)
    files: tuple[InputFile, ...] = ()
    git_repository: str | None = None
    git_branch: str | None = None
    results: tuple[str, ...] = ()
    time_limit: float | None = None
    grace: float = 5.0

    def __post_init__(self) -> None:
        if not _RUN_ID.fullmatch(self.run_id):
            raise SettingsError(
                "a run's id is 1 to 100 letters, digits and ._- after a letter or digit: "
                f"{self.run_id!a}"
            )
        if (self.script is None) == (self.repository_script is None):
            raise SettingsError("either --script or --repository-script is needed")
        for name, value in self.environment.items():
            _check_variable(name, value)
        self._check_checkout()
        self._check_paths()

    def _check_checkout(self) -> None:
        if self.git_repository is None and (self.git_branch or self.repository_script):
            raise SettingsError("--git-branch and --repository-script need --git-repository")
        if self.git_repository is not None and not (
            _URL.fullmatch(self.git_repository) and self.git_repository.isprintable()
        ):
            raise SettingsError(
                "--git-repository must be https://…, http://…, git://…, ssh://… or user@host:path"
            )
        if self.git_branch is not None and not is_branch(self.git_branch):
            raise SettingsError(f"--git-branch {self.git_branch!a} can't be a branch's name")

    def _check_paths(self) -> None:
        for file in self.files:
            if not is_inside(file.remote):
                raise SettingsError(f"--file: {file.remote!a} must be a relative path without '..'")
            if not file.local.is_file() or not os.access(file.local, os.R_OK):
                raise SettingsError(f"--file: {str(file.local)!a} is no file that can be read")
        for pattern in self.results:
            if not is_inside(pattern):
                raise SettingsError(
                    f"--result: {pattern!a} must be a relative pattern without '..'"
                )
        if self.repository_script is not None and not is_inside(self.repository_script):
            raise SettingsError(
                f"--repository-script: {self.repository_script!a} must be a relative "
                "path without '..'"
            )

    @property
    def request(self) -> bytes:
        """What the helper on the machine reads."""
        names = ("git_repository", "git_branch", "results", "time_limit", "grace")
        return json.dumps(
            {"script": self.repository_script} | {name: getattr(self, name) for name in names}
        ).encode()

    @property
    def environment_file(self) -> bytes:
        """The variables as NUL-separated pairs, which need no quoting whatever they hold."""
        return b"".join(name + b"=" + value + b"\0" for name, value in self.environment.items())

    def digest(self) -> str:
        """What tells this work from other work under the same id. Reads the files, so it takes its
        time.
        """
        total = hashlib.sha256()
        parts = [
            self.request,
            self.script or b"",
            *(part for pair in sorted(self.environment.items()) for part in pair),
        ]
        for file in self.files:
            with file.local.open("rb") as content:
                parts += [os.fsencode(file.remote), hashlib.file_digest(content, "sha256").digest()]
        for part in parts:
            total.update(b"%d:%s" % (len(part), part))
        return total.hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """How a run ended, in one line for a person and in fields for a program."""

    outcome: ScriptOutcome
    message: str
    seconds: float
    exit_code: int | None = None
    signal: int | None = None
    attached: bool = False
    results: tuple[str, ...] = ()

    @property
    def code(self) -> int:
        """What our process exits with."""
        if self.outcome in (ScriptOutcome.SIGNALLED, ScriptOutcome.STOPPED):
            return 128 + (self.signal or 15)
        return EXIT_CODES.get(self.outcome, self.exit_code or 0)

    def replaced(self, **fields: Any) -> Report:
        """The same report, but for those fields."""
        return dataclasses.replace(self, **fields)

    @property
    def data(self) -> dict[str, Any]:
        """The report for a program."""
        return {
            "outcome": str(self.outcome),
            "exitCode": self.code,
            "scriptExitCode": self.exit_code,
            "signal": self.signal,
            "seconds": round(self.seconds, 3),
            "attached": self.attached,
            "results": list(self.results),
            "message": self.message,
        }


def report_of(status: Mapping[str, Any], work: Work, *, attached: bool) -> Report:
    """The report of a run that has ended, by what its supervisor wrote down."""
    seconds = float(status["seconds"])

    def report(
        outcome: ScriptOutcome, what: str, exit_code: int | None = None, signal: int | None = None
    ) -> Report:
        message = f"{what} after {seconds:.1f} s"
        return Report(
            outcome=outcome,
            message=message,
            seconds=seconds,
            exit_code=exit_code,
            signal=signal,
            attached=attached,
        )

    error, preparing = status.get("error"), status["phase"] == "prepare"
    if error is not None:
        what = (
            f"prepare failed: {redacted(error)}"
            if preparing
            else f"the machine could not run the script: {error}"
        )
        return report(ScriptOutcome.PREPARE_FAILED if preparing else ScriptOutcome.FAILED, what)
    if status.get("stopped") == "time":
        where = "the preparation" if preparing else "the script"
        return report(
            ScriptOutcome.TIMED_OUT,
            f"{where} was stopped at its time limit of {work.time_limit or seconds:g} s",
        )
    if "stopped" in status:
        return report(ScriptOutcome.STOPPED, "the script was stopped on request")
    if "signal" in status:
        return report(
            ScriptOutcome.SIGNALLED,
            f"the script was killed by signal {status['signal']}",
            signal=status["signal"],
        )
    return report(
        ScriptOutcome.EXITED,
        f"the script exited with {status['exit_code']}",
        exit_code=status["exit_code"],
    )


def is_branch(name: str) -> bool:
    """Whether git could have a branch of that name (`git help check-ref-format`), which is never an
    option's.
    """
    return bool(name) and not (
        name.startswith(("-", "/", "."))
        or name.endswith(("/", "."))
        or name == "@"
        or _BAD_IN_BRANCH.search(name)
    )


def is_inside(path: str) -> bool:
    """Whether a path stays below the folder that it is relative to, by its text."""
    parts = PurePosixPath(path).parts
    return bool(parts) and "\0" not in path and not path.startswith("/") and ".." not in parts


def redacted(text: str) -> str:
    """The text without the credentials of URLs in it, on one line."""
    return re.sub(r"(://)[^/@\s]+@", r"\1…@", " ".join(text.split()))


def environment_of(pairs: Iterable[str], inherited: Mapping[bytes, bytes]) -> dict[bytes, bytes]:
    """The variables of `--env` options: NAME=VALUE, or NAME alone for the value that we have
    ourselves.

    Raises:
        SettingsError: a name that we don't have.
    """
    found = {}
    for pair in pairs:
        name, equals, value = os.fsencode(pair).partition(b"=")
        if not equals and name not in inherited:
            raise SettingsError(
                f"--env {pair!a}: no such variable in the environment; give NAME=VALUE otherwise"
            )
        found[name] = value if equals else inherited[name]
    return found


def environment_from(text: bytes, *, option: str) -> dict[bytes, bytes]:
    """The variables of a JSON object of texts.

    Raises:
        SettingsError: it isn't one.
    """
    try:
        pairs = _TEXTS.validate_json(text)
        return {name.encode(): value.encode() for name, value in pairs.items()}
    except ValueError as error:
        raise SettingsError(f"{option} must be a JSON object whose values are texts") from error


def file_of(text: str) -> InputFile:
    """The file of a `--file` option: LOCAL or LOCAL:REMOTE."""
    local, colon, remote = text.rpartition(":")
    path = Path(local if colon else text)
    return InputFile(local=path, remote=remote if colon else path.name)


def _check_variable(name: bytes, value: bytes) -> None:
    shown = os.fsdecode(name)
    if not _VARIABLE.fullmatch(name):
        raise SettingsError(
            f"{shown!a} can't be an environment variable: letters, digits and _ can"
        )
    if _RUNS_CODE.fullmatch(name):
        raise SettingsError(f"{shown} is not passed on: its value would be run as code")
    if b"\0" in value:
        raise SettingsError(
            f"the value of {shown} holds a NUL, which no environment variable can: use --file"
        )
    if len(name) + len(value) + 1 > LARGEST_VARIABLE:
        raise SettingsError(
            f"the value of {shown} is longer than the {LARGEST_VARIABLE} bytes that "
            "Linux takes: use --file"
        )
