"""What the commands of `kestra-bridge dead-letters` do."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import typer

from bridge.cli import signals, streams
from bridge.cli.dead_letters_view import Told, counted, dumps, full_data, listing, print_full
from bridge.cli.screen import bar, named
from bridge.errors import BridgeError, KestraError, NoSuchJob, SettingsError
from bridge.job.message import Message
from bridge.kestra import Kestra, execution_url
from bridge.operate.dead_letters import executions
from bridge.operate.dead_letters.letters import (
    DeadLetter,
    Fate,
    Selection,
    Verdict,
    judge,
    obstacle,
    unclear,
)
from bridge.operate.dead_letters.queue import DeadLetterQueue, Plan, Tally
from bridge.rabbitmq.alarms import heard
from bridge.rabbitmq.broker import Broker, Connection, Publisher
from bridge.settings import FlowSettings, KestraSettings, Lane

Result = TypeVar("Result")

ALIKE = "another letter without an id is just like it, and they can't be told apart"
HELD = (
    "somebody else holds dead letters of that queue, and theirs may be among them; run it "
    "again after that"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """What a command is about. Without `kestra` there is none to ask."""

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

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[Session]:
        """A connection for the whole command."""
        broker = Broker(self.settings, name="kestra-bridge dead-letters")
        async with broker.publisher() as (connection, publisher):
            with heard(connection, _say):
                yield Session(broker, connection, publisher)

    def opened(
        self, session: Session, lane: Lane, *, only_look: bool = False
    ) -> AbstractAsyncContextManager[DeadLetterQueue]:
        """A lane's dead letters."""
        return DeadLetterQueue.open(session.connection, lane, self.settings, only_look=only_look)


@dataclass(frozen=True, slots=True)
class Session:
    """What a command talks to RabbitMQ by."""

    broker: Broker
    connection: Connection
    publisher: Publisher


def carry_out(work: Coroutine[Any, Any, Result], told: Callable[[], str] = lambda: "") -> Result:
    """Run a command; where it is cut off, it says how far it came."""
    try:
        return signals.carry_out(work)
    except signals.Signalled as ended:
        _say(f"interrupted{_after(told())}")
        raise typer.Exit(ended.code) from None
    except BridgeError as error:
        raise type(error)(f"{error}{_after(told())}") from error


def _after(told: str) -> str:
    return f"; {told}" if told else ""


async def list_them(scope: Scope) -> None:
    """List the letters that are meant."""
    now = scope.selection.now
    with listing(as_json=scope.as_json, now=now, queues=len(scope.lanes), limit=scope.limit) as (
        take,
        overview,
    ):
        async with scope.connected() as session:
            await _survey(scope, session, lambda letter, _: take(letter), only_look=True)
    if not overview.total and not scope.as_json:
        print(_nothing(scope))


async def show_them(scope: Scope) -> None:
    """Show the letters that are meant in full."""
    async with scope.connected() as session:
        found = await _survey(
            scope, session, lambda letter, message: (letter, message), only_look=True
        )
    _require_jobs(scope, (letter for letter, _ in found))
    told = await _ask_kestra(scope, [letter for letter, _ in found])
    if not found and not scope.as_json:
        print(_nothing(scope))
    for number, (letter, message) in enumerate(found):
        if scope.as_json:
            print(dumps(full_data(letter, message, told[number])))
        else:
            print_full(letter, message, scope.selection.now, told[number])


