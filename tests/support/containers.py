"""What a test of the image and of docker-compose.yml works with: a checkout, its compose file, and
containers beside it."""

from __future__ import annotations

import json
import os
import re
import secrets
import shlex
import shutil
import subprocess
import sys
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from deploy.local.paths import REPOSITORY
from deploy.local.podman import Podman

IMAGE = "localhost/kestra-bridge"
NETWORK = "kestra-bridge_default"
README_COMMANDS = re.findall(
    r"^docker compose (.+)$", (REPOSITORY / "README.md").read_text(), re.MULTILINE
)

NO_RIGHTS = ("--cap-drop=all", "--security-opt=no-new-privileges", "--init")
NO_DISK = "--read-only"


@dataclass(frozen=True, kw_only=True)
class Checkout:
    """A checkout as of somebody who works with it: with secrets of their own, and other things that
    must not ship."""

    directory: Path
    passwords: Mapping[str, str]
    planted: str = field(default_factory=lambda: f"planted-{secrets.token_hex(8)}")

    @property
    def secrets(self) -> list[str]:
        """What may be found nowhere."""
        return [self.planted, *self.passwords.values()]


def copy_sources(to: Path) -> None:
    listing = [
        "git",
        "-C",
        str(REPOSITORY),
        "ls-files",
        "-z",
        "--cached",
        "--others",
        "--exclude-standard",
    ]
    names = subprocess.run(listing, capture_output=True, text=True, check=True).stdout.split("\0")
    for name in filter(None, names):
        if (REPOSITORY / name).is_file():  # or was removed and isn't committed yet
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(REPOSITORY / name, to / name)


@dataclass(frozen=True)
class Compose:
    """podman-compose in a checkout, which is as good as `docker compose` for what the README
    says."""

    podman: Podman
    directory: Path

    def run(self, *arguments: str, project: str = "kestra-bridge", **variables: str) -> str:
        """What it prints, on whichever stream; fails if it does."""
        program = [sys.executable, "-m", "podman_compose", f"--podman-path={self.podman.command}"]
        done = subprocess.run(
            [*program, f"--project-name={project}", *arguments],
            cwd=self.directory,
            env={**os.environ, **variables},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=240,
            check=False,
        )
        assert done.returncode == 0, (
            f"compose {shlex.join(arguments)} ended with {done.returncode}:\n{done.stdout}"
        )
        return done.stdout

    def readme(self, command: str) -> str:
        """Run the README's command that begins with this."""
        (arguments,) = [line for line in README_COMMANDS if line.startswith(command)]
        return self.run(*shlex.split(arguments))


@dataclass(frozen=True)
class Container:
    """A container and what can be seen of it."""

    podman: Podman
    name: str

    def inspect(self) -> dict[str, Any]:
        (found,) = json.loads(self.podman.run("container", "inspect", self.name))
        return dict(found)

    def exec(self, *command: str) -> str:
        return self.podman.run("exec", self.name, *command)

    def events(self, event: str, **fields: object) -> list[dict[str, Any]]:
        """The log lines with that event and those fields, oldest first."""
        done = self.podman.complete("logs", self.name)
        entries = [
            json.loads(line)
            for line in (done.stdout + done.stderr).splitlines()
            if line.startswith("{")
        ]
        return [
            entry
            for entry in entries
            if entry.get("event") == event and fields.items() <= entry.items()
        ]

    def get(self, path: str) -> str:
        """What its HTTP port answers on a path, with status 200."""
        script = f"import urllib.request; print(urllib.request.urlopen('http://127.0.0.1:9464{path}').read().decode())"
        return self.exec("python", "-c", script)

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples with those labels."""
        samples = (
            s
            for family in text_string_to_metric_families(self.get("/metrics"))
            for s in family.samples
        )
        return sum(
            s.value for s in samples if s.name == name and labels.items() <= s.labels.items()
        )

    @property
    def healthy(self) -> bool:
        return self.podman.complete("healthcheck", "run", self.name).returncode == 0


@dataclass
class Replicas:
    """Containers of the bridge beside the stack's own, with a queue that is theirs."""

    podman: Podman
    checkout: Checkout
    queue: str = field(default_factory=lambda: f"q{uuid.uuid4().hex[:8]}")
    names: list[str] = field(default_factory=list)

    def start(self, *options: str, **settings: object) -> Container:
        """`settings` are names of settings in lower case; the passwords are files, as from Docker
        or Kubernetes."""
        environment = {
            "amqp_url": "amqp://rabbitmq:5672/",
            "amqp_username": "bridge",
            "amqp_password_file": "/run/secrets/rabbitmq-password",
            "kestra_url": "http://kestra:8080",
            "kestra_username": "bridge@example.org",
            "kestra_password_file": "/run/secrets/kestra-password",
            "queue": self.queue,
            "flow": "bridge.jobs/example",
            **settings,
        }
        name = f"{self.queue}-{len(self.names)}"
        self.names.append(name)
        variables = (f"--env=BRIDGE_{key.upper()}={value}" for key, value in environment.items())
        mount = f"--volume={self.checkout.directory}/secrets:/run/secrets:ro"
        place = (f"--name={name}", f"--network={NETWORK}", mount)
        self.podman.run(
            "run", "--detach", *place, *NO_RIGHTS, *(options or [NO_DISK]), *variables, IMAGE
        )
        return Container(self.podman, name)
