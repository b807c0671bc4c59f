"""How a run ended, and the exit code that stands for it. Pure."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from bridge.machines.run.result_list import Missing, RunResults

_SIGTERM = 15
RESULTS_NAMED = 1000
"""The results that a report names at most."""
_MISSING_NAMED = 3
"""The missing results that a message names at most."""


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
"""The exit codes where the script has none of its own: the nearest ones of sysexits.h, and the 124
of `timeout`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """How a run ended: a line for a person, and fields for a program."""

    outcome: ScriptOutcome
    message: str
    seconds: float
    exit_code: int | None = None
    signal: int | None = None
    attached: bool = False
    """Whether the run existed already and was only followed."""
    results: tuple[str, ...] = ()
    """The names of the files that were fetched."""
    missing: tuple[str, ...] = ()
    """The results that could not be fetched, each with the reason."""

    @property
    def succeeded(self) -> bool:
        """Whether the script ended well."""
        return self.outcome is ScriptOutcome.EXITED and self.code == 0

    @property
    def code(self) -> int:
        """The exit code of our own process."""
        if self.outcome in (ScriptOutcome.SIGNALLED, ScriptOutcome.STOPPED):
            signal = self.signal or _SIGTERM
            return 128 + signal
        script_code = self.exit_code or 0
        return EXIT_CODES.get(self.outcome, script_code)

    @property
    def data(self) -> dict[str, Any]:
        """The report as JSON for programs."""
        return {
            "outcome": str(self.outcome),
            "exitCode": self.code,
            "scriptExitCode": self.exit_code,
            "signal": self.signal,
            "seconds": round(self.seconds, 3),
            "attached": self.attached,
            "results": list(self.results[:RESULTS_NAMED]),
            "resultCount": len(self.results),
            "missingResults": list(self.missing[:RESULTS_NAMED]),
            "message": self.message,
        }

    def with_results(self, fetched: RunResults, *, wanted: tuple[str, ...]) -> Report:
        """The report with the files that were fetched. A success that lacks any is none."""
        report = dataclasses.replace(
            self,
            results=tuple(_text(name) for name in fetched.names),
            missing=tuple(map(str, fetched.missing)),
        )
        fault = _fault_of(fetched, wanted)
        if fault and self.succeeded:
            message = f"{self.message}, but {fault}"
            return dataclasses.replace(
                report, outcome=ScriptOutcome.RESULTS_MISSING, message=message
            )
        if fetched.missing:
            return dataclasses.replace(report, message=f"{self.message}; {fault}")
        if len(fetched.names) > RESULTS_NAMED:
            named = f"the report names {RESULTS_NAMED} of {len(fetched.names)} results"
            return dataclasses.replace(report, message=f"{self.message}; {named}")
        return report

    def without_results(self, reason: str, *, lost: bool) -> Report:
        """The report if the results could not even be asked for, because the machine was `lost` or
        for another reason. A script that failed keeps its own end.
        """
        if not self.succeeded:
            return dataclasses.replace(self, message=f"{self.message}; no results: {reason}")
        if lost:
            message = f"{reason}; the script had ended well, but its results are lost"
            return dataclasses.replace(self, outcome=ScriptOutcome.LOST, message=message)
        message = f"{self.message}, but its results are missing: {reason}"
        return dataclasses.replace(self, outcome=ScriptOutcome.RESULTS_MISSING, message=message)


def _fault_of(fetched: RunResults, wanted: tuple[str, ...]) -> str:
    """What is missing, empty if nothing is."""
    if fetched.missing:
        return _in_words(fetched.missing)
    if not fetched.names:
        return f"left nothing that matches {', '.join(map(ascii, wanted))}"
    return ""


def _in_words(missing: tuple[Missing, ...]) -> str:
    named = "; ".join(map(str, missing[:_MISSING_NAMED]))
    more = len(missing) - _MISSING_NAMED
    if more > 0:
        named += f"; and {more} more"
    if len(missing) == 1:
        return f"a result is missing: {named}"
    return f"{len(missing)} results are missing: {named}"


def _text(name: bytes) -> str:
    return name.decode("utf-8", "backslashreplace")


def report_of(status: Mapping[str, Any], *, time_limit: float | None, attached: bool) -> Report:
    """The report of a run that has ended, from the status that its supervisor wrote."""
    seconds = float(status["seconds"])
    outcome, what = _outcome_of(status, time_limit or seconds)
    exit_code = signal = None
    if outcome is ScriptOutcome.EXITED:
        exit_code = status["exit_code"]
    if outcome is ScriptOutcome.SIGNALLED:
        signal = status["signal"]
    return Report(
        outcome=outcome,
        message=f"{what} after {seconds:.1f} s{_shortages(status)}",
        seconds=seconds,
        exit_code=exit_code,
        signal=signal,
        attached=attached,
    )


def _outcome_of(status: Mapping[str, Any], time_limit: float) -> tuple[ScriptOutcome, str]:
    """The outcome and its description."""
    error = status.get("error")
    preparing = status["phase"] == "prepare"
    if error is not None and preparing:
        return ScriptOutcome.PREPARE_FAILED, f"prepare failed: {redacted(error)}"
    if error is not None:
        return ScriptOutcome.FAILED, f"the machine could not run the script: {error}"
    if status.get("stopped") == "time":
        phase = "the preparation" if preparing else "the script"
        message = f"{phase} was stopped at its time limit of {time_limit:g} s"
        return ScriptOutcome.TIMED_OUT, message
    if "stopped" in status:
        return ScriptOutcome.STOPPED, "the script was stopped on request"
    if "signal" in status:
        return ScriptOutcome.SIGNALLED, f"the script was killed by signal {status['signal']}"
    return ScriptOutcome.EXITED, f"the script exited with {status['exit_code']}"


def _shortages(status: Mapping[str, Any]) -> str:
    """What the machine ran out of, as the end of a message."""
    text = ""
    if status.get("out_of_memory") and status.get("exit_code") != 0:
        text = "; the machine ran out of memory, for which its kernel kills processes"
    if status.get("disk_full"):
        text += "; the machine's disk is full"
    return text


def redacted(text: str) -> str:
    """The text on one line, without the credentials of URLs in it."""
    return re.sub(r"(://)\S*@", r"\1…@", " ".join(text.split()))