@dataclass(slots=True, kw_only=True)
class Discard:
    """Throws letters away. Between finding and doing, a person can be asked: nothing is held
    meanwhile.
    """

    scope: Scope
    dry_run: bool
    letters: list[DeadLetter] = field(default_factory=list)
    tally: Tally = field(default_factory=Tally)

    @property
    def question(self) -> str:
        """What a person is to confirm."""
        return (
            f"Discard {_counted(len(self.letters), 'dead letter')} of {self.scope.place} "
            f"({self._reasons})?"
        )

    @property
    def _reasons(self) -> str:
        return counted(Counter(letter.reason for letter in self.letters))

    def told(self) -> str:
        """How far it has come."""
        return (
            f"{self.tally.dropped.total()} of "
            f"{_counted(len(self.letters), 'dead letter')} are discarded"
        )

    async def find(self) -> None:
        """Find the letters that are meant."""
        async with self.scope.connected() as session:
            self.letters = await _survey(self.scope, session, lambda letter, _: letter)
        _require_jobs(self.scope, self.letters)

    async def act(self) -> None:
        """Throw them away."""
        keys = {letter.key for letter in self.letters}
        with bar("discarded", len(self.letters)) as advance:
            async with self.scope.connected() as session:
                for lane in _lanes_of(self.scope, self.letters):
                    async with self.scope.opened(session, lane) as dead:
                        await dead.discard(keys, self.tally, advance)

    def report(self) -> None:
        """Say what was done, or would be."""
        if self.scope.as_json:
            for letter in self.letters:
                gone = not self.dry_run and letter.key not in self.tally.dropped
                _print_result(letter, "gone" if gone else "discarded", dry_run=self.dry_run)
        elif not self.letters:
            print(_nothing(self.scope))
        elif self.dry_run:
            print(
                f"would discard {_counted(len(self.letters), 'dead letter')} of "
                f"{self.scope.place} ({self._reasons})"
            )
        else:
            done = _counted(self.tally.dropped.total(), "dead letter")
            print(f"discarded {done} of {self.scope.place} ({self._reasons})")


