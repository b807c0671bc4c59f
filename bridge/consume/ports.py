"""What the consume path needs of RabbitMQ and of Kestra, and nothing more.

`bridge.rabbitmq` and `bridge.kestra` are the real ones. What each method does and raises is said
there. Tests have others that are in memory, held to the same tests as the real ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from typing import Any, Protocol

from bridge.job.execution import Execution
from bridge.job.job import Job
from bridge.job.message import Delivery, Message
from bridge.kestra import always
from bridge.rabbitmq.topology import Kind
from bridge.settings import Lane

OnDelivery = Callable[[Lane, Delivery], None]
OnReply = Callable[[bytes], None]
OnEntry = Callable[[int, bytes], None]


class PublisherPort(Protocol):
    """Publishes with a confirm and `mandatory`."""

    async def publish(self, message: Message, *, exchange: str = "", routing_key: str = "") -> None:
        """Return once the message stands in a queue.

        Raises:
            PublishFailed: it stands in none.
            BrokerUnavailable: the confirm never came.
        """


class ResultPort(Protocol):
    """Publishes results to the queues that messages name in `reply_to`."""

    async def publish(self, message: Message, *, routing_key: str) -> None:
        """Return once the message stands in the queue; raises `PublishFailed` where it does not."""


class SessionPort(Protocol):
    """Consumers on all lanes, for as long as nothing of it breaks."""

    @property
    def version(self) -> str:
        """The broker's version."""

    @property
    def kinds(self) -> Mapping[str, Kind]:
        """The type of each lane's queue."""

    @property
    def publisher(self) -> PublisherPort:
        """Publishes what a settlement needs to stand elsewhere. Its loss ends the session."""

    @property
    def isolated(self) -> PublisherPort:
        """Publishes one message at a time, over a connection of its own."""

    @property
    def results(self) -> ResultPort:
        """Publishes results, over a connection of its own."""

    @property
    def over_a_publish(self) -> bool:
        """Whether RabbitMQ ended the session over something that was published."""

    def leading(self, name: str) -> AbstractAsyncContextManager[PublisherPort | None]:
        """Lead the replicas in the matter of that name, for as long as the block lasts.

        Gives a publisher with a connection of its own, or None where another session leads.

        Raises:
            BrokerError: that can't be found out, or the publisher can't be had.
        """

    async def ended(self) -> tuple[str, str]:
        """Wait for the session's end; returns the cause as a word and as a line."""

    async def stop_consuming(self) -> None:
        """Take no more deliveries. Those that are here can still be settled."""


class LedgerPort(Protocol):
    """A lane's ledger: entries that all replicas read in one order."""

    async def append(self, entry: bytes) -> None:
        """Write an entry; reading it back shows that it stands there.

        Raises:
            BrokerUnavailable: the ledger is lost.
        """

    async def ended(self) -> str:
        """Wait until it is lost; returns why."""

    def end(self, why: str) -> None:
        """Give it up."""


class BrokerPort(Protocol):
    """Opens sessions with RabbitMQ, and ledgers."""

    def session(
        self, on_delivery: OnDelivery, on_reply: OnReply, *, hold: float
    ) -> AbstractAsyncContextManager[SessionPort]:
        """Connect, declare and consume all lanes; what is unsettled at the block's end is left to
        the broker.

        Raises:
            BrokerError: there is no session to be had.
        """

    def ledger(
        self, queue: str, on_entry: OnEntry, *, window: float
    ) -> AbstractAsyncContextManager[LedgerPort]:
        """Open a lane's ledger. Its entries of the last `window` seconds are brought in their
        order, with their offsets, and then those to come.

        Raises:
            BrokerError: there is none to be had.
        """


class KestraPort(Protocol):
    """Kestra's executions."""

    @property
    def up(self) -> bool:
        """Whether the last request was answered."""

    def now(self) -> datetime:
        """The time by Kestra's clock."""

    def link(self, execution: Execution) -> str:
        """The address at which a person sees the execution."""

    async def probe(self) -> str:
        """The server's version; shows that it answers and lets us in."""

    async def create(self, job: Job, *, permitted: Callable[[], None] = always) -> Execution:
        """Start the execution of this attempt.

        `permitted` is called right before the request is sent; what it raises prevents that.
        """

    async def find(self, job: Job, *, since: datetime | None = None) -> list[Execution]:
        """All executions of this attempt that started since then."""

    async def find_attempts(self, job: Job) -> list[Execution]:
        """All executions of this job, of any attempt."""

    async def unfinished(self) -> list[Execution]:
        """All executions of the bridge's that have not ended."""

    async def oldest_unfinished(self) -> Execution | None:
        """The one of the bridge's executions that started first and has not ended."""

    async def ended_since(
        self,
        since: datetime,
        page: int = 1,
        *,
        started: datetime | None = None,
        size: int | None = None,
    ) -> tuple[list[Execution], bool]:
        """A page of the bridge's executions that ended since then, and whether it is the last.

        `started` leaves out what started before; `size` is the number of executions in a page.
        """

    async def has_run(self, queue: str, *, since: datetime) -> bool:
        """Whether an execution of a job of that queue started since then."""

    async def get(self, execution_id: str) -> Execution | None:
        """The execution of that id; None where Kestra does not know it."""

    async def kill(self, execution_id: str) -> None:
        """Ask for an execution to be killed."""

    async def outputs(self, execution: Execution) -> dict[str, Any]:
        """The outputs of an execution's flow."""

    async def explain(self, execution: Execution) -> str:
        """Why an execution did not end well, on one line."""
