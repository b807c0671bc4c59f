"""The brokers of a trial, one or three, each minded by a thread of its own so that nothing else
waits for them."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, TypeVar

from deploy.local.processes import ProcessError
from deploy.local.rabbitmq import RabbitMQ, Say, Series
from deploy.local.rabbitmq_cluster import RabbitMQCluster

Choice = Literal["3.10", "4.3", "cluster"]
Result = TypeVar("Result")
LIMITS: dict[str, Any] = {
    "settings": {"collect_statistics_interval": "1000"},
    # What a full lane refuses of a retry queue, RabbitMQ offers it again only after three minutes
    # by default.
    "advanced": "[{rabbit, [{dead_letter_worker_publisher_confirm_timeout, 2000}]}].",
}


class Nodes:
    """The nodes, started and ended from threads that last as long as they do."""

    def __init__(self, choice: Choice, directory: Path, say: Say) -> None:
        self.cluster = (
            RabbitMQCluster(directory, **LIMITS, say=say) if choice == "cluster" else None
        )
        series: Series = "3.10" if choice == "3.10" else "4.3"
        self.all = (
            self.cluster.nodes
            if self.cluster
            else [RabbitMQ(directory / "rabbitmq", series=series, **LIMITS, say=say)]
        )
        self.kind = "classic" if series == "3.10" else "quorum"
        self._threads = [ThreadPoolExecutor(1, thread_name_prefix=node.node) for node in self.all]

    async def on(self, node: RabbitMQ, act: Callable[[], Result]) -> Result:
        """Do something that concerns a node in its thread."""
        threads = self._threads[self.all.index(node)]
        return await asyncio.get_running_loop().run_in_executor(threads, act)

    async def start(self, node: RabbitMQ) -> None:
        cluster = self.cluster
        await self.on(node, (lambda: cluster.start_node(node)) if cluster else node.start)

    async def start_all(self) -> None:
        if self.cluster:
            await self.on(self.all[0], self.cluster.start_epmd)
        first, *others = self.all
        await self.start(first)
        await asyncio.gather(*map(self.start, others))

    async def kill_all(self) -> None:
        await asyncio.gather(*(self.on(node, node.kill) for node in self.all))
        if self.cluster:
            await self.on(self.all[0], self.cluster.kill)
        for threads in self._threads:
            threads.shutdown()

    def addresses(self, first: int = 0) -> list[tuple[str, int]]:
        """Where the nodes listen, beginning with another one for each number."""
        at = first % len(self.all)
        return [(node.host, node.port) for node in (*self.all[at:], *self.all[:at])]

    async def leader(self, queue: str) -> RabbitMQ:
        """The node that leads a queue; the first one where none is known."""
        cluster = self.cluster
        if cluster is None:
            return self.all[0]
        return await asyncio.to_thread(cluster.leader, queue) or self.all[0]

    async def limit(self, queue: str, most: int | None) -> None:
        """Have a queue refuse what is more than so many messages, or let it take any number.

        A queue has to know from the start that it refuses: a classic queue that learns of a limit
        and of its overflow at once drops what it has too much of first.
        """
        definition: dict[str, object] = {"overflow": "reject-publish"}
        if most is not None:
            definition["max-length"] = most
        body = {
            "pattern": f"^{queue}$".replace(".", r"\."),
            "definition": definition,
            "apply-to": "queues",
        }
        await self._ask(f"policies/%2F/limit-{queue}", method="PUT", body=body)

    async def _ask(self, path: str, *, method: str, body: object = None) -> None:
        """Ask a node's management API, one after the other, until one does it: others are down and
        will be back."""
        for node in itertools.cycle(self.all):
            try:
                await asyncio.to_thread(node.api, path, method=method, body=body)
            except (ProcessError, OSError):
                await asyncio.sleep(0.5)
            else:
                return

    async def messages(self, prefix: str) -> dict[str, int] | None:
        """How many messages the queues have whose names begin so, by statistics a second old; None
        while unknown."""
        for node in self.all:
            try:
                rows: Sequence[dict[str, Any]] = await asyncio.to_thread(
                    node.api, "queues?columns=name,messages"
                )
            except (ProcessError, OSError):
                continue
            counts = {
                row["name"]: row.get("messages") for row in rows if row["name"].startswith(prefix)
            }
            known = {name: count for name, count in counts.items() if count is not None}
            # A node that has just started knows its queues before it knows what is in them.
            return known if known and len(known) == len(counts) else None
        return None

    async def counted(self, prefix: str) -> dict[str, int]:
        """The same by the queues themselves, what consumers hold included."""
        node = self.all[0]
        text = await self.on(
            node, lambda: node.ctl("list_queues", "--no-table-headers", "name", "messages")
        )
        rows = [line.split("\t") for line in text.splitlines() if line.startswith(prefix)]
        return {name: int(count) for name, count in rows}