@dataclass(slots=True, kw_only=True)
class Replay:
    """Puts jobs back into their queues."""

    scope: Scope
    unchecked: bool
    discard_succeeded: bool
    dry_run: bool
    letters: list[DeadLetter] = field(default_factory=list)
    verdicts: list[Verdict] = field(default_factory=list)
    tally: Tally = field(default_factory=Tally)

    @property
    def question(self) -> str:
        """What a person is to confirm."""
        reasons = counted(Counter(letter.reason for letter in self.letters))
        return (
            f"Put {_counted(len(self.letters), 'dead letter')} of "
            f"{self.scope.place} back ({reasons})?"
        )

    async def find(self) -> None:
        """Find the letters that are meant, to ask whether they are."""
        async with self.scope.connected() as session:
            self.letters = await _survey(self.scope, session, lambda letter, _: letter)

    def told(self) -> str:
        """How far it has come."""
        wanted = len(self._keys(Fate.REPLAY))
        return (
            f"{len(self.tally.back)} of {_counted(wanted, 'job')} are back; run again, it goes on"
            if wanted
            else ""
        )

    async def act(self) -> None:
        """Put back what can be, after what a replay that was ended has begun."""
        async with self.scope.connected() as session:
            if not self.dry_run:
                await self._see_through(session)
            found = await _survey(self.scope, session, self._look)
            _require_jobs(self.scope, (letter for letter, _ in found), done=self.tally.finished)
            self.verdicts = await self._judge(found)
            if not self.dry_run:
                await self._put_back(session)

    def report(self) -> bool:
        """Say what was done, or would be; tells whether nothing is left that should be back."""
        if self.scope.as_json:
            self._print_json()
        else:
            print(*self._lines(), sep="\n")
        return not self.tally.waiting and not self._keys(Fate.REFUSED)

    def _look(self, letter: DeadLetter, message: Message) -> tuple[DeadLetter, str | None]:
        settings = self.scope.settings
        why_not = obstacle(
            letter, message, max_priority=settings.max_priority, flows=settings.known_patterns
        )
        return letter, why_not

    def _keys(self, fate: Fate) -> set[bytes]:
        return {verdict.letter.key for verdict in self.verdicts if verdict.fate is fate}

    async def _see_through(self, session: Session) -> None:
        for lane in self.scope.lanes:
            async with self.scope.opened(session, lane) as dead:
                if await dead.unfinished():
                    await dead.replay(
                        session.broker, session.publisher, Plan(), self.tally, lambda: None
                    )

    async def _judge(self, found: Sequence[tuple[DeadLetter, str | None]]) -> list[Verdict]:
        known = await self._executions(
            [letter for letter, _ in found if executions.has_one(letter)]
        )
        alike = unclear(letter for letter, _ in found)
        kestra = self.scope.kestra
        return [
            judge(
                letter,
                obstacle=ALIKE if letter.key in alike else why_not,
                executions=known.get(letter.key, ()),
                ack_warning=kestra is None or kestra.ack_warning,
            )
            for letter, why_not in found
        ]

    async def _executions(self, letters: Sequence[DeadLetter]) -> executions.Executions:
        if self.unchecked or not letters:
            return {}
        if self.scope.kestra is None:
            raise SettingsError(
                "BRIDGE_KESTRA_URL is not set, so nobody can tell which jobs have succeeded "
                "meanwhile; set it, or give "
                "--unchecked"
            )
        async with Kestra(self.scope.kestra) as kestra:
            with bar("looked up", len(letters)) as advance:
                try:
                    return await executions.look_up(kestra, letters, advance)
                except KestraError as error:
                    raise type(error)(
                        f"{error}; nothing was put back (--unchecked does it without asking)"
                    ) from error

    async def _put_back(self, session: Session) -> None:
        plan = Plan(
            back=self._keys(Fate.REPLAY),
            drop=self._keys(Fate.SUCCEEDED) if self.discard_succeeded else frozenset(),
        )
        letters = [
            each.letter
            for each in self.verdicts
            if each.letter.key in plan.back or each.letter.key in plan.drop
        ]
        with bar("put back", len(letters)) as advance:
            for lane in _lanes_of(self.scope, letters):
                async with self.scope.opened(session, lane) as dead:
                    await dead.replay(session.broker, session.publisher, plan, self.tally, advance)

    def _print_json(self) -> None:
        for verdict in self.verdicts:
            result: str = verdict.fate
            if (
                verdict.fate is Fate.REPLAY
                and not self.dry_run
                and verdict.letter.key not in self.tally.back
            ):
                result = "gone"
            elif verdict.fate is Fate.SUCCEEDED and self.discard_succeeded:
                result = "discarded"
            _print_result(verdict.letter, result, dry_run=self.dry_run, why=verdict.why)
        for job in sorted(self.tally.finished):
            queue = self.scope.lanes[0].queue if len(self.scope.lanes) == 1 else None
            why = "a replay that was ended had begun it"
            print(
                dumps(
                    {"job": job, "queue": queue, "result": Fate.REPLAY, "reason": None, "why": why}
                )
            )

    def _lines(self) -> Iterator[str]:
        """What has become of the jobs, for people."""
        if not self.verdicts and not self.tally.finished:
            yield _nothing(self.scope)
        if self.tally.finished:
            jobs = _are(len(self.tally.finished), "job")
            yield f"{jobs} back in {self.scope.place} that a replay had begun which was ended"
        yield from self._back_lines(len(self._keys(Fate.REPLAY)))
        for fate, what in self._left.items():
            those = [
                f"{each.letter.name} ({each.why})" for each in self.verdicts if each.fate is fate
            ]
            if those:
                yield f"{_counted(len(those), 'job')} {what}: {named(those)}"
        if self.tally.waiting:
            yield (
                f"{_counted(self.tally.waiting, 'job')} that a replay had begun "
                f"which was ended: {HELD}"
            )

    def _back_lines(self, wanted: int) -> Iterator[str]:
        if self.dry_run and wanted:
            yield f"would put {_counted(wanted, 'job')} back into {self.scope.place}"
        elif wanted:
            gone = wanted - len(self.tally.back)
            meanwhile = f"; {_counted(gone, 'letter')} had gone meanwhile" if gone else ""
            yield f"{_are(len(self.tally.back), 'job')} back in {self.scope.place}{meanwhile}"
        if self.tally.doubled:
            yield f"{_counted(self.tally.doubled, 'letter')} stood there twice and went away"

    @property
    def _left(self) -> dict[Fate, str]:
        would = "would be " if self.dry_run else ""
        hint = "" if self.discard_succeeded else " (--discard-succeeded throws such letters away)"
        done = "discarded" if self.discard_succeeded else "left alone"
        return {
            Fate.SUCCEEDED: f"succeeded in Kestra meanwhile, {would}{done}{hint}",
            Fate.RUNNING: f"run again in Kestra, {would}left alone",
            Fate.REFUSED: "can't be put back",
        }


