"""What runs on the machine: starts a job once, keeps it whatever becomes of the connection, and
tells how it ended.

Standard library alone, Python 3.8 or later: it is uploaded and run there, where nothing of the
bridge is at hand.

    python3 helper.py start STAGED RUN            start what is in the folder STAGED as RUN, and
    follow it python3 helper.py follow RUN STDOUT STDERR    follow RUN, from those bytes of its
    outputs on

A run is a folder. Making it is renaming a staged one, so that of two who start the same run one
starts it and the other follows. In it, the client puts `request.json`, `environment`, `files/`,
`script`, `digest` and, to stop it, `stop`; the supervisor makes `work/` (where the script runs),
`stdout`, `stderr`, `results`, and last `status.json`. The supervisor holds a lock on `lock` as long
as it lives, which is how a follower knows that one has vanished.
"""

# Bytes and descriptors, and little to import on a slow machine: the functions of `os`, not pathlib
# nor contextlib.
# ruff: noqa: PTH100, PTH101, PTH102, PTH103, PTH104, PTH105, PTH108, PTH110, PTH113, PTH116, PTH118
# ruff: noqa: PTH123, SIM105

from __future__ import annotations

import ctypes
import fcntl
import fnmatch
import json
import os
import select
import shutil
import signal
import stat
import subprocess
import sys
import time
import traceback
from typing import Any

DONE, GONE, REFUSED = 0, 3, 4
"""The exit statuses of a follower: the run has ended and says how; it has vanished; it was made for
another job."""
TICK = 0.05
BLOCK = 65_536
_PR_SET_CHILD_SUBREAPER = 36


class PrepareFailed(Exception):
    """The script could not even be started; the text is one line."""


class Stopped(Exception):
    """The time is up, or the client asked to stop."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


# ---------------------------------------------------------------- starting and following


def start(staged: str, run: str) -> int:
    """Start the staged run, or take part in one that exists already, and follow it."""
    lock = os.open(os.path.join(staged, "lock"), os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    try:
        os.rename(staged, run)
    except OSError:
        same = _read(os.path.join(staged, "digest")) == _read(os.path.join(run, "digest"))
        shutil.rmtree(staged, ignore_errors=True)
        if not same:
            return REFUSED
    else:
        for name in ("stdout", "stderr"):
            os.close(os.open(os.path.join(run, name), os.O_WRONLY | os.O_CREAT, 0o600))
        if os.fork() == 0:
            _supervise(run)
    os.close(lock)
    return follow(run, [0, 0])


def follow(run: str, seen: list[int]) -> int:
    """Pass on the run's output until it has ended, or until whoever reads it has gone."""
    out, err = (os.open(os.path.join(run, name), os.O_RDONLY) for name in ("stdout", "stderr"))
    os.lseek(out, seen[0], os.SEEK_SET)
    os.lseek(err, seen[1], os.SEEK_SET)
    reader_gone = select.poll()
    reader_gone.register(1, 0)
    while True:
        # Looked at first: what was written before it is then still passed on.
        over = _over(run)
        if any([_pass_on(out, 1), _pass_on(err, 2)]):
            continue
        if over is not None:
            return over
        if reader_gone.poll(TICK * 1000):
            return GONE


def _pass_on(source: int, target: int) -> bool:
    data = os.read(source, BLOCK)
    view = memoryview(data)
    while view:
        view = view[os.write(target, view) :]
    return bool(data)


def _over(run: str) -> int | None:
    """DONE, or GONE for a run without a supervisor and without an end; None while it goes on."""
    status = os.path.join(run, "status.json")
    if os.path.exists(status):
        return DONE
    lock = os.open(os.path.join(run, "lock"), os.O_RDWR)
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return None
    finally:
        os.close(lock)
    return DONE if os.path.exists(status) else GONE


# ---------------------------------------------------------------- the supervisor


def _supervise(run: str) -> None:
    """Be the supervisor: a process of its own that sees the run to its end. Doesn't return."""
    try:
        os.setsid()
        os.chdir(run)
        _redirect()
        _adopt_orphans()
        Run().see_through()
    except BaseException:  # noqa: BLE001  (nobody is above to see it; the run's standard error is)
        traceback.print_exc()
    finally:
        os._exit(0)


