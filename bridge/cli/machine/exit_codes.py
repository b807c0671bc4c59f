"""The outcome of `machine run` for each error, and what its exit codes mean."""

from __future__ import annotations

from collections.abc import Mapping

from bridge.errors import (
    BridgeError,
    MachineAnswerLost,
    MachineDenied,
    MachineProviderBusy,
    MachineUnavailable,
)
from bridge.machines.run.follower import RunRefused, RunVanished
from bridge.machines.run.report import EXIT_CODES, ScriptOutcome
from bridge.machines.ssh import (
    ConnectionLost,
    LoginDenied,
    MachineGone,
    MachineUnreachable,
    WrongHostKey,
)

OUTCOMES: Mapping[type[BridgeError], ScriptOutcome] = {
    RunRefused: ScriptOutcome.REFUSED,
    RunVanished: ScriptOutcome.LOST,
    ConnectionLost: ScriptOutcome.LOST,
    MachineGone: ScriptOutcome.LOST,
    MachineUnreachable: ScriptOutcome.UNREACHABLE,
    MachineUnavailable: ScriptOutcome.UNREACHABLE,
    MachineProviderBusy: ScriptOutcome.UNREACHABLE,
    MachineAnswerLost: ScriptOutcome.UNREACHABLE,
    MachineDenied: ScriptOutcome.DENIED,
    WrongHostKey: ScriptOutcome.WRONG_HOST_KEY,
    LoginDenied: ScriptOutcome.DENIED,
}
"""Any other error of ours is FAILED."""

MEANINGS: Mapping[ScriptOutcome, str] = {
    ScriptOutcome.REFUSED: "the machine already has a run of that id, for other work",
    ScriptOutcome.PREPARE_FAILED: "the checkout failed, or the script could not be started",
    ScriptOutcome.UNREACHABLE: "the machine did not let us in in time",
    ScriptOutcome.FAILED: "the machine lacks what a run needs (python3, SFTP, space on its disk), "
    "or something on it killed what watches the script, or removed the run's files",
    ScriptOutcome.RESULTS_MISSING: "the script succeeded, but results are missing or can't be "
    "written here",
    ScriptOutcome.LOST: "the machine was lost, and with it how the script ended or its results",
    ScriptOutcome.WRONG_HOST_KEY: "another host key than the machine's own",
    ScriptOutcome.DENIED: "the machine refuses the user or the key, or its provider our account",
    ScriptOutcome.TIMED_OUT: "stopped at --time-limit",
}


def exit_code_lines() -> str:
    """A paragraph of the help for each exit code, in their order."""
    by_code = sorted(EXIT_CODES.items(), key=lambda item: item[1])
    return "\n".join(f"{code}  {MEANINGS[outcome]}\n" for outcome, code in by_code)