async def _survey(
    scope: Scope,
    session: Session,
    see: Callable[[DeadLetter, Message], Result],
    *,
    only_look: bool = False,
) -> list[Result]:
    """What `see` makes of each letter that is meant, in order; what can't be seen is told of on
    standard error.
    """
    found: list[Result] = []
    for lane in scope.lanes:
        async with scope.opened(session, lane, only_look=only_look) as dead:
            await _warn(dead, lane)
            async for letter, message in dead.read():
                # To the end in any case: what is given back comes after what was given back before,
                # so that a part of the queue would change places with the rest.
                if letter in scope.selection and (scope.limit is None or len(found) < scope.limit):
                    found.append(see(letter, message))
    return found


async def _warn(dead: DeadLetterQueue, lane: Lane) -> None:
    """Tell of what a reader of the list would miss."""
    if dead.others:
        _say(
            f"{_counted(dead.others, 'other reader')} of {lane.queue}'s dead letters: what they "
            "hold can't be seen"
        )
    if unfinished := await dead.unfinished():
        jobs = _counted(unfinished, "job")
        _say(
            f"{jobs} of {lane.queue} half put back by a replay that was ended: the next replay "
            "goes on with them"
        )


def _require_jobs(scope: Scope, letters: Iterable[DeadLetter], *, done: Iterable[str] = ()) -> None:
    """Every job that is named has a letter, or has just been put back.

    Raises:
        NoSuchJob: one has none; nothing else was done yet.
    """
    missing, found = scope.selection.names - set(done), 0
    for letter in letters:
        missing, found = missing - {letter.job, letter.name}, found + 1
    # What a limit leaves out may well be there.
    if missing and (scope.limit is None or found < scope.limit):
        raise NoSuchJob(f"no dead letter in {scope.place} is of job {named(sorted(missing))}")


async def _ask_kestra(scope: Scope, letters: Sequence[DeadLetter]) -> list[Told]:
    """What Kestra tells of each letter's execution. Once it doesn't answer, it isn't asked
    again.
    """
    settings, silence = scope.kestra, "BRIDGE_KESTRA_URL is not set, so Kestra isn't asked"
    told = []
    async with AsyncExitStack() as stack:
        kestra = await stack.enter_async_context(Kestra(settings)) if settings else None
        for letter in letters:
            if kestra is None or letter.execution is None:
                told.append(
                    Told(execution=letter.execution, url=_url(settings, letter), silence=silence)
                )
                continue
            try:
                story = await kestra.logs.failure_report(letter.execution)
            except KestraError as error:
                kestra, silence, story = None, f"Kestra can't tell: {error}", None
            url = kestra.link(story.execution) if kestra and story else _url(settings, letter)
            why = silence if kestra is None else "" if story else "Kestra doesn't know it any more"
            told.append(Told(execution=letter.execution, url=url, story=story, silence=why))
    return told


def _url(settings: KestraSettings | None, letter: DeadLetter) -> str | None:
    if settings is None or letter.flow is None or letter.execution is None:
        return None
    return execution_url(settings, letter.flow, letter.execution)


def _lanes_of(scope: Scope, letters: Iterable[DeadLetter]) -> list[Lane]:
    queues = {letter.queue for letter in letters}
    return [lane for lane in scope.lanes if lane.queue in queues]


def _nothing(scope: Scope) -> str:
    return f"no dead letters in {scope.place}" + (
        "" if scope.selection.means_all else " are like that"
    )


def _print_result(letter: DeadLetter, result: str, *, dry_run: bool, why: str = "") -> None:
    data: dict[str, Any] = {
        "job": letter.job,
        "queue": letter.queue,
        "result": result,
        "reason": letter.reason,
    }
    print(dumps(data | ({"why": why} if why else {}) | ({"dry_run": True} if dry_run else {})))


def _counted(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def _are(count: int, what: str) -> str:
    return f"{_counted(count, what)} {'is' if count == 1 else 'are'}"


def _say(line: str) -> None:
    streams.tell(f"kestra-bridge: {line}")
