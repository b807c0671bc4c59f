"""A machine's life: created once for an execution, found again by its tags, destroyed for certain.

libcloud blocks, so each call runs in a thread; it knows no errors in common, so they are translated
here, once. Nothing is kept in memory: who is ours, for which execution, and until when, stands on
the machines themselves.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, TypeVar

import structlog
from libcloud.compute.base import Node, NodeDriver
from libcloud.compute.types import NodeState
from tenacity import (
    AsyncRetrying,
    retry_if_exception_type,
    stop_after_attempt,
    stop_after_delay,
    wait_exponential,
    wait_fixed,
)

from bridge.errors import (
    BridgeError,
    KestraError,
    MachineError,
    MachineUnavailable,
    SettingsError,
)
from bridge.machines import qemu
from bridge.machines.errors import translated
from bridge.machines.identity import SshIdentity
from bridge.machines.providers import Order, Provider, Tags, choose, order_of
from bridge.machines.settings import MachineSettings
from bridge.machines.ssh_banner import BannerWait, NoBannerError

log = structlog.get_logger(__name__)
Result = TypeVar("Result")

UNKNOWN_AFTER = 600.0
"""Seconds after which a machine is destroyed whose execution Kestra doesn't know; a sooner answer
may be wrong."""
GONE_TIMEOUT = 120.0
LISTED_TIMEOUT = 60.0
LOOK_AGAIN = 3.0
"""Seconds between the looks at a provider for a machine's address or its end."""
_EXECUTION = re.compile(r"[A-Za-z0-9_-]{1,33}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """A machine of ours. `host` is None until it has an address; `host_key` is the line that it
    must show.
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
    """Whether it no longer runs, and never will again."""

    @property
    def deadline(self) -> datetime:
        """When `reap` destroys it at the latest."""
        return datetime.fromtimestamp(self.tags.deadline, UTC)

    @property
    def data(self) -> dict[str, Any]:
        """What programs need to know of it."""
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Reaped:
    """A machine that had to go, and why. `error`: why it could not be destroyed."""

    machine: Machine
    reason: str
    error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """What a reap did. `troubles`: what it could neither judge nor destroy, a line for each."""

    reaped: Sequence[Reaped]
    kept: int
    troubles: Sequence[str]


Ended = Callable[[str], Awaitable[bool | None]]
"""Whether the execution of that id has ended; None where nobody knows it."""


def name_of(execution: str) -> str:
    """The name of an execution's machine: lower-case, as some providers want it, and yet no two
    share one.
    """
    readable = re.sub(r"[^a-z0-9]+", "-", execution.lower()).strip("-")[:24].strip("-")
    digest = hashlib.sha256(execution.encode()).hexdigest()[:8]
    return "-".join(part for part in ("kestra", readable, digest) if part)


def why_reap(tags: Tags, *, ended: bool | None, now: float) -> str | None:
    """Why a machine has to go; None where it may stay. `ended` is None where Kestra doesn't know
    the execution.
    """
    if tags.deadline <= now:
        return f"its deadline is past since {now - tags.deadline:.0f} s"
    if ended:
        return f"execution {tags.execution} has ended"
    if ended is None and now - tags.created > UNKNOWN_AFTER:
        return f"Kestra doesn't know execution {tags.execution}"
    return None


class Machines:
    """The machines of one provider that carry our tags. Others are never touched."""

    def __init__(self, settings: MachineSettings) -> None:
        self._settings = settings
        self._provider: Provider = choose(settings)
        self._secret = settings.machine_secret.get_secret_value()
        self._owner = hashlib.sha256(
            f"kestra-bridge machine owner: {self._secret}".encode()
        ).hexdigest()[:16]
        self._driver: NodeDriver | None = None

    def identity(self, name: str) -> SshIdentity:
        """The keys of the machine of that name."""
        return SshIdentity.derive(self._secret, name)

    async def create(
        self,
        execution: str,
        job: str,
        deadline: float,
        *,
        size: str | None = None,
        image: str | None = None,
        wait: bool = False,
    ) -> Machine:
        """The execution's machine: the one that it has, else a new one, to live `deadline` seconds
        at most.

        With `wait`, once it answers by SSH. When this fails or is cancelled, no machine of this
        call is left.

        Raises:
            SettingsError: what creating needs is not set, or the execution's id can't be an id.
            MachineError: there is none, and why.
        """
        settings = self._settings.model_copy(
            update={
                key: value
                for key, value in (("machine_size", size), ("machine_image", image))
                if value
            }
        )
        choose(settings, to_create=True)
        if not _EXECUTION.fullmatch(execution):
            raise SettingsError(
                f"{execution!a} is no execution's id: 1 to 33 letters, digits, - and _"
            )
        if found := await self.find(execution):
            return await self._adopted(found, wait=wait)
        await self._destroy(await self._of(execution))
        order = self._order(execution, job, deadline)
        try:
            await self._call("create a machine", lambda: self._create(order, settings))
            machine = await self._settled(order)
            return await self.wait(machine) if wait else machine
        except BaseException as error:
            await self._undo(order)
            # Another task may have been faster, and its machine may be what stood in our way.
            if isinstance(error, MachineError) and (other := await self._find_calmly(execution)):
                return await self._adopted(other, wait=wait)
            raise

    async def find(self, execution: str) -> Machine | None:
        """The execution's machine, if one runs or is about to: of several, whichever all others
        find as well.
        """
        return next((machine for machine in await self._of(execution) if not machine.dead), None)

    async def all(self) -> list[Machine]:
        """All machines of ours, the oldest first."""
        machines = [
            self._machine(node, tags)
            for node in await self._nodes()
            if (tags := Tags.parse(self._provider.tags(node))) and tags.owner == self._owner
        ]
        return sorted(machines, key=lambda machine: (machine.tags.created, machine.id))

    async def destroy(
        self, *, execution: str | None = None, name: str | None = None
    ) -> list[Machine]:
        """Destroy the machines of that execution or name, and return them once they are gone; none
        is fine.

        Raises:
            MachineError: one may be left.
        """
        machines = [
            machine
            for machine in await self.all()
            if machine.tags.execution == execution or machine.name == name
        ]
        await self._destroy(machines)
        return machines

    async def wait(self, machine: Machine) -> Machine:
        """The machine once sshd on it answers.

        Raises:
            MachineUnavailable: it never answered, has died, or is no longer there.
        """
        limit = self._settings.machine_boot_timeout
        retrying = AsyncRetrying(
            retry=retry_if_exception_type(_NotYetError),
            stop=stop_after_delay(limit),
            wait=wait_fixed(0.1),
            reraise=True,
        )
        banner = BannerWait(limit)
        try:
            async for attempt in retrying:
                with attempt:
                    machine = await self._current(machine)
                    await _answers(machine, banner)
        except _NotYetError:
            raise MachineUnavailable(
                f"machine {machine.name} did not answer by SSH within {limit:g} s "
                f"(BRIDGE_MACHINE_BOOT_TIMEOUT){self._said(machine)}"
            ) from None
        return machine

    async def reap(self, ended: Ended, *, dry_run: bool = False) -> Sweep:
        """Destroy every machine of ours whose execution has ended or whose deadline is past, and
        say what was done.
        """
        reaped: list[Reaped] = []
        troubles: list[str] = []
        machines = await self.all()
        for machine in machines:
            try:
                reason = await _why_reap(machine.tags, ended)
            except KestraError as error:
                troubles.append(f"{machine.name}: can't ask for its execution: {error}")
                continue
            if reason is None:
                continue
            outcome = Reaped(machine=machine, reason=reason)
            if not dry_run:
                try:
                    await self._destroy([machine])
                except MachineError as error:
                    outcome = replace(outcome, error=str(error))
                    troubles.append(f"{machine.name}: {error}")
            reaped.append(outcome)
        return Sweep(reaped=reaped, kept=len(machines) - len(reaped), troubles=troubles)

    def _order(self, execution: str, job: str, deadline: float) -> Order:
        name, now = name_of(execution), time.time()
        tags = Tags(
            owner=self._owner,
            execution=execution,
            job=job[:200],
            call=secrets.token_hex(6),
            created=now,
            deadline=now + deadline,
        )
        return Order(
            name=name, tags=tags, user=self._settings.machine_user, identity=self.identity(name)
        )

    async def _adopted(self, machine: Machine, *, wait: bool) -> Machine:
        """A machine that another call made; one that never answers is good for nobody."""
        log.info("the machine exists", machine=machine.name, execution=machine.tags.execution)
        try:
            return await self.wait(machine) if wait else machine
        except MachineUnavailable:
            await self._destroy([machine])
            raise

    def _create(self, order: Order, settings: MachineSettings) -> Node:
        driver = self._connected()
        options = order_of(driver, self._provider, order, settings)
        return driver.create_node(**options)

    async def _settled(self, order: Order) -> Machine:
        """The machine that stays when two tasks made one each at the same moment: the one that both
        see first.
        """
        retrying = AsyncRetrying(
            retry=retry_if_exception_type(_NotYetError),
            stop=stop_after_delay(LISTED_TIMEOUT),
            wait=wait_exponential(0.1, 5),
            reraise=True,
        )
        try:
            async for attempt in retrying:
                with attempt:
                    # What has been made may take a moment to be listed.
                    kept, *others = await self._alive(order)
        except _NotYetError:
            raise MachineUnavailable(
                f"machine {order.name} is not listed {LISTED_TIMEOUT:g} s after it was made"
            ) from None
        await self._destroy([machine for machine in others if machine.tags.call == order.tags.call])
        log.info(
            "machine created", machine=kept.name, execution=order.tags.execution, job=order.tags.job
        )
        return kept

    async def _alive(self, order: Order) -> list[Machine]:
        machines = await self._of(order.tags.execution)
        if alive := [machine for machine in machines if not machine.dead]:
            return alive
        for machine in machines:
            self._check_alive(machine)
        raise _NotYetError

    def _check_alive(self, machine: Machine) -> None:
        if machine.dead:
            said = self._said(machine)
            raise MachineUnavailable(
                f"machine {machine.name} has ended by itself ({machine.state}){said}"
            )

    async def _undo(self, order: Order) -> None:
        """Leave nothing of a call that failed."""
        try:
            machines = await self._of(order.tags.execution)
            await self._destroy(
                [machine for machine in machines if machine.tags.call == order.tags.call]
            )
        except MachineError as error:
            log.error(
                "a half-made machine may be left, until the next reap",
                machine=order.name,
                error=str(error),
            )

    async def _find_calmly(self, execution: str) -> Machine | None:
        try:
            return await self.find(execution)
        except MachineError:
            return None

    async def _of(self, execution: str) -> list[Machine]:
        return [machine for machine in await self.all() if machine.tags.execution == execution]

    async def _current(self, machine: Machine) -> Machine:
        for current in await self.all():
            if current.id == machine.id:
                self._check_alive(current)
                return current
        raise MachineUnavailable(f"machine {machine.name} is no longer there")

    async def _destroy(self, machines: Sequence[Machine]) -> None:
        for machine in machines:
            await self._destroy_one(machine)

    async def _destroy_one(self, machine: Machine) -> None:
        retrying = AsyncRetrying(
            retry=retry_if_exception_type((_NotYetError, MachineUnavailable)),
            stop=stop_after_delay(GONE_TIMEOUT),
            wait=wait_exponential(0.2, 5),
            reraise=True,
        )
        try:
            async for attempt in retrying:
                with attempt:
                    await self._ask_to_destroy(machine)
        except _NotYetError:
            raise MachineUnavailable(
                f"machine {machine.name} is still there {GONE_TIMEOUT:g} s later"
            ) from None
        log.info("machine destroyed", machine=machine.name, execution=machine.tags.execution)

    async def _ask_to_destroy(self, machine: Machine) -> None:
        node = await self._node_of(machine)
        if node is None:
            return
        try:
            await self._call("destroy a machine", lambda: node.driver.destroy_node(node))
        except MachineError:
            # Another task may have destroyed it just now.
            if await self._node_of(machine) is not None:
                raise
        if await self._node_of(machine) is not None:
            raise _NotYetError

    async def _node_of(self, machine: Machine) -> Node | None:
        return next((node for node in await self._nodes() if str(node.id) == machine.id), None)

    async def _nodes(self) -> list[Node]:
        """The provider's nodes without those that are gone or about to."""
        retrying = AsyncRetrying(
            retry=retry_if_exception_type(MachineUnavailable),
            stop=stop_after_attempt(3),
            wait=wait_exponential(0.5, 5),
            reraise=True,
        )
        async for attempt in retrying:
            with attempt:
                nodes: list[Node] = await self._call(
                    "list machines", lambda: self._provider.nodes(self._connected(), self._owner)
                )
        return [node for node in nodes if not _gone(node)]

    def _connected(self) -> NodeDriver:
        # Some drivers ask the provider already when they are made.
        if self._driver is None:
            self._driver = self._provider.connect(self._settings)
        return self._driver

    def _machine(self, node: Node, tags: Tags) -> Machine:
        addresses = [*(node.public_ips or ()), *(node.private_ips or ())]
        if self._settings.machine_address == "private":
            addresses = [*(node.private_ips or ()), *(node.public_ips or ())]
        return Machine(
            id=str(node.id),
            name=node.name,
            state=str(node.state),
            host=next((address for address in addresses if address), None),
            port=int(node.extra.get("port") or 22) if self._is_local else 22,
            user=self._settings.machine_user,
            host_key=self.identity(node.name).host.public,
            tags=tags,
            dead=node.state in self._provider.dead,
        )

    @property
    def _is_local(self) -> bool:
        return self._settings.machine_provider == qemu.NAME

    def _said(self, machine: Machine) -> str:
        """The last word on its console, as the end of an error message."""
        said = (
            self._driver.console(machine.name) if isinstance(self._driver, qemu.QemuDriver) else ""
        )
        return f"; it last said: {said}" if said else ""

    async def _call(self, what: str, function: Callable[[], Result]) -> Result:
        """Run it in a thread. When cancelled, wait for its end: what it makes must not get lost.

        Raises:
            MachineError: it failed.
        """
        task = asyncio.create_task(asyncio.to_thread(function))
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            await asyncio.wait([task])
            if not task.cancelled():
                task.exception()  # so that nobody misses it
            raise
        except BridgeError:
            raise
        except Exception as error:
            account = (
                [self._settings.machine_access_key] if self._settings.machine_access_key else []
            )
            secrets_of_ours = (*self._settings.secrets, *account)
            raise translated(
                error, provider=self._settings.machine_provider, what=what, secrets=secrets_of_ours
            ) from error


class _NotYetError(Exception):
    """Not so yet, and worth another look."""


def _gone(node: Node) -> bool:
    return node.state == NodeState.TERMINATED or node.extra.get("status") == "shutting-down"


async def _why_reap(tags: Tags, ended: Ended) -> str | None:
    # A deadline that is past needs no answer, which may not be had just now.
    return why_reap(tags, ended=False, now=time.time()) or why_reap(
        tags, ended=await ended(tags.execution), now=time.time()
    )


async def _answers(machine: Machine, banner: BannerWait) -> None:
    """Return once the machine speaks SSH.

    Raises:
        _NotYetError: it doesn't, and it is time for another look at the provider, or the wait is
        over.
    """
    if machine.host is None:
        await asyncio.sleep(min(LOOK_AGAIN, banner.left))
        raise _NotYetError
    look_again = banner.waited + LOOK_AGAIN
    while banner.waited < look_again and banner.left > 0:
        with contextlib.suppress(NoBannerError):
            return await banner.once(machine.host, machine.port)
        await asyncio.sleep(0.1)
    raise _NotYetError
