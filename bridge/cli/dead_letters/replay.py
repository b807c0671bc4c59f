"""`dead-letters replay`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from bridge.cli.dead_letters.output import count_of, reasons_of
from bridge.cli.dead_letters.replay_report import ReplayReport
from bridge.cli.dead_letters.scope import Scope
from bridge.cli.screen import bar
from bridge.errors import KestraError, SettingsError
from bridge.job.message import Message
from bridge.kestra import Kestra
from bridge.operate.dead_letters import executions
from bridge.operate.dead_letters.decision import (
    ReplayDecision,
    ReplayResult,
    decide,
    find_obstacle,
    indistinguishable,
)
from bridge.operate.dead_letters.letter import DeadLetter
from bridge.operate.dead_letters.replay import Plan, Tally
from bridge.rabbitmq.command_session import CommandSession

ALIKE = "another letter without an id is just like it, and they can't be told apart"


@dataclass(slots=True, kw_only=True)
class ReplayCommand:
    """Puts jobs back into their queues."""

    scope: Scope
    unchecked: bool
    discard_succeeded: bool
    dry_run: bool
    letters: list[DeadLetter] = field(default_factory=list)
    decisions: list[ReplayDecision] = field(default_factory=list)
    tally: Tally = field(default_factory=Tally)

    @property
    def question(self) -> str:
        """The question that a person must confirm."""
        letters = count_of(len(self.letters), "dead letter")
        return f"Put {letters} of {self.scope.place} back ({reasons_of(self.letters)})?"

    def progress(self) -> str:
        """How far the command has come."""
        wanted = len(self._keys(ReplayResult.REPLAY))
        if not wanted:
            return ""
        jobs = count_of(wanted, "job")
        return f"{len(self.tally.back)} of {jobs} are back; run again, it goes on"

    async def find(self) -> None:
        """Find the selected letters, for the question."""
        async with self.scope.connected() as session:
            self.letters = await self.scope.collect(session, lambda letter, _: letter)

    async def act(self) -> None:
        """Complete what an interrupted replay has begun, then put back what can be."""
        async with self.scope.connected() as session:
            if not self.dry_run:
                await self._complete_interrupted(session)
            found = await self.scope.collect(session, self._with_obstacle)
            letters = [letter for letter, _ in found]
            self.scope.require_jobs(letters, done=self.tally.finished)
            self.decisions = await self._decide(found)
            if not self.dry_run:
                await self._put_back(session)

    def report(self) -> bool:
        """Print what was done, or would be; returns whether nothing is left that should be back."""
        report = ReplayReport(
            scope=self.scope,
            decisions=self.decisions,
            tally=self.tally,
            dry_run=self.dry_run,
            discard_succeeded=self.discard_succeeded,
        )
        if self.scope.as_json:
            report.print_json()
        else:
            report.print()
        return not self.tally.waiting and not self._keys(ReplayResult.REFUSED)

    def _with_obstacle(self, letter: DeadLetter, message: Message) -> tuple[DeadLetter, str | None]:
        settings = self.scope.settings
        obstacle = find_obstacle(
            letter, message, max_priority=settings.max_priority, flows=settings.known_patterns
        )
        return letter, obstacle

    def _keys(self, result: ReplayResult) -> set[bytes]:
        return {decision.letter.key for decision in self.decisions if decision.result is result}

    async def _complete_interrupted(self, session: CommandSession) -> None:
        for lane in self.scope.lanes:
            async with self.scope.opened(session, lane) as dead:
                if await dead.unfinished():
                    await dead.replay(Plan(), self.tally, lambda: None)

    async def _decide(self, found: Sequence[tuple[DeadLetter, str | None]]) -> list[ReplayDecision]:
        letters = [letter for letter, _ in found]
        present = await self._executions([each for each in letters if executions.has_one(each)])
        alike = indistinguishable(letters)
        kestra = self.scope.kestra
        return [
            decide(
                letter,
                obstacle=ALIKE if letter.key in alike else obstacle,
                executions=present.get(letter.key, ()),
                ack_warning=kestra is None or kestra.ack_warning,
            )
            for letter, obstacle in found
        ]

    async def _executions(self, letters: Sequence[DeadLetter]) -> executions.Executions:
        if self.unchecked or not letters:
            return {}
        if self.scope.kestra is None:
            raise SettingsError(
                "BRIDGE_KESTRA_URL is not set, so nobody can tell which jobs have succeeded "
                "meanwhile; set it, or give --unchecked"
            )
        async with Kestra(self.scope.kestra) as kestra:
            with bar("looked up", len(letters)) as advance:
                try:
                    return await executions.look_up(kestra, letters, advance)
                except KestraError as error:
                    raise type(error)(
                        f"{error}; nothing was put back (--unchecked does it without asking)"
                    ) from error

    async def _put_back(self, session: CommandSession) -> None:
        drop = self._keys(ReplayResult.SUCCEEDED) if self.discard_succeeded else frozenset()
        plan = Plan(back=self._keys(ReplayResult.REPLAY), drop=drop)
        meant = plan.back | plan.drop
        letters = [each.letter for each in self.decisions if each.letter.key in meant]
        with bar("put back", len(letters)) as advance:
            for lane in self.scope.lanes_of(letters):
                async with self.scope.opened(session, lane) as dead:
                    await dead.replay(plan, self.tally, advance)