def _redirect() -> None:
    nothing, errors = os.open(os.devnull, os.O_RDWR), os.open("stderr", os.O_WRONLY | os.O_APPEND)
    for source, target in ((nothing, 0), (nothing, 1), (errors, 2)):
        os.dup2(source, target)


def _adopt_orphans() -> None:
    """Become the parent of what the script leaves behind, however far it has detached itself."""
    try:
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    except (OSError, AttributeError):
        pass


class Run:
    """One run, from the preparation to the status. The current folder is the run's."""

    def __init__(self) -> None:
        self.request = json.loads(_read("request.json"))
        self.began = time.monotonic()
        limit = self.request["time_limit"]
        self.deadline = self.began + limit if limit else None
        self.phase = "prepare"
        os.mkdir("work", 0o700)

    def see_through(self) -> None:
        """Prepare, run, list the results, and write down how it ended."""
        status: dict[str, Any] = {}
        try:
            self._check_out()
            self._place_files()
            self.phase = "script"
            status = self._execute()
        except Stopped as stopped:
            status = {"stopped": stopped.reason}
        except PrepareFailed as failed:
            self.phase, status = "prepare", {"error": str(failed)}
        except Exception as error:  # noqa: BLE001  (whatever it is, the client must hear of it)
            status = {"error": f"{type(error).__name__}: {error}"}
        _kill_descendants()
        _write("results", b"".join(name + b"\0" for name in self._results()))
        status.update(phase=self.phase, seconds=round(time.monotonic() - self.began, 3))
        _write("status.json", json.dumps(status).encode())

    def _check_out(self) -> None:
        repository, branch = self.request["git_repository"], self.request["git_branch"]
        if not repository:
            return
        command = [
            "git",
            "-c",
            "protocol.ext.allow=never",
            "clone",
            "--quiet",
            "--depth=1",
            "--single-branch",
        ]
        command += ["--no-recurse-submodules", "--no-tags"] + (
            ["--branch=" + branch] if branch else []
        )
        environment = dict(os.environ, LC_ALL="C", GIT_TERMINAL_PROMPT="0", GIT_ASKPASS="true")
        environment["GIT_ALLOW_PROTOCOL"] = "git:http:https:ssh"
        try:
            code = self._wait(
                self._spawn([*command, "--", repository, "work"], ".", environment, log="checkout")
            )
        except OSError as error:
            raise PrepareFailed(f"git can't be started on the machine: {error.strerror}") from error
        said = _read("checkout").decode("utf-8", "replace")
        with open("stderr", "ab") as log:
            log.write(said.encode())
        if code:
            raise PrepareFailed(_reason(said) or f"git ended with {code}")
        # A tag is checked out by its name just as well, but isn't what was asked for.
        if branch and _read(
            os.path.join("work", ".git", "HEAD")
        ).strip() != b"ref: refs/heads/" + os.fsencode(branch):
            raise PrepareFailed("the repository has no branch of that name, only a tag")

    def _place_files(self) -> None:
        """Put the input files where the script runs, over what a checkout may have brought."""
        for folder, _, names in os.walk("files"):
            inside = os.path.relpath(folder, "files")
            try:
                os.makedirs(os.path.join("work", inside), exist_ok=True)
                for name in names:
                    os.replace(os.path.join(folder, name), os.path.join("work", inside, name))
            except OSError as error:
                name = os.path.join(inside, *names[:1])
                raise PrepareFailed(
                    f"can't place the input file {name!r}: {error.strerror}"
                ) from error

    def _execute(self) -> dict[str, Any]:
        path = os.path.abspath(
            os.path.join("work", self.request["script"]) if self.request["script"] else "script"
        )
        try:
            os.chmod(path, os.stat(path).st_mode | stat.S_IRUSR | stat.S_IXUSR)
            with open(path, "rb") as script:
                direct = script.read(4).startswith((b"#!", b"\x7fELF"))
            command = [path] if direct else ["bash", path]
            process = self._spawn(command, "work", {**os.environb, **_environment()})
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise PrepareFailed(f"the script can't be started: {reason}") from error
        code = self._wait(process)
        return {"signal": -code} if code < 0 else {"exit_code": code}

    def _spawn(
        self,
        command: list[str],
        folder: str,
        environment: Any,
        log: str | None = None,
    ) -> subprocess.Popen[bytes]:
        with open(log or "stdout", "ab") as out, open(log or "stderr", "ab") as err:
            return subprocess.Popen(
                command,
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )

    def _wait(self, process: subprocess.Popen[bytes]) -> int:
        while True:
            try:
                return process.wait(TICK)
            except subprocess.TimeoutExpired:
                reason = self._reason_to_stop()
            if reason:
                _signal_group(process.pid, signal.SIGTERM)
                try:
                    process.wait(self.request["grace"])
                except subprocess.TimeoutExpired:
                    _signal_group(process.pid, signal.SIGKILL)
                    process.wait()
                raise Stopped(reason)

    def _reason_to_stop(self) -> str | None:
        if os.path.exists("stop"):
            return "asked"
        if self.deadline is not None and time.monotonic() >= self.deadline:
            return "time"
        return None

    def _results(self) -> list[bytes]:
        """The files that are asked for. Not by `glob`, which follows links to folders, in rounds
        without an end.
        """
        patterns = [
            [part for part in text.split("/") if part not in ("", ".")]
            for text in self.request["results"]
        ]
        found = []
        for folder, _, names in os.walk("work") if patterns else ():
            for name in names:
                path = os.path.join(folder, name)
                parts = os.path.relpath(path, "work").split("/")
                # A pipe or a device would hang whoever reads it.
                if any(matches(parts, pattern) for pattern in patterns) and os.path.isfile(path):
                    found.append(os.fsencode("/".join(parts)))
        return sorted(found)


