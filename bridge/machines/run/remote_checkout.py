"""The checkout of a run, on the machine: a process of its own, with git as its child.

The run's supervisor (`remote_supervisor`) starts it in the run's folder. Like the supervisor it
needs only Python 3.8 or later and the standard library.

    python3 checkout.py

It reads `request.json` and `credentials`, which it removes, and checks out into `work`. What git
says goes to standard error, without the credentials. Where it fails, `checkout-error` has the
reason on one line.
"""

# It imports little, as the machine may be slow: the functions of `os`, not pathlib.
# ruff: noqa: PTH100, PTH108, PTH110, PTH118, PTH123

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from contextlib import suppress
from typing import Any
from urllib.parse import quote

_COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}", re.IGNORECASE)
_MAYBE_COMMIT = re.compile(r"[0-9a-f]{7,63}", re.IGNORECASE)
_BRANCHES = "refs/heads/"
_IN_URL = re.compile(r"(://)\S*@")
_SHORTEST_SECRET = 3
"""Characters. A shorter one would blot out words."""
_HELPER = (
    "!f() { test \"$1\" = get && printf 'username=%s\\npassword=%s\\n' "
    '"$KESTRA_BRIDGE_GIT_USER_{0}" "$KESTRA_BRIDGE_GIT_PASSWORD_{0}"; }; f'
)
"""A credential helper (`git help credentials`). The shell's own printf keeps the words out of any
process's arguments."""


class CheckoutFailed(Exception):
    """The checkout failed. The text is one line."""


class Git:
    """Runs git with the credentials, and hides them in what it says."""

    def __init__(self, credentials: dict[str, Any]) -> None:
        self._options = ["-c", "protocol.ext.allow=never", "-c", "advice.detachedHead=false"]
        self._environment = dict(
            os.environ,
            LC_ALL="C",
            GIT_TERMINAL_PROMPT="0",
            GIT_ASKPASS="true",
            GIT_ALLOW_PROTOCOL="git:http:https:ssh",
            # Large files are fetched by a step of their own, if at all.
            GIT_LFS_SKIP_SMUDGE="1",
        )
        self._secrets: list[str] = []
        for number, (url, username, password) in enumerate(credentials["logins"]):
            self._use_login(number, url, username, password)
        if credentials["known_hosts"]:
            self._use_ssh(credentials)

    def _use_login(self, number: int, url: str, username: str, password: str) -> None:
        """Have git offer a login below that address, and nowhere else."""
        self._options += ["-c", f"credential.{url}.helper={_HELPER.replace('{0}', str(number))}"]
        self._environment[f"KESTRA_BRIDGE_GIT_USER_{number}"] = username
        self._environment[f"KESTRA_BRIDGE_GIT_PASSWORD_{number}"] = password
        # A token may stand alone, as the user name.
        secret = password or username
        self._secrets += [secret, quote(secret, safe="")]

    def _use_ssh(self, credentials: dict[str, Any]) -> None:
        """Have ssh use our key, and know no other hosts than ours."""
        _write_private("known_hosts", credentials["known_hosts"])
        options = {
            "BatchMode": "yes",
            "StrictHostKeyChecking": "yes",
            "UserKnownHostsFile": f'"{os.path.abspath("known_hosts")}"',
            "GlobalKnownHostsFile": "/dev/null",
        }
        if credentials["key"]:
            _write_private("key", credentials["key"])
            options["IdentityFile"] = f'"{os.path.abspath("key")}"'
            options["IdentitiesOnly"] = "yes"
            options["IdentityAgent"] = "none"
        command = "ssh -F /dev/null"
        for name, value in options.items():
            command += f" -o '{name}={value}'"
        self._environment["GIT_SSH_COMMAND"] = command

    def try_(self, *arguments: str) -> tuple[int, str]:
        """The exit code of a git command, and what it said."""
        command = ["git", *self._options, *arguments]
        try:
            done = subprocess.run(
                command,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                check=False,
            )
        except OSError as error:
            raise CheckoutFailed(
                f"git can't be started on the machine: {error.strerror}"
            ) from error
        return done.returncode, self._hidden(done.stdout.decode("utf-8", "replace"))

    def run(self, *arguments: str) -> None:
        """Run a git command, and pass on what it says.

        Raises:
            CheckoutFailed: it failed.
        """
        code, output = self.try_(*arguments)
        _say(output)
        if code:
            raise CheckoutFailed(_failure_in(output) or f"git ended with {code}")

    def _hidden(self, output: str) -> str:
        output = _IN_URL.sub(r"\1…@", output)
        for secret in self._secrets:
            if len(secret) >= _SHORTEST_SECRET:
                output = output.replace(secret, "…")
        return output


