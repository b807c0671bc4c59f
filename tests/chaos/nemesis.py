"""Makes things go wrong as the schedule says, mends them again, and writes down what it did."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Any

from deploy.local.rabbitmq import RabbitMQ
from tests.chaos.history import Event, Fault
from tests.chaos.kestra import EngineProcess, Kestra, StandinProcess
from tests.chaos.nodes import Nodes
from tests.chaos.replica import Replica
from tests.chaos.schedule import Step
from tests.support.harness import Proxy

SLOW_CHUNK = 0.2
SLOW_PUBLISH = 0.5
API_SHARE = 0.3
SKEW = 3600.0
UNWRITTEN = 5.0
"""Seconds after which RabbitMQ has surely written a policy to disk.

One that was killed 0.7 s after a change came back without it (3.10.8, seen)."""


class Nemesis:
    """Carries out streams of faults side by side until told to stop; then all is well again."""

    def __init__(
        self,
        *,
        nodes: Nodes,
        queue: str,
        kestra: Kestra,
        replicas: Sequence[Replica],
        publisher: Proxy,
        note: Callable[[Event], None],
    ) -> None:
        self._nodes = nodes
        self._queue = queue
        self._kestra = kestra
        self._replicas = replicas
        self._publisher = publisher
        self._note = note
        self._stopping = asyncio.Event()
        self._alone = asyncio.Lock()

    def stop(self) -> None:
        """Begin no more faults."""
        self._stopping.set()

    async def run(self, steps: Iterator[Step]) -> None:
        """One stream's faults, one after the other."""
        for step in steps:
            await self._wait(step.pause)
            if self._stopping.is_set():
                return
            began = time.time()
            act: Callable[[Step], Awaitable[str]] = getattr(
                self, f"_{step.name.replace('-', '_')}", self._api
            )
            target = await act(step)
            self._note(Fault(at=began, until=time.time(), name=step.name, target=target))

    async def _wait(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
        except TimeoutError:
            return

    def _replica(self, step: Step) -> Replica:
        return self._replicas[step.target % len(self._replicas)]

    # Replicas.

    async def _replica_kill(self, step: Step) -> str:
        replica = self._replica(step)
        async with replica.busy:
            replica.kill()
            await asyncio.sleep(step.seconds)
            await replica.start()
        return replica.name

    async def _replica_stop(self, step: Step) -> str:
        replica = self._replica(step)
        async with replica.busy:
            await replica.stop()
            await asyncio.sleep(step.seconds)
            await replica.start()
        return replica.name

    async def _replica_pause(self, step: Step) -> str:
        replica = self._replica(step)
        async with replica.busy:
            replica.pause()
            await asyncio.sleep(step.seconds)
            replica.resume()
        return replica.name

    # The network.

    async def _amqp_cut(self, step: Step) -> str:
        self._replica(step).tap.cut()
        return self._replica(step).name

    async def _kestra_cut(self, step: Step) -> str:
        self._replica(step).kestra.cut()
        return self._replica(step).name

    async def _publisher_cut(self, step: Step) -> str:
        """Cut while jobs are on their way to the broker and confirms on their way back."""
        self._publisher.delay = SLOW_PUBLISH
        await asyncio.sleep(step.seconds)
        self._publisher.cut()
        self._publisher.delay = 0.0
        return "publisher"

    async def _amqp_refuse(self, step: Step) -> str:
        tap = self._replica(step).tap
        tap.refusing = True
        tap.cut()
        await asyncio.sleep(step.seconds)
        tap.refusing = False
        return self._replica(step).name

    async def _amqp_stall(self, step: Step) -> str:
        return await self._stall(self._replica(step).tap, step)

    async def _kestra_stall(self, step: Step) -> str:
        return await self._stall(self._replica(step).kestra, step)

    async def _stall(self, proxy: Proxy, step: Step) -> str:
        proxy.stall()
        await asyncio.sleep(step.seconds)
        proxy.resume()
        return self._replica(step).name

    async def _amqp_slow(self, step: Step) -> str:
        return await self._slow(self._replica(step).tap, step)

    async def _kestra_slow(self, step: Step) -> str:
        return await self._slow(self._replica(step).kestra, step)

    async def _slow(self, proxy: Proxy, step: Step) -> str:
        proxy.delay = SLOW_CHUNK
        await asyncio.sleep(step.seconds)
        proxy.delay = 0.0
        return self._replica(step).name

    # The broker.

    async def _broker_kill(self, step: Step) -> str:
        return await self._kill_node(self._nodes.all[0], step)

    async def _leader_kill(self, step: Step) -> str:
        return await self._kill_node(await self._nodes.leader(self._queue), step)

    async def _node_kill(self, step: Step) -> str:
        return await self._kill_node(self._node(step), step)

    async def _kill_node(self, node: RabbitMQ, step: Step) -> str:
        async with self._without_limit():
            await self._nodes.on(node, node.kill)
            await asyncio.sleep(step.seconds)
            await self._nodes.start(node)
        return node.node

    async def _cluster_kill(self, step: Step) -> str:
        await asyncio.gather(*(self._nodes.on(node, node.kill) for node in self._nodes.all))
        await asyncio.sleep(step.seconds)
        await asyncio.gather(*map(self._nodes.start, self._nodes.all))
        return "all nodes"

    async def _broker_restart(self, step: Step) -> str:
        return await self._node_restart(step)

    async def _node_restart(self, step: Step) -> str:
        node = self._node(step)
        async with self._without_limit():
            await self._nodes.on(node, node.stop)
            await self._nodes.start(node)
        return node.node

    async def _broker_pause(self, step: Step) -> str:
        return await self._pause_node(self._nodes.all[0], step)

    async def _leader_pause(self, step: Step) -> str:
        return await self._pause_node(await self._nodes.leader(self._queue), step)

    async def _pause_node(self, node: RabbitMQ, step: Step) -> str:
        await self._nodes.on(node, node.pause)
        await asyncio.sleep(step.seconds)
        await self._nodes.on(node, node.resume)
        return node.node

    async def _lane_full(self, step: Step) -> str:
        """A lane that takes nothing for a while, from publishers, retries and stamps alike."""
        async with self._without_limit():
            await self._nodes.limit(self._queue, 0)
            await asyncio.sleep(step.seconds)
            await self._nodes.limit(self._queue, None)
            if self._nodes.kind == "classic":
                # A broker that is killed before would start with the limit.
                await asyncio.sleep(UNWRITTEN)
        return self._queue

    def _without_limit(self) -> AbstractAsyncContextManager[object]:
        """Keep a full lane and a broker's start apart where the lane is a classic queue.

        RabbitMQ 3.10.8 drops, when it starts, whatever a classic queue holds beyond its
        `max-length`. It loses the dead letters of that too while the queue of dead letters has no
        leader. No consumer can do anything about it, and deploy/README.md warns of it.
        """
        return self._alone if self._nodes.kind == "classic" else nullcontext()

    def _node(self, step: Step) -> RabbitMQ:
        return self._nodes.all[step.target % len(self._nodes.all)]

    # Kestra.

    async def _api(self, step: Step) -> str:
        """A share of the requests, or the replies, go wrong."""
        if step.name.startswith("replies-"):
            await self._tell("replies", name=step.name)
            await self._wait(step.seconds)
            await self._tell("replies", name="well")
        else:
            await self._tell("fault", name=step.name, share=API_SHARE)
            await self._wait(step.seconds)
            await self._tell("clear")
        return "Kestra"

    async def _kestra_down(self, step: Step) -> str:
        await self._tell("down")
        await asyncio.sleep(step.seconds)
        await self._tell("up")
        return "Kestra"

    async def _executor_down(self, step: Step) -> str:
        """Executions are created and killed, says Kestra, and nothing of it is done."""
        await self._tell("halt")
        await self._wait(step.seconds)
        await self._tell("go_on")
        return "Kestra's executor"

    async def _operator_restarts(self, step: Step) -> str:
        return await self._operate(step)

    async def _operator_changes(self, step: Step) -> str:
        return await self._operate(step)

    async def _operate(self, step: Step) -> str:
        """Operators bring back executions that failed, while the job's retry waits for its turn."""
        await self._tell("operate", how=step.name)
        await self._wait(step.seconds)
        await self._tell("operate", how=None)
        return "Kestra's operators"

    async def _date_ahead(self, step: Step) -> str:
        return await self._skew(step, SKEW)

    async def _date_behind(self, step: Step) -> str:
        return await self._skew(step, -SKEW)

    async def _skew(self, step: Step, seconds: float) -> str:
        """Whatever stands before Kestra dates its answers wrongly."""
        await self._tell("date", skew=seconds)
        await self._wait(step.seconds)
        await self._tell("date", skew=None)
        return "Kestra's gateway"

    async def _engine_kill(self, step: Step) -> str:
        assert isinstance(self._kestra, EngineProcess)
        await self._kestra.kill()
        await asyncio.sleep(step.seconds)
        await self._kestra.start_again()
        return "Kestra's engine"

    async def _tell(self, do: str, **arguments: Any) -> None:
        assert isinstance(self._kestra, StandinProcess)
        await self._kestra.tell(do, **arguments)
