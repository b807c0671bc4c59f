"""What is to run on a machine, checked. Nothing is sent from here."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import TypeAdapter

from bridge.errors import SettingsError
from bridge.machines.run.repository import GitCredentials, Repository, parse_repository

LARGEST_VARIABLE = 131_071
"""Bytes. Linux accepts no longer `NAME=value`, whatever the limit for all variables together."""
_OBJECT = TypeAdapter(dict[str, Any])
_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
_VARIABLE = re.compile(rb"[A-Za-z_][A-Za-z0-9_]*")
_RUNS_CODE = re.compile(rb"BASH_ENV|BASHOPTS|SHELLOPTS|PS4|LD_.*")
"""Variables whose value would run as code: by bash before or beside the script, or by the
loader."""
_BAD_IN_BRANCH = re.compile(r"[\x00-\x20\x7f~^:?*\[\\]|\.\.|@\{|//|/\.|\.lock(/|$)")


@dataclass(frozen=True, slots=True, kw_only=True)
class InputFile:
    """A local file, and its path on the machine, relative to the folder in which the script
    runs.
    """

    local: Path
    remote: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What one run has to do. `time_limit` and `grace` are in seconds.

    `git_branch` names a branch, a tag, a commit or a full ref, such as `refs/pull/1/head`.

    Raises:
        SettingsError: it can't be carried out on any machine.
    """

    run_id: str
    script: bytes | None = None
    repository_script: str | None = None
    environment: Mapping[bytes, bytes] = field(default_factory=dict)
    files: tuple[InputFile, ...] = ()
    git_repository: str | None = None
    git_branch: str | None = None
    git_submodules: bool = False
    git_lfs: bool = False
    git_credentials: GitCredentials = field(default_factory=GitCredentials)
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
        self._check_files()
        for pattern in self.results:
            _check_inside("--result", pattern, "pattern")

    def _check_checkout(self) -> None:
        if self.git_repository is None:
            if self.git_branch or self.repository_script:
                raise SettingsError("--git-branch and --repository-script need --git-repository")
            return
        parse_repository(self.git_repository)
        if self.git_branch is not None and not is_branch(self.git_branch):
            raise SettingsError(
                f"--git-branch {self.git_branch!a} can't name a branch, a tag, a commit or a ref"
            )
        if self.repository_script is not None:
            _check_inside("--repository-script", self.repository_script, "path")

    def _check_files(self) -> None:
        for file in self.files:
            _check_inside("--file", file.remote, "path")
            is_readable = file.local.is_file() and os.access(file.local, os.R_OK)
            if not is_readable:
                raise SettingsError(f"--file: {str(file.local)!a} is not a readable file")

    @property
    def _repository(self) -> Repository | None:
        if self.git_repository is None:
            return None
        return parse_repository(self.git_repository)

    @property
    def credentials_file(self) -> bytes | None:
        """The JSON of the credentials for the checkout; None without a checkout."""
        if self._repository is None:
            return None
        return self.git_credentials.with_login(self._repository.login).file

    @property
    def request(self) -> bytes:
        """The JSON that the programs on the machine read. It holds no credentials."""
        repository = self._repository
        request = {
            "script": self.repository_script,
            "git_repository": repository.url if repository else None,
            "git_branch": self.git_branch,
            "git_submodules": self.git_submodules,
            "git_lfs": self.git_lfs,
            "results": self.results,
            "time_limit": self.time_limit,
            "grace": self.grace,
        }
        return json.dumps(request).encode()

    @property
    def environment_file(self) -> bytes:
        """The variables as NUL-terminated pairs, which need no quoting whatever they hold."""
        return b"".join(name + b"=" + value + b"\0" for name, value in self.environment.items())

    def digest(self) -> str:
        """A hash that differs for different work under the same id.

        It leaves out the credentials: a token that was renewed meanwhile makes no other work. It
        reads the files, so it takes a while.
        """
        parts = [self.request, self.script or b""]
        for name, value in sorted(self.environment.items()):
            parts += [name, value]
        for file in self.files:
            with file.local.open("rb") as content:
                parts += [os.fsencode(file.remote), hashlib.file_digest(content, "sha256").digest()]
        total = hashlib.sha256()
        for part in parts:
            total.update(b"%d:%s" % (len(part), part))
        return total.hexdigest()


def is_branch(name: str) -> bool:
    """Whether git accepts a branch of that name (`git help check-ref-format`).

    Such a name never begins like an option.
    """
    if name in ("", "@"):
        return False
    if name.startswith(("-", "/", ".")) or name.endswith(("/", ".")):
        return False
    return _BAD_IN_BRANCH.search(name) is None


def is_inside(path: str) -> bool:
    """Whether a path stays below the folder that it is relative to, judged by its text."""
    if path.startswith("/") or "\0" in path:
        return False
    parts = PurePosixPath(path).parts
    return bool(parts) and ".." not in parts


def environment_of(pairs: Iterable[str], inherited: Mapping[bytes, bytes]) -> dict[bytes, bytes]:
    """The variables of `--env` options: NAME=VALUE, or NAME for a variable of our own process.

    Raises:
        SettingsError: our process has no such variable.
    """
    variables = {}
    for pair in pairs:
        name, equals, value = os.fsencode(pair).partition(b"=")
        if equals:
            variables[name] = value
        elif name in inherited:
            variables[name] = inherited[name]
        else:
            raise SettingsError(
                f"--env {pair!a}: no such variable in the environment; give NAME=VALUE otherwise"
            )
    return variables


def environment_from(text: bytes, *, option: str) -> dict[bytes, bytes]:
    """The variables of a JSON object whose values are strings.

    Raises:
        SettingsError: it isn't one.
    """
    try:
        pairs = _OBJECT.validate_json(text)
    except ValueError as error:
        raise SettingsError(f"{option} must be a JSON object whose values are strings") from error
    variables = {}
    for name, value in pairs.items():
        if not isinstance(value, str):
            raise SettingsError(f"{option} must be an object of strings: {name!a} is no string")
        try:
            variables[name.encode()] = value.encode()
        except UnicodeEncodeError as error:
            raise SettingsError(f"{option} must be in UTF-8: {name!a} isn't") from error
    return variables


def file_of(text: str) -> InputFile:
    """The file of a `--file` option: LOCAL or LOCAL:REMOTE."""
    local, colon, remote = text.rpartition(":")
    if colon:
        return InputFile(local=Path(local), remote=remote)
    path = Path(text)
    return InputFile(local=path, remote=path.name)


def _check_inside(option: str, path: str, noun: str) -> None:
    if not is_inside(path):
        raise SettingsError(f"{option}: {path!a} must be a relative {noun} without '..'")


def _check_variable(name: bytes, value: bytes) -> None:
    shown = os.fsdecode(name)
    if not _VARIABLE.fullmatch(name):
        raise SettingsError(
            f"{shown!a} can't name an environment variable: use letters, digits and _"
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
            "Linux accepts: use --file"
        )