def check_out(request: dict[str, Any], git: Git) -> None:
    """Check out what the request names.

    Raises:
        CheckoutFailed: it can't be.
    """
    repository, name = request["git_repository"], request["git_branch"] or ""
    if name.startswith(_BRANCHES):
        # Not by removeprefix, which came with Python 3.9.
        git.run(*_clone(repository, name[len(_BRANCHES) :]))
    elif name.startswith("refs/"):
        _begin(repository, git)
        git.run("-C", "work", "fetch", "--quiet", "--depth=1", "origin", name)
        git.run("-C", "work", "checkout", "--quiet", "--detach", "FETCH_HEAD")
    elif _COMMIT.fullmatch(name):
        _check_out_commit(repository, name.lower(), git)
    else:
        _check_out_name(repository, name, git)
    _check_out_submodules(request["git_submodules"], git)
    _fetch_large_files(request["git_lfs"], git)


def _check_out_name(repository: str, name: str, git: Git) -> None:
    """Check out a branch, or else a tag, or else the commit whose id begins so."""
    command = _clone(repository, name)
    if not _MAYBE_COMMIT.fullmatch(name):
        return git.run(*command)
    code, output = git.try_(*command)
    if code:
        _begin(repository, git)
        return _check_out_from_all(name.lower(), git)
    return _say(output)


def _clone(repository: str, name: str) -> list[str]:
    """The command that clones a branch or a tag, or the default branch where the name is empty."""
    command = ["clone", "--quiet", "--depth=1", "--single-branch", "--no-tags"]
    command.append("--no-recurse-submodules")
    if name:
        command.append("--branch=" + name)
    return [*command, "--", repository, "work"]


def _check_out_commit(repository: str, commit: str, git: Git) -> None:
    """Check out a commit alone, if the server gives out such, or from the whole history."""
    _begin(repository, git)
    code, _ = git.try_("-C", "work", "fetch", "--quiet", "--depth=1", "origin", commit)
    if code:
        return _check_out_from_all(commit, git)
    return git.run("-C", "work", "checkout", "--quiet", "--detach", commit)


def _check_out_from_all(commit: str, git: Git) -> None:
    branches = "+refs/heads/*:refs/remotes/origin/*"
    git.run("-C", "work", "fetch", "--quiet", "--tags", "origin", branches)
    code, _ = git.try_("-C", "work", "checkout", "--quiet", "--detach", commit)
    _, head = git.try_("-C", "work", "rev-parse", "HEAD")
    # git takes an id with digits too many for the one that it begins with.
    if code or not head.startswith(commit):
        raise CheckoutFailed(f"no branch and no tag of the repository leads to {commit}")


def _begin(repository: str, git: Git) -> None:
    git.run("init", "--quiet", "work")
    git.run("-C", "work", "remote", "add", "origin", repository)


def _check_out_submodules(wanted: bool, git: Git) -> None:
    if not os.path.exists(os.path.join("work", ".gitmodules")):
        return
    if wanted:
        command = ("submodule", "--quiet", "update", "--init", "--recursive", "--depth=1")
        git.run("-C", "work", *command)
    else:
        _say_ours("the repository has submodules; --git-submodules checks them out")


def _fetch_large_files(wanted: bool, git: Git) -> None:
    files = ":(glob)**/.gitattributes"
    has_none, _ = git.try_("-C", "work", "grep", "--quiet", "-e", "filter=lfs", "--", files)
    if has_none:
        return
    if not wanted:
        _say_ours("the repository has files in Git LFS; --git-lfs fetches them")
        return
    code, _ = git.try_("lfs", "version")
    if code:
        raise CheckoutFailed("--git-lfs needs git-lfs on the machine, which isn't installed")
    git.run("-C", "work", "lfs", "install", "--local")
    git.run("-C", "work", "lfs", "pull")


def _failure_in(output: str) -> str:
    """The line of git's output that says why it failed."""
    last = fatal = ""
    for line in map(str.strip, output.splitlines()):
        last = line or last
        if line.startswith(("fatal:", "error:")):
            fatal = line
    return (fatal or last)[:500]


def _say(text: str) -> None:
    sys.stderr.buffer.write(text.encode("utf-8", "replace"))
    sys.stderr.buffer.flush()


def _say_ours(text: str) -> None:
    _say(f"kestra-bridge: {text}\n")


def _write_private(path: str, text: str) -> None:
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(text)


def _read_json(path: str) -> Any:
    with open(path, encoding="utf-8") as file:
        return json.load(file)


def main() -> int:
    """Check out, and return an exit status. No credentials are left for the script."""
    # A stop ends this process in order, so that the key is removed.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    try:
        credentials = _read_json("credentials")
        os.unlink("credentials")
        check_out(_read_json("request.json"), Git(credentials))
    except CheckoutFailed as failed:
        _write_private("checkout-error", str(failed))
        return 1
    finally:
        for name in ("key", "known_hosts"):
            with suppress(FileNotFoundError):
                os.unlink(name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
