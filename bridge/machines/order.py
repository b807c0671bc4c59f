"""A machine that is to be made: its name, its tags, its user and its keys."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields

from bridge.machines.identity import SshIdentity

PREFIX = "kestra-"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tags:
    """The tags on each of our machines. Times are in seconds since 1970.

    `owner` separates bridges that share an account: it is derived from the secret, and only
    machines that carry our owner are ours. `call` identifies the call that made the machine, in
    case two tasks make one for the same execution at once.
    """

    owner: str
    execution: str
    job: str
    call: str
    created: float
    deadline: float

    @property
    def texts(self) -> dict[str, str]:
        """The tags as a provider stores them."""
        values = asdict(self)
        values["created"] = str(int(self.created))
        values["deadline"] = str(int(self.deadline))
        return {f"{PREFIX}{name}": value for name, value in values.items()}

    @classmethod
    def parse(cls, texts: Mapping[str, str] | None) -> Tags | None:
        """The tags that a machine carries. None if it isn't a bridge's machine."""
        if texts is None:
            return None
        try:
            values = {field.name: texts[f"{PREFIX}{field.name}"] for field in fields(cls)}
            created = float(values.pop("created"))
            deadline = float(values.pop("deadline"))
        except (KeyError, ValueError):
            return None
        return cls(created=created, deadline=deadline, **values)


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """A machine that is to be made, described in no provider's terms.

    `spot`: a cheaper one, which the provider may take away at any time.
    """

    name: str
    tags: Tags
    user: str
    identity: SshIdentity
    spot: bool = False

    @property
    def user_data(self) -> str:
        """The text for cloud-init's first boot.

        It sets the host key and makes one ordinary user with our key. There is no other way in.
        """
        user = {
            "name": self.user,
            "shell": "/bin/bash",
            "lock_passwd": True,
            "ssh_authorized_keys": [self.identity.client.public],
        }
        config = {
            "disable_root": True,
            "ssh_pwauth": False,
            "ssh_deletekeys": True,
            "ssh_genkeytypes": [],
            "ssh_keys": {
                "ed25519_private": self.identity.host.private,
                "ed25519_public": self.identity.host.public,
            },
            "users": [user],
        }
        # JSON is valid YAML, and needs no quoting rules of its own.
        return "#cloud-config\n" + json.dumps(config, indent=1)


def is_spot(choice: str, attempt: int) -> bool:
    """Whether the machine of that attempt is a spot machine, by BRIDGE_MACHINE_SPOT."""
    if choice == "first":
        return attempt == 1
    return choice == "only"


def name_of(execution: str) -> str:
    """The name of an execution's machine: no two executions share one.

    It is in lower case, as some providers demand.
    """
    readable = re.sub(r"[^a-z0-9]+", "-", execution.lower()).strip("-")[:24].strip("-")
    digest = hashlib.sha256(execution.encode()).hexdigest()[:8]
    if not readable:
        return f"kestra-{digest}"
    return f"kestra-{readable}-{digest}"
