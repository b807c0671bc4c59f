"""A machine, as a provider lists it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from bridge.machines.order import Tags


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """A machine of ours.

    `host` is None until the machine has an address. `host_key` is the public key line that its
    sshd must show. `dead` says that it no longer runs, and never will again.
    """

    id: str
    name: str
    state: str
    host: str | None
    port: int
    user: str
    host_key: str
    tags: Tags
    dead: bool

    @property
    def deadline(self) -> datetime:
        """The time from which `reap` destroys it, whatever its execution does."""
        return datetime.fromtimestamp(self.tags.deadline, UTC)

    @property
    def data(self) -> dict[str, Any]:
        """The machine as JSON for programs."""
        return {
            "name": self.name,
            "host": self.host,
            "port": self.port,
            "user": self.user,
            "host_key": self.host_key,
            "state": self.state,
            "execution": self.tags.execution,
            "job": self.tags.job,
            "deadline": self.deadline.isoformat(),
        }
