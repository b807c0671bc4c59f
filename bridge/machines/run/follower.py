"""What the exit status of a run's follower means, as errors."""

from __future__ import annotations

from bridge.machines.run import remote_helper
from bridge.machines.ssh import Address, ConnectionLost, MachineFailed, SshError


class RunRefused(SshError):
    """The machine has a run of that id, for other work."""


class RunVanished(SshError):
    """The run is on the machine, but its supervisor has ended without saying how the run ended."""


def check_status(status: int | None, run_id: str, address: Address) -> None:
    """Return where the run has ended.

    Raises:
        SshError: what the status means else; None and negative ones, that the connection was lost.
    """
    if status is None or status < 0:
        raise ConnectionLost(f"the connection to {address} was lost while the script ran")
    if status == remote_helper.REFUSED:
        raise refused(run_id, address)
    if status == remote_helper.GONE:
        raise RunVanished(
            f"run {run_id} has vanished from {address} without a record of how it ended"
        )
    if status == remote_helper.KILLED:
        raise MachineFailed(
            f"something on {address} has killed the supervisor of run {run_id}, so how the script "
            "ended isn't known; the machine goes on"
        )
    if status == remote_helper.REMOVED:
        raise removed(run_id, address)
    if status == remote_helper.FULL:
        raise MachineFailed(f"{address} has no room on its disk for the run")
    if status != remote_helper.DONE:
        raise MachineFailed(
            f"{address} could not run our helper (exit {status}): does it have python3? And does a "
            "start-up file of its user's shell end the shell?"
        )


def refused(run_id: str, address: Address) -> RunRefused:
    """The error for a run that is there already, for other work."""
    return RunRefused(f"{address} already has a run {run_id}, for other work")


def removed(run_id: str, address: Address) -> MachineFailed:
    """The error for a run whose files have gone."""
    return MachineFailed(
        f"files of run {run_id} were removed on {address}, so how the script ended isn't known: "
        "did it remove ~/.kestra-bridge itself?"
    )
