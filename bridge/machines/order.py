"""A machine that is to be made: its name, its tags, its user and its keys."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from bridge.machines.identity import SshIdentity

PREFIX = "kestra-"
UNKNOWN_TAG = f"{PREFIX}unknown"
_TEXTS = ("owner", "execution", "job", "call")
_OPTIONAL = ("size", "server")
_TIMES = ("created", "deadline", "unknown")
SYSTEMD_UNITS = "/run/systemd/system"
# Else a machine without memory is busy with reading its programs again and again, and is taken for
# lost (Linux, Documentation/admin-guide/mm/multigen_lru.rst).
KILL_WHO_TAKES_ALL_MEMORY = "echo 1000 2>/dev/null >/sys/kernel/mm/lru_gen/min_ttl_ms || :"
"""The shell command after which the kernel kills a process early that takes all memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tags:
    """The tags on each of our machines. Times are in seconds since 1970.

    `owner` separates bridges that share an account: it is derived from the secret, and only
    machines that carry our owner are ours. `call` identifies the call that made the machine, in
    case two tasks make one for the same execution at once. `size` is the one that the settings
    chose, or empty if it is the provider's default. `server` is the id of the Kestra that
    runs the execution, or empty if it wasn't known. `unknown` is the time at which a reap first
    found that Kestra doesn't know the execution, or 0.
    """

    owner: str
    execution: str
    job: str
    call: str
    created: float
    deadline: float
    size: str = ""
    server: str = ""
    unknown: float = 0.0

    @property
    def texts(self) -> dict[str, str]:
        """The tags as a provider stores them. Empty ones are left out."""
        values = asdict(self)
        for name in _TIMES:
            values[name] = str(int(values[name]))
        if not self.unknown:
            del values["unknown"]
        return {
            f"{PREFIX}{name}": value
            for name, value in values.items()
            if value or name not in _OPTIONAL
        }

    @classmethod
    def parse(cls, texts: Mapping[str, str] | None) -> Tags | None:
        """The tags that a machine carries. None if it isn't a bridge's machine."""
        if texts is None:
            return None
        try:
            values = {name: texts[f"{PREFIX}{name}"] for name in _TEXTS}
            created = float(texts[f"{PREFIX}created"])
            deadline = float(texts[f"{PREFIX}deadline"])
            # Machines of earlier versions lack the rest.
            unknown = float(texts.get(f"{PREFIX}unknown", 0))
        except (KeyError, ValueError):
            return None
        values |= {name: texts.get(f"{PREFIX}{name}", "") for name in _OPTIONAL}
        return cls(created=created, deadline=deadline, unknown=unknown, **values)


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

        It sets the host key and makes one ordinary user with our key. There is no other way in. It
        also sets the timer that ends the machine at its deadline, at each boot.
        """
        user = {
            "name": self.user,
            # Unlike bash, it runs no start-up file of the user's before each of our commands.
            "shell": "/bin/sh",
            "lock_passwd": True,
            "ssh_authorized_keys": [self.identity.client.public],
        }
        config = {
            "disable_root": True,
            "ssh_pwauth": False,
            "ssh_deletekeys": True,
            "ssh_keys": {
                "ed25519_private": self.identity.host.private,
                "ed25519_public": self.identity.host.public,
            },
            "users": [user],
            "bootcmd": [
                ["sh", "-c", power_off_at(self.tags.deadline)],
                ["sh", "-c", KILL_WHO_TAKES_ALL_MEMORY],
            ],
        }
        # JSON is valid YAML, and needs no quoting rules of its own.
        return "#cloud-config\n" + json.dumps(config, indent=1)


def is_spot(choice: str, attempt: int) -> bool:
    """Whether the machine of that attempt is a spot machine, by BRIDGE_MACHINE_SPOT."""
    if choice == "first":
        return attempt == 1
    return choice == "only"


def power_off_at(deadline: float, *, units: str = SYSTEMD_UNITS) -> str:
    """The shell command that powers a machine off at that time, in seconds since 1970.

    It returns at once. systemd keeps the timer where it runs, elsewhere a process sleeps. `units`
    is the folder of systemd's units that last until the next boot.

    The timer has files of its own: `systemd-run` waits for D-Bus, which waits for the end of
    cloud-init's first stages (systemd 257, tried). For the same reason the timer depends on
    nothing, and the command does not wait for it.
    """
    timer = r"[Unit]\nDefaultDependencies=no\n[Timer]\nAccuracySec=1s\nOnActiveSec=%s\n"
    service = (
        r"[Unit]\nDefaultDependencies=no\n[Service]\nType=oneshot\n"
        r"ExecStart=/bin/sh -c 'systemctl poweroff --force'\n"
    )
    unit = f"{units}/kestra-deadline"
    return (
        f"left=$(({int(deadline)} - $(date +%s))); "
        '[ "$left" -gt 1 ] || left=1; '
        f'{{ printf "{timer}" "$left" >{unit}.timer && printf "{service}" >{unit}.service && '
        "timeout 60 systemctl daemon-reload && "
        "timeout 60 systemctl start --no-block kestra-deadline.timer; } 2>/dev/null "
        '|| { setsid sh -c "sleep $left; poweroff -f" </dev/null >/dev/null 2>&1 & }'
    )


def server_of(identity: str) -> str:
    """A Kestra's id as a tag: short, and of characters that every provider takes."""
    if not identity:
        return ""
    return hashlib.sha256(identity.encode()).hexdigest()[:16]


def name_of(execution: str) -> str:
    """The name of an execution's machine: no two executions share one.

    It is in lower case, as some providers demand.
    """
    readable = re.sub(r"[^a-z0-9]+", "-", execution.lower()).strip("-")[:24].strip("-")
    digest = hashlib.sha256(execution.encode()).hexdigest()[:8]
    if not readable:
        return f"kestra-{digest}"
    return f"kestra-{readable}-{digest}"
