"""Three RabbitMQ nodes on loopback that are one cluster, of which any may be killed."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

from deploy.local.processes import Child, ProcessError
from deploy.local.rabbitmq import RabbitMQ, Say, Series, inside, lasting_ports, tree

SIZE = 3


class RabbitMQCluster:
    """Nodes with their state in `directory`, the same user on all of them, joined to one cluster as
    they start.

    A quorum queue that is declared while all of them run has a member on each. The nodes are
    `RabbitMQ` objects, to be killed, paused and started one by one. Start it from a thread that
    lives as long as the cluster should.
    """

    def __init__(
        self,
        directory: Path,
        *,
        series: Series = "4.3",
        settings: Mapping[str, str] | None = None,
        advanced: str | None = None,
        say: Say = lambda _: None,
    ) -> None:
        self._directory = directory.resolve()
        self._series = series
        self._settings = settings
        self._advanced = advanced
        self._say = say
        self._epmd_port = next(lasting_ports())
        self._epmd: Child | None = None
        shared = {name: secrets.token_urlsafe(24) for name in ("password", ".erlang.cookie")}
        self.nodes = [self._node(f"rabbit-{number}", shared) for number in range(1, SIZE + 1)]

    def start(self) -> None:
        """Start what doesn't run, and return once all nodes are members; raises `ProcessError` as a
        node does.
        """
        self.start_epmd()
        for node in self.nodes:
            self.start_node(node)

    def start_node(self, node: RabbitMQ) -> None:
        """Start a node, which is to be a member; the first one must run by then. Not by two threads
        for one node.
        """
        node.start()
        first, joined = self.nodes[0], node.directory / "joined"
        if node is not first and not joined.exists():
            # Peer discovery would do it too, but asks the peers by Erlang nodes of its own, which
            # find no way here.
            for command in (["stop_app"], ["join_cluster", first.node], ["start_app"]):
                node.ctl(*command)
            joined.touch()

    def start_epmd(self) -> None:
        """Start what tells the nodes where the others are. Of its own, as it would otherwise die
        with some node.
        """
        if self._epmd is None or not self._epmd.alive:
            command = ["/usr/bin/epmd", "-address", "127.0.0.1", "-port", str(self._epmd_port)]
            place = self._directory / "epmd"
            place.mkdir(parents=True, exist_ok=True)
            self._epmd = Child(
                "epmd",
                inside(tree(self._series, self._say), place, command),
                log=place / "epmd.log",
            )

    def kill(self) -> None:
        """End every process at once."""
        for node in self.nodes:
            node.kill()
        if self._epmd is not None:
            self._epmd.kill()

    def leader(self, queue: str) -> RabbitMQ | None:
        """The node that leads a quorum queue, as a node that runs tells it; None while none is
        known.
        """
        for node in self.nodes:
            with contextlib.suppress(ProcessError, OSError):
                answer: dict[str, Any] = node.api(f"queues/%2F/{quote(queue, safe='')}")
                return next((one for one in self.nodes if one.node == answer.get("leader")), None)
        return None

    def _node(self, name: str, shared: dict[str, str]) -> RabbitMQ:
        directory = self._directory / name
        directory.mkdir(parents=True, exist_ok=True)
        for file, secret in shared.items():
            if not (directory / file).exists():
                (directory / file).touch(mode=0o600)
                (directory / file).write_text(secret)
        return RabbitMQ(
            directory,
            series=self._series,
            settings=self._settings,
            advanced=self._advanced,
            node=name,
            epmd=self._epmd_port,
            say=self._say,
        )

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.kill()
