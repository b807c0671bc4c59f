"""What a command is about, and how it is carried out."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import typer

from bridge.cli import signals, streams
from bridge.cli.dead_letters.output import count_of
from bridge.cli.screen import named
from bridge.errors import BridgeError, NoSuchJob
from bridge.job.message import Message
from bridge.operate.dead_letters.letter import DeadLetter
from bridge.operate.dead_letters.queue import DeadLetterQueue
from bridge.operate.dead_letters.selection import Selection
from bridge.rabbitmq.broker import Broker
from bridge.rabbitmq.command_session import CommandSession
from bridge.settings import FlowSettings, KestraSettings, Lane

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """The letters that a command is about. `kestra` is None where the settings name no Kestra."""

    settings: FlowSettings
    kestra: KestraSettings | None
    lanes: Sequence[Lane]
    selection: Selection
    limit: int | None
    as_json: bool

    @property
    def place(self) -> str:
        """The queues in words."""
        return named([lane.queue for lane in self.lanes])

    @property
    def nothing(self) -> str:
        """The line for an empty result."""
        which = "" if self.selection.means_all else " are like that"
        return f"no dead letters in {self.place}{which}"

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[CommandSession]:
        """A connection for the whole command."""
        broker = Broker(self.settings, name="kestra-bridge dead-letters")
        async with broker.commands() as session:
            with session.alarms_heard(streams.say):
                yield session

    def opened(
        self, session: CommandSession, lane: Lane, *, only_look: bool = False
    ) -> AbstractAsyncContextManager[DeadLetterQueue]:
        """A lane's dead letters."""
        return DeadLetterQueue.open(session, lane, self.settings, only_look=only_look)

    def lanes_of(self, letters: Iterable[DeadLetter]) -> list[Lane]:
        """The lanes that these letters come from."""
        queues = {letter.queue for letter in letters}
        return [lane for lane in self.lanes if lane.queue in queues]

    async def collect(
        self,
        session: CommandSession,
        see: Callable[[DeadLetter, Message], Result],
        *,
        only_look: bool = False,
    ) -> list[Result]:
        """What `see` returns for each selected letter, in order. Letters that can't be seen are
        reported on standard error.
        """
        collected: list[Result] = []
        for lane in self.lanes:
            async with self.opened(session, lane, only_look=only_look) as dead:
                await _warn(dead, lane)
                # Every queue is read to its end: what is given back comes after what was given back
                # before, so a part of the queue would change places with the rest.
                async for letter, message in dead.read():
                    full = self.limit is not None and len(collected) >= self.limit
                    if not full and letter in self.selection:
                        collected.append(see(letter, message))
        return collected

    def require_jobs(self, letters: Sequence[DeadLetter], *, done: Iterable[str] = ()) -> None:
        """Check that every named job has a letter, or has just been put back.

        Raises:
            NoSuchJob: a job has none; nothing else was done yet.
        """
        missing = self.selection.names - set(done)
        for letter in letters:
            missing -= {letter.job, letter.name}
        cut_off = self.limit is not None and len(letters) >= self.limit
        if missing and not cut_off:
            raise NoSuchJob(f"no dead letter in {self.place} is of job {named(sorted(missing))}")


def carry_out(
    work: Coroutine[Any, Any, Result], progress: Callable[[], str] = lambda: ""
) -> Result:
    """Run a command. If it is cut off, the message ends with its `progress`."""
    try:
        return signals.carry_out(work)
    except signals.Signalled as ended:
        streams.say(f"interrupted{_after(progress())}")
        raise typer.Exit(ended.code) from None
    except BridgeError as error:
        raise type(error)(f"{error}{_after(progress())}") from error


def _after(progress: str) -> str:
    return f"; {progress}" if progress else ""


async def _warn(dead: DeadLetterQueue, lane: Lane) -> None:
    """Report letters that this command can't see."""
    if dead.others:
        others = count_of(dead.others, "other reader")
        streams.say(f"{others} of {lane.queue}'s dead letters: what they hold can't be seen")
    unfinished = await dead.unfinished()
    if unfinished:
        jobs = count_of(unfinished, "job")
        streams.say(
            f"{jobs} of {lane.queue} half put back by a replay that was ended: the next replay "
            "goes on with them"
        )