def matches(path: list[str], pattern: list[str]) -> bool:
    """Whether a file, or a folder above it, matches: `*`, `?` and `[...]` within a name, `**` over
    any folders.

    As in a shell, a name that begins with a dot has to be named with it.
    """
    if not pattern:
        return True
    if pattern == ["**"]:
        return not any(part.startswith(".") for part in path)
    if not path:
        return False
    if pattern[0] == "**":
        return matches(path, pattern[1:]) or (
            not path[0].startswith(".") and matches(path[1:], pattern)
        )
    hidden = path[0].startswith(".") and not pattern[0].startswith(".")
    alike = path[0] == pattern[0] or (not hidden and fnmatch.fnmatchcase(path[0], pattern[0]))
    return alike and matches(path[1:], pattern[1:])


def _environment() -> dict[bytes, bytes]:
    pairs = [pair.partition(b"=") for pair in _read("environment").split(b"\0") if pair]
    # It may hold secrets, and nobody needs it any more.
    os.unlink("environment")
    return {name: value for name, _, value in pairs}


def _reason(said: str) -> str:
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    fatal = [line for line in lines if line.startswith(("fatal:", "error:"))]
    return (fatal or lines or [""])[-1][:500]


def _signal_group(leader: int, number: int) -> None:
    try:
        os.killpg(leader, number)
    except (ProcessLookupError, PermissionError):
        pass


def _kill_descendants() -> None:
    """End whatever the script has left running. Killing a parent brings its children to us, so it
    takes rounds.
    """
    until = time.monotonic() + 10
    while time.monotonic() < until:
        for child in _children():
            try:
                os.kill(child, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):
                pass
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        time.sleep(0.01)


def _children() -> list[int]:
    me = os.getpid()
    return [int(pid) for pid in _read(f"/proc/{me}/task/{me}/children").split()]


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError:
        return b""


def _write(path: str, data: bytes) -> None:
    """All at once or not at all."""
    with open(path + ".new", "wb") as file:
        file.write(data)
    os.replace(path + ".new", path)


def main(arguments: list[str]) -> int:
    """Do what the arguments say."""
    try:
        if arguments[0] == "start":
            return start(arguments[1], arguments[2])
        return follow(arguments[1], [int(offset) for offset in arguments[2:4]])
    except BrokenPipeError:
        return GONE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
