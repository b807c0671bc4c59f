"""Child processes that never outlive their purpose."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)

AS_ROOT = () if os.geteuid() == 0 else ("sudo", "-n")
"""What a command begins with that only root may run."""

SYSTEM_PATH = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
"""Where the system's tools are found, those for root too."""


class ProcessError(RuntimeError):
    """A child process did not do what it was started for; the message ends with what it last
    said.
    """


class Child:
    """One child process in a process group of its own, its output in a log file.

    The kernel kills it when the thread that started it dies, and `stop` ends the whole group:
    nothing is left behind, also when a test run is killed.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        log: Path,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> None:
        self.name = name
        self.log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                list(command),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=dict(env) if env is not None else None,
                cwd=cwd,
                start_new_session=True,
                preexec_fn=_die_with_parent,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """The exit status, negative for a signal; None while the process runs."""
        return self._process.poll()

    @property
    def alive(self) -> bool:
        return self.returncode is None

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process alone, if it still runs."""
        if self.alive:
            self._process.send_signal(number)

    def wait(self, timeout: float) -> int:
        """The exit status, waiting at most `timeout` seconds.

        Raises:
            ProcessError: the process still runs by then.
        """
        try:
            return self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise ProcessError(f"{self.name} still runs after {timeout:g} s{self.tail()}") from None

    def stop(self, grace: float = 15.0) -> None:
        """End the process politely, then its whole group by force."""
        self.signal(signal.SIGTERM)
        try:
            self._process.wait(grace)
        except subprocess.TimeoutExpired:
            pass
        self.kill()

    def kill(self) -> None:
        """End the process and all that it started at once (SIGKILL to its group)."""
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            pass
        self._process.wait()

    def wait_until(self, ready: Callable[[], bool], *, timeout: float, what: str) -> None:
        """Return once `ready()` is true.

        Raises:
            ProcessError: the process ended first, or `timeout` seconds passed.
        """
        deadline = time.monotonic() + timeout
        while not ready():
            if not self.alive:
                raise ProcessError(
                    f"{self.name} ended with status {self.returncode} before {what}{self.tail()}"
                )
            if time.monotonic() > deadline:
                raise ProcessError(f"{self.name}: not {what} within {timeout:g} s{self.tail()}")
            time.sleep(0.05)

    def tail(self, lines: int = 15) -> str:
        """The last lines of the log, as the end of an error message."""
        try:
            text = self.log.read_text(errors="replace")
        except OSError:
            return ""
        return "".join(f"\n  | {line}" for line in text.splitlines()[-lines:])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()


def run_tool(
    tool: str, *arguments: str, log: Path, within: Sequence[str] = (), timeout: float = 900.0
) -> None:
    """Run one of the system's tools to its end, its output in the log. What is `within` goes before
    it, as `AS_ROOT`.

    Raises:
        ProcessError: it's missing, it failed or it took longer than `timeout` seconds; the message
        ends with its log.
    """
    for program in {tool, *within[:1]}:
        if shutil.which(program, path=SYSTEM_PATH) is None:
            raise ProcessError(f"{program} is missing; deploy/local/bootstrap installs it")
    child = Child(
        tool, [*within, tool, *arguments], log=log, env={**os.environ, "PATH": SYSTEM_PATH}
    )
    try:
        status = child.wait(timeout)
    finally:
        # What is interrupted is thrown away: there is no reason to end it slowly.
        child.kill()
    if status != 0:
        raise ProcessError(f"{tool} ended with status {status}{child.tail()}")


def _die_with_parent() -> None:
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
