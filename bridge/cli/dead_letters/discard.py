"""`dead-letters discard`."""

from __future__ import annotations

from dataclasses import dataclass, field

from bridge.cli.dead_letters.output import count_of, print_result, reasons_of
from bridge.cli.dead_letters.scope import Scope
from bridge.cli.screen import bar
from bridge.operate.dead_letters.letter import DeadLetter
from bridge.operate.dead_letters.replay import Tally


@dataclass(slots=True, kw_only=True)
class DiscardCommand:
    """Removes letters. Nothing is held between `find` and `act`, so a person can be asked."""

    scope: Scope
    dry_run: bool
    letters: list[DeadLetter] = field(default_factory=list)
    tally: Tally = field(default_factory=Tally)

    @property
    def question(self) -> str:
        """The question that a person must confirm."""
        letters = count_of(len(self.letters), "dead letter")
        return f"Discard {letters} of {self.scope.place} ({reasons_of(self.letters)})?"

    def progress(self) -> str:
        """How far the command has come."""
        letters = count_of(len(self.letters), "dead letter")
        return f"{self.tally.dropped.total()} of {letters} are discarded"

    async def find(self) -> None:
        """Find the selected letters."""
        async with self.scope.connected() as session:
            self.letters = await self.scope.collect(session, lambda letter, _: letter)
        self.scope.require_jobs(self.letters)

    async def act(self) -> None:
        """Remove them."""
        keys = {letter.key for letter in self.letters}
        with bar("discarded", len(self.letters)) as advance:
            async with self.scope.connected() as session:
                for lane in self.scope.lanes_of(self.letters):
                    async with self.scope.opened(session, lane) as dead:
                        await dead.discard(keys, self.tally, advance)

    def report(self) -> None:
        """Print what was done, or would be."""
        place, reasons = self.scope.place, reasons_of(self.letters)
        if self.scope.as_json:
            for letter in self.letters:
                gone = not self.dry_run and letter.key not in self.tally.dropped
                print_result(letter, "gone" if gone else "discarded", dry_run=self.dry_run)
        elif not self.letters:
            print(self.scope.nothing)
        elif self.dry_run:
            letters = count_of(len(self.letters), "dead letter")
            print(f"would discard {letters} of {place} ({reasons})")
        else:
            letters = count_of(self.tally.dropped.total(), "dead letter")
            print(f"discarded {letters} of {place} ({reasons})")
