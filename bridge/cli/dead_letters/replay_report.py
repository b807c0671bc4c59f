"""What `dead-letters replay` prints at its end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from bridge.cli.dead_letters.output import count_of, dumps, print_result
from bridge.cli.dead_letters.scope import Scope
from bridge.cli.screen import named
from bridge.operate.dead_letters.decision import ReplayDecision, ReplayResult
from bridge.operate.dead_letters.replay import Tally

HELD = (
    "somebody else holds dead letters of that queue, and theirs may be among them; run it "
    "again after that"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayReport:
    """The decisions of a replay, and what was done."""

    scope: Scope
    decisions: Sequence[ReplayDecision]
    tally: Tally
    dry_run: bool
    discard_succeeded: bool

    def print_json(self) -> None:
        """Print a line for each job, for programs."""
        for decision in self.decisions:
            result = self._result(decision)
            print_result(decision.letter, result, dry_run=self.dry_run, why=decision.why)
        for job in sorted(self.tally.finished):
            queue = self.scope.lanes[0].queue if len(self.scope.lanes) == 1 else None
            data = {
                "job": job,
                "queue": queue,
                "result": ReplayResult.REPLAY,
                "reason": None,
                "why": "a replay that was ended had begun it",
            }
            print(dumps(data))

    def print(self) -> None:
        """Print what became of the jobs, or would, for people."""
        if not self.decisions and not self.tally.finished:
            print(self.scope.nothing)
        for line in (*self._back_lines(), *self._left_lines()):
            print(line)

    def _result(self, decision: ReplayDecision) -> str:
        """What became of a letter, or would, as a word."""
        if decision.result is ReplayResult.SUCCEEDED and self.discard_succeeded:
            return "discarded"
        replayed = decision.letter.key in self.tally.back
        if decision.result is ReplayResult.REPLAY and not self.dry_run and not replayed:
            return "gone"
        return decision.result

    def _with(self, result: ReplayResult) -> list[ReplayDecision]:
        return [decision for decision in self.decisions if decision.result is result]

    def _back_lines(self) -> Iterator[str]:
        place = self.scope.place
        if self.tally.finished:
            jobs = _are(len(self.tally.finished), "job")
            yield f"{jobs} back in {place} that a replay had begun which was ended"
        wanted = len({decision.letter.key for decision in self._with(ReplayResult.REPLAY)})
        if wanted and self.dry_run:
            yield f"would put {count_of(wanted, 'job')} back into {place}"
        elif wanted:
            gone = wanted - len(self.tally.back)
            meanwhile = f"; {count_of(gone, 'letter')} had gone meanwhile" if gone else ""
            yield f"{_are(len(self.tally.back), 'job')} back in {place}{meanwhile}"
        if self.tally.doubled:
            yield f"{count_of(self.tally.doubled, 'letter')} stood there twice and went away"

    def _left_lines(self) -> Iterator[str]:
        would = "would be " if self.dry_run else ""
        succeeded = f"{would}left alone (--discard-succeeded throws such letters away)"
        if self.discard_succeeded:
            succeeded = f"{would}discarded"
        for result, what in (
            (ReplayResult.SUCCEEDED, f"succeeded in Kestra meanwhile, {succeeded}"),
            (ReplayResult.RUNNING, f"run again in Kestra, {would}left alone"),
            (ReplayResult.REFUSED, "can't be put back"),
        ):
            left = self._with(result)
            if left:
                names = named([f"{each.letter.name} ({each.why})" for each in left])
                yield f"{count_of(len(left), 'job')} {what}: {names}"
        if self.tally.waiting:
            jobs = count_of(self.tally.waiting, "job")
            yield f"{jobs} that a replay had begun which was ended: {HELD}"


def _are(count: int, what: str) -> str:
    verb = "is" if count == 1 else "are"
    return f"{count_of(count, what)} {verb}"
