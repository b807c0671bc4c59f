"""A private RabbitMQ node of any of several versions, without a container engine or an installed
service.

A Debian release with its RabbitMQ is laid out once, as a folder in the cache. A node runs from it
by chroot, in mount and process namespaces of its own: the machine sees no mounts, and when the
node's first process ends, all of it ends.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import json
import os
import random
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, cast, get_args

from deploy.local import debian
from deploy.local.processes import Child, ProcessError

Series = Literal["3.10", "4.0", "4.3"]
Say = Callable[[str], None]

_SUITES: Mapping[Series, str] = {"3.10": "bookworm", "4.0": "trixie", "4.3": "forky"}
_HOST = "127.0.0.1"
_USERNAME = "bridge"

_RECIPE = (
    "--variant=minbase",
    "--components=main",
    "--include=rabbitmq-server",
    # A mirror may lag behind a suite that is still moving.
    '--aptopt=Acquire::Check-Valid-Until "false"',
    "--dpkgopt=path-exclude=/usr/share/doc/*",
    "--dpkgopt=path-exclude=/usr/share/man/*",
    "--dpkgopt=path-exclude=/usr/share/locale/*",
    '--customize-hook=mkdir "$1/state" && echo "127.0.0.1 localhost" > "$1/etc/hosts"',
    # Any user may run it, not only root.
    '--customize-hook=chmod -R a+rX "$1/usr/lib/rabbitmq" "$1/etc/rabbitmq"',
)

# Runs in the new namespaces: $1 the tree, $2 the state folder, then the command.
_ENTER = """
set -e
tree=$1 state=$2
shift 2
mount -t proc proc "$tree/proc" 2>/dev/null || mount --rbind /proc "$tree/proc"
mount --rbind /dev "$tree/dev"
mount --bind "$state" "$tree/state"
mount -t tmpfs tmpfs "$tree/tmp"
hostname localhost
cd /
exec chroot "$tree" "$@"
"""


def _quietly(_: str) -> None:
    """Say nothing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ports:
    """Where a node listens; all on loopback, and the same for as long as the node object lives."""

    amqp: int
    amqps: int
    management: int
    prometheus: int
    distribution: int
    epmd: int

    @classmethod
    def choose(cls, amqp: int | None = None, epmd: int | None = None) -> Ports:
        """Free ports, of which some may be given."""
        numbers = lasting_ports()
        return cls(
            amqp=amqp or next(numbers),
            amqps=next(numbers),
            management=next(numbers),
            prometheus=next(numbers),
            distribution=next(numbers),
            epmd=epmd or next(numbers),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Tls:
    """What a node needs to listen with TLS too, as PEM files: it demands a certificate of its
    clients by the same CA.

    A client may log in by its certificate alone (SASL EXTERNAL), as the user of the certificate's
    common name.
    """

    ca: Path
    certificate: Path
    key: Path


class RabbitMQ:
    """One RabbitMQ node with its state in `directory`; a context manager that starts and stops it.

    Durable state, ports, user and password outlast `stop`, `kill` and `start`. `settings` are lines
    of rabbitmq.conf that add to or replace this node's own, `advanced` is the text of an
    advanced.config. Several nodes find each other by different `node` names and the same `epmd`
    port. Start it from a thread that lives as long as the node should: the kernel ends the node
    with that thread.
    """

    host = _HOST
    username = _USERNAME

    def __init__(
        self,
        directory: Path,
        *,
        series: Series = "3.10",
        settings: Mapping[str, str] | None = None,
        advanced: str | None = None,
        port: int | None = None,
        node: str = "rabbit",
        epmd: int | None = None,
        tls: Tls | None = None,
        say: Say = _quietly,
    ) -> None:
        self.directory = directory.resolve()
        self.series = series
        self.node = f"{node}@localhost"
        self.log = self.directory / "rabbitmq.log"
        self._ports = Ports.choose(port, epmd)
        self._settings = dict(settings or {})
        self._advanced = advanced or "[]."
        self._tls = tls
        self._say = say
        self._child: Child | None = None
        self.directory.mkdir(parents=True, exist_ok=True)
        self.password = _kept_secret(self.directory / "password")

    @property
    def version(self) -> str:
        """The full version that the series stands for at present, such as 3.10.8; makes the tree if
        need be.
        """
        (server,) = tree(self.series, self._say).glob("usr/lib/rabbitmq/lib/rabbitmq_server-*")
        return server.name.removeprefix("rabbitmq_server-")

    @property
    def port(self) -> int:
        """The port that AMQP clients connect to."""
        return self._ports.amqp

    @property
    def tls_port(self) -> int:
        """The port that AMQP clients with TLS connect to, where the node was given what that
        takes.
        """
        return self._ports.amqps

    @property
    def amqp_url(self) -> str:
        """The address for AMQP clients, password included."""
        return f"amqp://{self.username}:{self.password}@{self.host}:{self.port}/"

    @property
    def management_url(self) -> str:
        """The address of the management interface and its API, without credentials."""
        return f"http://{self.host}:{self._ports.management}"

    @property
    def metrics_url(self) -> str:
        """The address that Prometheus would scrape."""
        return f"http://{self.host}:{self._ports.prometheus}/metrics"

    @property
    def alive(self) -> bool:
        """Whether the node's processes run, be it paused or not ready."""
        return self._child is not None and self._child.alive

    def start(self, timeout: float = 90.0) -> None:
        """Start the node and return once it answers AMQP clients; nothing happens if it runs.

        Raises:
            ProcessError: it ended first or took longer than `timeout` seconds; the message has its
            first errors and
                the log's last lines.
        """
        if self.alive:
            return
        root = tree(self.series, self._say)
        self._write_configuration()
        said_before = self.log.stat().st_size if self.log.exists() else 0
        self._child = Child(
            f"RabbitMQ {self.series}",
            inside(root, self.directory, ["/usr/lib/rabbitmq/bin/rabbitmq-server"]),
            log=self.log,
            env=self._environment(),
        )
        try:
            self._child.wait_until(self._answers, timeout=timeout, what="answering AMQP clients")
        except ProcessError as error:
            self.kill()
            raise ProcessError(f"{error}{_first_errors(self.log, said_before)}") from None
        except BaseException:
            self.kill()
            raise

    def stop(self, grace: float = 30.0) -> None:
        """Stop the node in order, by force after `grace` seconds; it returns when no process is
        left.
        """
        if not self.alive:
            return
        self._signal_broker(signal.SIGCONT)
        self._signal_broker(signal.SIGTERM)
        try:
            self._running().wait(grace)
        except ProcessError:
            self._say(f"RabbitMQ {self.series} did not stop within {grace:g} s and is killed")
        self.kill()

    def kill(self) -> None:
        """End every process of the node at once, as a crash would (SIGKILL); it returns when no
        process is left.

        RabbitMQ notes a new quorum queue on disk only about a second after it confirmed the
        declaration. A single node that is killed sooner comes back with the queue empty (4.3) or
        dead (3.10), whatever it confirmed.
        """
        child, self._child = self._child, None
        if child is None:
            return
        # Once the first process of the namespace has been reaped, the kernel has ended all the
        # others.
        for pid in _children(child.pid):
            _send(pid, signal.SIGKILL)
        with contextlib.suppress(ProcessError):
            child.wait(10)
        child.kill()

    def restart(self) -> None:
        """Stop and start, with the same ports and durable state."""
        self.stop()
        self.start()

    def pause(self) -> None:
        """Freeze the broker: its connections stay open and nothing is answered, until `resume`.

        Raises:
            ProcessError: the node doesn't run.
        """
        self._signal_broker(signal.SIGSTOP)

    def resume(self) -> None:
        """Let a paused broker go on.

        Raises:
            ProcessError: the node doesn't run.
        """
        self._signal_broker(signal.SIGCONT)

    def ctl(self, *arguments: str, program: str = "rabbitmqctl", timeout: float = 60.0) -> str:
        """What `rabbitmqctl`, or another of its command-line tools, prints with these arguments.

        Raises:
            ProcessError: it failed or took longer than `timeout` seconds.
        """
        command = inside(
            tree(self.series, self._say),
            self.directory,
            [f"/usr/lib/rabbitmq/bin/{program}", "--quiet", *arguments],
        )
        try:
            done = subprocess.run(
                command,
                env=self._environment(),
                capture_output=True,
                text=True,
                timeout=timeout,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise ProcessError(f"{program} {arguments[0]} took longer than {timeout:g} s") from None
        if done.returncode != 0:
            output = f"{done.stdout}{done.stderr}".strip()
            raise ProcessError(
                f"{program} {arguments[0]} ended with status {done.returncode}: {output}"
            )
        return done.stdout

    def api(self, path: str, *, method: str = "GET", body: object = None) -> Any:
        """What the management API answers on `path` (such as `queues` or `definitions`), decoded;
        None if it is empty.

        Raises:
            ProcessError: it answered with an error; the message has status and body.
        """
        data = None if body is None else json.dumps(body).encode()
        credentials = base64.b64encode(f"{self.username}:{self.password}".encode()).decode()
        headers = {"Authorization": f"Basic {credentials}", "Content-Type": "application/json"}
        request = urllib.request.Request(
            f"{self.management_url}/api/{path}", data, headers, method=method
        )
        try:
            with urllib.request.urlopen(request, timeout=30) as response:
                text = response.read()
        except urllib.error.HTTPError as error:
            with error:
                raise ProcessError(
                    f"{method} {path}: {error.code} {error.read().decode(errors='replace')}"
                ) from None
        return json.loads(text) if text else None

    @property
    def definitions(self) -> dict[str, Any]:
        """All that is defined on the broker now: users, queues, exchanges, bindings, policies."""
        return cast("dict[str, Any]", self.api("definitions"))

    def load_definitions(self, file: Path) -> None:
        """Add the definitions in a JSON file, such as deploy/rabbitmq/definitions.json, to the
        broker's own.

        Raises:
            ProcessError: the broker refused them.
        """
        self.api("definitions", method="POST", body=json.loads(file.read_text()))

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def _running(self) -> Child:
        if self._child is None or not self._child.alive:
            raise ProcessError(f"RabbitMQ {self.series} does not run")
        return self._child

    def _signal_broker(self, number: signal.Signals) -> None:
        for pid in _descendants(self._running().pid):
            if _name(pid) == "beam.smp":
                _send(pid, number)

    def _answers(self) -> bool:
        return _speaks_amqp(self._ports.amqp) and _accepts(self._ports.management)

    def _write_configuration(self) -> None:
        state = self.directory
        lines = {**self._own_settings(), **self._tls_settings(), **self._settings}
        _write_privately(
            state / "rabbitmq.conf", "".join(f"{key} = {value}\n" for key, value in lines.items())
        )
        _write_privately(state / "advanced.config", self._advanced)
        plugins = ["rabbitmq_management", "rabbitmq_prometheus"]
        if self._tls:
            plugins.append("rabbitmq_auth_mechanism_ssl")
            for file in (self._tls.ca, self._tls.certificate, self._tls.key):
                _write_privately(state / "tls" / file.name, file.read_text())
        _write_privately(state / "enabled_plugins", f"[{','.join(plugins)}].\n")
        _kept_secret(state / ".erlang.cookie")
        (state / ".erlang.cookie").chmod(0o400)

    def _own_settings(self) -> dict[str, str]:
        return {
            "listeners.tcp.1": f"{_HOST}:{self._ports.amqp}",
            "management.tcp.ip": _HOST,
            "management.tcp.port": str(self._ports.management),
            "prometheus.tcp.ip": _HOST,
            "prometheus.tcp.port": str(self._ports.prometheus),
            "default_user": self.username,
            "default_pass": self.password,
        }

    def _tls_settings(self) -> dict[str, str]:
        if self._tls is None:
            return {}
        return {
            "listeners.ssl.1": f"{_HOST}:{self._ports.amqps}",
            "ssl_options.cacertfile": f"/state/tls/{self._tls.ca.name}",
            "ssl_options.certfile": f"/state/tls/{self._tls.certificate.name}",
            "ssl_options.keyfile": f"/state/tls/{self._tls.key.name}",
            "ssl_options.verify": "verify_peer",
            "ssl_options.fail_if_no_peer_cert": "true",
            "auth_mechanisms.1": "PLAIN",
            "auth_mechanisms.2": "EXTERNAL",
            "ssl_cert_login_from": "common_name",
        }

    def _environment(self) -> dict[str, str]:
        """The environment inside the tree. It can be read in /proc, so no secret is in it."""
        loopback = "-kernel inet_dist_use_interface {127,0,0,1}"
        # Schedulers that spin while idle would take the cores from the tests.
        calm = "+sbwt none +sbwtdcpu none +sbwtdio none"
        return {
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "LANG": "C.UTF-8",
            "HOME": "/state",
            "ERL_EPMD_ADDRESS": _HOST,
            "ERL_EPMD_PORT": str(self._ports.epmd),
            "ERL_CRASH_DUMP_BYTES": "0",
            "RABBITMQ_NODENAME": self.node,
            "RABBITMQ_DIST_PORT": str(self._ports.distribution),
            "RABBITMQ_CONF_ENV_FILE": "/nonexistent",
            "RABBITMQ_CONFIG_FILE": "/state/rabbitmq.conf",
            "RABBITMQ_ADVANCED_CONFIG_FILE": "/state/advanced.config",
            "RABBITMQ_ENABLED_PLUGINS_FILE": "/state/enabled_plugins",
            "RABBITMQ_MNESIA_BASE": "/state/mnesia",
            "RABBITMQ_LOG_BASE": "/state/log",
            "RABBITMQ_LOGS": "-",
            "RABBITMQ_PID_FILE": "/state/rabbitmq.pid",
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": f"{loopback} {calm}",
            "RABBITMQ_CTL_ERL_ARGS": loopback,
        }


def tree(series: Series, say: Say = _quietly) -> Path:
    """The folder with a Debian release that has this series of RabbitMQ, made on first use (about
    20 s).

    Raises:
        ProcessError: mmdebstrap is missing or failed; the message has the last of what it said.
    """
    return debian.tree("rabbitmq", _SUITES[series], _RECIPE, say)


def inside(root: Path, state: Path, command: Sequence[str]) -> list[str]:
    """The command that runs `command` in the tree, with the state folder as /state and nothing to
    clean up after.
    """
    user = [] if os.geteuid() == 0 else ["--map-root-user"]
    namespaces = ["unshare", *user, "--mount", "--uts", "--pid", "--fork", "--kill-child"]
    return [*namespaces, "sh", "-c", _ENTER, "enter", str(root), str(state), *command]


def lasting_ports() -> Iterator[int]:
    """Free ports that no outgoing connection will be given while the node is down.

    A client that keeps trying a dead port from the kernel's own range ends up connected to itself,
    and holds the port.
    """
    first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    low, high = (10_000, first) if first > 12_000 else (1_100, 10_000)
    yield from (port for port in random.sample(range(low, high), high - low) if _is_free(port))


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind((_HOST, port))
        except OSError:
            return False
    return True


def _accepts(port: int) -> bool:
    try:
        with socket.create_connection((_HOST, port), timeout=1):
            return True
    except OSError:
        return False


def _speaks_amqp(port: int) -> bool:
    """Whether the port answers the protocol header with a method frame on channel 0
    (connection.start).
    """
    try:
        with socket.create_connection((_HOST, port), timeout=2) as client:
            client.sendall(b"AMQP\x00\x00\x09\x01")
            return client.recv(3) == b"\x01\x00\x00"
    except OSError:
        return False


def _first_errors(log: Path, start: int, lines: int = 8) -> str:
    """The first errors since that place in the log: they name the cause, the last lines only the
    consequences.
    """
    with log.open("rb") as file:
        file.seek(start)
        text = file.read().decode(errors="replace")
    errors = [line for line in text.splitlines() if "[error]" in line]
    return "".join(f"\n  first errors | {line}" for line in errors[:lines])


def _kept_secret(file: Path) -> str:
    """The secret in the file, made up on first use."""
    if not file.exists():
        _write_privately(file, secrets.token_urlsafe(24))
    return file.read_text()


def _write_privately(file: Path, text: str) -> None:
    file.parent.mkdir(exist_ok=True)
    file.touch(mode=0o600)
    file.write_text(text)


def _send(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def _children(parent: int) -> list[int]:
    try:
        # Every thread lists the children that it started.
        lists = [file.read_text() for file in Path(f"/proc/{parent}/task").glob("*/children")]
    except OSError:
        return []
    return [int(pid) for line in lists for pid in line.split()]


def _descendants(ancestor: int) -> list[int]:
    found = _children(ancestor)
    for pid in found:
        found.extend(_children(pid))
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a node in the foreground until SIGTERM or Ctrl-C; 1 if it ended by itself."""
    parser = argparse.ArgumentParser(
        prog="python -m deploy.local.rabbitmq", description=main.__doc__
    )
    parser.add_argument(
        "--series",
        choices=get_args(Series),
        default="4.3",
        help="the RabbitMQ to run (default: 4.3)",
    )
    parser.add_argument(
        "--directory", type=Path, help="where its state is kept (default: a temporary folder)"
    )
    parser.add_argument(
        "--port", type=int, help="where AMQP clients connect (default: a free port)"
    )
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with tempfile.TemporaryDirectory(prefix="rabbitmq-") as temporary:
        directory = options.directory or Path(temporary)
        broker = RabbitMQ(directory, series=options.series, port=options.port, say=_to_stderr)
        try:
            with broker:
                _serve(broker)
        except KeyboardInterrupt:
            return 0
        except ProcessError as error:
            _to_stderr(f"error: {error}")
    return 1


def _serve(broker: RabbitMQ) -> None:
    print(f"AMQP        {broker.amqp_url}")
    print(
        f"management  {broker.management_url}  (user {broker.username}, password {broker.password})"
    )
    print(f"metrics     {broker.metrics_url}", flush=True)
    while broker.alive:
        time.sleep(0.5)
    raise ProcessError(f"RabbitMQ {broker.version} ended by itself, see {broker.log}")


def _to_stderr(text: str) -> None:
    print(f"rabbitmq: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
